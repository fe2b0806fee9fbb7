"""Pipeline parallelism: the paper's schedule with tunable N, and what runs it (paper 3.3.2, figure 6).

Stage s lies on rank s mod P. A rank runs forwards in rounds of N micro-batches, each virtual stage the whole round, and turns to
one-forward-one-backward after its warm-up. N = P is depth-first (1F1B with one virtual stage, interleaved 1F1B with more),
N = M is breadth-first; any number of micro-batches works.

The one design decision: sends and receives are placed by simulating all ranks once, which also proves that nothing waits for
ever. torch.distributed.pipelining has the same two steps, but its stages fix shapes at their first batch (ramps change
them), keep their outputs until the backward pass, and cannot run a forward pass alone inside a training schedule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist

Kind = Literal["forward", "backward", "send_forward", "recv_forward", "send_backward", "recv_backward"]


@dataclass(frozen=True)
class Action:
    kind: Kind
    stage: int
    micro: int


def compute_order(rank: int, pp: int, chunks: int, micros: int, contiguous: int = 0) -> list[Action]:
    """What one rank computes, in order: each of its `chunks` stages forward and backward for each of `micros` micro-batches.

    contiguous: the paper's N; 0 is pp.
    """
    n = min(contiguous or pp, micros)
    rounds = _rounds(micros, n, pp)
    forward = [(v, m) for group in rounds for v in range(chunks) for m in group]
    backward = [(chunks - 1 - v, m) for group in rounds for v in range(chunks) for m in group]
    if chunks == 1:
        warm_up = pp - 1 - rank
    elif n < pp:
        warm_up = len(forward)  # a round shorter than the pipeline: no backward can start before all forwards are done
    else:
        warm_up = (chunks - 1) * len(rounds[0]) + 2 * (pp - 1 - rank)
    warm_up = min(warm_up, len(forward))
    order = [Action("forward", v * pp + rank, m) for v, m in forward[:warm_up]]
    for (fv, fm), (bv, bm) in zip(forward[warm_up:], backward, strict=False):
        order += [Action("forward", fv * pp + rank, fm), Action("backward", bv * pp + rank, bm)]
    return order + [Action("backward", v * pp + rank, m) for v, m in backward[len(forward) - warm_up :]]


def _rounds(micros: int, n: int, pp: int) -> list[range]:
    """Micro-batches in rounds of n. Where the last one would be shorter than the pipeline, which would leave ranks waiting for
    each other, there is one round fewer and all are as even as they can be, the longer ones first."""
    full, rest = divmod(micros, n)
    sizes = [n] * full + [rest] * (rest > 0)
    if 0 < rest < pp:
        sizes = [micros // full + (i < micros % full) for i in range(full)]
    ends = list(itertools.accumulate(sizes))
    return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def forward_order(rank: int, pp: int, chunks: int, micros: int) -> list[Action]:
    """The forwards alone, for evaluation."""
    return [Action("forward", v * pp + rank, m) for m in range(micros) for v in range(chunks)]


def with_transfers(orders: Sequence[list[Action]]) -> list[list[Action]]:
    """The ranks' orders with sends and receives put in: each pair where the simulation meets it, on both sides at once, so any
    two ranks see their transfers in the same order. Raises ValueError where ranks would wait for each other for ever."""
    pp, stages = len(orders), 1 + max(a.stage for order in orders for a in order)
    done: list[list[Action]] = [[] for _ in orders]
    here: list[set[Action]] = [set() for _ in orders]
    left = [list(reversed(order)) for order in orders]

    def ready(rank: int, action: Action) -> bool:
        stage, micro = action.stage, action.micro
        if action.kind == "forward":
            return stage == 0 or Action("recv_forward", stage, micro) in here[rank]
        last = stage == stages - 1
        return (
            Action("forward", stage, micro) in here[rank]
            if last
            else Action("recv_backward", stage, micro) in here[rank]
        )

    def put(rank: int, action: Action) -> None:
        done[rank].append(action)
        here[rank].add(action)

    while any(left):
        moved = False
        for rank in range(pp):
            if not left[rank] or not ready(rank, left[rank][-1]):
                continue
            action, moved = left[rank].pop(), True
            put(rank, action)
            step, way = (1, "forward") if action.kind == "forward" else (-1, "backward")
            to = action.stage + step
            if 0 <= to < stages:
                put(rank, Action(f"send_{way}", action.stage, action.micro))
                put(to % pp, Action(f"recv_{way}", to, action.micro))
        if not moved:
            raise ValueError("the pipeline's schedule waits for itself; choose layout.contiguous of at least layout.pp")
    return done


class Pipeline:
    """Runs a rank's actions over its stages. `shape(micro)` is what travels between stages, in `dtype`.

    forward(stage, x, micro) gives a stage's output from what the stage before gave (None for the first);
    loss(output, micro) turns the last stage's output into what backward starts from.
    """

    def __init__(self, pp: int, group: dist.ProcessGroup | None, dtype: torch.dtype, device: torch.device):
        self.pp, self.group, self.dtype, self.device = pp, group, dtype, device
        self.rank = group.rank() if group is not None else 0

    def run(
        self,
        program: list[Action],
        stages: int,
        shape: Callable[[int], tuple[int, ...]],
        forward: Callable[[int, torch.Tensor | None, int], torch.Tensor],
        loss: Callable[[torch.Tensor, int], torch.Tensor] | None,
        before_backward: Callable[[int, int], None] = lambda stage, micro: None,
    ) -> None:
        """One step. Without `loss` nothing is kept for a backward pass."""
        inputs: dict[tuple[int, int], torch.Tensor] = {}
        outputs: dict[tuple[int, int], torch.Tensor] = {}
        grads: dict[tuple[int, int], torch.Tensor] = {}
        arriving: dict[Action, tuple[torch.Tensor, dist.Work]] = {}
        leaving: list[tuple[dist.Work, torch.Tensor, bool]] = []
        for action in program:
            key = (action.stage, action.micro)
            leaving = _released(leaving)
            if action.kind == "forward":
                x = None
                if action.stage > 0:
                    x, work = arriving.pop(Action("recv_forward", *key))
                    work.wait()
                    inputs[key] = x.requires_grad_(loss is not None)
                out = forward(action.stage, x, action.micro)
                last = action.stage == stages - 1
                outputs[key] = loss(out, action.micro) if last and loss is not None else out
            elif action.kind == "backward":
                before_backward(*key)
                out = outputs.pop(key)
                if action.stage == stages - 1:
                    out.backward()
                else:
                    grad, work = arriving.pop(Action("recv_backward", *key))
                    work.wait()
                    torch.autograd.backward(out, grad)
                del out
                if action.stage > 0:
                    grads[key] = inputs.pop(key).grad
            elif action.kind.startswith("recv"):
                buffer = torch.empty(shape(action.micro), dtype=self.dtype, device=self.device)
                peer = (action.stage + (-1 if action.kind == "recv_forward" else 1)) % self.pp
                arriving[action] = (buffer, self._transfer(dist.irecv, buffer, peer))
            elif action.kind == "send_forward":
                out = outputs[key] if loss is not None else outputs.pop(key)
                sent = out.detach().contiguous()
                work = self._transfer(dist.isend, sent, (action.stage + 1) % self.pp)
                leaving.append((work, sent, sent.data_ptr() == out.data_ptr()))
            else:
                sent = grads.pop(key).contiguous()
                leaving.append((self._transfer(dist.isend, sent, (action.stage - 1) % self.pp), sent, False))
        for work, _, _ in leaving:
            work.wait()

    def _transfer(self, way, tensor: torch.Tensor, peer: int) -> dist.Work:
        return dist.batch_isend_irecv([dist.P2POp(way, tensor, group=self.group, group_peer=peer)])[0]


def _released(leaving: list[tuple[dist.Work, torch.Tensor, bool]]) -> list[tuple[dist.Work, torch.Tensor, bool]]:
    """Frees the memory of stage outputs that have arrived: the backward pass needs their graph, not their values (3.3.2)."""
    waiting = []
    for work, tensor, ours in leaving:
        if not work.is_completed():
            waiting.append((work, tensor, ours))
        elif ours:
            tensor.untyped_storage().resize_(0)
    return waiting
