"""The same tokens on every path: alone, batched, from a cached prefix, in chunks, preempted, speculated, on either runner."""

import numpy as np
import pytest
import torch
from engine.test_engine import make_model

from herder.engine import Engine, PromptLookup, Sampling
from herder.engine.draft import DraftModel
from herder.engine.graphs import GraphRunner
from herder.engine.kernels import unavailable

CLOSE = 1e-4
"""Two logits nearer than this may change places between kernels."""


class Wrong:
    """Proposes random drafts, so nearly all of them are refused."""

    def __init__(self):
        self.random = np.random.default_rng(0)

    def propose(self, tokens):
        return self.random.integers(0, 60, int(self.random.integers(0, 5))).tolist()

    def judged(self, proposed, accepted):
        pass


def greedy(count: int) -> Sampling:
    return Sampling(temperature=0, max_tokens=count, logprobs=True, stop_ids=())


def texts(tok, count: int, seed: int = 0) -> list[list[int]]:
    """Random ids, of which many share a beginning of random length with another."""
    r, made = np.random.default_rng(seed), []
    for _ in range(count):
        own = r.integers(0, tok.n_vocab, int(r.integers(1, 40))).tolist()
        shared = made[int(r.integers(len(made)))] if made and r.random() < 0.6 else [tok.bos_id]
        made.append([*shared[: int(r.integers(1, len(shared) + 1))], *own][:60])
    return made


def plainly(engine, prompts, count):
    return engine.generate(prompts, greedy(count))


def cached(engine, prompts, count):
    plainly(engine, prompts, count)
    before = engine.scheduler.computed_tokens
    done = plainly(engine, prompts, count)
    again = engine.scheduler.computed_tokens - before - len(prompts) * count
    assert again < sum(map(len, prompts)) / 10, "of the prompts little more than their last tokens is computed again"
    return done


def interrupted(engine, prompts, count):
    """Every prompt is pushed aside by a more urgent one once it has some tokens."""
    requests = []
    for number, prompt in enumerate(prompts):
        requests += engine.submit(prompt, greedy(count), priority=-number)
        for _ in range(3):
            engine.step()
    while engine.step():
        pass
    assert engine.scheduler.preemptions >= len(prompts) // 2
    return [request.completion(0) for request in requests]


PATHS = {
    "alone": ({"max_batch": 1}, plainly),
    "batched": ({"max_batch": 8}, plainly),
    "chunked": ({"max_batch": 3, "token_budget": 7}, plainly),
    "cached": ({"cache_tokens": 2**16}, cached),
    "preempted": ({"max_batch": 2}, interrupted),
    "looked up": ({"proposer": lambda: PromptLookup(longest=2, shortest=1)}, plainly),
    "wrong drafts": ({"proposer": Wrong}, plainly),
}


def check(model, prompts, done) -> int:
    """Every token is the model's own likeliest where nothing is cached, or one so close that kernels may differ; how many of
    those. Log-probabilities agree."""
    ties = 0
    for prompt, completion in zip(prompts, done, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion.ids[:-1]]))[0, len(prompt) - 1 :]
        own = logits.gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
        behind = logits.amax(-1) - own
        assert float(behind.max()) < CLOSE
        ties += int((behind > 0).sum())
        expected = (own - logits.logsumexp(-1)).numpy()
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
    return ties


@pytest.fixture(scope="module")
def model(tok):
    return make_model(tok, max_seq_len=192)


NATIVE = pytest.param(True, marks=pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "kernels are there"))


@pytest.mark.parametrize("native", [False, NATIVE], ids=["torch", "kernels"])
@pytest.mark.parametrize("path", PATHS)
def test_a_path_changes_neither_greedy_tokens_nor_log_probabilities(model, tok, path, native):
    settings, run = PATHS[path]
    engine, prompts = Engine(model, tok, native=native, **settings), texts(tok, 12)
    done = run(engine, prompts, 20)
    check(model, prompts, done)
    assert len(engine.scheduler) == 0
    assert engine.scheduler.blocks.available == engine.scheduler.blocks.count, "no block is leaked"


@pytest.mark.long
@pytest.mark.parametrize(
    ("native", "paths"),
    [(False, ("batched",)), pytest.param(True, PATHS, marks=NATIVE.marks)],
    ids=["torch", "kernels"],
)
def test_two_hundred_prompts_of_128_tokens_on_every_path(model, tok, native, paths, capsys):
    prompts, found = texts(tok, 200, seed=1), {}
    for name in paths:
        settings, run = PATHS[name]
        done = run(Engine(model, tok, native=native, **settings), prompts, 128)
        ties = check(model, prompts, done)
        found[name] = [d.ids for d in done]
        first = next(iter(found))
        same = sum(a == b for a, b in zip(found[name], found[first], strict=True))
        with capsys.disabled():
            print(f"\n{name}: {same} of 200 texts as {first}, {ties} tokens within {CLOSE} of the likeliest", end="")


