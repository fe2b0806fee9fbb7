"""Llama 3 as the paper's table 3 states it: pre-norm blocks of grouped-query attention and SwiGLU, RMSNorm, RoPE.

Parameter names and the q/k layout are Hugging Face's, so a saved model lies as `transformers` reads it. Norms and rotations
are computed in fp32 and cast back; the dtype of the weights is the dtype of everything else.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import nn

from herder.model.attention import Attend, Packing, packed
from herder.model.norm import normalise
from herder.model.rope import inverse_frequencies, rotate, rotation
from herder.model.shapes import LlamaConfig

INIT_STD = 0.02


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * normalise(x, self.eps)


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def forward(
        self, x: torch.Tensor, layer: int, attend: Attend, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(attend(layer, rotate(q, cos, sin), rotate(k, cos, sin), v).flatten(-2))


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, h: torch.Tensor, layer: int, attend: Attend, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        h = h + self.self_attn(self.input_layernorm(h), layer, attend, cos, sin)
        return h + self.mlp(self.post_attention_layernorm(h))


class Decoder(nn.Module):
    """Everything below the head; its attribute names give Hugging Face's parameter names."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: torch.Tensor, attend: Attend, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(B, T) tokens -> (B, T, dim) before the last norm. Parts may be None: a model in pipeline stages leaves them out, and
        without the embedding x is what the stage before gave."""
        h = x if self.embed_tokens is None else self.embed_tokens(x)
        for i, layer in enumerate(self.layers):
            if layer is not None:
                h = layer(h, i, attend, cos, sin)
        return h


class Llama(nn.Module):
    """A Llama of the given shape. Weights are drawn at construction unless that happens on the meta device."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._inv_freq = inverse_frequencies(config)  # not a buffer: `.to(bfloat16)` must not round it

    def forward(
        self,
        tokens_bt: torch.Tensor,
        doc_ids: torch.Tensor | None = None,
        *,
        positions: torch.Tensor | None = None,
        attend: Attend | None = None,
        select: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, T) int64 tokens -> (B, T, V) logits, or (selected, V) where `select` holds flat indices into B * T.

        doc_ids (B, T): packed documents, which never see each other; positions restart at each unless given.
        attend: replaces attention itself (cache, context parallelism); then `positions` says where the tokens stand.
        """
        return self.lm_head(self.hidden(tokens_bt, doc_ids, positions=positions, attend=attend, select=select))

    def hidden(
        self,
        tokens_bt: torch.Tensor,
        doc_ids: torch.Tensor | None = None,
        *,
        positions: torch.Tensor | None = None,
        attend: Attend | None = None,
        select: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The normalised last hidden states, (B, T, dim) or (selected, dim): what the head is applied to."""
        if attend is None:
            packing = Packing.rows(*tokens_bt.shape, tokens_bt.device) if doc_ids is None else Packing.of(doc_ids)
            attend = packed(packing)
            positions = packing.positions(tokens_bt.shape[0]) if positions is None else positions
        elif positions is None:
            positions = torch.arange(tokens_bt.shape[1], device=tokens_bt.device).expand_as(tokens_bt)
        h = self.model(tokens_bt, attend, *self.rotation(positions))
        if select is not None:
            h = h.flatten(0, 1)[select]
        return self.model.norm(h)

    def rotation(self, positions_bt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for these positions, as `rotate` takes them."""
        return rotation(self._inv_freq, positions_bt)

    @torch.no_grad()
    def init_weights(self, seed: int) -> Llama:
        """Draws all weights from one seed (`initial_weight`). Returns self."""
        for name, p in self.named_parameters():
            p.copy_(initial_weight(name, p.shape, self.config, seed))
        return self


def initial_weight(name: str, shape: torch.Size, config: LlamaConfig, seed: int) -> torch.Tensor:
    """One parameter in fp32: normal with standard deviation 0.02, projections into the residual stream scaled by
    1 / sqrt(2 n_layers) (GPT-2's rule; the paper does not publish its initialisation), norms at one.

    Each tensor has a generator of its own, keyed by its name, so the draw does not depend on layout or order.
    """
    if len(shape) == 1:
        return torch.ones(shape)
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little"))
    std = INIT_STD * ((2 * config.n_layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
