"""The model against `transformers`, the published parameter counts, and itself packed and alone."""

from dataclasses import replace

import pytest
import torch

from herder.model import SHAPES, Llama, LlamaConfig
from herder.model.attention import Packing, packed

TINY = LlamaConfig(97, 32, 2, 4, 2, 48, max_seq_len=256)


def reference(config: LlamaConfig):
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if s := config.rope_scaling:
        rope |= {"rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_freq_factor}
        rope |= {"high_freq_factor": s.high_freq_factor, "original_max_position_embeddings": s.original_max_seq_len}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            rope_parameters=rope,
            tie_word_embeddings=config.tie_embeddings,
            attention_bias=False,
        )
    )


def scaled_down(config: LlamaConfig) -> LlamaConfig:
    """The same proportions in tiny: heads per KV head, feed-forward width, rotation, scaling, tying."""
    groups = config.n_heads // config.n_kv_heads
    dim = 2 * groups * 8
    scaling = config.rope_scaling and replace(config.rope_scaling, original_max_seq_len=64)
    return replace(
        config,
        vocab_size=97,
        dim=dim,
        n_layers=2,
        n_heads=2 * groups,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=8 * round(dim * config.ffn_dim / config.dim / 8),
        max_seq_len=256,
        rope_scaling=scaling,
    )


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_transformers(shape, tie):
    """150 positions: past the original context of the scaled ones."""
    config = replace(scaled_down(SHAPES[shape]), tie_embeddings=tie)
    ours = Llama(config).init_weights(3)
    theirs = reference(config)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, 97, (2, 150), generator=torch.Generator().manual_seed(0))
    a, b = ours(tokens), theirs(tokens).logits
    assert (a - b).abs().max() < 1e-5
    weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert (p.grad - expected[name].grad).norm() / expected[name].grad.norm() < 1e-5, name


def test_packed_documents_give_the_logits_of_the_same_documents_alone():
    model = Llama(TINY).init_weights(0)
    tokens = torch.randint(0, 97, (2, 60), generator=torch.Generator().manual_seed(0))
    doc_ids = torch.zeros(2, 60, dtype=torch.int64)
    doc_ids[0, 17:], doc_ids[0, 41:], doc_ids[1, 1:] = 1, 2, 5
    together = model(tokens, doc_ids)
    for row, start, end in ((0, 0, 17), (0, 17, 41), (0, 41, 60), (1, 0, 1), (1, 1, 60)):
        alone = model(tokens[row : row + 1, start:end])
        assert torch.allclose(together[row, start:end], alone[0], atol=1e-5)


def test_a_document_does_not_see_its_neighbour():
    model = Llama(TINY).init_weights(0)
    tokens = torch.randint(0, 97, (1, 40), generator=torch.Generator().manual_seed(0))
    doc_ids = torch.arange(40)[None] // 20
    other = tokens.clone()
    other[0, :20] = 1
    assert torch.equal(model(tokens, doc_ids)[0, 20:], model(other, doc_ids)[0, 20:])


def test_select_picks_positions_before_the_head():
    model = Llama(TINY).init_weights(0)
    tokens = torch.randint(0, 97, (2, 30), generator=torch.Generator().manual_seed(0))
    select = torch.tensor([3, 29, 30, 58])
    assert torch.allclose(model(tokens, select=select), model(tokens).flatten(0, 1)[select], atol=1e-6)


def test_attend_is_the_one_seam_of_attention():
    model = Llama(TINY).init_weights(0)
    tokens = torch.randint(0, 97, (1, 12), generator=torch.Generator().manual_seed(0))
    default, layers = packed(Packing.rows(1, 12, tokens.device)), []

    def attend(layer, q, k, v):
        layers.append((layer, tuple(q.shape), tuple(k.shape)))
        return default(layer, q, k, v)

    assert torch.equal(model(tokens, attend=attend), model(tokens))
    assert layers == [(0, (1, 12, 4, 8), (1, 12, 2, 8)), (1, (1, 12, 4, 8), (1, 12, 2, 8))]


def test_positions_shift_nothing_but_the_rotation():
    """RoPE is relative: a whole document moved along gives the same logits, one token moved does not."""
    model = Llama(TINY).init_weights(0)
    tokens = torch.randint(0, 97, (1, 20), generator=torch.Generator().manual_seed(0))
    attend = packed(Packing.rows(1, 20, tokens.device))
    at = torch.arange(20)[None]
    base = model(tokens, positions=at, attend=attend)
    assert torch.allclose(model(tokens, positions=at + 100, attend=attend), base, atol=1e-4)
    moved = at.clone()
    moved[0, 5] = 90
    assert not torch.allclose(model(tokens, positions=moved, attend=attend), base, atol=1e-4)


def test_initial_weights_depend_on_seed_and_name_alone():
    a, b = Llama(TINY).init_weights(1), Llama(replace(TINY, n_layers=3)).init_weights(1)
    shared = dict(b.named_parameters())
    for name, p in a.named_parameters():
        if p.dim() > 1 and "o_proj" not in name and "down_proj" not in name:
            assert torch.equal(p, shared[name]), name
    assert not torch.equal(a.lm_head.weight, Llama(TINY).init_weights(2).lm_head.weight)
    q, k = a.model.layers[0].self_attn.k_proj.weight, a.model.layers[1].self_attn.k_proj.weight
    assert not torch.equal(q, k)


def test_flops_are_six_per_weight_and_token_plus_attention():
    config = SHAPES["llama3-8b"]
    weights = config.n_params - config.vocab_size * config.dim - config.dim * (2 * config.n_layers + 1)
    attention = 3 * 2 * 2 * config.n_layers * config.n_heads * config.head_dim * 4096
    assert config.flops_per_token(4096) == pytest.approx(6 * weights + attention)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_heads": 3}, "divisible by n_heads"),
        ({"n_kv_heads": 3}, "n_kv_heads 3"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(TINY, head_dim=0, **change)
