"""The law of compute-optimal training against sweeps whose law is known."""

import gzip
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from herder.model import SHAPES
from herder.scaling import CHINCHILLA, PAPER, OfShapes, PerParameter, Point, fit_curves, fit_file, fit_law, read_points

ALPHA, A = 0.53727, 0.299
BUDGETS = (6e18, 1e19, 3e19, 1e20, 3e20, 6e20, 1e21, 3e21, 1e22)
FLAGSHIP = 3.8e25


def sweep(noise=0.0, seed=0, budgets=BUDGETS, runs=8, off=0.0):
    """Runs around the paper's optimum of each budget: an exact parabola that flattens with compute, and noise on top.

    `off` shifts the optimum of each budget from the law: runs of a tuning that is not the same everywhere.
    """
    rng = np.random.default_rng(seed)
    points = []
    for flops in budgets:
        best = A * flops**ALPHA * math.exp(rng.normal(0, off) if off else 0)
        for away in np.linspace(-1.5, 1.3, runs):
            tokens = best * math.exp(away)
            loss = 1.7 + 3e3 * flops**-0.17 + 0.05 * (flops / 6e18) ** -0.05 * away**2
            points.append(Point(flops / 6 / tokens, tokens, flops, loss + rng.normal(0, noise)))
    return points


def test_noise_free_points_give_back_the_papers_flagship():
    law = fit_law(sweep())
    assert law.tokens(FLAGSHIP).value == pytest.approx(16.55e12, rel=1e-3)
    assert law.params(FLAGSHIP, CHINCHILLA).value == pytest.approx(383e9, rel=2e-3)
    assert law.params(FLAGSHIP, PAPER).value == pytest.approx(402e9, rel=2e-3)
    assert law.alpha == pytest.approx(ALPHA, rel=1e-9)
    assert law.measure_a().value == pytest.approx(A, rel=1e-8)


def test_a_rounded_law_misses_what_the_full_one_reaches():
    full = fit_law(sweep()).tokens(FLAGSHIP).value
    in_text, in_figure = 0.29 * FLAGSHIP**0.53, 0.299 * FLAGSHIP**0.537
    assert in_text < 0.65 * full
    assert 0.01 < 1 - in_figure / full < 0.02


def test_intervals_cover_the_truth_for_nine_seeds_of_ten():
    truth = math.log(A * FLAGSHIP**ALPHA)
    laws = [fit_law(sweep(noise=0.004, seed=s, runs=6), seed=s, replicates=400) for s in range(200)]
    tokens = [law.tokens(FLAGSHIP) for law in laws]
    assert sum(t.low <= math.exp(truth) <= t.high for t in tokens) >= 180
    assert sum(law.measure_alpha().low <= ALPHA <= law.measure_alpha().high for law in laws) >= 180
    assert np.median([math.log(t.high / t.low) for t in tokens]) < 6 * np.std([math.log(t.value) for t in tokens])


def test_intervals_cover_the_truth_for_a_small_sweep_whose_minima_scatter():
    for budgets, how in ((2, {"noise": 0.004}), (4, {"noise": 0.004}), (4, {"noise": 0.001, "off": 0.1})):
        points = [sweep(**how, seed=s, budgets=BUDGETS[:budgets], runs=4) for s in range(200)]
        laws = [fit_law(p, seed=s, replicates=400) for s, p in enumerate(points)]
        assert sum(law.measure_alpha().low <= ALPHA <= law.measure_alpha().high for law in laws) >= 180


def test_the_seed_settles_the_interval():
    points = sweep(noise=0.003)
    first, again, other = (fit_law(points, seed=s).tokens(FLAGSHIP) for s in (1, 1, 2))
    assert first == again
    assert first.value == other.value
    assert first.low != other.low


def test_the_exponent_of_chinchillas_loss_is_found_though_its_curves_are_no_parabolas():
    points = []
    for flops in (1e19, 1e20, 1e21, 1e22):
        for params in np.geomspace(0.4, 2.5, 9) * math.sqrt(flops / 120):
            tokens = flops / 6 / params
            points.append(Point(params, tokens, flops, 1.69 + 406.4 / params**0.34 + 410.7 / tokens**0.28))
    assert fit_law(points).alpha == pytest.approx(0.34 / 0.62, abs=0.01)


def test_budgets_that_whole_steps_miss_a_little_are_one_curve():
    points = [Point(p.params, p.tokens, p.flops * (1 + 0.01 * (i % 3)), p.loss) for i, p in enumerate(sweep())]
    assert [len(curve.points) for curve in fit_curves(points)] == [8] * len(BUDGETS)


@pytest.mark.parametrize(
    ("tokens", "losses", "why"),
    [
        ([1e9, 2e9], [3.0, 3.1], "different token counts"),
        ([1e9, 1e9, 2e9, 2e9], [3.0, 3.1, 3.0, 3.2], "different token counts"),
        ([1e9, 2e9, 4e9], [3.0, 3.2, 3.0], "not convex"),
        ([1e9, 2e9, 4e9], [3.0, 3.0, 3.0], "not convex"),
        ([1e9, 2e9, 4e9, 8e9], [3.0, 3.1, 3.3, 3.6], "below all of its points"),
        ([1e9, 2e9, 4e9, 8e9], [3.6, 3.3, 3.1, 3.0], "above all of its points"),
    ],
)
def test_a_curve_without_a_usable_minimum_says_why_and_stays_out_of_the_law(tokens, losses, why):
    bad = [Point(1e8, t, 1e23, loss) for t, loss in zip(tokens, losses, strict=True)]
    law = fit_law(sweep() + bad)
    assert why in law.curves[-1].refused
    assert "1e+23" in law.curves[-1].refused
    assert law.tokens(FLAGSHIP).value == pytest.approx(16.55e12, rel=1e-3)
    with pytest.raises(ValueError, match=why):
        fit_law(bad)


