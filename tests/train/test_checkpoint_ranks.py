"""Checkpoints of several ranks (gloo): what any layout saved, any other loads, bit for bit; all ranks meet the same errors.

One start of the processes for all cases, because imports take most of the time. What is compared with is drawn on every rank
from a seed, never from a checkpoint.
"""

import os
import resource
import threading
import zlib

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore

from herder import launch
from herder.train.checkpoint import Checkpoints, Saved, checkpoints, load_checkpoint
from herder.train.staging import Planner

SHAPES = {
    "layers.0.column": (12, 10),
    "layers.0.row": (10, 14),
    "layers.0.norm": (10,),
    "layers.1.odd": (7, 3),
    "layers.1.tiny": (2, 5),
    "layers.1.norm": (11,),
}
"""Sizes that most layouts cannot cut evenly: some ranks get less, some nothing."""
TENSOR_PARALLEL = {"column": Shard(0), "row": Shard(1), "odd": Shard(0), "tiny": Shard(1), "norm": Replicate()}


def whole(kind, name):
    rng = torch.Generator().manual_seed(zlib.crc32(f"{kind}/{name}".encode()))
    return torch.randn(SHAPES[name], generator=rng)


class Model(nn.Module):
    def __init__(self, names, kind, tp=None):
        super().__init__()
        for name in names:
            tensor = whole(kind, name)
            if tp is not None:
                tensor = distribute_tensor(tensor, tp, [TENSOR_PARALLEL[name.split(".")[-1]]], src_data_rank=None)
            self.register_parameter(name.replace(".", "/"), nn.Parameter(tensor))


def state(layout, blank=False):
    """Weights and a moment under a layout, by axes from the outside: {"pp": 2, "replicate": 2, "dp": 2, "tp": 2}."""
    axes = {"pp": 1, "replicate": 1, "dp": 1, "tp": 1} | layout
    mesh = init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes))
    names = list(SHAPES)
    if axes["pp"] > 1:
        names = [n for n in names if n.startswith(f"layers.{mesh['pp'].get_local_rank()}.")]
    tensors = {}
    for kind in ("master", "optim/exp_avg"):
        model = Model(names, kind, mesh["tp"] if axes["tp"] > 1 else None)
        if axes["replicate"] > 1:
            fully_shard(model, mesh=mesh["replicate", "dp"])
        elif axes["dp"] > 1:
            fully_shard(model, mesh=mesh["dp"])
        tensors |= {f"{kind}/{name.replace('/', '.')}": p.detach() for name, p in model.named_parameters()}
    tensors |= {f"optim/step/{name}": torch.tensor(7.0) for name in names}
    if blank:
        for tensor in tensors.values():
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
    return tensors


def check(tensors):
    for name, tensor in tensors.items():
        kind, _, of = name.rpartition("/")
        expected = torch.tensor(7.0) if kind == "optim/step" else whole(kind, of)
        found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        assert torch.equal(found, expected), name


def reshard(folder, layouts):
    """Saves under every layout (the second save with a kept plan), then loads each under every layout."""
    seen = set()
    for i, layout in enumerate(layouts):
        tensors = state(layout)
        seen |= {type(p) for t in tensors.values() if isinstance(t, DTensor) for p in t.placements}
        run = Checkpoints(folder / str(i))
        for step in (1, 2):
            run.save(step, tensors, {"layout": i})
        run.close()
    for saved in range(len(layouts)):
        for layout in layouts:
            tensors = state(layout, blank=True)
            run = Checkpoints(folder / str(saved), asynchronous=False)
            assert run.load_latest(tensors) == {"layout": saved, "step": 2}
            check(tensors)
    return seen


def fewer_ranks(folder, count):
    """Some of the ranks load what all saved: a layout of another world size."""
    for ranks in range(1, dist.get_world_size()):
        mesh = DeviceMesh("cpu", list(range(ranks)))
        if dist.get_rank() >= ranks:
            continue
        for saved in range(count):
            kinds = {f"{kind}/{name}": shape for kind in ("master", "optim/exp_avg") for name, shape in SHAPES.items()}
            tensors = {name: distribute_tensor(torch.zeros(shape), mesh, [Shard(0)]) for name, shape in kinds.items()}
            tensors |= {f"optim/step/{name}": torch.tensor(0.0) for name in SHAPES}
            load_checkpoint(folder / str(saved) / "step-00000002", tensors, group=mesh.get_group())
            check(tensors)
    dist.barrier()


def error_of(call, *args):
    try:
        call(*args)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def same_everywhere(text):
    """The text, after all ranks have compared theirs."""
    texts = [None] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    assert len(set(texts)) == 1, texts
    return text


