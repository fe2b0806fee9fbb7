import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.engine.constrain import Constraint, Masks
from herder.engine.sample import Past, Sampling, _weights, choose, pick, uniforms
from herder.tokenizer import Tokenizer

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -4.0])


def frequencies(sampling, count=40_000, past=None):
    """How often each token is drawn from the same logits."""
    rows = LOGITS.repeat(count, 1)
    draws = uniforms(0, [1], 0, count).tolist()
    tokens = pick(rows, [sampling] * count, draws, [past] * count)
    return np.bincount(tokens.numpy(), minlength=6) / count


def softmax(z):
    z = np.exp(np.array(z, dtype=np.float64))
    return z / z.sum()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_temperature_scales_the_logits(temperature):
    np.testing.assert_allclose(
        frequencies(Sampling(temperature=temperature)), softmax(LOGITS.numpy() / temperature), atol=0.01
    )


def test_top_k_keeps_the_k_likeliest():
    np.testing.assert_allclose(frequencies(Sampling(top_k=2)), [*softmax([2, 1]), 0, 0, 0, 0], atol=0.01)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    p = softmax(LOGITS.numpy())
    assert p[0] + p[1] < 0.8 < p[0] + p[1] + p[2]
    np.testing.assert_allclose(frequencies(Sampling(top_p=0.8)), [*softmax([2, 1, 0.5]), 0, 0, 0], atol=0.01)


def test_a_tiny_top_p_keeps_the_likeliest():
    assert frequencies(Sampling(top_p=1e-9))[0] == 1


def test_min_p_cuts_relative_to_the_likeliest():
    np.testing.assert_allclose(frequencies(Sampling(min_p=math.exp(-1.6))), [*softmax([2, 1, 0.5]), 0, 0, 0], atol=0.01)


def test_repetition_penalty_divides_positive_and_multiplies_negative_scores():
    expected = softmax([2 / 1.5, 1, 0.5, 0, -1.5, -4])
    np.testing.assert_allclose(
        frequencies(Sampling(repetition_penalty=1.5), past=Past({0, 4}, {4: 2})), expected, atol=0.01
    )


def test_presence_penalty_counts_once_and_frequency_penalty_every_time():
    expected = softmax([2 - 0.5 - 3 * 0.2, 1, 0.5, 0 - 0.5 - 0.2, -1, -4])  # id 4 stands in the prompt only
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.2)
    np.testing.assert_allclose(frequencies(sampling, past=Past({4}, {0: 3, 3: 1})), expected, atol=0.01)


def test_negative_penalties_favour_what_was_said():
    expected = softmax([2, 1, 0.5, 0, -1, -4 + 2 * 2])
    np.testing.assert_allclose(frequencies(Sampling(frequency_penalty=-2), past=Past((), {5: 2})), expected, atol=0.01)


def test_logit_bias_is_added():
    expected = softmax([2 - 100, 1, 0.5, 0, -1 + 3, -4])
    np.testing.assert_allclose(frequencies(Sampling(logit_bias={4: 3, 0: -100})), expected, atol=0.01)


def test_rows_with_other_penalties_do_not_mix():
    settings = [
        Sampling(temperature=0, repetition_penalty=r, frequency_penalty=f) for r, f in [(2, 0), (1.5, 1), (1, 0.4)]
    ]
    past = [Past({0, 3}, {0: 1, 4: 2}), Past((), {0: 2}), Past((), {1: 1, 0: 1})]
    logits = LOGITS.repeat(3, 1)
    pick(logits, settings, [0.0] * 3, past)
    expected = [[1, 1, 0.5, 0, -2, -4], [2 / 1.5 - 2, 1, 0.5, 0, -1, -4], [1.6, 0.6, 0.5, 0, -1, -4]]
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_temperature_zero_and_nearly_zero_take_the_likeliest():
    for temperature in (0, 1e-30, 1e-6):
        assert frequencies(Sampling(temperature=temperature), 100)[0] == 1


