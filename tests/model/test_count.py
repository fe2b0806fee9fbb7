"""What a shape costs, against the module itself and figures published or computed by hand."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from herder.engine.cache import SIZE, Pages
from herder.model import SHAPES, Count, Llama, LlamaConfig
from herder.train import OptimConfig
from herder.train.outputs import token_log_probs
from herder.train.replica import Replica

TINY = LlamaConfig(97, 64, 2, 8, 2, 160, max_seq_len=256)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("llama3.1-405b", 405_853_388_800),
        # by hand: 8 more heads of 128 for k and v in each of 126 layers of 16,384
        ("llama3.1-405b-kv16", 405_853_388_800 + 126 * 2 * 8 * 128 * 16_384),
        ("llama3.2-1b", 1_235_814_400),
        ("llama3.2-3b", 3_212_749_824),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_parameter_counts_are_the_published_models(shape, parameters):
    assert SHAPES[shape].n_params == sum(Count(SHAPES[shape]).parameters().values()) == parameters


@pytest.mark.parametrize("tie", [False, True])
def test_the_parts_are_what_the_module_holds(tie):
    config = replace(TINY, tie_embeddings=tie)
    parts = {"embed_tokens": "embedding", "self_attn": "attention", "mlp": "feed-forward", "norm": "norms"}
    found = dict.fromkeys(Count(config).parameters(), 0)
    for name, p in Llama(config).named_parameters():
        found[next((part for key, part in parts.items() if key in name), "output head")] += p.numel()
    assert found == Count(config).parameters()


def test_flops_are_what_the_products_of_the_module_take():
    model, length = Llama(TINY), 48
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, length, dtype=torch.int64)).sum().backward()
    # torch counts causal attention as if everything were seen, and recomputes scores in its backward: left out here
    linear = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    attention = 3 * 4 * TINY.n_layers * TINY.n_heads * TINY.head_dim * (length + 1) / 2
    assert Count(TINY).flops(length)["training"] == pytest.approx(linear / length + attention)
    assert Count(TINY).flops(length)["prefill"] * 3 == pytest.approx(Count(TINY).flops(length)["training"])


def test_decoding_a_token_takes_what_a_prefill_longer_by_it_takes_more():
    longer, shorter = ((n, Count(TINY).flops(n)["prefill"]) for n in (48, 47))
    assert Count(TINY).flops(48)["decode"] == pytest.approx(longer[0] * longer[1] - shorter[0] * shorter[1])


def test_recomputed_blocks_leave_their_inputs_and_one_block_or_the_head():
    one, two = (Count(replace(TINY, n_layers=n)) for n in (1, 2))
    kept = [c.activations(1, 4)["blocks recomputed"] for c in (one, two)]
    whole = [c.activations(1, 4)["all kept"] for c in (one, two)]
    block, inputs = whole[1] - whole[0], 4 * TINY.dim
    head = whole[0] - block
    assert kept == [inputs + max(block, head), 2 * inputs + max(block, head)]


def test_activations_are_the_tensors_that_autograd_keeps():
    def kept(layers: int) -> int:
        model = Llama(replace(TINY, n_layers=layers))
        weights, seen = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

        def pack(t):
            if t.untyped_storage().data_ptr() not in weights:
                seen[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)  # held: addresses stay unique
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            hidden = model.hidden(torch.zeros(2, 32, dtype=torch.int64))
        assert hidden.requires_grad
        return sum(size for size, _ in seen.values())

    counted = [Count(replace(TINY, n_layers=n)).activations(64, 4)["all kept"] for n in (1, 3)]
    assert kept(3) - kept(1) == counted[1] - counted[0]


def test_the_head_keeps_its_norm_the_logits_and_their_normaliser():
    model, x, seen = Llama(TINY), torch.randn(64, TINY.dim, requires_grad=True), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t):
        if t.is_floating_point() and t.untyped_storage().data_ptr() not in weights:
            seen[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        found = token_log_probs(model.model.norm(x), model.lm_head.weight, torch.zeros(64, dtype=torch.int64))
    assert found.requires_grad
    one, three = (Count(replace(TINY, n_layers=n)).activations(64, 4)["all kept"] for n in (1, 3))
    assert sum(size for size, _ in seen.values()) == one - (three - one) / 2


def test_the_kv_cache_is_what_the_engine_allocates():
    pages = Pages(TINY, 3, torch.bfloat16, torch.device("cpu"))
    own = sum(x[:, :3].nbytes for x in (pages.k, pages.v))  # beside the spare block
    assert Count(TINY).kv_cache(3 * SIZE) == own
    assert Count(TINY).kv_saving() == Count(replace(TINY, n_kv_heads=8)).kv_cache(9) / Count(TINY).kv_cache(9) == 4


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_training_state_is_what_the_trainer_keeps(kind, precision, dtype):
    model = Llama(TINY)
    replica = Replica(model, OptimConfig(kind=kind), dtype)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    held = sum(p.nbytes + p.grad.nbytes for p in model.parameters()) + replica.flat.nbytes
    held += sum(m.nbytes for m in replica.masters.values())
    replica.accumulate()
    replica.step(1.0, replica.grad_norm())
    moments = [t for each, _ in replica.optimizer.updates for s in each.state.values() for t in s.values()]
    held += sum(t.nbytes for t in moments if t.dim())
    assert held == sum(Count(TINY).training_state({"adamw": "AdamW", "muon": "Muon"}[kind], precision).values())


def test_the_table_names_every_cost_and_refuses_a_context_of_nothing():
    text = Count(SHAPES["llama3-8b"]).table(context=8192)
    assert "8,030,261,248" in text
    assert "14.96 GiB" in text  # 8.03e9 weights of two bytes
    assert "1 GiB" in text  # 32 layers x 8 heads x 128 x 2 x 8,192 x 2 bytes
    with pytest.raises(ValueError, match="context is 0"):
        Count(TINY).table(0)
