import math

import numpy as np
import pytest
import torch

from herder.engine import Engine, Sampling
from herder.model import Llama, LlamaConfig

GREEDY = Sampling(temperature=0, max_tokens=20, logprobs=True, stop_ids=())


def make_model(tok, seed=0, **changes):
    shape = {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 128, "max_seq_len": 96}
    model = Llama(LlamaConfig(tok.n_vocab, **(shape | changes))).init_weights(seed)
    with torch.no_grad():  # sharper than a fresh model, so that greedy choices are no coin flips
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
    return model


@pytest.fixture(scope="module")
def model(tok):
    return make_model(tok)


@pytest.fixture(scope="module")
def engine(model, tok):
    return Engine(model, tok)


@pytest.fixture(scope="module")
def prompts(tok):
    texts = [
        "def f(",
        "",
        "The quick brown fox jumps over the lazy dog, twice or thrice",
        "import",
        "a b c d e f g",
        "日本",
        "x",
        "return",
    ]
    return [tok.encode(text, bos=True) for text in texts]


@torch.no_grad()
def recomputed(model, prompt, steps):
    """Greedy continuation by running the whole sequence again for each token, without any cache."""
    ids, logprobs = list(prompt), []
    for _ in range(steps):
        last = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        ids.append(int(last.argmax()))
        logprobs.append(float(last.max()))
    return ids[len(prompt) :], logprobs


@pytest.mark.parametrize("max_batch", [1, 3, 8])
def test_greedy_decoding_equals_recomputation_without_a_cache(model, tok, prompts, max_batch):
    for prompt, done in zip(prompts, Engine(model, tok, max_batch=max_batch).generate(prompts, GREEDY), strict=True):
        ids, logprobs = recomputed(model, prompt, 20)
        assert done.ids == ids
        np.testing.assert_allclose(done.logprobs, logprobs, atol=1e-4)
        assert (done.stop_reason, done.text) == ("length", tok.decode(ids, special=False))


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_every_grouping_of_heads_decodes_alike(tok, prompts, kv_heads):
    model = make_model(tok, n_kv_heads=kv_heads, tie_embeddings=kv_heads == 1)
    done = Engine(model, tok).generate(prompts[:3], GREEDY)
    assert [d.ids for d in done] == [recomputed(model, p, 20)[0] for p in prompts[:3]]