def test_rows_with_different_settings_do_not_mix():
    settings = [Sampling(temperature=0), Sampling(), Sampling(top_k=1), Sampling(top_k=3, temperature=0.5)]
    draws = [0.0, 0.97, 0.99, 0.9]
    together = pick(LOGITS.repeat(4, 1), settings, draws, [None] * 4).tolist()
    alone = [int(pick(LOGITS[None].clone(), [s], [u], [None])[0]) for s, u in zip(settings, draws, strict=True)]
    assert together == alone


def test_the_ends_of_the_uniform_range_give_tokens_that_are_kept():
    for u, token in ((0.0, 0), (1.0, 1)):
        assert int(pick(LOGITS[None].clone(), [Sampling(top_k=2)], [u], [None])[0]) == token
    assert int(pick(torch.tensor([[1.0, -math.inf]]), [Sampling()], [1.0], [None])[0]) == 0


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.6), Sampling(min_p=0.3), Sampling(top_p=0.95, min_p=0.1)])
def test_a_large_vocabulary_is_cut_as_a_full_sort_would(sampling):
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.01, 0.5, 1.0, 2.0, 6.0])[:, None]  # from nearly flat to peaked
    logits = torch.randn(5, 2000, generator=generator) * scales
    for u in (0.001, 0.4, 0.999):
        chosen = pick(logits.clone(), [sampling] * 5, [u] * 5, [None] * 5)
        for row in range(5):
            p, order = logits[row].double().softmax(-1).sort(descending=True)
            keep = (p.cumsum(0) - p < sampling.top_p) & (p >= sampling.min_p * p[0])
            mass = (p * keep).cumsum(0)
            assert chosen[row] == order[int((mass <= u * mass[-1]).sum())]


def test_streams_of_numbers_differ_by_seed_prompt_and_sample():
    streams = [uniforms(*key, 4).tolist() for key in [(0, [1], 0), (1, [1], 0), (0, [2], 0), (0, [1], 1)]]
    assert len({tuple(s) for s in streams}) == 4
    assert uniforms(0, [1], 0, 9)[:4].tolist() == streams[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", math.nan),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", -0.1),
        ("min_p", math.nan),
        ("repetition_penalty", 0.0),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("seed", -1),
        ("n", 0),
        ("presence_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("presence_penalty", True),
        ("frequency_penalty", -1e30),
        ("repetition_penalty", 1e30),
        ("top_logprobs", -1),
        ("logit_bias", 3),
        ("stop_ids", 3),
        ("logprobs", 2),
        ("constraint", "a+"),
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} is "):
        Sampling(**{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logit_bias": {-1: 0.5}}, "logit_bias has the key -1"),
        ({"logit_bias": {"a": 0.5}}, "logit_bias has the key 'a'"),
        ({"logit_bias": {3: math.nan}}, "logit_bias of id 3 is nan"),
        ({"logit_bias": {3: 1e30}}, "logit_bias of id 3 is 1e.30"),
        ({"stop_ids": (1, "a")}, "stop_ids holds 'a'"),
        ({"stop_ids": (-1,)}, "stop_ids holds -1"),
        ({"stop": ("",)}, "stop string 0 is empty"),
        ({"stop": (1,)}, "stop string 0 is 1"),
    ],
)
def test_what_a_setting_holds_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)


@pytest.mark.parametrize("sampling", [Sampling(logit_bias={9: 1}), Sampling(stop_ids=(9,)), Sampling(top_logprobs=10)])
def test_ids_beyond_the_vocabulary_are_refused(sampling):
    sampling.check_ids(10)
    with pytest.raises(ValueError, match="9"):
        sampling.check_ids(9)


def test_settings_are_frozen_in_one_form():
    a = Sampling(logit_bias={5: 1, 2: -1}, stop="END", constraint=Constraint(json_schema={"type": "null"}))
    b = Sampling(logit_bias=((2, -1.0), (5, 1.0)), stop=("END",), constraint=Constraint(json_schema='{"type":"null"}'))
    assert a == b
    assert hash(a) == hash(b)


