"""Meshes, stages and schedules without processes: the paper's examples, torch's own schedules, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.pipelining import ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import FORWARD
from torch.testing._internal.distributed.fake_pg import FakeStore

from herder.model import LlamaConfig
from herder.train import Layout, OptimConfig
from herder.train.parallel import cp, pp
from herder.train.parallel.mesh import Meshes
from herder.train.parallel.sharded import check
from herder.train.parallel.stage import partition


@pytest.fixture
def sixteen(request):
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=16)
    yield request.param
    dist.destroy_process_group()


@pytest.mark.parametrize("sixteen", [0], indirect=True)
def test_the_papers_sixteen_gpus(sixteen):
    """3.3.2: with 2 along every axis GPU 0 shares TP with 1, CP with 2, PP with 4 and DP with 8."""
    meshes = Meshes(Layout(2, 2, 2, 2).on(16), "cpu")
    members = {
        axis: dist.get_process_group_ranks(meshes.axes[axis].get_group()) for axis in ("tp", "cp", "pp", "shard")
    }
    assert members == {"tp": [0, 1], "cp": [0, 2], "pp": [0, 4], "shard": [0, 8]}
    assert dist.get_process_group_ranks(meshes.fsdp.get_group()) == [0, 2, 8, 10]
    assert dist.get_process_group_ranks(meshes.over) == [0, 4, 8, 12]


@pytest.mark.parametrize("sixteen", [13], indirect=True)
def test_copies_of_shards_have_both_axes(sixteen):
    meshes = Meshes(Layout(tp=2, dp=8, shard=4).on(16), "cpu")
    assert meshes.fsdp.mesh.tolist() == [[1, 3, 5, 7], [9, 11, 13, 15]]
    assert meshes.dp_rank == 6


CASES = [
    (p, v, m, n)
    for p in range(1, 6)
    for v in (range(1, 5) if p > 1 else [1])
    for m in range(1, 14)
    for n in range(m + 1)
]


def test_no_schedule_waits_for_itself_and_each_computes_everything_once():
    for p, v, m, n in CASES:
        programs = pp.with_transfers([pp.compute_order(rank, p, v, m, n) for rank in range(p)])
        for rank, program in enumerate(programs):
            for kind in ("forward", "backward"):
                done = [(a.stage, a.micro) for a in program if a.kind == kind]
                assert sorted(done) == [(s, i) for s in range(rank, p * v, p) for i in range(m)]


def test_two_ranks_see_their_transfers_in_the_same_order():
    """What one sends first the other must receive first, or both wait (NCCL keeps one order for a pair of ranks)."""
    for p, v, m, n in CASES[:: len(CASES) // 60]:
        programs = pp.with_transfers([pp.compute_order(rank, p, v, m, n) for rank in range(p)])
        for a in range(p):
            for b in range(a):
                assert transfers(programs[a], a, b, p) == transfers(programs[b], b, a, p)


def transfers(program, me, other, p):
    """Messages between two ranks in this rank's order, each named alike on both sides."""
    found = []
    for action in program:
        way = 1 if action.kind in ("send_forward", "recv_backward") else -1
        if action.kind in ("forward", "backward") or (action.stage + way) % p != other:
            continue
        sender = action.stage if action.kind.startswith("send") else action.stage + way
        found.append((action.kind.split("_")[1], sender, action.micro))
    return found


@pytest.mark.parametrize(("p", "v", "m"), [(2, 2, 4), (4, 2, 8), (4, 3, 12), (2, 4, 6)])
def test_depth_first_is_torchs_interleaved_schedule(p, v, m):
    for rank in range(p):
        stages = [
            SimpleNamespace(
                num_stages=p * v, group_size=p, group_rank=rank, stage_index=s, is_first=s == 0, is_last=False
            )
            for s in range(rank, p * v, p)
        ]
        theirs = ScheduleInterleaved1F1B(stages, m).pipeline_order[rank]
        kinds = {True: "forward", False: "backward"}
        wanted = [(kinds[a.computation_type == FORWARD], a.stage_index, a.microbatch_index) for a in theirs if a]
        assert [(a.kind, a.stage, a.micro) for a in pp.compute_order(rank, p, v, m)] == wanted