def test_points_that_leave_no_noise_to_judge_have_no_interval():
    tokens = fit_law(sweep(budgets=BUDGETS[:2], runs=3)).tokens(FLAGSHIP)
    assert tokens.low == 0
    assert tokens.high == math.inf
    assert tokens.value == pytest.approx(16.55e12, rel=1e-3)


def test_the_count_of_real_shapes_gives_their_parameters_back():
    names = ("llama3.2-1b", "llama3-8b", "llama3-70b", "llama3.1-405b")
    count = OfShapes(tuple(SHAPES[name] for name in names), context=4096)
    for name in names:
        assert count.params(SHAPES[name].flops_per_token(4096)) == pytest.approx(SHAPES[name].n_params, rel=1e-9)
    big = SHAPES["llama3.1-405b"]
    assert count.params(10 * big.flops_per_token(4096)) == pytest.approx(10 * big.n_params, rel=1e-9)
    fewer = fit_law(sweep()).params(FLAGSHIP, count).value
    assert 0.9 < fewer / fit_law(sweep()).params(FLAGSHIP, CHINCHILLA).value < 1


def test_more_tokens_leave_fewer_parameters_in_the_interval_too():
    law = fit_law(sweep(noise=0.004))
    tokens, params = law.tokens(FLAGSHIP), law.params(FLAGSHIP, PerParameter(6))
    assert params.low < params.value < params.high
    assert params.low * tokens.high * 6 == pytest.approx(FLAGSHIP)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"params": 1, "tokens": 2, "flops": 3}', "`loss` is missing"),
        ('{"params": 1, "tokens": "2", "flops": 3, "loss": 4}', "`tokens` is '2'"),
        ('{"params": 1, "tokens": -2, "flops": 3, "loss": 4}', "positive finite"),
        ('{"params": 1, "tokens": 2, "flops": 3, "loss": NaN}', "positive finite"),
        ('{"params": 1, "tokens": 2, "flops": 1e999, "loss": 4}', "positive finite"),
        ('{"params": 1%s, "tokens": 2, "flops": 3, "loss": 4}' % ("0" * 400), "positive finite"),
        ('{"params": true, "tokens": 2, "flops": 3, "loss": 4}', "positive finite"),
        ('{"params": null, "tokens": 2, "flops": 3, "loss": 4}', "positive finite"),
        ('{"params": 1%s, "tokens": 2, "flops": 3, "loss": 4}' % ("0" * 5000), "line 3"),
        ("[1, 2, 3, 4]", "JSON object"),
        ("params", "not valid JSON"),
        ("[" * 100_000, "nested too deep|not valid JSON"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, line, why):
    path = tmp_path / "points.jsonl"
    path.write_text('{"params": 1, "tokens": 2, "flops": 3, "loss": 4}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=why) as caught:
        read_points(path)
    assert f"{path}, line 3" in str(caught.value)


def test_the_line_of_a_bad_row_is_right_in_a_compressed_file_too(tmp_path):
    path = tmp_path / "points.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"params": 1, "tokens": 2, "flops": 3, "loss": 4}\n\n\n{"params": 1}\n'))
    with pytest.raises(ValueError, match="line 4: field `tokens` is missing"):
        read_points(path)


def test_an_empty_file_and_a_missing_one_are_sentences(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no points"):
        read_points(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="is not a file"):
        read_points(tmp_path / "nothing.jsonl")


def write(points, path):
    path.write_text("".join(json.dumps({n: getattr(p, n) for n in Point.__slots__}) + "\n" for p in points))
    return path


def test_fit_file_shows_the_flagship_by_both_counts_and_draws_it(tmp_path):
    result = fit_file(write(sweep(noise=0.002), tmp_path / "points.jsonl"), tmp_path / "out")
    assert json.loads((tmp_path / "out/scaling.json").read_text()) == result
    assert (tmp_path / "out/scaling.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["scaling.json", "scaling.png"]
    budget = result["budgets"][0]
    assert budget["tokens"]["low"] < 16.55e12 < budget["tokens"]["high"]
    six, paper = budget["params"]["6ND"], budget["params"]["5.71ND"]
    assert six["low"] < 383e9 < six["high"]
    assert paper["value"] / six["value"] == pytest.approx(6 / 5.71)
    assert result["flops_per_parameter_and_token"] == pytest.approx(6)


def test_fitting_does_not_load_torch(tmp_path):
    path = write(sweep(), tmp_path / "points.jsonl")
    code = f"import sys; from herder.scaling import fit_file; fit_file({str(path)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_points_of_any_size_give_numbers_or_a_sentence(tmp_path):
    rng = np.random.default_rng(0)
    said, fitted = [], 0
    for trial in range(12):
        decades = rng.choice([1, 4, 8])
        points = []
        for flops in 10.0 ** rng.uniform(-decades, 5 * decades, 3):
            size, length = 10.0 ** rng.uniform(-8, 40, 2)
            points += [Point(size * 2**i, length * 3**i, flops, 3 - (i in (1, 2)) + rng.random() / 5) for i in range(4)]
        path = write(points, tmp_path / f"{trial}.jsonl")
        try:
            json.dumps(fit_file(path, tmp_path / "out" if trial < 3 else None), allow_nan=False)
            fitted += 1
        except ValueError as error:
            said.append(str(error))
    assert fitted > 6
    assert [text for text in said if "a power law needs minima" not in text] == []
