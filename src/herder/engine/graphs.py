"""Decoding on CUDA as replayed graphs: a step of single tokens costs one launch instead of one for each small operation.

The one design decision: a graph is of a number of rows and of blocks, both rounded up to powers of two, and reads its inputs from
tensors that stay; rows that fill it up stand in the pages' spare block. The same function runs uncaptured on any device.
"""

from __future__ import annotations

import torch

from herder.engine.cache import Pages
from herder.engine.runner import Batch, TorchRunner
from herder.model import Llama
from herder.model.rope import inverse_frequencies, rotation

MOST_ROWS = 256
"""Rows of a graph; larger steps are long enough to hide their launches."""


class GraphRunner(TorchRunner):
    """The plain runner, with graphs for steps in which every sequence takes one token. On other devices than CUDA nothing is
    captured and the same function is called."""

    def __init__(self, model: Llama, pages: Pages):
        super().__init__(model, pages)
        self.inv_freq = inverse_frequencies(model.config).to(self.device)  # a copy from the CPU cannot be captured
        self.graphs: dict[tuple[int, int], _Graph] = {}
        self.pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def run(self, batch: Batch) -> torch.Tensor:
        rows = len(batch.tokens)
        if rows > MOST_ROWS or len(batch.select) != rows or any(count != 1 for _, count, _ in batch.spans):
            return super().run(batch)
        blocks = max(batch.positions) // self.pages.size + 1
        key = _power(rows), _power(blocks)
        if key not in self.graphs:
            self.graphs[key] = _Graph(self, *key)
        return self.graphs[key].run(batch, blocks)


class _Graph:
    def __init__(self, runner: GraphRunner, rows: int, blocks: int):
        self.runner, device = runner, runner.device
        self.tokens, self.positions = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))
        self.table = torch.full((rows, blocks), runner.pages.spare, device=device)
        self.graph = self.hidden = None
        if runner.pool is not None:
            self._capture()

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what libraries set up at first use cannot be captured either
            self._compute()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=self.runner.pool):
            self.hidden = self._compute()

    def run(self, batch: Batch, blocks: int) -> torch.Tensor:
        rows, spare = len(batch.tokens), self.runner.pages.spare
        tables = [[*table[:blocks], *[spare] * (blocks - len(table))] for _, _, table in batch.spans]
        self.tokens[:rows].copy_(torch.tensor(batch.tokens))
        self.positions[:rows].copy_(torch.tensor(batch.positions))
        self.table[:rows, :blocks].copy_(torch.tensor(tables))
        # What lies beyond is masked by position, or belongs to rows that only fill up: they must write to nobody's block.
        self.positions[rows:].zero_()
        self.table[rows:, 0].fill_(spare)
        if self.graph is None:
            return self._compute()[:rows]
        self.graph.replay()
        return self.hidden[:rows].clone()  # the next replay writes there

    def _compute(self) -> torch.Tensor:
        """(rows, dim) from the tensors that stay; every shape is fixed."""
        runner, pages = self.runner, self.runner.pages
        block = self.table.gather(1, (self.positions // pages.size)[:, None])[:, 0]
        place, decode = self.positions % pages.size, pages.decode(self.table, self.positions)

        def attend(layer: int, q_bthd: torch.Tensor, k_bthd: torch.Tensor, v_bthd: torch.Tensor) -> torch.Tensor:
            pages.store(layer, block, place, k_bthd[0], v_bthd[0])
            return decode(layer, q_bthd[0])[None]

        decoder = runner.model.model
        h = decoder(self.tokens[None], attend, *rotation(runner.inv_freq, self.positions[None]))
        return decoder.norm(h)[0]


def _power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