SAMPLINGS = [
    Sampling(max_tokens=12),
    Sampling(temperature=0.7, top_p=0.9, max_tokens=30, seed=3),
    Sampling(temperature=1.3, top_k=20, min_p=0.05, max_tokens=17, logprobs=True),
    Sampling(temperature=0, repetition_penalty=1.3, max_tokens=25),
    Sampling(temperature=0.9, n=3, max_tokens=9),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_request_gives_the_same_alone_and_in_a_batch(engine, prompts, sampling):
    together = engine.generate(prompts, sampling)
    alone = [done for prompt in prompts for done in engine.generate([prompt], sampling)]
    assert [d.ids for d in together] == [d.ids for d in alone]
    assert [d.stop_reason for d in together] == [d.stop_reason for d in alone]
    if sampling.logprobs:
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_a_mixed_batch_equals_one_by_one_at_any_size(model, tok, prompts):
    each = [SAMPLINGS[i % 4] for i in range(len(prompts))]
    alone = [Engine(model, tok, max_batch=1).generate([p], s)[0].ids for p, s in zip(prompts, each, strict=True)]
    for max_batch in (2, 5, 32):
        assert [d.ids for d in Engine(model, tok, max_batch=max_batch).generate(prompts, each)] == alone


def test_the_seed_decides_the_samples(engine, prompts):
    first, again, other = (engine.generate(prompts, Sampling(seed=seed, max_tokens=16)) for seed in (1, 1, 2))
    assert [d.ids for d in first] == [d.ids for d in again]
    assert all(a.ids != b.ids for a, b in zip(first, other, strict=True))


def test_samples_of_one_prompt_differ_and_stand_together(engine, prompts):
    done = engine.generate(prompts[:2], Sampling(n=4, max_tokens=8))
    assert len(done) == 8
    assert len({tuple(d.ids) for d in done[:4]}) == 4
    assert done[4].ids == engine.generate([prompts[1]], Sampling(max_tokens=8))[0].ids


def test_every_sample_of_a_prompt_sees_the_whole_prompt(engine, model, prompts):
    sampling = Sampling(n=3, max_tokens=8, logprobs=True, stop_ids=())
    for done in engine.generate([prompts[2]], sampling):
        with torch.no_grad():
            reference = model(torch.tensor([prompts[2] + done.ids]))[0].log_softmax(-1)[len(prompts[2]) - 1 : -1]
        expected = reference.gather(-1, torch.tensor(done.ids)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(done.logprobs, expected, atol=1e-4)


def test_generation_ends_with_the_first_stop_id(engine, model, prompts):
    ids, _ = recomputed(model, prompts[2], 20)
    stop = ids[6]
    done = engine.generate([prompts[2]], Sampling(temperature=0, max_tokens=20, stop_ids=(stop,)))[0]
    assert done.ids == ids[: ids.index(stop) + 1]
    assert done.stop_reason == "stop"


def test_the_tokenizers_stop_ids_are_the_default_and_not_in_the_text(tok, prompts):
    model = make_model(tok, tie_embeddings=True)
    eot = tok.special["<|eot_id|>"]
    with torch.no_grad():  # the last hidden state of "x" points at the embedding of eot
        hidden = model.hidden(torch.tensor([prompts[6]]))[0, -1]
        model.model.embed_tokens.weight[eot] = hidden * 10
    done = Engine(model, tok).generate([prompts[6]], Sampling(temperature=0, max_tokens=5))[0]
    assert (done.ids, done.text, done.stop_reason) == ([eot], "", "stop")


def test_generation_ends_where_the_context_ends(engine, tok):
    prompt = [tok.bos_id] * 90
    done = engine.generate([prompt], Sampling(temperature=0, max_tokens=50, stop_ids=()))[0]
    assert (len(done.ids), done.stop_reason) == (6, "length")


def test_logprobs_are_the_models_own_under_any_sampling(engine, model, prompts):
    sampling = Sampling(temperature=0.5, top_p=0.8, max_tokens=10, logprobs=True, stop_ids=())
    done = engine.generate([prompts[0]], sampling)[0]
    row = torch.tensor([prompts[0] + done.ids])
    with torch.no_grad():
        reference = model(row)[0].log_softmax(-1)[len(prompts[0]) - 1 : -1].gather(-1, torch.tensor(done.ids)[:, None])
    np.testing.assert_allclose(done.logprobs, reference[:, 0].numpy(), atol=1e-4)


def test_a_stream_gives_the_same_ids_and_text_as_generate(engine, tok, prompts):
    sampling = Sampling(max_tokens=40, seed=5)
    pieces = list(engine.stream(prompts[5], sampling))
    done = engine.generate([prompts[5]], sampling)[0]
    assert [i for p in pieces for i in p.ids] == done.ids
    assert "".join(p.text for p in pieces) == done.text
    assert [p.stop_reason for p in pieces] == [None] * (len(pieces) - 1) + [done.stop_reason]


def test_completions_arrive_as_they_finish(engine, prompts):
    each = [Sampling(max_tokens=20, stop_ids=()), Sampling(max_tokens=2, stop_ids=())]
    assert [i for i, _ in engine.completed(prompts[:2], each)] == [1, 0]


def test_ids_of_padded_embeddings_are_never_produced(tok, prompts):
    model = make_model(tok, n_layers=1)
    wide = Llama(LlamaConfig(tok.n_vocab + 64, 64, 1, 4, 2, 128, max_seq_len=96)).init_weights(1)
    with torch.no_grad():
        wide.lm_head.weight[tok.n_vocab :] *= 1000
    done = Engine(wide, tok).generate(prompts, Sampling(max_tokens=20))
    assert max(i for d in done for i in d.ids) < tok.n_vocab == model.config.vocab_size


@pytest.mark.parametrize("max_batch", [1, 8])
def test_scores_are_the_models_log_probabilities(model, tok, prompts, max_batch):
    continuations = [tok.encode(t) for t in (" x, y)", "Once upon a time", "", ".", " h", "の", " = 1", " None")]
    scores = Engine(model, tok, max_batch=max_batch).score(prompts, continuations)
    for prompt, continuation, score in zip(prompts, continuations, scores, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + continuation]))[0].log_softmax(-1)
        expected = [float(logprobs[len(prompt) - 1 + i, t]) for i, t in enumerate(continuation)]
        np.testing.assert_allclose(score, np.array(expected, np.float32), atol=1e-4)