ANY = st.builds(
    Sampling,
    temperature=st.sampled_from([0, 0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 7, 256, 257, 400]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.01, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    logit_bias=st.sampled_from([(), ((3, 2.5), (11, -9.0))]),
)


def by_sorting(logits, sampling, u, counts):
    """The token of one row by the definitions, one step after the other, in float64 and Python's order."""
    z = logits.double().numpy().copy()
    for i, count in counts.items():
        if sampling.repetition_penalty != 1:
            z[i] = z[i] / sampling.repetition_penalty if z[i] > 0 else z[i] * sampling.repetition_penalty
        z[i] -= sampling.presence_penalty * (count > 0)
    for i, bias in sampling.logit_bias:
        z[i] += bias
    z = z.astype(np.float32).astype(np.float64)
    order = sorted(range(len(z)), key=lambda i: (-z[i], i))
    if sampling.temperature == 0:
        return {order[0]}
    if not sampling.filtered:
        order = range(len(z))  # nothing is cut, so the numbers run through the vocabulary as it is
    p = np.exp((z - z.max()) / sampling.temperature)[order]
    keep = np.ones(len(p), bool)
    if sampling.filtered:
        if sampling.top_k:
            keep[sampling.top_k :] = False
        mass = np.cumsum(p * keep)
        keep &= mass - p < sampling.top_p * mass[-1]
        keep &= p >= sampling.min_p
    mass = np.cumsum(p * keep)
    near = [min(int((mass <= (u + d) * mass[-1]).sum()), len(p) - 1) for d in (-1e-6, 0, 1e-6)]
    return {order[i] for i in near}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ANY, st.floats(0, 1, exclude_max=True)), min_size=1, max_size=6), st.integers(0, 10**6))
def test_a_row_gets_the_token_of_the_definitions_and_the_same_in_every_batch(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([[0.01, 1.0, 4.0][i % 3] for i in range(len(rows))])[:, None]
    logits = (torch.randn(len(rows), 600, generator=generator) * scale).bfloat16().float()  # with many equal scores
    past = [Past(frozenset({0, 5}), {5: 2, 17: 1})] * len(rows)
    samplings, draws = [s for s, _ in rows], [u for _, u in rows]
    together = pick(logits.clone(), samplings, draws, past).tolist()
    for row, token in enumerate(together):
        one = slice(row, row + 1)
        assert pick(logits[one].clone(), samplings[one], draws[one], past[one]).tolist() == [token]
        assert token in by_sorting(logits[row], samplings[row], draws[row], {0: 0, 5: 2, 17: 1})


@pytest.mark.parametrize("size", [1, 511, 512, 513, 5000])
def test_a_number_falls_on_the_token_whose_share_it_lies_in_at_any_size_of_vocabulary(size):
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(size))
    p = logits[0].double().softmax(-1).numpy()
    for u in np.random.default_rng(0).random(200):
        token = int(pick(logits.clone(), [Sampling()], [u], [None])[0])
        assert p[:token].sum() - 1e-7 <= u <= p[: token + 1].sum() + 1e-7


def test_a_flat_row_is_cut_as_a_full_sort_would_beyond_every_shortlist():
    logits = (torch.randn(4, 20_000, generator=torch.Generator().manual_seed(0)) * 0.5).bfloat16().float()
    settings = [Sampling(top_p=0.95), Sampling(top_k=9000), Sampling(min_p=0.3), Sampling(top_k=3000, top_p=0.9)]
    for u in (0.0, 0.2, 0.77, 0.9999):
        for row, token in enumerate(pick(logits.clone(), settings, [u] * 4, [None] * 4).tolist()):
            assert token in by_sorting(logits[row], settings[row], u, {})


