import math

import numpy as np
import pytest
import torch

from herder.engine import Sampling
from herder.engine.sample import pick, uniforms

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -4.0])


def frequencies(sampling, count=40_000, seen=frozenset()):
    """How often each token is drawn from the same logits."""
    rows = LOGITS.repeat(count, 1)
    draws = uniforms(0, [1], 0, count).tolist()
    tokens = pick(rows, [sampling] * count, draws, [set(seen)] * count)
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
    np.testing.assert_allclose(frequencies(Sampling(repetition_penalty=1.5), seen={0, 4}), expected, atol=0.01)


def test_temperature_zero_and_nearly_zero_take_the_likeliest():
    for temperature in (0, 1e-30, 1e-6):
        assert frequencies(Sampling(temperature=temperature), 100)[0] == 1


def test_rows_with_different_settings_do_not_mix():
    settings = [Sampling(temperature=0), Sampling(), Sampling(top_k=1), Sampling(top_k=3, temperature=0.5)]
    draws = [0.0, 0.97, 0.99, 0.9]
    together = pick(LOGITS.repeat(4, 1), settings, draws, [set()] * 4).tolist()
    alone = [int(pick(LOGITS[None].clone(), [s], [u], [set()])[0]) for s, u in zip(settings, draws, strict=True)]
    assert together == alone


def test_the_ends_of_the_uniform_range_give_tokens_that_are_kept():
    for u, token in ((0.0, 0), (1.0, 1)):
        assert int(pick(LOGITS[None].clone(), [Sampling(top_k=2)], [u], [set()])[0]) == token
    assert int(pick(torch.tensor([[1.0, -math.inf]]), [Sampling()], [1.0], [set()])[0]) == 0


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.6), Sampling(min_p=0.3), Sampling(top_p=0.95, min_p=0.1)])
def test_a_large_vocabulary_is_cut_as_a_full_sort_would(sampling):
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.01, 0.5, 1.0, 2.0, 6.0])[:, None]  # from nearly flat to peaked
    logits = torch.randn(5, 2000, generator=generator) * scales
    for u in (0.001, 0.4, 0.999):
        chosen = pick(logits.clone(), [sampling] * 5, [u] * 5, [set()] * 5)
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
    ],
)
def test_a_setting_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} is "):
        Sampling(**{field: value})
