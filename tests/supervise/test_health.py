"""Health checks: sound machines pass, and a single wrong bit does not."""

import os

import pytest
import torch

from herder.supervise import health


def test_this_machine_passes(tmp_path):
    found = health.check("cpu", (tmp_path,))
    assert found.problems == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_wrong_element_of_a_product_is_found(monkeypatch, dtype):
    right = torch.Tensor.__matmul__

    def wrong(a, b):
        c = right(a, b)
        if c.dtype == dtype:
            c[17, 3] += 1
        return c

    monkeypatch.setattr(torch.Tensor, "__matmul__", wrong)
    kind = str(dtype).removeprefix("torch.")
    assert health.arithmetic("cpu") == f"1 of 65536 elements of a {kind} matrix product are wrong on cpu"


def test_one_byte_that_does_not_hold_its_pattern_is_found(monkeypatch):
    right = torch.full

    def wrong(*args, **kwargs):
        block = right(*args, **kwargs)
        block[1000] |= 4
        return block

    monkeypatch.setattr(torch, "full", wrong)
    assert "1 of 4096 bytes of memory on cpu do not hold 0xaa" in health.memory("cpu", 4096)


def test_a_folder_that_cannot_be_written_is_a_problem_and_a_full_disk_only_a_note(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    problem, _ = health.disk(tmp_path / "file" / "below")
    assert "cannot be written" in problem
    monkeypatch.setattr(health.os, "fsync", _full)
    problem, note = health.disk(tmp_path)
    assert not problem
    assert "is full" in note


def _full(descriptor):
    raise OSError(28, os.strerror(28))