def test_probabilities_add_up_to_the_same_in_any_order():
    """Only whole numbers that float64 holds do; the shares of softmax do not."""
    logits = torch.randn(1, 2**17, generator=torch.Generator().manual_seed(0)) * 3
    weights = _weights(logits, logits.amax(-1), [Sampling(temperature=0.7)])[0].double()
    shuffled = weights[torch.randperm(len(weights), generator=torch.Generator().manual_seed(1))]
    assert weights.max() == 2**35
    assert float(weights.cumsum(0)[-1]) == float(shuffled.cumsum(0)[-1]) == math.fsum(weights.tolist())
    shares = (logits[0].double() / 0.7).softmax(-1)
    np.testing.assert_allclose(weights / weights.sum(), shares, rtol=1e-4, atol=2**-35)


def test_scores_that_are_not_finite_are_refused():
    for value in (math.nan, math.inf):
        logits = LOGITS[None].clone()
        logits[0, 2] = value
        with pytest.raises(FloatingPointError, match="not finite"):
            pick(logits, [Sampling()], [0.5], [None])


@dataclass
class Asked:
    """A request as `choose` reads it, and a language model that is a table: the logits depend on the last two tokens."""

    sampling: Sampling
    prompt: list
    matcher: object = None
    stop_ids: tuple = ()
    ids: list = field(default_factory=list)

    @property
    def counts(self):
        return Counter(self.ids)

    @property
    def seen(self):
        return frozenset(self.prompt)

    def draw(self, ahead):
        return uniforms(self.sampling.seed, self.prompt, 0, 100)[len(self.ids) + ahead]

    def logits(self, drafts):
        text = [*self.prompt, *self.ids, *drafts]
        ends = range(len(text) - len(drafts), len(text) + 1)
        seeds = [hash(tuple(text[:end][-2:])) % 2**31 for end in ends]
        return torch.stack([torch.randn(SIZE, generator=torch.Generator().manual_seed(s)) * 2 for s in seeds])

    def take(self, choice):
        for token in choice.ids:
            self.ids.append(token)
            if self.matcher is not None:
                self.matcher.advance(token)
            if token in self.stop_ids or len(self.ids) >= 40:
                return True
        return self.matcher is not None and self.matcher.finished


TOKENIZER = Tokenizer({bytes([i]): i for i in range(256)} | {b"ab": 256, b"ba": 257}, ["<|end_of_text|>", "<|eot_id|>"])
SIZE = TOKENIZER.n_vocab


def requests(masks):
    def made(constraint=None, stop_ids=(258, 259), **fields):
        sampling = Sampling(constraint=constraint, **fields)
        return Asked(sampling, [1, 2, 3], masks.matcher(constraint, stop_ids) if constraint else None, stop_ids)

    return [
        made(temperature=0),
        made(seed=1),
        made(seed=2, top_p=0.8, presence_penalty=0.9, repetition_penalty=1.3, logprobs=True),
        made(temperature=0, frequency_penalty=1.5, top_logprobs=2),
        made(seed=3, constraint=Constraint(regex="(ab|ba|c)+")),
        made(seed=4, constraint=Constraint(regex="(a|b){9}"), stop_ids=()),
        made(temperature=0, constraint=Constraint(json_schema={"type": "array", "items": {"type": "boolean"}})),
    ]


def run(asked, draft):
    """Generates all together; the tokens, and what was reported of each."""
    reports, going, steps = [[] for _ in asked], list(range(len(asked))), 0
    while going:
        steps += 1
        drafts = [draft(i, asked[i]) for i in going]
        logits = torch.cat([asked[i].logits(d) for i, d in zip(going, drafts, strict=True)])
        still = []
        for i, choice in zip(going, choose(logits, [asked[i] for i in going], drafts), strict=True):
            before = len(asked[i].ids)
            done = asked[i].take(choice)
            taken = len(asked[i].ids) - before
            for values in (choice.logprobs, choice.top_logprobs):
                reports[i] += [(before + j, v) for j, v in enumerate((values or [])[:taken])]
            still += [] if done else [i]
        going = still
    return [a.ids for a in asked], [sorted(r, key=str) for r in reports], steps


