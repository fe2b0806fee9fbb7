"""What a rank writes of a checkpoint, and the copy it writes from.

The one design decision: DCP plans once, in the training thread, and the plan is kept while names, shapes and layout stay, so
that a rank copies only what it will write, and no planning disturbs the training later.
"""

from __future__ import annotations

import math
import mmap
import weakref

import torch
from torch.distributed.checkpoint import DefaultSavePlanner, SavePlan
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.tensor import DTensor

from herder.train.ranks import Ranks
from herder.train.storage import DTYPES, Writer

Tensors = dict[str, torch.Tensor]
_ALIGN = 64


class Planner(DefaultSavePlanner):
    """DCP's planner, less the empty shards of uneven cuts: nobody needs them, and their offsets may repeat another's."""

    def __init__(self, tensors: Tensors):
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype not in DTYPES.values():
                kind = getattr(tensor, "dtype", type(tensor).__name__)
                raise ValueError(f"{name} is {kind}; a checkpoint holds {', '.join(map(str, DTYPES.values()))} tensors")
        self.set_up_planner(tensors)
        self.staged: dict[MetadataIndex, torch.Tensor] = {}

    def create_local_plan(self) -> SavePlan:
        """Raises ValueError where a shard is not the part of its tensor that its placements say."""
        items = []
        for item in super().create_local_plan().items:
            chunk, name = item.tensor_data.chunk, item.index.fqn
            if (held := self.lookup_object(item.index).shape) != chunk.sizes:
                # torch 2.13 places such shards wrongly where FSDP cuts unevenly what TP has cut unevenly
                raise ValueError(
                    f"this rank holds {tuple(held)} of {name}, whose layout says {tuple(chunk.sizes)}; choose a "
                    f"tensor-parallel degree that divides its shape {tuple(item.tensor_data.size)}"
                )
            if 0 not in chunk.sizes or 0 in item.tensor_data.size:
                items.append(item)
        return SavePlan(items)

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.staged[index] if self.staged else super().lookup_object(index)


class Plan:
    """Who writes what, agreed between the ranks: each shard once, replicas spread over those that hold them."""

    def __init__(self, ranks: Ranks, tensors: Tensors, writer: Writer):
        planner, made = ranks.agree(lambda: Planner(tensors)), []
        self.key = self._key(tensors)
        plans = ranks.gather(ranks.agree(planner.create_local_plan))

        def plan_all() -> None:
            planned, metadata = planner.create_global_plan(plans)
            made.extend([writer.prepare_global_plan(planned), metadata])

        ranks.first(plan_all)
        self.mine: SavePlan = ranks.scatter(made[0] if made else None)
        self.metadata: Metadata | None = made[1] if made else None

    def fits(self, ranks: Ranks, tensors: Tensors) -> bool:
        """Whether no rank's names, shapes, dtypes or layout have changed since."""
        return not ranks.add(float(self.key != self._key(tensors)))[0]

    @staticmethod
    def _key(tensors: Tensors) -> list[tuple]:
        return [
            (name, t.shape, t.dtype, *((t.device_mesh, t.placements) if isinstance(t, DTensor) else ()))
            for name, t in tensors.items()
        ]


class Staging:
    """One buffer for all that this rank writes: large pages, pinned where tensors come from a GPU."""

    def __init__(self, plan: SavePlan, tensors: Tensors):
        sizes = [math.prod(i.tensor_data.chunk.sizes) * i.tensor_data.properties.dtype.itemsize for i in plan.items]
        memory = mmap.mmap(-1, max(1, sum(-(-size // _ALIGN) * _ALIGN for size in sizes)))
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)  # a first touch by small pages costs more than the copy
        self.buffer, self.views, begin = torch.frombuffer(memory, dtype=torch.uint8), {}, 0
        for item, size in zip(plan.items, sizes, strict=True):
            view = self.buffer[begin : begin + size].view(item.tensor_data.properties.dtype)
            self.views[item.index] = view.view(item.tensor_data.chunk.sizes)
            begin += -(-size // _ALIGN) * _ALIGN
        self.cuda = any(t.is_cuda for t in tensors.values())
        if self.cuda:
            runtime, address = torch.cuda.cudart(), self.buffer.data_ptr()
            if not int(runtime.cudaHostRegister(address, self.buffer.numel(), 0)):  # not pinned: slower, no fault
                weakref.finalize(self, runtime.cudaHostUnregister, address).atexit = False

    @torch.no_grad()
    def fill(self, planner: Planner) -> None:
        """Copies the planner's tensors, which may change from then on."""
        for index, view in self.views.items():
            view.copy_(planner.lookup_object(index), non_blocking=True)
        if self.cuda:
            torch.cuda.current_stream().synchronize()
        planner.staged, planner.state_dict = self.views, {}
