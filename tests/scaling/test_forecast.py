"""The two-step forecast against benchmarks whose line and sigmoid are known."""

import json

import numpy as np
import pytest

from herder.cli import app
from herder.scaling import Score, fit_forecast, forecast_file

FLAGSHIP = 3.8e25


def nll_of(flops):
    return 1.40 - 0.025 * (np.log10(flops) - 18.8)


def accuracy_of(nll):
    return 0.25 + 0.75 / (1 + np.exp(40 * (nll - 1.27)))


def scores(noise_nll=0.0, noise_accuracy=0.0, seed=0, extra=True):
    """Nine small models on the line and four bigger ones of another recipe, whose NLL is off the line."""
    rng = np.random.default_rng(seed)
    out = []
    for flops in np.geomspace(6e18, 1e22, 9):
        nll = nll_of(flops) + rng.normal(0, noise_nll)
        out.append(Score(nll, min(1, max(0, accuracy_of(nll) + rng.normal(0, noise_accuracy))), flops))
    for nll in (1.29, 1.27, 1.265, 1.25) if extra else ():
        out.append(Score(nll, accuracy_of(nll) + rng.normal(0, noise_accuracy), extra=True))
    return out


def test_noise_free_scores_give_back_line_and_sigmoid():
    forecast = fit_forecast(scores(), chance=0.25)
    assert forecast.nll(FLAGSHIP).value == pytest.approx(nll_of(FLAGSHIP), rel=1e-9)
    assert forecast.accuracy(FLAGSHIP).value == pytest.approx(accuracy_of(nll_of(FLAGSHIP)), rel=1e-6)


def test_intervals_cover_a_new_model_for_nine_seeds_of_ten():
    hits_nll = hits = 0
    for seed in range(100):
        forecast = fit_forecast(scores(0.002, 0.01, seed), 0.25, seed, replicates=300)
        rng = np.random.default_rng(1000 + seed)
        nll = nll_of(FLAGSHIP) + rng.normal(0, 0.002)
        accuracy = accuracy_of(nll) + rng.normal(0, 0.01)
        found = forecast.accuracy(FLAGSHIP)
        hits_nll += forecast.nll(FLAGSHIP).low <= nll <= forecast.nll(FLAGSHIP).high
        hits += found.low <= min(accuracy, 1) <= found.high
    assert hits >= 90
    assert hits_nll >= 90


def test_extra_models_shape_the_sigmoid_and_never_the_line():
    with_extra, without = (fit_forecast(scores(0.002, 0.01, 3, extra), 0.25) for extra in (True, False))
    assert with_extra.nll(FLAGSHIP).value == without.nll(FLAGSHIP).value
    assert with_extra.sigmoid != without.sigmoid
    width, wide = (f.accuracy(FLAGSHIP).high - f.accuracy(FLAGSHIP).low for f in (with_extra, without))
    assert width < wide


def test_the_seed_settles_the_interval():
    points = scores(0.002, 0.01)
    first, again, other = (fit_forecast(points, 0.25, seed).accuracy(FLAGSHIP) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("points", "chance", "why"),
    [
        (scores()[:2] + scores()[9:], 0.25, "scaling-law models of 3 budgets; there are 2"),
        ([scores()[0]] * 5, 0.25, "there are 1"),
        (scores()[:3], 0.25, "the sigmoid needs 4 models"),
        (scores(), 0.99, "above chance"),
        (scores(), 1.0, "chance is 1.0"),
        ([Score(1.0 + i / 10, 0.5, 10.0 ** (18 + i)) for i in range(5)], 0.25, "does not fall with FLOPs"),
        ([Score(2.0 - i / 10, 0.9 - i / 10, 10.0 ** (18 + i)) for i in range(5)], 0.25, "accuracy does not rise"),
        ([*scores(), Score(float("nan"), 0.5, 1e20)], 0.25, "score 14: NLL must be finite"),
        ([*scores(), Score(1.3, 45.0, 1e20)], 0.25, "accuracy from 0 to 1"),
        ([*scores(), Score(1.3, 0.5)], 0.25, "score 14: a scaling-law model needs positive flops"),
    ],
)
def test_scores_that_cannot_be_fitted_are_refused(points, chance, why):
    with pytest.raises(ValueError, match=why):
        fit_forecast(points, chance)


def test_a_budget_that_is_none_is_refused():
    with pytest.raises(ValueError, match="positive finite"):
        fit_forecast(scores(), 0.25).accuracy(0)


def write(rows, path):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows():
    return [
        {
            "nll_per_character": s.nll_per_character,
            "accuracy": s.accuracy,
            **({"extra": True} if s.extra else {"flops": s.flops}),
        }
        for s in scores()
    ]


def test_a_file_of_scores_is_forecast_on_the_command_line(tmp_path, capsys):
    path = write(rows(), tmp_path / "scores.jsonl")
    app(
        ["scaling", "forecast", str(path), "--chance", "0.25", "--flops", str(FLAGSHIP), "--json"],
        standalone_mode=False,
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["models"], found["extra_models"]) == (9, 4)
    assert found["line"]["slope"] == pytest.approx(-0.025)
    forecast = found["forecasts"][0]
    assert forecast["flops"] == FLAGSHIP
    assert forecast["nll_per_character"]["value"] == pytest.approx(nll_of(FLAGSHIP))
    assert forecast["accuracy"]["value"] == pytest.approx(accuracy_of(nll_of(FLAGSHIP)), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accuracy": None}, "`accuracy` is missing"),
        ({"accuracy": "high"}, "`accuracy` is 'high'"),
        ({"flops": True}, "`flops` is True"),
        ({"nll_per_character": float("nan")}, "`nll_per_character` is nan"),
    ],
)
def test_a_damaged_score_is_named_by_its_row(tmp_path, change, says):
    path = write([*rows()[:2], rows()[2] | change, *rows()[3:]], tmp_path / "scores.jsonl")
    with pytest.raises(ValueError, match=f"row 3: {says}"):
        forecast_file(path, 0.25, [FLAGSHIP])
    with pytest.raises(ValueError, match="is not a file"):
        forecast_file(tmp_path / "none.jsonl", 0.25, [FLAGSHIP])
