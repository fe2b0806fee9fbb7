"""The model against the published reference code of Llama 3 (package llama-models), run as one model-parallel rank."""

from dataclasses import replace

import pytest
import torch

from herder.model import Llama, LlamaConfig, RopeScaling

SMALL = LlamaConfig(131, 64, 3, 8, 2, 176, max_seq_len=256)
"""ffn_dim as the reference derives it: 8/3 of dim is 170, rounded up to a multiple of 16."""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The reference's module; its layers ask for a process group, which exists while these tests run."""
    pytest.importorskip("llama_models", reason="needs the package llama-models")
    pytest.importorskip("fairscale", reason="needs the package fairscale, whose layers the published code is made of")
    import fairscale.nn.model_parallel.initialize as model_parallel
    import torch.distributed as dist
    from llama_models.llama3 import model

    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    model_parallel.initialize_model_parallel(1)
    yield model
    model_parallel.destroy_model_parallel()
    dist.destroy_process_group()


NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
}


def published_name(name: str) -> str:
    name = name.removeprefix("model.")
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def interleaved(name: str, tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of q and k as the published weights hold them: a rotated pair stands side by side instead of half a head apart."""
    if "q_proj" not in name and "k_proj" not in name:
        return tensor
    order = torch.arange(head_dim).view(2, head_dim // 2).T.flatten()
    return tensor.view(-1, head_dim, tensor.shape[1])[:, order].reshape(tensor.shape)


def reference(module, config: LlamaConfig):
    args = module.ModelArgs(
        dim=config.dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        vocab_size=config.vocab_size,
        multiple_of=16,
        norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        use_scaled_rope=config.rope_scaling is not None,
        max_batch_size=2,
        max_seq_len=config.max_seq_len,
    )
    return module.Transformer(args)


SCALED = replace(SMALL, rope_scaling=RopeScaling(), max_seq_len=8500)
"""The reference knows the 3.1 scaling only with its published numbers, so its original context of 8,192 is passed."""


@pytest.mark.parametrize(
    ("config", "start"),
    [(SMALL, 0), (replace(SMALL, n_kv_heads=8), 0), (SCALED, 0), (SCALED, 8300)],
    ids=["grouped", "full heads", "scaled", "scaled, past the original context"],
)
def test_logits_and_gradients_equal_the_published_code(published, config, start):
    ours = Llama(config).init_weights(5)
    theirs = reference(published, config)
    state = {published_name(n): interleaved(n, p.detach(), config.head_dim) for n, p in ours.named_parameters()}
    assert not theirs.load_state_dict(state, strict=True).missing_keys
    tokens = torch.randint(0, config.vocab_size, (2, 120), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(start, start + 120).expand(2, -1)
    a = ours(tokens, positions=positions)
    theirs.freqs_cis = theirs.freqs_cis[start : start + 120]  # rotated as from `start`, with an empty cache
    b = published.Transformer.forward.__wrapped__(theirs, tokens, 0)
    assert (a - b).abs().max() < 1e-4
    weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        grad = expected[published_name(name)].grad
        assert (interleaved(name, p.grad, config.head_dim) - grad).norm() / grad.norm() < 1e-4, name
