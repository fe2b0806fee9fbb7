import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from herder.engine.kernels import NativeRunner, build, runner, supports, unavailable
from herder.engine.quantize import quantize
from herder.model import Llama, LlamaConfig, RopeScaling

needs_kernels = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "kernels are there")
SIZE, BLOCKS = 4, 64
ODD = LlamaConfig(211, 48, 3, 6, 2, 80, head_dim=24, rope_scaling=RopeScaling(original_max_seq_len=32))
EVEN = LlamaConfig(300, 128, 2, 4, 2, 320, tie_embeddings=True)
FORMATS = ("fp32", "bf16", "int8", "int4")


def model_of(config: LlamaConfig, form: str = "fp32") -> Llama:
    model = Llama(config).init_weights(3)
    with torch.no_grad():  # sharper than a fresh model, so that attention is no average
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
    if form == "bf16":
        return model.to(torch.bfloat16)
    return model if form == "fp32" else quantize(model, form)


def pages_of(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    shape = (config.n_layers, BLOCKS, config.n_kv_heads, SIZE, config.head_dim)
    scales = [torch.zeros(shape[:-1]) if dtype == torch.int8 else None for _ in "kv"]
    return SimpleNamespace(
        k=torch.zeros(shape, dtype=dtype), v=torch.zeros(shape, dtype=dtype), k_scale=scales[0], v_scale=scales[1]
    )


def native(model: Llama, dtype: torch.dtype = torch.float32) -> NativeRunner:
    return NativeRunner(model, pages_of(model.config, dtype))


def step(runner: NativeRunner, *parts: tuple[list[int], int, list[int]], select=None) -> torch.Tensor:
    """Hidden states of rows (tokens, first position, block table), one part for each sequence."""
    tokens, positions, spans = [], [], []
    for ids, start, table in parts:
        spans.append((len(tokens), len(ids), table))
        tokens += ids
        positions += range(start, start + len(ids))
    select = range(len(tokens)) if select is None else select
    return runner.run(SimpleNamespace(tokens=tokens, positions=positions, spans=spans, select=list(select)))


def ids(config: LlamaConfig, count: int, seed: int = 0) -> list[int]:
    return torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def tables() -> list[list[int]]:
    """Three block tables that share nothing and follow no order."""
    order = torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(5)).tolist()
    return [order[:40], order[40:52], order[52:]]


@torch.no_grad()
def expected(model: Llama, tokens: list[int]) -> torch.Tensor:
    return model.hidden(torch.tensor([tokens]))[0]


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).abs().max() / exact.abs().max())


@needs_kernels
@pytest.mark.parametrize("config", [ODD, EVEN], ids=["odd", "even"])
def test_a_prompt_agrees_with_the_models_forward(config):
    model, tokens = model_of(config), ids(config, 150)
    fast, (table, *_) = native(model), tables()
    hidden = step(fast, (tokens, 0, table))
    assert error(hidden, expected(model, tokens)) < 1e-5
    with torch.no_grad():
        assert error(fast.logits(hidden), model(torch.tensor([tokens]))[0]) < 1e-5


@needs_kernels
def test_chunks_single_rows_and_other_prompts_in_one_step_agree_with_the_models_forward():
    model, (first, second, third) = model_of(ODD), tables()
    a, b, c = ids(ODD, 90, 1), ids(ODD, 33, 2), ids(ODD, 20, 3)
    fast = native(model)
    step(fast, (a[:70], 0, first), (b[:5], 0, second))
    mixed = step(fast, (a[70:71], 70, first), (b[5:], 5, second), (c, 0, third))
    exact = [expected(model, a[:71])[70:], expected(model, b)[5:], expected(model, c)]
    assert error(mixed, torch.cat(exact)) < 1e-5
    some = step(fast, (a[71:], 71, first), select=[18, 0, 7])
    assert error(some, expected(model, a)[[89, 71, 78]]) < 1e-5


@needs_kernels
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("pages", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_a_row_has_the_same_bits_whatever_shares_its_step(form, pages):
    model, (first, second, third) = model_of(ODD, form), tables()
    a, b, c = ids(ODD, 75, 1), ids(ODD, 40, 2), ids(ODD, 40, 3)
    whole = step(native(model, pages), (a, 0, first))
    crowd = native(model, pages)
    step(crowd, (b[:7], 0, second), (a[:69], 0, third + first[:20]), (c[:1], 0, first[20:]))
    table = third + first[:20]
    rows = [step(crowd, (b[7:20], 7, second), (a[69:70], 69, table), (c[1:4], 1, first[20:]))[13]]
    rows += [step(crowd, ([token], 70 + i, table))[0] for i, token in enumerate(a[70:73])]
    rows += list(step(crowd, (c[4:30], 4, first[20:]), (a[73:], 73, table))[26:])
    assert torch.equal(torch.stack(rows), whole[69:])
    assert not torch.equal(whole[69], whole[70])
    head = native(model).logits(whole)
    assert torch.equal(native(model).logits(whole[3:4]), head[3:4])


@needs_kernels
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantized_weights_give_what_their_full_values_give(form):
    model, tokens = model_of(EVEN, form), ids(EVEN, 40)
    plain = model_of(EVEN)
    exact = expected(plain, tokens)
    for path, module in model.named_modules():
        if hasattr(module, "container"):
            full = torch.nn.Linear(1, 1, bias=False)
            full.weight = torch.nn.Parameter(module.weight.dequantize())
            parent, _, name = path.rpartition(".")
            setattr(plain.get_submodule(parent), name, full)
    fast = native(model)
    hidden = step(fast, (tokens, 0, tables()[0]))
    assert error(hidden, expected(plain, tokens)) < 3e-4
    assert error(hidden, exact) > 1e-3, "the weights were not quantized at all"
    with torch.no_grad():
        assert error(fast.logits(hidden), plain(torch.tensor([tokens]))[0]) < 3e-4


@needs_kernels
def test_bf16_weights_come_closer_to_exact_than_the_models_own_bf16():
    model, tokens = model_of(EVEN, "bf16"), ids(EVEN, 60)
    exact = expected(model_of(EVEN, "bf16").float(), tokens)
    own = error(expected(model, tokens).float(), exact)
    assert error(step(native(model), (tokens, 0, tables()[0])), exact) < own


@needs_kernels
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 5e-3), (torch.int8, 3e-2)], ids=str)
def test_narrow_pages_hold_the_keys_that_wide_ones_hold(dtype, most):
    model, tokens, (table, *_) = model_of(ODD), ids(ODD, 30), tables()
    wide, narrow = native(model), native(model, dtype)
    exact, found = step(wide, (tokens, 0, table)), step(narrow, (tokens, 0, table))
    for name in "kv":
        x, y = getattr(wide.pages, name)[0, table[:7]], getattr(narrow.pages, name)[0, table[:7]].float()
        if dtype == torch.int8:
            scale = getattr(narrow.pages, f"{name}_scale")[0, table[:7]]
            torch.testing.assert_close(scale, x.abs().amax(-1) / 127)
            assert ((y * scale[..., None] - x).abs() <= 0.501 * scale[..., None]).all()
        else:
            assert torch.equal(y, x.to(dtype).float())
    assert 0 < error(found, exact) < most


@needs_kernels
def test_a_step_of_more_rows_than_one_call_takes_has_the_same_bits(monkeypatch):
    model, (first, second, _) = model_of(ODD), tables()
    a, b = ids(ODD, 41, 1), ids(ODD, 17, 2)
    whole = step(native(model), (a, 0, first), (b, 0, second), select=[57, 3, 20, 41])
    monkeypatch.setattr(runner, "MOST_ROWS", 7)
    assert torch.equal(step(native(model), (a, 0, first), (b, 0, second), select=[57, 3, 20, 41]), whole)


