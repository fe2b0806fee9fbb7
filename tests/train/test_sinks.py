"""Where metrics go beside `metrics.jsonl`."""

import sys
import types

import pytest

from herder.train.sinks import open_sinks


def test_an_unknown_sink_is_named(tmp_path):
    with pytest.raises(ValueError, match="'grafana'; known are tensorboard, wandb"):
        open_sinks(("grafana",), tmp_path)


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_package_is_told_with_the_command_that_installs_it(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"pip install 'herder\[{name}\]'"):
        open_sinks((name,), tmp_path)


def test_every_number_of_a_row_goes_to_tensorboard_from_the_resumed_step_on(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    (sink,) = open_sinks(("tensorboard",), tmp_path, step=7)
    sink.write({"step": 7, "loss": 2.5, "lr": 0.1})
    sink.close()
    assert calls == [(str(tmp_path / "tensorboard"), 7), ("loss", 2.5, 7), ("lr", 0.1, 7), "closed"]
