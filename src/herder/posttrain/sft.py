"""Supervised fine-tuning (paper 4.1.3): cross-entropy on assistant tokens, prompts masked, in the one training loop.

Whole dialogues are packed into rows and never see each other; the head is evaluated at answer positions only, which is where
most of the time of unpacked implementations goes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from herder import launch
from herder.config import at_least_one, runtime
from herder.convert import load, save
from herder.posttrain.lora import LoraConfig, adapter_tensors, add_adapter, merge, save_adapter
from herder.records import Dialogue, read_dialogues
from herder.tokenizer import ChatFormat, Turn
from herder.train import Outputs, Rows, TrainConfig, train
from herder.train.data import data_step
from herder.train.objective import Loss, Output, mean_log_loss


@dataclass(frozen=True)
class FineTuneConfig:
    train: TrainConfig
    epochs: float
    rows_per_step: int
    seq_len: int
    dialect: str = ""
    """Chat dialect; "" is the one that the base model's tokenizer calls for."""
    lora: LoraConfig | None = None
    """Trains an adapter and merges it; None trains every weight."""
    dialogues: str = "train.jsonl"
    """File of inputs["dialogues"] to train on."""
    seed: int = 0
    processes: int = runtime(1)

    def __post_init__(self):
        at_least_one(self, "rows_per_step", "seq_len", "processes")
        if self.epochs <= 0:
            raise ValueError(f"epochs is {self.epochs}; it must be above 0")


class SupervisedFineTuning:
    """The objective: dialogues (ids and loss mask) packed anew each epoch in an order keyed by (seed, epoch)."""

    needs: frozenset[Output] = frozenset({"token_log_probs"})
    metrics: tuple[str, ...] = ()

    def __init__(self, turns: Sequence[Turn], seq_len: int, rows_per_step: int, epochs: float, seed: int, pad_id: int):
        fitting = [t for t in turns if len(t.ids) <= seq_len + 1 and any(t.loss_mask)]
        if not fitting:
            raise ValueError(
                f"none of {len(turns)} dialogues has an answer and fits in {seq_len} tokens; raise seq_len"
            )
        self.turns, self.left_out = fitting, len(turns) - len(fitting)
        self.seq_len, self.rows_per_step, self.seed, self.pad_id = seq_len, rows_per_step, seed, pad_id
        self.skips: Sequence[int] = ()
        self._packed: dict[int, list[list[int]]] = {}
        self.steps = max(1, round(epochs * len(self._epoch(0)) / rows_per_step))

    def _epoch(self, epoch: int) -> list[list[int]]:
        """Rows of one epoch, each a list of dialogue numbers: next fit in shuffled order, so no dialogue is cut or lost."""
        if epoch not in self._packed:
            order = list(range(len(self.turns)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            rows, room = [], 0
            for index in order:
                length = len(self.turns[index].ids) - 1
                if not rows or length > room:
                    rows.append([])
                    room = self.seq_len
                rows[-1].append(index)
                room -= length
            self._packed[epoch] = rows
        return self._packed[epoch]

    def batch(self, step: int) -> list[list[int]]:
        start = data_step(step, self.skips) * self.rows_per_step
        rows, epoch = [], 0
        while len(rows) < self.rows_per_step:
            packed = self._epoch(epoch)
            if start < len(packed):
                rows += packed[start : start + self.rows_per_step - len(rows)]
            start = max(0, start - len(packed))
            epoch += 1
        return rows

    def rows(self, items: Sequence[list[int]]) -> Rows:
        shape = (len(items), self.seq_len)
        tokens, targets = (torch.full(shape, self.pad_id, dtype=torch.int64) for _ in range(2))
        weights, doc_ids = torch.zeros(shape), torch.full(shape, -1, dtype=torch.int64)
        for r, indices in enumerate(items):
            at = 0
            for number, index in enumerate(indices):
                turn = self.turns[index]
                end = at + len(turn.ids) - 1
                ids = torch.tensor(turn.ids)
                tokens[r, at:end], targets[r, at:end] = ids[:-1], ids[1:]
                weights[r, at:end] = torch.tensor(turn.loss_mask[1:], dtype=torch.float32)
                doc_ids[r, at:end] = number
                at = end
        return Rows(tokens, targets, weights, doc_ids)

    def loss(self, outputs: Outputs, rows: Rows) -> Loss:
        return mean_log_loss(outputs, rows)


@launch.distributed
def fine_tune(config: FineTuneConfig, inputs: dict[str, Path], out: Path) -> dict:
    """Step: fine-tunes inputs["base"] on inputs["dialogues"], leaves `out/model`."""
    return launch.run_local(_fine_tune, (config, inputs, out), config.processes)


def _encoded(chat: ChatFormat, dialogue: Dialogue) -> Turn:
    try:
        return chat.encode(dialogue)
    except ValueError as error:
        raise ValueError(f"dialogue {dialogue.id}: {error}") from None


def _fine_tune(config: FineTuneConfig, inputs: dict[str, Path], out: Path) -> dict:
    model, tokenizer = load(inputs["base"])
    chat = ChatFormat(tokenizer, config.dialect or None)
    turns = [_encoded(chat, dialogue) for dialogue in read_dialogues(inputs["dialogues"] / config.dialogues)]
    objective = SupervisedFineTuning(
        turns, config.seq_len, config.rows_per_step, config.epochs, config.seed, tokenizer.pad_id
    )
    if config.lora:
        add_adapter(model, config.lora)
    numbers = train(model, objective, config.train, out)
    if launch.rank() == 0:
        if config.lora:
            adapter = adapter_tensors(model)
            save_adapter(adapter, config.lora, out / "adapter")
            model, _ = load(inputs["base"])  # anew: training has rounded the frozen weights
            merge(model, adapter, config.lora)
        save(model, tokenizer, out / "model")
    return {"dialogues": len(objective.turns), "left_out": objective.left_out, **numbers}