def test_drafts_change_the_number_of_steps_and_nothing_else():
    pytest.importorskip("llguidance")
    masks = Masks(TOKENIZER)
    plain, reports, steps = run(requests(masks), lambda i, a: [])
    assert len({len(ids) for ids in plain}) > 1
    rng = np.random.default_rng(0)

    def oracle(i, a):
        return plain[i][len(a.ids) :][: int(rng.integers(0, 6))]

    def half_right(i, a):
        return [t if rng.random() < 0.6 else int(rng.integers(SIZE)) for t in (plain[i] + [7] * 9)[len(a.ids) :][:6]]

    for draft in (oracle, half_right, lambda i, a: rng.integers(0, SIZE, 3).tolist()):
        tokens, reported, fewer = run(requests(masks), draft)
        assert tokens == plain
        assert [[place for place, _ in r] for r in reported] == [[place for place, _ in r] for r in reports]
        assert str(reported) == str(reports)
        assert fewer < steps or draft not in (oracle, half_right)


def test_a_request_in_company_gets_what_it_gets_alone():
    pytest.importorskip("llguidance")
    masks = Masks(TOKENIZER)
    together = run(requests(masks), lambda i, a: [])[0]
    for i, expected in enumerate(together):
        assert run([requests(masks)[i]], lambda *_: [])[0] == [expected]


def test_constrained_answers_match_and_end():
    pytest.importorskip("llguidance")
    together = run(requests(Masks(TOKENIZER)), lambda i, a: [])[0]
    assert set(TOKENIZER.decode(together[4], special=False)) <= set("abc")
    assert len(TOKENIZER.decode(together[5])) == 9
    assert set(TOKENIZER.decode(together[5])) <= set("ab")


def test_log_probabilities_are_the_models_own():
    sampling = Sampling(temperature=0.3, top_k=2, logit_bias={5: 50}, presence_penalty=2, top_logprobs=3, logprobs=True)
    asked = Asked(sampling, [1, 2])
    logits = asked.logits([])
    (choice,) = choose(logits.clone(), [asked])
    expected = logits[0].double().log_softmax(-1)
    assert choice.ids == [5]
    assert choice.logprobs[0] == pytest.approx(float(expected[5]), abs=1e-5)
    best = expected.sort(descending=True)
    assert [i for i, _ in choice.top_logprobs[0]] == best.indices[:3].tolist()
    np.testing.assert_allclose([v for _, v in choice.top_logprobs[0]], best.values[:3], atol=1e-5)


def test_nothing_is_reported_to_those_who_do_not_ask():
    one, other = Asked(Sampling(), [1]), Asked(Sampling(logprobs=True), [1])
    first, second = choose(torch.cat([one.logits([]), other.logits([])]), [one, other])
    assert first.logprobs is None
    assert first.top_logprobs is None
    assert len(second.logprobs) == 1
    assert second.top_logprobs is None


def test_padding_of_the_embedding_table_is_never_chosen_nor_listed():
    asked = Asked(Sampling(temperature=0, top_logprobs=5), [1])
    logits = torch.zeros(1, 8)
    logits[0, 6:] = 9.0
    (choice,) = choose(logits, [asked], n_vocab=6)
    assert choice.ids == [0]
    assert {i for i, _ in choice.top_logprobs[0]} <= set(range(6))


def test_nothing_is_taken_behind_a_stop_id():
    asked = Asked(Sampling(temperature=0), [1, 2], stop_ids=(3,))
    logits = torch.zeros(4, 6)
    logits[[0, 1, 2, 3], [4, 3, 5, 1]] = 1
    (choice,) = choose(logits, [asked], [[4, 3, 5]])
    assert choice.ids == [4, 3]


def test_a_constraint_that_breaks_off_is_told_by_its_matcher():
    pytest.importorskip("llguidance")
    masks = Masks(TOKENIZER)
    asked = Asked(Sampling(), [1], masks.matcher(Constraint(regex="ab")))
    asked.matcher.inner.consume_token(ord("x"))  # the library breaks off; so it does where its own limits are reached
    with pytest.raises(FloatingPointError):
        choose(asked.logits([]), [asked])
    assert asked.matcher.error
