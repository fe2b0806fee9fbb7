"""Ramps told in tokens become stages counted in steps."""

import pytest

from herder.model import LlamaConfig
from herder.pretrain import PretrainConfig, ramp
from herder.train import Stage, TrainConfig

PAPER = {0: (1024, 4096), 252e6: (1024, 8192), 2.87e12: (2048, 8192)}


def test_the_papers_ramp_takes_the_papers_steps():
    stages = ramp(15.6e12, PAPER, {0: {"web": 1.0}})
    assert [s.steps for s in stages] == [60, 342_101, 758_767]
    assert [s.tokens_per_step for s in stages] == [2**22, 2**23, 2**24]
    assert 1.0e6 < sum(s.steps for s in stages) < 1.2e6  # the length of the paper's cosine (3.4.1)
    assert sum(s.steps * s.tokens_per_step for s in stages) == pytest.approx(15.6e12, abs=2**23)


def test_the_mix_changes_between_changes_of_the_batch():
    stages = ramp(1000, {0: (1, 10), 400: (2, 10)}, {0: {"a": 1.0}, 200: {"a": 0.5, "b": 0.5}, 700: {"b": 1.0}})
    assert stages == (
        Stage(20, 1, 10, {"a": 1.0}),
        Stage(20, 1, 10, {"a": 0.5, "b": 0.5}),
        Stage(15, 2, 10, {"a": 0.5, "b": 0.5}),
        Stage(15, 2, 10, {"b": 1.0}),
    )


def test_rounded_thresholds_do_not_add_up():
    stages = ramp(10_000, dict.fromkeys(range(0, 10000, 250), (1, 97)), {0: {"a": 1.0}})
    used = 0
    for number, stage in enumerate(stages, 1):
        used += stage.steps * stage.tokens_per_step
        assert abs(used - 250 * number) <= 49


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((100, {5: (1, 10)}, {0: {"a": 1.0}}), "batches begins at 5 tokens"),
        ((100, {0: (1, 10)}, {}), "mixes begins at None"),
        ((100, {0: (1, 10), 200: (2, 10)}, {0: {"a": 1.0}}), "batches changes at 200 tokens, but the run has 100"),
        ((100, {0: (4, 10), 10: (1, 10)}, {0: {"a": 1.0}}), "from 0 to 10 tokens there is not one step of 4 x 10"),
        ((100, {0: (1, 10)}, {0: {"a": 0.0}}), "needs a source with a share above 0"),
    ],
)
def test_an_impossible_ramp_gets_a_sentence(arguments, says):
    with pytest.raises(ValueError, match=says):
        ramp(*arguments)


def test_a_stage_longer_than_the_context_is_refused():
    shape = LlamaConfig(100, 32, 2, 4, 2, 48, max_seq_len=64)
    with pytest.raises(ValueError, match="rows of 128 tokens, the model a context of 64"):
        PretrainConfig(shape, TrainConfig(), (Stage(1, 1, 64, {"a": 1.0}), Stage(1, 1, 128, {"a": 1.0})))
