"""A training run's own checkpoint as a model: the fp32 master weights of `out/final`, read tensor by tensor.

Layouts leave no trace here: the checkpoint's names are Hugging Face's, whoever held which part of a tensor while it was
trained, so one process exports what any number of ranks have written.
"""

from __future__ import annotations

from pathlib import Path

import torch

from herder.convert.checkpoint import Checkpoint, check_tensors, check_tokenizer
from herder.model import LlamaConfig
from herder.tokenizer import Tokenizer
from herder.train.checkpoint import Saved

MASTER = "master/"


class TrainedCheckpoint(Checkpoint):
    """The weights in a checkpoint folder, with the shape and tokenizer that it does not carry itself.

    Raises ValueError naming the first tensor that is missing, of another shape, or none of this shape's.
    """

    def __init__(self, path: Path, config: LlamaConfig, tokenizer: Tokenizer):
        self.config, self._tokenizer = config, check_tokenizer(tokenizer, config)
        self._saved = Saved(path)
        masters = [name for name in self._saved.names() if name.startswith(MASTER)]
        shapes = {name.removeprefix(MASTER): tuple(self._saved.shape(name)) for name in masters}
        self._names = check_tensors(config, shapes, Path(path), "the model", lambda name: MASTER + name)
        self.dtype = self.stored(self._names[0])

    def names(self) -> list[str]:
        return list(self._names)

    def stored(self, name: str) -> torch.dtype:
        return self._saved.dtype(MASTER + name)

    def tensor(self, name: str) -> torch.Tensor:
        return self._saved.tensor(MASTER + name)

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer
