"""Checkpoints of one process. The independent sides: safetensors' own reader, torch.distributed.checkpoint, the operating
system's file-size limit, SIGKILL."""

import json
import multiprocessing
import os
import resource
import threading
import warnings

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
import xxhash

from herder.train.checkpoint import Checkpoints, Saved, checkpoints, load_checkpoint, save_checkpoint
from herder.train.storage import Reader, Writer

FILE = "rank-00000.safetensors"


def state(seed=0, rows=6):
    rng = torch.Generator().manual_seed(seed)
    return {
        "master/a.weight": torch.randn(rows, 5, generator=rng),
        "master/b.weight": torch.randn(3, 4, 2, generator=rng).double(),
        "optim/exp_avg/a.weight": torch.randn(rows, 5, generator=rng).bfloat16(),
        "optim/step/a.weight": torch.tensor(7.0 + seed),
        "count": torch.randint(-9, 9, (4,), generator=rng),
        "empty": torch.empty(0, 3),
    }


def blank():
    return {name: torch.zeros_like(t) for name, t in state().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def two_steps(folder):
    """A run's folder with checkpoints of steps 1 and 2, whose tensors are state(1) and state(2)."""
    run = Checkpoints(folder)
    for step in (1, 2):
        run.save(step, state(step), {"note": f"of step {step}"})
    run.close()
    return folder


def test_what_was_saved_comes_back_bit_for_bit_with_its_facts(tmp_path):
    run, facts = (
        Checkpoints(tmp_path),
        {"skips": [3, 4], "history": [0.1, 1e300], "row": {"loss": 2.5}, "layout": "tp=1"},
    )
    run.save(12, state(), facts)
    run.wait()
    found = blank()
    assert run.load_latest(found) == {**facts, "step": 12}
    assert equal(found, state())


def test_the_files_are_safetensors_that_the_library_reads_and_json(tmp_path):
    save_checkpoint(tmp_path / "final", state(), {"moments": True})
    assert equal(safetensors.torch.load_file(tmp_path / "final" / FILE), state())
    assert json.loads((tmp_path / "final" / "checkpoint.json").read_text())["facts"] == {"moments": True}
    assert sorted(p.name for p in (tmp_path / "final").iterdir()) == ["checkpoint.json", FILE]


def test_torch_distributed_checkpoint_reads_and_writes_the_same_files(tmp_path):
    save_checkpoint(tmp_path / "ours", state(), {})
    found = blank()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group
        dcp.load(found, storage_reader=Reader(tmp_path / "ours"))
        dcp.save(state(5), storage_writer=Writer(tmp_path / "theirs"), planner=dcp.DefaultSavePlanner())
    assert equal(found, state())
    load_checkpoint(tmp_path / "theirs", found)
    assert equal(found, state(5))


def test_tensors_may_change_as_soon_as_save_returns(tmp_path):
    tensors = {"master/w": torch.ones(1 << 20)}
    with Held(os, "mkdir"):  # the writer's thread cannot begin before the tensors change
        run = Checkpoints(tmp_path)
        run.save(1, tensors, {})
        tensors["master/w"].zero_()
    run.wait()
    assert bool((Saved(tmp_path / "step-00000001").tensor("master/w") == 1).all())


def test_buffers_are_used_again_without_mixing_saves(tmp_path):
    run = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        run.save(step, state(step), {})
    run.close()
    for step, path in zip((1, 2, 3), checkpoints(tmp_path), strict=True):
        found = blank()
        load_checkpoint(path, found)
        assert equal(found, state(step))


def test_a_state_of_other_shapes_is_planned_anew(tmp_path):
    run = Checkpoints(tmp_path)
    run.save(1, state(rows=6), {})
    run.save(2, state(rows=9), {})
    run.close()
    assert Saved(tmp_path / "step-00000002").shape("master/a.weight") == (9, 5)


def test_asynchronous_and_synchronous_saves_write_the_same_bytes(tmp_path):
    for name, asynchronous in (("a", True), ("b", False)):
        run = Checkpoints(tmp_path / name, asynchronous=asynchronous)
        run.save(1, state(), {"x": 1})
        run.close()
    for file in (FILE, "checkpoint.json"):
        a, b = (tmp_path / name / "step-00000001" / file for name in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_the_newest_are_kept_and_those_of_a_course_that_was_left_go(tmp_path):
    run = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15, 20):
        run.save(step, state(), {})
    run.wait()
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000015", "step-00000020"]
    run.save(16, state(), {})  # after a rewind to 15
    run.close()
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000015", "step-00000016"]


def test_saving_a_step_again_replaces_it(tmp_path):
    for seed in (1, 2):
        run = Checkpoints(tmp_path)
        run.save(1, state(seed), {})
        run.close()
    found = blank()
    load_checkpoint(tmp_path / "step-00000001", found)
    assert equal(found, state(2))


def flip(path, at, bit=4):
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit of a tensor": (lambda p: flip(p / FILE, -3), FILE),
    "a flipped bit of the header": (lambda p: flip(p / FILE, 40), FILE),
    "a file cut short": (lambda p: os.truncate(p / FILE, (p / FILE).stat().st_size - 8), FILE),
    "a file that is gone": (lambda p: (p / FILE).unlink(), FILE),
    "a changed fact": (
        lambda p: flip(p / "checkpoint.json", (p / "checkpoint.json").read_bytes().index(b"of step")),
        "json",
    ),
    "a cut index": (lambda p: os.truncate(p / "checkpoint.json", 100), "checkpoint.json"),
    "an empty index": (lambda p: os.truncate(p / "checkpoint.json", 0), "checkpoint.json"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, damage):
    two_steps(tmp_path)
    harm, named = DAMAGE[damage]
    harm(tmp_path / "step-00000002")
    found, said = blank(), []
    assert Checkpoints(tmp_path).load_latest(found, said.append)["note"] == "of step 1"
    assert equal(found, state(1))
    (sentence,) = said
    assert "step-00000002" in sentence
    assert named in sentence
    with pytest.raises(ValueError, match="step-00000002"):
        load_checkpoint(tmp_path / "step-00000002", blank())


def test_without_its_index_a_folder_is_no_checkpoint(tmp_path):
    two_steps(tmp_path)
    (tmp_path / "step-00000002" / "checkpoint.json").unlink()
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000001"]
    with pytest.raises(ValueError, match="no whole checkpoint"):
        Saved(tmp_path / "step-00000002")


def test_when_none_is_sound_nothing_is_filled_in(tmp_path):
    two_steps(tmp_path)
    for step in (1, 2):
        flip(tmp_path / f"step-0000000{step}" / FILE, -3)
    found, said = blank(), []
    assert Checkpoints(tmp_path).load_latest(found, said.append) is None
    assert equal(found, blank())
    assert len(said) == 2


def test_a_missing_folder_is_no_checkpoint(tmp_path):
    assert Checkpoints(tmp_path / "none").load_latest(blank()) is None
    with pytest.raises(ValueError, match="no whole checkpoint"):
        load_checkpoint(tmp_path / "none", blank())


OTHER_MODELS = {
    "lacks master/more": {"master/more": torch.zeros(2)},
    "holds master/a.weight": {"master/a.weight": None},
    r"master/a.weight is float32 \(6, 5\) there, float32 \(6, 4\) here": {"master/a.weight": torch.zeros(6, 4)},
    r"count is int64 \(4,\) there, float32 \(4,\) here": {"count": torch.zeros(4)},
}


@pytest.mark.parametrize("sentence", OTHER_MODELS)
def test_another_models_checkpoint_is_refused_and_not_passed_over(tmp_path, sentence):
    two_steps(tmp_path)
    found = {name: t for name, t in {**blank(), **OTHER_MODELS[sentence]}.items() if t is not None}
    with pytest.raises(ValueError, match=sentence):
        Checkpoints(tmp_path).load_latest(found)
    assert all(not t.any() for t in found.values())


def test_only_tensors_that_need_no_pickle_are_taken(tmp_path):
    for bad in (torch.zeros(2, dtype=torch.complex64), [1, 2], 3.0):
        with pytest.raises(ValueError, match="optim/odd"):
            save_checkpoint(tmp_path / "x", {"optim/odd": bad}, {})
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_names_a_place_outside_its_folder_is_refused(tmp_path):
    save_checkpoint(tmp_path / "x", state(), {})
    index = tmp_path / "x" / "checkpoint.json"
    body = json.loads(index.read_text().replace(FILE, "../rank-00000.safetensors"))
    del body["checksum"]
    index.write_text(json.dumps({**body, "checksum": xxhash.xxh3_128_hexdigest(json.dumps(body).encode())}))
    with pytest.raises(ValueError, match="never writes"):
        load_checkpoint(tmp_path / "x", blank())


def test_an_index_that_lacks_a_part_of_a_tensor_is_refused(tmp_path):
    save_checkpoint(tmp_path / "x", state(), {})
    index = tmp_path / "x" / "checkpoint.json"
    body = json.loads(index.read_text())
    del body["checksum"], body["tensors"]["master/b.weight"]["chunks"][0]
    index.write_text(json.dumps({**body, "checksum": xxhash.xxh3_128_hexdigest(json.dumps(body).encode())}))
    with pytest.raises(ValueError, match=r"lacks a part of master/b\.weight"):
        load_checkpoint(tmp_path / "x", blank())


def test_saved_reads_one_tensor_after_the_other_and_refuses_a_damaged_file(tmp_path):
    save_checkpoint(tmp_path / "x", state(), {"step": 3})
    saved = Saved(tmp_path / "x")
    assert saved.names() == sorted(state())
    assert saved.facts == {"step": 3}
    assert equal({name: saved.tensor(name) for name in saved.names()}, state())
    assert saved.shape("master/b.weight") == (3, 4, 2)
    assert saved.dtype("optim/exp_avg/a.weight") == torch.bfloat16
    with pytest.raises(ValueError, match="no tensor master/none"):
        saved.tensor("master/none")
    flip(tmp_path / "x" / FILE, -1)
    with pytest.raises(ValueError, match="checksum"):
        Saved(tmp_path / "x").tensor("count")


def save_and_wait(run, step, tensors):
    run.save(step, tensors, {})
    run.wait()


class FullDisk:
    """The operating system refuses to let any file grow beyond `limit` bytes."""

    def __init__(self, limit):
        self.limit = limit

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_an_os_error_and_leaves_the_last_good_checkpoint(tmp_path, asynchronous):
    run, large = Checkpoints(tmp_path, keep=1, asynchronous=asynchronous), {"master/w": torch.ones(1 << 20)}
    run.save(1, large, {})
    run.wait()
    with FullDisk(1 << 20), pytest.raises(OSError, match="large") as caught:
        save_and_wait(run, 2, large)
    assert caught.value.filename.endswith(FILE)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    run.save(3, large, {})  # there is room again
    run.close()
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_the_next_save_tells_that_the_one_before_could_not_be_written(tmp_path):
    run, large = Checkpoints(tmp_path), {"master/w": torch.ones(1 << 20)}
    with FullDisk(1 << 20):
        run.save(1, large, {})
        with pytest.raises(OSError, match="large"):
            run.save(2, large, {})
    run.save(3, large, {})
    run.close()
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000003"]


class Held:
    """The storage hangs: a system call comes back only when this is left."""

    def __init__(self, module, name):
        self.module, self.name, self.call, self.free = module, name, getattr(module, name), threading.Event()

    def __enter__(self):
        setattr(self.module, self.name, lambda *args: (self.free.wait(60), self.call(*args))[1])
        return self

    def __exit__(self, *_):
        setattr(self.module, self.name, self.call)
        self.free.set()


def test_training_goes_on_while_storage_stalls_and_saves_again_when_it_answers(tmp_path):
    said = []
    run = Checkpoints(tmp_path, keep=9, stalled_after=0.2, warn=said.append)
    with Held(os, "fsync"):
        run.save(1, state(1), {})
        run.save(2, state(2), {})
        run.save(3, state(3), {})
        assert checkpoints(tmp_path) == []
        with pytest.raises(OSError, match="look at the storage"):
            run.wait()  # the last one is not given up silently
    assert run.skipped == 2
    assert len(said) == 2
    assert str(tmp_path) in said[0]
    run.wait()
    run.save(4, state(4), {})
    run.close()
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000001", "step-00000004"]


def test_a_save_waits_for_the_one_before_and_counts_it(tmp_path):
    run = Checkpoints(tmp_path)
    held = Held(os, "fsync")
    with held:
        run.save(1, state(1), {})
        assert run.waited < 0.2
        threading.Timer(0.3, held.free.set).start()
        blocked = run.save(2, state(2), {})
    run.close()
    assert blocked >= run.waited > 0.2
    assert len(checkpoints(tmp_path)) == 2


def _die_while_saving(folder, pipe):
    run = Checkpoints(folder)
    run.save(1, state(1), {})
    run.wait()
    Held(os, "fsync").__enter__()
    run.save(2, state(2), {})
    while not (folder / "step-00000002.part" / FILE).exists():
        pass
    pipe.send("writing")
    threading.Event().wait()


def test_a_writer_that_is_killed_leaves_the_checkpoint_before(tmp_path):
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_die_while_saving, args=(tmp_path, there))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads that this process may have
        process.start()
    assert here.recv() == "writing"
    process.kill()
    process.join()
    assert (tmp_path / "step-00000002.part").exists()
    run, found = Checkpoints(tmp_path), blank()
    assert run.load_latest(found)["step"] == 1
    assert equal(found, state(1))
    run.save(3, state(3), {})
    run.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_at_least_one_checkpoint_is_kept(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)
