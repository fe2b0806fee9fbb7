"""What the engine refuses before it starts, each in a sentence that names the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from herder.model import LlamaConfig


def prompt_ids(prompt: Sequence[int], what: str, config: LlamaConfig, longest: int) -> list[int]:
    """The prompt as a list of ids. Raises ValueError for text, nothing, more than `longest` tokens or ids that are none."""
    if isinstance(prompt, str):
        raise ValueError(f"{what} is text; encode it with the tokenizer or a chat format first")
    ids = [int(i) for i in prompt]
    if not ids:
        raise ValueError(f"{what} is empty; give at least the token of begin_of_text")
    if len(ids) > longest:
        raise ValueError(
            f"{what} has {len(ids)} tokens; the model's context is {config.max_seq_len}, "
            "and at least one must be left for the answer"
        )
    check_ids(ids, what, config)
    return ids


def check_ids(ids: list[int], what: str, config: LlamaConfig) -> None:
    """Raises ValueError for an id that the model has no embedding for."""
    if ids and not (min(ids) >= 0 and max(ids) < config.vocab_size):
        wrong = next(i for i in ids if not 0 <= i < config.vocab_size)
        raise ValueError(f"{what} holds the id {wrong}; the model knows 0 to {config.vocab_size - 1}")


def check_update(
    new: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], names: Mapping[str, torch.Tensor]
) -> None:
    """Raises ValueError for an update that does not fit the weights `own`; `names` has tied ones under all their names."""
    aliases = {name: p for name, p in names.items() if name not in own}
    if missing := sorted(own.keys() - new.keys()):
        raise ValueError(f"the update lacks {len(missing)} of {len(own)} weights, the first is {missing[0]}")
    if extra := sorted(new.keys() - names.keys()):
        raise ValueError(f"the update has {len(extra)} weights that the model has not, the first is {extra[0]}")
    for name, tensor in new.items():
        target = names[name]
        if tensor.shape != target.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} in the update, {tuple(target.shape)} in the model"
            )
        if name in aliases:
            twin = next(n for n, p in own.items() if p is target)
            if not torch.equal(tensor, new[twin]):
                raise ValueError(f"{name} and {twin} differ in the update, but the model ties them")
