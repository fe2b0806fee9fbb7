import copy
import math

import pytest
import torch

from herder.engine.quantize import (
    SCALE_BOUND,
    Float8,
    Float8Linear,
    Int4,
    Int4Linear,
    Int8,
    Int8Linear,
    float8_rows,
    quantize,
)
from herder.model import Llama, LlamaConfig

CONFIG = LlamaConfig(97, 64, 4, 4, 2, 96, tie_embeddings=True)


def weights(outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def e4m3_values() -> torch.Tensor:
    """All finite values of the format from its definition: 4 bits of exponent with bias 7, 3 of fraction, no infinities."""
    magnitudes = [math.ldexp(f / 8, -6) for f in range(8)]
    magnitudes += [math.ldexp(1 + f / 8, e - 7) for e in range(1, 16) for f in range(8) if (e, f) != (15, 7)]
    return torch.tensor(sorted({s * m for s in (1, -1) for m in magnitudes}))


def test_int8_is_within_half_a_step_of_every_weight():
    w = weights(9, 40)
    w[4] = 0
    q = Int8.of(w)
    assert q.values.dtype == torch.int8
    torch.testing.assert_close(q.scale, w.abs().amax(-1) / 127)
    assert ((q.dequantize() - w).abs() <= 0.5001 * q.scale[:, None]).all()
    assert q.dequantize()[4].eq(0).all()


def test_int4_takes_five_bits_a_weight_and_loses_less_than_whole_ranges_would():
    w = weights(64, 256)
    q = Int4.of(w)
    stored = sum(t.numel() * t.element_size() for t in (q.packed, q.scale, q.zero))
    assert stored * 8 == w.numel() * 5 + w.numel() * 32 // 32 - w.numel()
    groups = w.unflatten(1, (-1, 32))
    low, step = groups.amin(-1, True), (groups.amax(-1, True) - groups.amin(-1, True)) / 15
    whole = ((groups - low) / step).round() * step + low
    lost = (q.dequantize() - w).square().mean()
    assert lost < 0.97 * (whole.flatten(1) - w).square().mean()
    assert lost.sqrt() < 0.1 * w.std()


def test_int4_keeps_what_already_has_sixteen_levels():
    levels = torch.randint(16, (5, 64), generator=torch.Generator().manual_seed(1))
    levels[:, ::32], levels[:, 1::32] = 0, 15
    w = levels * 0.25 - 1.5
    assert torch.equal(Int4.of(w).dequantize(), w)
    assert torch.equal(Int4.of(w).quants(), levels.to(torch.uint8))


def test_int4_of_inputs_that_are_no_whole_groups():
    w = weights(3, 40)
    q = Int4.of(w)
    assert q.packed.shape == (3, 32)
    assert q.dequantize().shape == w.shape
    assert (q.dequantize() - w).abs().max() < 0.35
    with pytest.raises(ValueError, match="multiples of 32"):
        Int4.of(w, group=20)


def test_float8_rows_are_the_nearest_values_of_the_format():
    x = weights(6, 50) * torch.tensor([1e-3, 1.0, 30.0, 400.0, 1e3, 1e5])[:, None]
    values, scale = float8_rows(x)
    torch.testing.assert_close(scale, x.abs().amax(-1) / 448)
    table = e4m3_values()
    distance = (x / scale[:, None])[..., None] - table
    nearest = distance.abs().amin(-1)
    found = (x / scale[:, None] - values.float()).abs()
    torch.testing.assert_close(found, nearest, rtol=1e-4, atol=1e-5)


def test_a_row_beyond_the_bound_saturates_and_leaves_other_rows_alone():
    x = torch.tensor([[6000.0, -300.0, 2.0], [6.0, -3.0, 2.0]])
    values, scale = float8_rows(x, SCALE_BOUND)
    torch.testing.assert_close(scale, torch.tensor([1200 / 448, 6 / 448]))
    back = values.float() * scale[:, None]
    torch.testing.assert_close(back[0], torch.tensor([1200.0, -300.0, 2.0]), rtol=0.07, atol=0)
    torch.testing.assert_close(back[1], torch.tensor([6.0, -3.0, 2.0]), rtol=0.07, atol=0)


def test_a_float8_product_is_that_of_its_rounded_sides():
    w, x = weights(48, 64), weights(5, 64, 1) * 3
    module = Float8Linear(w)
    sides = [values.double() * scale[:, None] for values, scale in (float8_rows(x, SCALE_BOUND), float8_rows(w))]
    torch.testing.assert_close(module(x).double(), sides[0] @ sides[1].T, rtol=1e-4, atol=1e-4)
    assert torch.equal(module.weight.dequantize(), Float8.of(w).dequantize())
    loss = (module(x) - x @ w.T).norm() / (x @ w.T).norm()
    assert 1e-3 < loss < 0.06


@pytest.mark.parametrize("rows", [1, 4, 5, 40])
@pytest.mark.parametrize("inputs", [64, 24])
@pytest.mark.parametrize("made", [Int8Linear, Int4Linear])
def test_weight_only_products_are_those_of_the_dequantized_weight(made, inputs, rows):
    w, x = weights(45, inputs), weights(rows, inputs, 1)
    module = made(w)
    exact = x @ module.weight.dequantize().T
    torch.testing.assert_close(module(x), exact, rtol=1e-4, atol=1e-4)
    half = module(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.2)


def test_each_kind_replaces_its_linears_and_no_others():
    model = Llama(CONFIG).init_weights(0)
    found = {
        kind: {path: type(m) for path, m in quantize(model, kind).named_modules() if hasattr(m, "container")}
        for kind in ("int8", "int4", "fp8")
    }
    inner = {f"model.layers.{i}.mlp.{name}_proj" for i in (1, 2) for name in ("gate", "up", "down")}
    assert found["fp8"] == dict.fromkeys(inner, Float8Linear)
    linears = {path for path, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert found["int8"] == dict.fromkeys(linears, Int8Linear)
    assert found["int4"] == dict.fromkeys(linears - {"lm_head"}, Int4Linear) | {"lm_head": Int8Linear}
    with pytest.raises(ValueError, match="int8, int4, fp8"):
        quantize(model, "int2")


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.02), ("int4", 0.2), ("fp8", 0.1)])
def test_a_quantized_model_is_a_copy_and_close_to_its_original(kind, most):
    model = Llama(CONFIG).init_weights(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(4)
    before, tokens = copy.deepcopy(model.state_dict()), torch.arange(30)[None]
    with torch.no_grad():
        small = quantize(model, kind)
        exact, found = model(tokens), small(tokens)
        assert 1e-4 < (found - exact).norm() / exact.norm() < most
        small.model.embed_tokens.weight.zero_()
        small.model.norm.weight.zero_()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_another_dtype_for_the_model_leaves_the_formats_alone():
    small = quantize(Llama(CONFIG).init_weights(0), "int4").to(torch.bfloat16)
    head, gate = small.lm_head, small.model.layers[1].mlp.gate_proj
    assert (head.values.dtype, head.scale.dtype) == (torch.int8, torch.float32)
    assert (gate.packed.dtype, gate.scale.dtype, gate.zero.dtype) == (torch.uint8, torch.float16, torch.float16)
    assert small.model.norm.weight.dtype == torch.bfloat16
    with torch.no_grad():
        assert small(torch.arange(9)[None]).isfinite().all()