def faults(folder):
    """What goes wrong on the last rank alone: every rank meets it, none hangs."""
    last, heard = dist.get_world_size() - 1, {}
    alone = dist.get_rank() == last
    layout = {"dp": last + 1}
    run = Checkpoints(folder, warn=lambda _: None)
    run.save(1, state(layout), {})
    run.wait()

    large = {
        "master/w": distribute_tensor(torch.ones((last + 1) << 16), init_device_mesh("cpu", (last + 1,)), [Shard(0)])
    }
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if alone:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    run.save(2, large, {})
    heard["full disk"] = same_everywhere(error_of(run.wait))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    heard["kept"] = [p.name for p in checkpoints(folder)]

    patience, run.stalled_after = run.stalled_after, 1.0  # only now: a busy machine is no stalled disk
    held = None
    if alone:
        held = Held()
    run.save(3, state(layout), {})
    run.save(4, state(layout), {})
    run.save(5, state(layout), {})
    heard["skipped"] = same_everywhere(str(run.skipped))
    heard["stalled"] = same_everywhere(error_of(run.wait))
    run.stalled_after = patience
    if held:
        held.free()
    run.wait()
    run.save(6, state(layout), {})
    run.close()
    heard["after the stall"] = [p.name for p in checkpoints(folder)]

    shard = folder / "step-00000006" / f"rank-{last:05d}.safetensors"
    if alone:
        shard.unlink()
    dist.barrier()
    tensors = state(layout, blank=True)
    heard["missing shard"] = same_everywhere(error_of(load_checkpoint, shard.parent, tensors))
    if alone:
        tensors["master/mine"] = torch.zeros(1)
    heard["other model"] = same_everywhere(error_of(load_checkpoint, folder / "step-00000003", tensors))
    return heard


class Held:
    """Storage that hangs in os.fsync until it is freed."""

    def __init__(self):
        self.answers, self.fsync = threading.Event(), os.fsync
        os.fsync = lambda file: (self.answers.wait(60), self.fsync(file))[1]

    def free(self):
        os.fsync = self.fsync
        self.answers.set()


def four_ranks(folder):
    layouts = [
        {},
        {"dp": 4},
        {"replicate": 2, "dp": 2},
        {"tp": 4},
        {"dp": 2, "tp": 2},
        {"pp": 2, "dp": 2},
        {"pp": 2, "tp": 2},
    ]
    seen = reshard(folder / "layouts", layouts)
    fewer_ranks(folder / "layouts", len(layouts))
    return seen, faults(folder / "faults")


def eight_ranks(folder):
    layouts = [
        {"dp": 8},
        {"pp": 2, "dp": 2, "tp": 2},
        {"replicate": 2, "dp": 2, "tp": 2},
        {"replicate": 4, "dp": 2},
        {"tp": 8},
    ]
    reshard(folder, layouts)
    fewer_ranks(folder, len(layouts))


pytestmark = pytest.mark.xdist_group("checkpoints of ranks")


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    return folder, *launch.run_local(four_ranks, (folder,), 4)


def test_any_layout_of_four_or_fewer_ranks_loads_what_any_other_saved(four):
    _, seen, _ = four  # the comparisons were made on every rank; here only that the hard placements were among them
    assert {Shard, Replicate, _StridedShard} <= seen


def test_one_process_reads_what_each_layout_saved(four):
    folder, _, _ = four
    for layout in sorted((folder / "layouts").iterdir()):
        saved = Saved(layout / "step-00000002")
        tensors = {name: saved.tensor(name) for name in saved.names()}
        assert len(tensors) == 3 * len(SHAPES)
        check(tensors)


def test_every_element_is_written_once(four):
    folder, _, _ = four
    count = sum(torch.Size(shape).numel() for shape in SHAPES.values()) * 2 + len(SHAPES)
    for layout in sorted((folder / "layouts").iterdir()):
        files = sorted((layout / "step-00000002").glob("*.safetensors"))
        assert len(files) == 4
        shards = [t for file in files for t in load_file(file).values()]
        assert sum(t.numel() for t in shards) == count
        assert all(t.numel() for t in shards)


def test_a_full_disk_of_one_rank_is_every_ranks_error(four):
    heard = four[2]
    assert "File too large" in heard["full disk"]
    assert "rank-00003.safetensors" in heard["full disk"]
    assert heard["kept"] == ["step-00000001"]


def test_a_stalled_disk_of_one_rank_lets_all_go_on(four):
    heard = four[2]
    assert heard["skipped"] == "2"
    assert "look at the storage" in heard["stalled"]
    assert heard["after the stall"] == ["step-00000003", "step-00000006"]


def test_a_missing_shard_and_another_model_are_told_on_every_rank(four):
    heard = four[2]
    assert "rank-00003.safetensors is missing" in heard["missing shard"]
    assert "lacks master/mine" in heard["other model"]


@pytest.mark.long
def test_any_layout_of_eight_ranks_loads_what_any_other_saved(tmp_path):
    launch.run_local(eight_ranks, (tmp_path,), 8)
    check({name: Saved(tmp_path / "1" / "step-00000002").tensor(name) for name in ("master/layers.1.odd",)})


def test_a_shard_that_torch_places_wrongly_is_refused_instead_of_saved_elsewhere():
    # FSDP over 3 of the 6 rows that an uneven cut by TP left on this rank: it holds 2, torch's placements say 1
    dist.init_process_group("fake", store=FakeStore(), rank=5, world_size=6)
    try:
        mesh = init_device_mesh("cpu", (3, 2), mesh_dim_names=("dp", "tp"))
        placements = [_StridedShard(0, split_factor=2), Shard(0)]
        held = DTensor.from_local(torch.zeros(2, 3), mesh, placements, run_check=False, shape=(13, 3), stride=(3, 1))
        with pytest.raises(ValueError, match="tensor-parallel degree"):
            Planner({"master/w": held}).create_local_plan()
    finally:
        dist.destroy_process_group()