def test_scores_do_not_depend_on_the_batch(engine, tok, prompts):
    continuations = [tok.encode(t) for t in (" x, y)", "Once upon a time", " a", ".", " h", "の", " = 1", " None")]
    together = engine.score(prompts, continuations)
    for prompt, continuation, score in zip(prompts, continuations, together, strict=True):
        np.testing.assert_allclose(score, engine.score([prompt], [continuation])[0], atol=1e-5)


def test_scoring_can_fill_the_context_and_one_more(engine, tok):
    assert len(engine.score([[tok.bos_id]], [[1] * 96])[0]) == 96
    with pytest.raises(ValueError, match="scores 97 at most"):
        engine.score([[tok.bos_id]], [[1] * 97])


@pytest.mark.parametrize("tied", [False, True])
def test_update_swaps_all_weights_and_counts_versions(tok, prompts, tied):
    model, other = (make_model(tok, seed, tie_embeddings=tied) for seed in (0, 1))
    engine = Engine(model, tok)
    assert engine.generate(prompts[:1], GREEDY)[0].version == 0
    engine.update(other.state_dict())
    done = engine.generate(prompts[:1], GREEDY)[0]
    assert (done.ids, done.version, engine.version) == (recomputed(other, prompts[0], 20)[0], 1, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("model.norm.weight"), "lacks 1 of .* model.norm.weight"),
        (lambda w: w.update(more=torch.zeros(1)), "the first is more"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(3, 64)}), r"lm_head.weight has shape \(3, 64\)"),
    ],
)
def test_a_wrong_update_changes_nothing(tok, change, said):
    model, other = make_model(tok), make_model(tok, 1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    weights = dict(other.state_dict())
    change(weights)
    engine = Engine(model, tok)
    with pytest.raises(ValueError, match=said):
        engine.update(weights)
    assert engine.version == 0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_an_update_during_a_stream_is_refused(tok, prompts):
    engine = Engine(make_model(tok), tok)
    stream = engine.stream(prompts[0], GREEDY)
    next(stream)
    engine.update(make_model(tok, 1).state_dict())
    with pytest.raises(RuntimeError, match="were updated while"):
        next(stream)


def test_bfloat16_copies_the_model_and_stays_close(model, tok, prompts):
    half = Engine(model, tok, dtype=torch.bfloat16)
    assert next(model.parameters()).dtype == torch.float32
    full = Engine(model, tok).score(prompts[:3], [[5, 6, 7]] * 3)
    for a, b in zip(half.score(prompts[:3], [[5, 6, 7]] * 3), full, strict=True):
        np.testing.assert_allclose(a, b, atol=0.3)
    assert len(half.generate(prompts, GREEDY)) == len(prompts)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "prompt 1 is empty"),
        ([1] * 96, "prompt 1 has 96 tokens"),
        ([1, 2048], "holds the id 2048"),
        ([-1], "the id -1"),
        ("hi", "is text"),
    ],
)
def test_a_prompt_that_cannot_run_is_named(engine, prompt, said):
    with pytest.raises(ValueError, match=said):
        engine.generate([[1], prompt], GREEDY)


def test_a_tokenizer_larger_than_the_model_is_refused(tok):
    with pytest.raises(ValueError, match="give the tokenizer that the model was trained with"):
        Engine(Llama(LlamaConfig(tok.n_vocab - 1, 64, 1, 4, 2, 128)).init_weights(0), tok)


def test_weights_that_are_not_numbers_are_reported(tok, prompts):
    model = make_model(tok)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        Engine(model, tok).generate(prompts[:1], GREEDY)


def test_no_prompts_give_no_completions(engine):
    assert engine.generate([]) == []
    assert engine.score([], []) == []
