"""What is asked of the engine: queues, cancellation, stops, constraints, adapters, hidden states, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from engine.test_engine import make_model

from herder.engine import Constraint, Engine, PromptLookup, Sampling
from herder.posttrain.lora import LoraConfig, adapter_tensors, add_adapter, merge, save_adapter

LONG = Sampling(temperature=0, max_tokens=40, stop_ids=())


@pytest.fixture(scope="module")
def model(tok):
    return make_model(tok, max_seq_len=128)


@pytest.fixture
def engine(model, tok):
    return Engine(model, tok, max_batch=2, token_budget=8)


def run(engine):
    while engine.step():
        pass


def whole(engine):
    """Nothing is left behind."""
    scheduler = engine.scheduler
    return not engine._owners and len(scheduler) == 0 and scheduler.blocks.available == scheduler.blocks.count


def test_requests_submitted_while_others_run_get_what_they_get_alone(engine, model, tok):
    prompts = [[i, i + 1, i + 2] for i in range(5, 30, 5)]
    asked = []
    for prompt in prompts:
        asked += engine.submit(prompt, LONG)
        engine.step()
    run(engine)
    assert [r.ids for r in asked] == [d.ids for d in Engine(model, tok).generate(prompts, LONG)]
    assert whole(engine)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 20])
def test_cancelling_at_any_phase_frees_everything_and_disturbs_nobody(engine, model, tok, steps):
    kept, dropped = engine.submit([7, 8, 9], LONG) + engine.submit(list(range(30)), LONG)
    late = engine.submit([1, 2], Sampling(n=3, max_tokens=9, stop_ids=()))
    for _ in range(steps):
        engine.step()
    engine.cancel([dropped, *late])
    engine.cancel([dropped])
    run(engine)
    assert kept.ids == Engine(model, tok).generate([[7, 8, 9]], LONG)[0].ids
    assert len(dropped.ids) < 40
    assert whole(engine)


def test_a_stream_that_is_dropped_frees_everything(engine):
    stream = engine.stream([1, 2, 3], LONG)
    next(stream)
    stream.close()
    assert whole(engine)


def test_two_streams_can_be_read_in_turns(engine, model, tok):
    streams = [engine.stream(prompt, LONG) for prompt in ([1, 2, 3], [4, 5, 6])]
    pieces = [[], []]
    for one, other in zip(*streams, strict=True):
        pieces[0].append(one)
        pieces[1].append(other)
    expected = Engine(model, tok).generate([[1, 2, 3], [4, 5, 6]], LONG)
    for got, done in zip(pieces, expected, strict=True):
        assert [i for p in got for i in p.ids] == done.ids
        assert "".join(p.text for p in got) == done.text


def test_the_more_urgent_request_is_finished_first(engine):
    slow = engine.submit([1, 2, 3], LONG, priority=5) + engine.submit([1, 2, 4], LONG, priority=5)
    for _ in range(4):
        engine.step()
    (quick,) = engine.submit([9, 9], Sampling(temperature=0, max_tokens=4, stop_ids=()), priority=0)
    while quick.stop_reason is None:
        engine.step()
    assert all(r.stop_reason is None for r in slow)


@pytest.mark.parametrize("proposer", [None, lambda: PromptLookup(longest=2, shortest=1)], ids=["plain", "drafts"])
def test_text_ends_before_a_stop_string_wherever_tokens_end(model, tok, proposer):
    engine = Engine(model, tok, proposer=proposer)
    prompt, free = [40, 41], Sampling(temperature=0, max_tokens=60, stop_ids=())
    text = engine.generate([prompt], free)[0].text
    for start, length in ((5, 3), (20, 2), (len(text) // 2, 7)):
        stop = text[start : start + length]
        sampling = Sampling(temperature=0, max_tokens=60, stop_ids=(), stop=(stop, "never to be seen"))
        done = engine.generate([prompt], sampling)[0]
        assert (done.text, done.stop_reason) == (text[: text.index(stop)], "stop")
        assert "".join(p.text for p in engine.stream(prompt, sampling)) == done.text


def test_text_held_back_for_a_stop_string_is_given_at_the_end(engine):
    text = engine.generate([[40, 41]], LONG)[0].text
    sampling = Sampling(temperature=0, max_tokens=40, stop_ids=(), stop=text[-1] + "\0")
    assert engine.generate([[40, 41]], sampling)[0].text == text


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Alan"]}, "ok": {"type": "boolean"}},
    "required": ["name", "ok"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("proposer", [None, lambda: PromptLookup(longest=2, shortest=1)], ids=["plain", "drafts"])
def test_an_untrained_model_answers_by_the_schema(model, tok, temperature, proposer):
    pytest.importorskip("llguidance", reason='constraints need pip install "herder[constrain]"')
    engine = Engine(model, tok, proposer=proposer)
    sampling = Sampling(temperature=temperature, max_tokens=100, n=3, constraint=Constraint(json_schema=SCHEMA))
    for done in engine.generate([[1, 2, 3], [4, 5]], sampling):
        answer = json.loads(done.text)
        assert done.stop_reason == "stop"
        assert answer["name"] in ("Ada", "Alan")
        assert isinstance(answer["ok"], bool)


def test_a_constraint_binds_its_own_request_only(model, tok):
    pytest.importorskip("llguidance", reason='constraints need pip install "herder[constrain]"')
    engine = Engine(model, tok)
    bound = Sampling(temperature=0, max_tokens=40, constraint=Constraint(regex="[ab]{3}"))
    both = engine.generate([[1, 2, 3], [1, 2, 3]], [LONG, bound])
    assert both[0].ids == engine.generate([[1, 2, 3]], LONG)[0].ids
    assert len(both[1].text) == 3
    assert set(both[1].text) <= set("ab")


def test_text_held_back_is_given_where_a_constraint_ends(model, tok):
    pytest.importorskip("llguidance", reason='constraints need pip install "herder[constrain]"')
    bound = Sampling(temperature=0, constraint=Constraint(regex="abab"), stop="abX", stop_ids=())
    done = Engine(model, tok).generate([[1, 2, 3]], bound)[0]
    assert (done.text, done.stop_reason) == ("abab", "stop")


def test_likeliest_alternatives_are_the_models(engine, model):
    done = engine.generate([[1, 2, 3]], Sampling(max_tokens=4, stop_ids=(), top_logprobs=3))[0]
    with torch.no_grad():
        own = model(torch.tensor([[1, 2, 3, *done.ids]]))[0].log_softmax(-1)[2:-1].topk(3, -1)
    assert [[i for i, _ in row] for row in done.top_logprobs] == own.indices.tolist()
    np.testing.assert_allclose([[p for _, p in row] for row in done.top_logprobs], own.values, atol=1e-4)


def adapters(model, folder, count=2):
    """Saved adapters, and for each a model into which it is merged."""
    made = {}
    for seed in range(count):
        copy, config = make_adapted(model, seed)
        save_adapter(copy[0], config, folder / f"a{seed}")
        made[f"a{seed}"] = copy[1]
    return made


def make_adapted(model, seed):
    from copy import deepcopy

    config = LoraConfig(rank=3, alpha=6, targets=("q_proj", "down_proj") if seed else ("v_proj", "o_proj", "up_proj"))
    trained, merged = deepcopy(model), deepcopy(model)
    add_adapter(trained, config)
    noise = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(t.shape, generator=noise) * 0.3 for n, t in adapter_tensors(trained).items()}
    merge(merged, tensors, config)
    return (tensors, merged), config


def test_adapters_beside_one_model_give_what_merged_models_give(model, tok, tmp_path):
    merged, engine = adapters(model, tmp_path), Engine(model, tok)
    for name in merged:
        engine.load_adapter(name, tmp_path / name)
    prompts = [[1, 2, 3], [1, 2, 3, 4], [9, 8]]
    asked = [(name, engine.submit(p, LONG, adapter=name)[0]) for p in prompts for name in ("", *merged)]
    run(engine)
    for number, (name, request) in enumerate(asked):
        alone = Engine(merged.get(name, model), tok).generate([prompts[number // 3]], LONG)[0]
        assert request.ids == alone.ids, name
    texts = {tuple(request.ids) for _, request in asked}
    assert len(texts) == 9, "the adapters do something"
    scores = engine.score([[1, 2, 3]], [[4, 5, 6]], adapter="a1")[0]
    np.testing.assert_allclose(scores, Engine(merged["a1"], tok).score([[1, 2, 3]], [[4, 5, 6]])[0], atol=1e-4)


def test_adapters_that_do_not_fit_are_refused(model, tok, tmp_path):
    adapters(model, tmp_path)
    engine = Engine(model, tok)
    with pytest.raises(ValueError, match="no adapter 'a0'"):
        engine.submit([1], LONG, adapter="a0")
    with pytest.raises(ValueError, match="no adapter that can be read"):
        engine.load_adapter("x", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="for another one"):
        Engine(make_model(tok, dim=32, n_heads=2), tok).load_adapter("a0", tmp_path / "a0")
    engine.load_adapter("a0", tmp_path / "a0")
    with pytest.raises(ValueError, match="taken"):
        engine.load_adapter("a0", tmp_path / "a1")
    with pytest.raises(ValueError, match="beside full weights"):
        Engine(model, tok, quantized="int8").load_adapter("a0", tmp_path / "a0")


def test_hidden_states_are_the_models_at_the_last_position(engine, model):
    rows = [[1, 2, 3], [4], list(range(20))]
    with torch.no_grad():
        expected = np.stack([model.hidden(torch.tensor([row]))[0, -1].numpy() for row in rows])
    np.testing.assert_allclose(engine.embed(rows), expected, atol=1e-4)
    head = torch.randn(64)
    np.testing.assert_allclose(engine.reward(rows, head), expected @ head.numpy(), rtol=1e-4, atol=1e-3)
    assert whole(engine)


def test_more_requests_than_memory_holds_are_all_served(model, tok):
    small = Engine(model, tok, cache_tokens=160, max_batch=16)
    prompts = [[i] * 20 for i in range(30)]
    done = small.generate(prompts, LONG)
    assert [d.ids for d in done] == [d.ids for d in Engine(model, tok).generate(prompts, LONG)]
    assert whole(small)


def test_an_overcommitted_cache_preempts_and_changes_no_text(model, tok):
    small = Engine(model, tok, cache_tokens=160, max_batch=16, token_budget=64, overcommit=4.0)
    prompts = [[i] * 20 for i in range(12)]
    done = small.generate(prompts, LONG)
    assert small.scheduler.preemptions > 0
    assert [d.ids for d in done] == [d.ids for d in Engine(model, tok).generate(prompts, LONG)]
    assert whole(small)


def test_a_request_that_memory_can_never_hold_is_refused_and_leaves_nothing(model, tok):
    small = Engine(model, tok, cache_tokens=64)
    with pytest.raises(ValueError, match="give the cache more memory"):
        small.generate([[1, 2], [3] * 60], LONG)
    assert whole(small)
    assert len(small.generate([[1, 2]], LONG)[0].ids) == 40


def test_a_thousand_samples_of_one_prompt(model, tok):
    done = Engine(model, tok).generate([[1, 2, 3]], Sampling(n=1000, max_tokens=2, stop_ids=()))
    assert len(done) == 1000
    assert len({tuple(d.ids) for d in done}) > 500


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"logit_bias": {5000: 1.0}}, "logit_bias names the id 5000"),
        ({"stop_ids": (5000,)}, "stop_ids names the id 5000"),
        ({"top_logprobs": 5000}, "top_logprobs is 5000"),
    ],
)
def test_settings_that_do_not_fit_the_vocabulary_are_refused(engine, settings, said):
    with pytest.raises(ValueError, match=said):
        engine.generate([[1]], Sampling(**settings))


def test_a_step_that_breaks_leaves_an_engine_that_works(model, tok, monkeypatch):
    engine = Engine(model, tok)
    (hurt,) = engine.submit([1, 2, 3], LONG)
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "run", lambda batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    assert "start this generation again" in hurt.error
    assert engine.generate([[1, 2, 3]], LONG)[0].ids == Engine(model, tok).generate([[1, 2, 3]], LONG)[0].ids
    assert whole(engine)


def test_an_update_forgets_what_old_weights_computed(model, tok):
    other, prompt = make_model(tok, 1, max_seq_len=128), list(range(60))
    engine = Engine(make_model(tok, max_seq_len=128), tok)
    engine.generate([prompt], LONG)
    engine.update(other.state_dict())
    assert engine.generate([prompt], LONG)[0].ids == Engine(other, tok).generate([prompt], LONG)[0].ids


@pytest.mark.long
def test_a_soak_with_cancellations_leaks_no_block_and_no_memory(model, tok):
    import random
    import resource

    engine, r, alive, peak = (
        Engine(model, tok, max_batch=8, cache_tokens=1024, token_budget=64),
        random.Random(0),
        [],
        [],
    )
    for step in range(12_000):
        if r.random() < 0.3 and len(alive) < 30:
            prompt = [r.randrange(50) for _ in range(r.randrange(1, 60))]
            sampling = Sampling(n=r.randrange(1, 4), max_tokens=r.randrange(1, 40), seed=step, stop_ids=())
            alive += engine.submit(prompt, sampling, priority=r.randrange(3), client=str(r.randrange(4)))
        if alive and r.random() < 0.1:
            engine.cancel([alive.pop(r.randrange(len(alive)))])
        engine.step()
        alive = [request for request in alive if request.stop_reason is None]
        if step in (4_000, 11_999):
            peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    engine.cancel(alive)
    assert whole(engine)
    assert peak[1] - peak[0] < 8 * 1024, "kilobytes of growth over 8,000 steps"