@pytest.mark.parametrize("native", [NATIVE], ids=["kernels"])
def test_kernels_give_the_same_bits_alone_and_in_any_batch(model, tok, native):
    prompts = texts(tok, 12)
    alone = Engine(model, tok, max_batch=1, native=native).generate(prompts, greedy(16))
    for settings in ({"max_batch": 5}, {"token_budget": 9, "max_batch": 4}, {"proposer": Wrong}):
        done = Engine(model, tok, native=native, **settings).generate(prompts, greedy(16))
        assert [d.logprobs for d in done] == [d.logprobs for d in alone]
        assert [d.ids for d in done] == [d.ids for d in alone]


def test_the_function_of_the_graphs_computes_what_the_plain_runner_does(model, tok):
    """What CUDA captures: fixed shapes, filled up with rows that must leave no trace."""
    for settings, most in (({"max_batch": 5}, 8), ({"max_batch": 3, "cache_tokens": 400}, 4)):
        engine, prompts = Engine(model, tok, native=False, **settings), texts(tok, 12)
        engine.runner = GraphRunner(model, engine.pages)
        check(model, prompts, plainly(engine, prompts, 20))
        assert max(rows for rows, _ in engine.runner.graphs) == most
        assert len({blocks for _, blocks in engine.runner.graphs}) > 1


def test_speculation_by_a_draft_model_changes_nothing_and_saves_steps(model, tok):
    prompts, sampled = texts(tok, 4), Sampling(max_tokens=30, seed=1, stop_ids=())
    for sampling in (greedy(30), sampled):
        plain, quick = Engine(model, tok), None
        expected = [d.ids for d in plain.generate(prompts, sampling)]
        draft = Engine(model, tok, max_batch=1)  # as good as a draft can be
        quick = Engine(model, tok, proposer=lambda d=draft: DraftModel(d, tok))
        assert [d.ids for d in quick.generate(prompts, sampling)] == expected
        if sampling is not sampled:
            assert quick.scheduler.steps < plain.scheduler.steps / 2


def test_a_draft_model_with_another_tokenizer_is_refused(model, tok):
    class Other:
        n_vocab, fingerprint = tok.n_vocab, "another"

    with pytest.raises(ValueError, match="another tokenizer"):
        DraftModel(Engine(model, Other()), tok)


def test_samples_of_one_prompt_compute_it_once(model, tok):
    engine, prompt = Engine(model, tok), texts(tok, 1, seed=3)[0] + list(range(50))
    engine.generate([prompt], Sampling(n=8, max_tokens=10, stop_ids=()))
    # each sample but the first reads the prompt's last token itself, and none computes its own last token
    assert engine.scheduler.computed_tokens == len(prompt) + 7 + 8 * 9


def test_choices_of_one_question_share_its_context(model, tok):
    engine, context = Engine(model, tok), texts(tok, 1, seed=4)[0][:1] + list(range(100, 140))
    choices = [[i, i + 1, i + 2, i + 3] for i in (10, 20, 30, 40)]
    scores = engine.score([context] * 4, choices)
    alone = sum(len(context) + len(choice) - 1 for choice in choices)
    assert engine.scheduler.computed_tokens * 2.5 < alone
    for choice, score in zip(choices, scores, strict=True):
        np.testing.assert_allclose(score, Engine(model, tok).score([context], [choice])[0], atol=1e-5)


@pytest.mark.parametrize(("dtype", "far"), [(torch.int8, 0.5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("native", [False, NATIVE], ids=["torch", "kernels"])
def test_keys_and_values_in_fewer_bits_stay_close(model, tok, dtype, far, native):
    rows = [prompt + list(range(5, 25)) for prompt in texts(tok, 6, seed=5)]
    full = Engine(model, tok).score([r[:1] for r in rows], [r[1:] for r in rows])
    # scoring in one go may read fresh keys: small steps make every path read the pages
    small = Engine(model, tok, kv_dtype=dtype, native=native, token_budget=8, max_batch=8)
    assert small.pages.k.dtype == dtype
    found = small.score([r[:1] for r in rows], [r[1:] for r in rows])
    worst = max(np.abs(a - b).max() for a, b in zip(full, found, strict=True))
    assert 1e-6 < worst < far
