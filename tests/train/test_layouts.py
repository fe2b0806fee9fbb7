"""Every layout trains the same model: gradients, losses and checkpoints against one process, on gloo."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from train import matrix

from herder.train import Layout
from herder.train.checkpoint import Saved, checkpoints
from herder.train.meter import read_metrics

pytestmark = pytest.mark.xdist_group("layouts")  # one fleet of processes serves them all

SIX = {
    "one": (1, Layout(micro_batch=3)),
    "copies": (2, Layout(micro_batch=2, shard=1)),
    "copies of shards": (4, Layout(micro_batch=1, shard=2)),
    "tp x cp": (4, Layout(tp=2, cp=2, micro_batch=2)),
    "pp x dp": (4, Layout(pp=2, chunks=2, contiguous=3)),
    "tp x cp x pp": (8, Layout(tp=2, cp=2, pp=2, micro_batch=2)),
}
DEATHS = [
    ("one", "tp x cp"),
    ("copies", "pp x dp"),
    ("copies of shards", "one"),
    ("tp x cp", "copies of shards"),
    ("pp x dp", "tp x cp x pp"),
    ("tp x cp x pp", "pp x dp"),
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    return matrix.Fleet(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def expected():
    return matrix.reference()


@pytest.mark.long
@pytest.mark.parametrize("world", [2, 4, 8, 16])
def test_every_combination_of_axes_has_one_processs_gradients_and_losses(fleet, expected, world):
    for layout in matrix.layouts(world):
        for found in fleet.run(world, matrix.compare, layout, expected):
            where = f"{layout}: {found}"
            assert found["gradient"][0] < 1e-9, where
            assert found["sums"] < 1e-12, where
            assert found["loss"] < 1e-5, where


@pytest.mark.long
@pytest.mark.parametrize(
    ("world", "layout"),
    [
        (4, Layout(dp=4, shard=2, micro_batch=2)),
        (4, Layout(tp=2, dp=2, shard=1, recompute="elementwise")),
        (4, Layout(pp=2, cp=2, chunks=3, contiguous=4, recompute="alternate")),
        (4, Layout(cp=4, micro_batch=2, recompute="full")),
        (8, Layout(dp=8, reshard_after_forward=True)),  # more ranks than rows: three have nothing to do
        (3, Layout(pp=3, contiguous=5)),  # breadth-first
    ],
    ids=str,
)
def test_copies_of_shards_recomputation_and_other_schedules_change_nothing(fleet, expected, world, layout):
    for found in fleet.run(world, matrix.compare, layout, expected):
        assert found["gradient"][0] < 1e-9, found
        assert found["loss"] < 1e-5, found


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("layout", [Layout(dp=2, compile=True), Layout(pp=2, compile=True, recompute="full")], ids=str)
def test_compiled_blocks_have_the_same_gradients_and_losses(fleet, expected, layout):
    for found in fleet.run(2, matrix.compare, layout, expected):
        assert found["gradient"][0] < 1e-9, found
        assert found["loss"] < 1e-5, found


@pytest.fixture(scope="module")
def undisturbed(fleet, tmp_path_factory):
    """Each of six layouts trained for six steps: its folder, and the rows that all its ranks counted."""
    root, found = tmp_path_factory.mktemp("six"), {}
    for name, (world, layout) in SIX.items():
        seen = fleet.run(world, matrix.trained, layout, root / name)
        found[name] = (root / name, seen)
    return found


def losses(out: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(out / "metrics.jsonl")}


def same_bits(a: Path, b: Path) -> bool:
    one, other = Saved(a / "final"), Saved(b / "final")
    return one.names() == other.names() and all(torch.equal(one.tensor(n), other.tensor(n)) for n in one.names())


@pytest.mark.long
def test_the_rows_of_a_step_are_the_same_whatever_the_layout(undisturbed):
    wanted = sorted(undisturbed["one"][1][0])
    assert len(wanted) == 6 * matrix.ROWS
    for name, (world, layout) in SIX.items():
        layout = layout.on(world)
        seen = undisturbed[name][1]
        inside = layout.tp * layout.cp
        everyone = sorted(
            row for rank in range(0, world, inside) for row in seen[rank]
        )  # tp and cp ranks see the same rows
        assert everyone == wanted, name


@pytest.mark.long
def test_the_final_state_of_every_layout_is_the_same_model_by_name(undisturbed):
    """What an export reads: whole tensors under Hugging Face's names, whoever held which part."""
    one = Saved(undisturbed["one"][0] / "final")
    assert {f"master/{name}" for name in matrix.shapes()} < set(one.names())
    for name in SIX:
        other = Saved(undisturbed[name][0] / "final")
        assert other.names() == one.names()
        for tensor in one.names():
            difference = (other.tensor(tensor) - one.tensor(tensor)).abs().max()
            assert difference < 1e-5, (name, tensor, difference)


@pytest.mark.long
@pytest.mark.parametrize("saved", SIX)
def test_a_checkpoint_of_any_layout_goes_on_under_any_other(fleet, undisturbed, saved, tmp_path):
    source = undisturbed[saved][0]
    kept = next(p for p in checkpoints(source / "checkpoints") if p.name == "step-00000003")
    for name, (world, layout) in SIX.items():
        out = tmp_path / name
        shutil.copytree(kept, out / "checkpoints" / kept.name)
        fleet.run(world, matrix.trained, layout, out)
        here = losses(out)
        assert sorted(here) == [3, 4, 5], "only what was left is computed"
        if name == saved:
            assert same_bits(out, source)
        whole = losses(source)
        for step in here:
            assert here[step] == pytest.approx(whole[step], abs=1e-5), (saved, name, step)


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), DEATHS)
def test_a_run_whose_processes_are_killed_goes_on_under_another_layout(fleet, undisturbed, before, after, tmp_path):
    world, layout = SIX[before]
    codes = fleet.doomed(world, matrix.trained, layout, tmp_path, 6, 4)
    assert codes == [-signal.SIGKILL] * world
    left = checkpoints(tmp_path / "checkpoints")
    assert left
    world, layout = SIX[after]
    fleet.run(world, matrix.trained, layout, tmp_path)
    here, whole = losses(tmp_path), losses(undisturbed[before][0])
    assert sorted(here) == list(range(6))
    for step in here:
        assert here[step] == pytest.approx(whole[step], abs=1e-5)