def test_figure_6_of_the_paper():
    """8 stages on 4 ranks, N = 5, 10 micro-batches: five of one stage in a row, then five of the next."""
    order = pp.compute_order(0, pp=4, chunks=2, micros=10, contiguous=5)
    first = [(a.stage, a.micro) for a in order[:10]]
    assert first == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (4, 0), (4, 1), (4, 2), (4, 3), (4, 4)]
    assert [a.kind for a in order].index("backward") == 5 + 2 * 3 + 1  # warm-up, and the forward that goes with it


@pytest.mark.parametrize(("p", "v", "m"), [(4, 1, 8), (4, 2, 8), (2, 3, 6), (4, 4, 16)])
def test_the_bubble_is_the_papers(p, v, m):
    """(PP - 1) / (V M) of the time that computing takes, a backward taking twice a forward."""
    programs = [pp.compute_order(rank, p, v, m) for rank in range(p)]
    ended, clock, left = {}, [0.0] * p, [list(reversed(order)) for order in programs]
    while any(left):
        for rank in range(p):
            while left[rank]:
                a = left[rank][-1]
                if a.kind == "forward":
                    needs = [("forward", a.stage - 1, a.micro)] if a.stage else []
                else:
                    needs = [("forward", a.stage, a.micro)]
                    needs += [("backward", a.stage + 1, a.micro)] if a.stage < p * v - 1 else []
                if any(need not in ended for need in needs):
                    break
                clock[rank] = (
                    max([clock[rank], *(ended[need] for need in needs)]) + {"forward": 1, "backward": 2}[a.kind]
                )
                ended[a.kind, a.stage, a.micro] = clock[rank]
                left[rank].pop()
    busy = 3 * v * m
    assert (max(clock) - busy) / busy == pytest.approx((p - 1) / (v * m))


def test_the_first_and_the_last_stage_have_a_layer_less():
    assert partition(6, 2) == [[-1, 0, 1, 2], [3, 4, 5, 6]]
    stages = partition(126, 16 * 8)
    assert stages[0] == [-1]
    assert stages[-1] == [126]
    assert all(len(slots) == 1 for slots in stages)
    assert [len(slots) for slots in partition(9, 4)] == [2, 3, 3, 3]
    with pytest.raises(ValueError, match="choose fewer stages"):
        partition(2, 5)


def test_the_chunks_of_all_ranks_are_the_row_and_weigh_the_same():
    for size, t in ((1, 8), (2, 32), (4, 64)):
        every = torch.cat([cp.indices(rank, size, t) for rank in range(size)])
        assert every.sort().values.tolist() == list(range(t))
        assert every[cp.order(size, t)].tolist() == list(range(t))
        assert len({int((cp.indices(rank, size, t) + 1).sum()) for rank in range(size)}) == 1


SHAPE = LlamaConfig(64, 32, 6, 4, 2, 48, max_seq_len=64)
TIED = LlamaConfig(64, 32, 6, 4, 2, 48, max_seq_len=64, tie_embeddings=True)


@pytest.mark.parametrize(
    ("layout", "world", "sentence"),
    [
        (Layout(tp=2, pp=2), 6, "does not divide the 6 processes"),
        (Layout(tp=2, dp=3), 4, "does not divide the 4 processes"),
        (Layout(tp=8), 4, "does not divide"),
        (Layout(dp=4, shard=3), 4, "shard 3 does not divide dp 4"),
        (Layout(tp=0), 4, "tp is 0"),
        (Layout(tp=4), 4, "tp 4 does not divide n_kv_heads 2"),
        (Layout(pp=4, chunks=3), 4, "12 stages"),
        (Layout(chunks=2), 2, "needs a pipeline"),
        (Layout(tp=2, compile=True), 2, "wrong gradients"),
        (Layout(compile=True, recompute="alternate"), 2, "use none or full"),
    ],
)
def test_a_layout_that_cannot_run_is_refused_in_a_sentence(layout, world, sentence):
    with pytest.raises(ValueError, match=sentence):
        check(SHAPE, layout.on(world), OptimConfig())


def test_tied_weights_on_two_ranks_and_muon_on_parts_are_refused():
    with pytest.raises(ValueError, match="ties them"):
        check(TIED, Layout(pp=2).on(2), OptimConfig())
    with pytest.raises(ValueError, match="whole matrices"):
        check(SHAPE, Layout().on(2), OptimConfig(kind="muon"))
