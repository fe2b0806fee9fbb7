"""Shapes of the Llama 3 family as data (paper table 3; 3.1, 3.2 and SmolLM2 from their published configurations).

The 405B was published twice, with 8 KV heads and with 16 (for 16-way tensor parallelism)."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class RopeScaling:
    """The 3.1 rescaling of RoPE: long wavelengths are stretched by `factor`, short ones kept, blended in between."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """Everything that defines a Llama's function apart from its weights. Raises ValueError where parts do not fit."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    max_seq_len: int = 8192
    head_dim: int = 0
    """0 means dim / n_heads."""
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False

    def __post_init__(self):
        for f in fields(self):
            if f.type == "int" and f.name != "head_dim" and getattr(self, f.name) < 1:
                raise ValueError(f"{f.name} is {getattr(self, f.name)}; it must be at least 1")
        if self.head_dim == 0:
            if self.dim % self.n_heads:
                raise ValueError(
                    f"dim {self.dim} is not divisible by n_heads {self.n_heads}; change one, or set head_dim"
                )
            object.__setattr__(self, "head_dim", self.dim // self.n_heads)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; RoPE rotates pairs, so it must be even")

    @property
    def n_params(self) -> int:
        """Exact number of parameters; a tied head counts once."""
        return self.n_params_active + (0 if self.tie_embeddings else self.vocab_size * self.dim)

    @property
    def n_params_active(self) -> int:
        """Parameters that take part in matrix products for each token, with one embedding table standing for the head."""
        attention = self.dim * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)
        layer = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        return self.vocab_size * self.dim + self.n_layers * layer + self.dim

    def flops_per_token(self, context: float, training: bool = True) -> float:
        """Floating-point operations per token: 2 per weight and pass, and attention over `context` visible tokens on average.

        Training is three passes (forward, gradient of inputs, gradient of weights). The embedding look-up costs nothing.
        """
        weights = self.n_params_active - self.dim * (2 * self.n_layers + 1)
        attention = 2 * self.n_layers * self.n_heads * self.head_dim * context
        return (3 if training else 1) * 2 * (weights + attention)


def _llama(dim, n_layers, n_heads, ffn_dim, *, n_kv_heads=8, **more) -> LlamaConfig:
    return LlamaConfig(128_256, dim, n_layers, n_heads, n_kv_heads, ffn_dim, **more)


_LONG = {"max_seq_len": 131_072, "rope_scaling": RopeScaling()}
_SMALL = {"max_seq_len": 131_072, "rope_scaling": RopeScaling(factor=32.0), "tie_embeddings": True}

SHAPES: dict[str, LlamaConfig] = {
    "llama3-8b": _llama(4096, 32, 32, 14_336),
    "llama3-70b": _llama(8192, 80, 64, 28_672),
    "llama3.1-8b": _llama(4096, 32, 32, 14_336, **_LONG),
    "llama3.1-70b": _llama(8192, 80, 64, 28_672, **_LONG),
    "llama3.1-405b": _llama(16_384, 126, 128, 53_248, **_LONG),
    "llama3.1-405b-kv16": _llama(16_384, 126, 128, 53_248, n_kv_heads=16, **_LONG),
    "llama3.2-1b": _llama(2048, 16, 32, 8192, **_SMALL),
    "llama3.2-3b": _llama(3072, 28, 24, 8192, **_SMALL),
    "smollm2-135m": LlamaConfig(
        49_152, 576, 30, 9, 3, 1536, max_seq_len=8192, rope_theta=100_000.0, tie_embeddings=True
    ),
    "miniature": LlamaConfig(4096, 192, 6, 4, 2, 512, max_seq_len=512, tie_embeddings=True),
    "bench-8m": LlamaConfig(4096, 256, 8, 8, 4, 768, max_seq_len=2048),
}
