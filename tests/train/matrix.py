"""One model, one batch, every layout: the worker of the parity and resume matrices, on gloo here and on NCCL under torchrun.

Imports happen once; each case is run by as many processes as it needs, forked from there. Run it by itself with
`torchrun --nproc-per-node N tests/train/matrix.py` where there are GPUs: then every layout of N ranks is compared over NCCL.
"""

import datetime
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from herder.model import Llama, LlamaConfig, initial_weight
from herder.train import Layout, Loss, OptimConfig, Rows, TrainConfig, train
from herder.train.objective import mean_log_loss
from herder.train.parallel import Sharded
from herder.train.replica import Replica

SHAPE = LlamaConfig(64, 32, 4, 4, 2, 48, max_seq_len=64)
OPTIM = OptimConfig(lr=1e-3, warmup_steps=2, clip=0.5)
ROWS, LENGTH = 5, 32


class Text:
    """Next tokens of packed documents of random lengths; the share of positions that count grows from row to row, so ranks hold
    unequal numbers of valid tokens."""

    needs = frozenset({"token_log_probs"})
    metrics = ()
    skips = ()
    die_at = -1

    def __init__(self, steps=5):
        self.steps, self.seen = steps, []

    def batch(self, step):
        if step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return [(step, i) for i in range(ROWS)]

    def rows(self, items):
        made = [self._row(step, i) for step, i in items]
        return Rows(*(torch.stack(column) for column in zip(*made, strict=True)))

    def _row(self, step, i):
        g = torch.Generator().manual_seed(1000 * step + i)
        tokens = torch.randint(0, SHAPE.vocab_size, (LENGTH + 1,), generator=g)
        ends = torch.rand(LENGTH + 1, generator=g) < 0.15
        documents = ends.cumsum(0)
        weights = (documents[1:] == documents[:-1]) & (torch.rand(LENGTH, generator=g) < (i + 1) / ROWS)
        return tokens[:-1], tokens[1:], weights.float(), documents[:-1]

    def loss(self, outputs, rows):
        self.seen += [tuple(row[:12].tolist()) for row in rows.tokens]
        return mean_log_loss(outputs, rows)


class Pairs(Text):
    """Two segments in each row, the first to become likelier than the second, with a share of plain likelihood and a column
    computed before: what a preference objective needs, so that every layout is proven for it."""

    needs = frozenset({"token_log_probs", "segment_sums"})
    metrics = ("margin", "first")

    def rows(self, items):
        plain = super().rows(items)
        half = torch.arange(LENGTH) >= LENGTH // 2
        segments = torch.where(plain.weights > 0, half.long().expand_as(plain.tokens), -1)
        before = torch.tensor([[0.01 * i, -0.02 * step] for step, i in items])
        return Rows(plain.tokens, plain.targets, plain.weights, plain.doc_ids, segments, {"before": before})

    def loss(self, outputs, rows):
        sums = outputs.segment_sums - rows.columns["before"].to(outputs.segment_sums)
        margin = 0.1 * (sums[:, 0] - sums[:, 1])
        likely = mean_log_loss(outputs, rows)
        weight = torch.tensor(float(len(rows)), device=margin.device)
        metrics = {"margin": margin.sum(), "first": (margin > 0).sum()}
        return Loss(0.2 * likely.sum / 20 - F.logsigmoid(margin).sum(), weight, metrics)


def shapes():
    with torch.device("meta"):
        return {name: p.shape for name, p in Llama(SHAPE).named_parameters()}


def weights(dtype):
    known = shapes()
    return lambda name: initial_weight(name, known[name], SHAPE, 0).to(dtype)


def reference():
    """One process: sums and gradients of the first step in float64, losses and norms of five steps in fp32."""
    found = {}
    for kind in (Text, Pairs):
        replica = Replica(Llama(SHAPE).init_weights(0).double(), OPTIM, torch.float64, micro_batch=3)
        sums = replica.gradients(kind(), kind().batch(0))
        grads = {name: m.grad.clone() for name, m in replica.masters.items()}
        found[kind.__name__] = {"sums": sums, "grads": grads}
    found["losses"] = steps(Replica(Llama(SHAPE).init_weights(0), OPTIM, torch.float32, micro_batch=3), Text())
    return found


def steps(replica, objective):
    losses = []
    for step in range(objective.steps):
        sums = replica.gradients(objective, objective.batch(step))
        norm = replica.grad_norm()
        replica.step(OPTIM.scale(step, objective.steps), norm)
        losses.append((sums[1] / sums[0], norm))
    return losses


