"""Small adapters that carry metrics to TensorBoard and Weights & Biases; both are optional extras."""

from __future__ import annotations

from pathlib import Path


def open_sinks(names: tuple[str, ...], out: Path, step: int = 0) -> list:
    """Opens sinks by name; what one holds from `step` on is written anew.

    Raises ValueError for an unknown name, or a missing package with the command that installs it.
    """
    known = {"tensorboard": _TensorBoard, "wandb": _Wandb}
    for name in names:
        if name not in known:
            raise ValueError(f"unknown metrics sink {name!r}; known are {', '.join(known)}")
    return [known[name](out, step) for name in names]


class _TensorBoard:
    def __init__(self, out: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("the tensorboard sink needs a package: pip install 'herder[tensorboard]'") from None
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def write(self, row: dict) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    def __init__(self, out: Path, step: int):
        try:
            import wandb
        except ImportError:
            raise ValueError("the wandb sink needs a package: pip install 'herder[wandb]'") from None
        name = out.name.removesuffix(".part")  # the address: a resumed step goes on in its own run
        self.run = wandb.init(project="herder", name=name, id=name, resume="allow", dir=str(out))

    def write(self, row: dict) -> None:
        self.run.log(row, step=row["step"])

    def close(self) -> None:
        self.run.finish()