@needs_kernels
def test_the_number_of_threads_changes_no_bit():
    model, tokens, (table, *_) = model_of(ODD), ids(ODD, 50), tables()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 2):
            torch.set_num_threads(threads)
            found.append(step(native(model), (tokens, 0, table)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_kernels
@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_new_weights_count_after_refresh(form):
    model, tokens, (table, *_) = model_of(ODD, form), ids(ODD, 12), tables()
    fast = native(model)
    old = step(fast, (tokens, 0, table))
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(-1)
        model.model.norm.weight.mul_(2)
        if form == "int8":
            proj = model.model.layers[1].mlp.down_proj
            proj.set(proj.weight.dequantize() * -3)
        else:
            model.model.layers[1].mlp.down_proj.weight.mul_(-3)
    fast.refresh()
    new = step(fast, (tokens, 0, table))
    assert error(new, expected(model, tokens)) < 1e-3 < error(new, old)


@needs_kernels
def test_threads_that_come_late_lose_no_work():
    model, (first, second, _), before = model_of(ODD), tables(), torch.get_num_threads()
    a, b = ids(ODD, 30, 1), ids(ODD, 40, 2)
    fast = native(model)
    exact = step(fast, (a, 0, first), (b[:3], 0, second))
    try:
        torch.set_num_threads(8)  # more than cores: some are always stopped in the middle of a step
        for _ in range(150):
            for part in (fast.pages.k, fast.pages.v):
                part.zero_()
            assert torch.equal(step(fast, (a, 0, first), (b[:3], 0, second)), exact)
            assert torch.equal(step(fast, (b[:1], 0, second))[0], exact[30])
    finally:
        torch.set_num_threads(before)


def _in_child(fast: NativeRunner, tokens: list[int], table: list[int], pipe) -> None:
    pipe.send(step(fast, (tokens, 0, table)).tolist())


@needs_kernels
def test_a_forked_process_makes_threads_of_its_own():
    model, tokens, (table, *_) = model_of(ODD), ids(ODD, 12), tables()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fast = native(model)
        here = step(fast, (tokens, 0, table))
        fork = multiprocessing.get_context("fork")
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=_in_child, args=(fast, tokens, table, sender))
        child.start()
        assert receiver.poll(30), "the child hangs"
        assert torch.equal(torch.tensor(receiver.recv()), here)
        child.join()
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([([211], 0, [1])], "tokens from 0 to 210"),
        ([([-1], 0, [1])], "tokens from 0 to 210"),
        ([([5], 4, [1])], "does not hold"),
        ([([5], 0, [BLOCKS])], "does not hold"),
        ([([5], -1, [1])], "consecutive positions"),
        ([], "tokens from 0 to 210"),
    ],
)
def test_what_would_read_outside_the_memory_is_refused(parts, said):
    with pytest.raises(ValueError, match=said):
        step(native(model_of(ODD)), *parts)


@needs_kernels
def test_adapters_are_left_to_the_plain_path():
    batch = SimpleNamespace(tokens=[1], positions=[0], spans=[(0, 1, [0])], select=[0], adapters=["law"])
    with pytest.raises(ValueError, match="without adapters"):
        native(model_of(ODD)).run(batch)


def test_formats_the_kernels_do_not_know_are_named():
    assert "float64" in supports(Llama(ODD).double())
    assert "FP8" in supports(quantize(Llama(ODD), "fp8"))
    assert supports(quantize(Llama(ODD), "int4")) == ""


def test_the_reason_why_there_are_no_kernels_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX names no-such-compiler" in build._load.__wrapped__()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'error: out of registers' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert "fails (error: out of registers)" in build._load.__wrapped__()
    assert list(tmp_path.rglob("*.part")) == []
    monkeypatch.setenv("HERDER_KERNELS", "0")
    assert "switched off by HERDER_KERNELS=0" in build._load.__wrapped__()


@needs_kernels
@pytest.mark.long
def test_a_library_is_compiled_once_for_all_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build._load.__wrapped__()
    (made,) = tmp_path.rglob("*.so")
    stamp = made.stat().st_mtime_ns
    build._load.__wrapped__()
    assert [(p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.*")] == [(made, stamp)]
    monkeypatch.setattr(build, "_processor", lambda: "another machine")
    build._load.__wrapped__()
    assert len(list(tmp_path.rglob("*.so"))) == 2


def _runs(flags: tuple[str, ...]) -> bool:
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return all(flag.removeprefix("-m") in known for flag in flags)


@needs_kernels
@pytest.mark.long
@pytest.mark.parametrize("target", [(), ("-mavx2", "-mfma", "-mf16c"), ("-mavx512f", "-mavx512bw")], ids=str)
def test_processors_with_less_agree_as_well(target, monkeypatch, tmp_path):
    if not _runs(target):
        pytest.skip(f"this processor does not run {' '.join(target)}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "_TARGETS", (target,))
    small = build._load.__wrapped__()
    assert not isinstance(small, str), small
    for form in FORMATS:
        model, (first, second, _) = model_of(ODD, form), tables()
        a, b = ids(ODD, 33, 1), ids(ODD, 15, 2)
        native_bits = step(native(model), (a, 0, first), (b, 0, second))
        with monkeypatch.context() as other:
            other.setattr(runner, "library", lambda: small)
            fast = native(model)
            found = step(fast, (a, 0, first), (b, 0, second))
            alone = step(native(model), (a, 0, first))
        assert error(found, native_bits) < (2e-2 if form == "bf16" else 3e-4)
        assert torch.equal(found[: len(a)], alone)