def compare(layout, expected, device="cpu"):
    """Worst norm-relative error of a gradient in float64 and of the sums, for both objectives, and of five losses in fp32."""
    gradient, totals = [], []
    sharded = Sharded(SHAPE, layout, weights(torch.float64), OPTIM, torch.float64, device)
    for kind in (Text, Pairs):
        want = expected[kind.__name__]
        sums = sharded.gradients(kind(), kind().batch(0))
        totals += [abs(a - b) / max(1, abs(b)) for a, b in zip(sums, want["sums"], strict=True)]
        for name, p in sharded.masters.items():
            g, right = p.grad.full_tensor().cpu(), want["grads"][name]
            gradient.append((float((g - right).norm() / right.norm()), kind.__name__, name))
        sharded.clear()
    sharded = Sharded(SHAPE, layout, weights(torch.float32), OPTIM, torch.float32, device)
    pairs = zip(steps(sharded, Text()), expected["losses"], strict=True)
    return {"gradient": max(gradient), "sums": max(totals), "loss": max(abs(a - b) for (a, _), (b, _) in pairs)}


def trained(layout, out, steps=6, die_at=-1):
    """Trains under a layout, going on from what lies in `out/checkpoints`; every step leaves a checkpoint. A model that no
    process ever holds whole. Returns the rows that this rank's losses were of."""
    objective = Text(steps)
    objective.die_at = die_at
    config = TrainConfig(OPTIM, dtype="float32", layout=layout, device="cpu", checkpoint_seconds=0, checkpoints_kept=9)
    with torch.device("meta"):
        model = Llama(SHAPE)
    train(model, objective, config, out, weights=weights(torch.float32))
    return objective.seen


class Fleet:
    """Starts processes that run a function together. Imports are done once, in the server that all are forked from; each case
    has processes of its own, since DTensor's caches outlive the groups they were made for."""

    def __init__(self, folder):
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["herder.train", "herder.train.checkpoint"])
        self.folder, self.count = Path(folder), 0

    def start(self, n, function, *args):
        """(pipe, process) of each of n ranks."""
        self.count += 1
        store, started = str(self.folder / f"store-{self.count}"), []
        for rank in range(n):
            here, there = self.context.Pipe()
            process = self.context.Process(target=_worker, args=(rank, n, store, there, function, args), daemon=True)
            process.start()
            there.close()
            started.append((here, process))
        return started

    def run(self, n, function, *args):
        """What each of n ranks returns."""
        started = self.start(n, function, *args)
        found = [pipe.recv() for pipe, _ in started]
        for _, process in started:
            process.join()
        if errors := [text for ok, text in found if not ok]:
            raise AssertionError(
                min(errors, key=lambda text: "closed by peer" in text)
            )  # the cause before its consequences
        return [value for _, value in found]

    def doomed(self, n, function, *args):
        """As `run`, of ranks that are to die on the way; returns their exit codes."""
        started = self.start(n, function, *args)
        for _, process in started:
            process.join(120)
        return [process.exitcode for _, process in started]


def _worker(rank, n, store, pipe, function, args):
    torch.set_num_threads(1)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # each rank would start a pool of compilers
    torch.use_deterministic_algorithms(True)
    logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)  # full_tensor() of two cuts says it is slow
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n))
    timeout = datetime.timedelta(minutes=5)
    dist.init_process_group("gloo", store=dist.FileStore(store, n), rank=rank, world_size=n, timeout=timeout)
    try:
        pipe.send((True, function(*args)))
    except BaseException:
        pipe.send((False, f"rank {rank} of {n}: {traceback.format_exc()}"))
    dist.barrier()
    dist.destroy_process_group()


def layouts(world):
    """Every combination of TP, CP, PP, DP in {1, 2} of this many ranks, pipelines under both schedules."""
    for tp, cp, pp, dp in ((1 + (i & 1), 1 + (i >> 1 & 1), 1 + (i >> 2 & 1), 1 + (i >> 3 & 1)) for i in range(16)):
        if tp * cp * pp * dp == world:
            yield Layout(tp, cp, pp, dp, micro_batch=2)
            if pp > 1:
                yield Layout(tp, cp, pp, dp, micro_batch=1, chunks=2, contiguous=3)


if __name__ == "__main__":
    dist.init_process_group("nccl")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    expected, bad = reference(), 0
    for layout in layouts(dist.get_world_size()):
        found = compare(layout, expected, "cuda")
        bad += found["gradient"][0] > 1e-9 or found["loss"] > 1e-5
        if dist.get_rank() == 0:
            print(layout, found)
    dist.destroy_process_group()
    sys.exit(bool(bad))
