"""What a shape costs: parameters, operations and memory, counted from the configuration alone (paper table 3, 3.3.2).

The one design decision: every figure is a product that can be checked against the module itself; nothing is fitted. FLOPs
follow the usual count of two per weight and token, with attention over what is visible; memory is that of one replica, before
any sharding.
"""

from __future__ import annotations

from dataclasses import dataclass

from herder.model.shapes import LlamaConfig

PRECISIONS = {"fp32": 4.0, "bf16": 2.0, "int8 or fp8": 1.0, "int4": 0.5}
"""Bytes an element, without the scales of quantized formats (they add 1 to 6% to int8, 12% to int4 in groups of 32)."""

TRAINED = ("bf16", "fp32")
"""Precisions that herder's trainer computes in."""

OPTIMIZERS = {"AdamW": 8, "Muon": 4}
"""Bytes a parameter of fp32 moments: two for AdamW; one for Muon, where AdamW keeps embedding, head and norms."""


@dataclass(frozen=True)
class Count:
    """The costs of one shape. Bytes are of one copy on one device."""

    config: LlamaConfig

    def parameters(self) -> dict[str, int]:
        """Parameters by part; they sum to `config.n_params`."""
        c = self.config
        return {
            "embedding": c.vocab_size * c.dim,
            "attention": c.n_layers * c.dim * c.head_dim * 2 * (c.n_heads + c.n_kv_heads),
            "feed-forward": c.n_layers * 3 * c.dim * c.ffn_dim,
            "norms": (2 * c.n_layers + 1) * c.dim,
            "output head": 0 if c.tie_embeddings else c.vocab_size * c.dim,
        }

    def flops(self, context: int) -> dict[str, float]:
        """Floating-point operations per token: training and prefill of `context` tokens from the first, on average over
        them, and decoding of one token that sees `context`."""
        seen = (context + 1) / 2
        return {
            "training": self.config.flops_per_token(seen),
            "prefill": self.config.flops_per_token(seen, training=False),
            "decode": self.config.flops_per_token(context, training=False),
        }

    def weights(self) -> dict[str, float]:
        """Bytes of the weights at each precision."""
        return {name: size * self.config.n_params for name, size in PRECISIONS.items()}

    def training_state(self, optimizer: str = "AdamW", precision: str = "bf16") -> dict[str, float]:
        """Bytes of what herder's trainer keeps beside the activations: weights and gradients at `precision`, and in fp32 the
        master weights, the gradient sums and the optimizer's moments."""
        n, size = self.config.n_params, PRECISIONS[precision]
        matrices = sum(self.parameters()[part] for part in ("attention", "feed-forward"))
        moments = OPTIMIZERS["AdamW"] * n
        if optimizer == "Muon":
            moments -= (OPTIMIZERS["AdamW"] - OPTIMIZERS["Muon"]) * matrices
        return {
            f"weights, {precision}": size * n,
            f"gradients, {precision}": size * n,
            "master weights, fp32": 4.0 * n,
            "gradient sums, fp32": 4.0 * n,
            f"moments of {optimizer}, fp32": float(moments),
        }

    def activations(self, tokens: int, element: float = 2.0) -> dict[str, float]:
        """Bytes kept from the forward for the backward pass over `tokens` tokens, at `element` bytes each.

        Per token and layer the module keeps both norms (normalised and scaled), q, k, v, the attention's result twice (as its
        kernel and as the projection hold it) and four feed-forward rows; the log-sum-exp of each head and both inverse roots
        stay in fp32. The head keeps the last norm and the logits, with their log-sum-exp in fp32. With full checkpointing the
        inputs of the blocks remain, beside the larger of the head and the one block that is computed again.
        """
        c = self.config
        q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        layer = element * (4 * c.dim + 3 * q + 2 * kv + 4 * c.ffn_dim) + 4 * (c.n_heads + 2)
        head = element * (2 * c.dim + c.vocab_size) + 2 * 4
        return {
            "all kept": tokens * (c.n_layers * layer + head),
            "blocks recomputed": tokens * (c.n_layers * element * c.dim + max(layer, head)),
        }

    def kv_cache(self, context: int, element: float = 2.0) -> float:
        """Bytes of the keys and values of one sequence of `context` tokens."""
        c = self.config
        return 2.0 * c.n_layers * c.n_kv_heads * c.head_dim * context * element

    def kv_saving(self) -> float:
        """How many times larger the KV cache would be with as many KV heads as query heads."""
        return self.config.n_heads / self.config.n_kv_heads

    def table(self, context: int, batch: int = 1) -> str:
        """Everything as text, for `batch` sequences of `context` tokens. Raises ValueError for less than one of either."""
        for name, value in (("context", context), ("batch", batch)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        tokens = context * batch
        kv = {name: batch * self.kv_cache(context, size) for name, size in PRECISIONS.items() if name != "int4"}
        state = self.training_state()
        states = {f"{o}, {p}": float(sum(self.training_state(o, p).values())) for o in OPTIMIZERS for p in TRAINED}
        kept = {f"{name}, {p}": size for p in TRAINED for name, size in self.activations(tokens, PRECISIONS[p]).items()}
        sections = [
            ("parameters", {k: f"{v:,}" for k, v in self.parameters().items()}, f"{self.config.n_params:,}"),
            (f"FLOPs per token at context {context:,}", {k: _scaled(v) for k, v in self.flops(context).items()}, ""),
            ("weights", _bytes(self.weights()), ""),
            ("training state, AdamW in bf16", _bytes(state), bytes_text(sum(state.values()))),
            ("training state in all", _bytes(states), ""),
            (f"activations of {tokens:,} tokens", _bytes(kept), ""),
            (f"KV cache of {batch:,} x {context:,} tokens", _bytes(kv), ""),
        ]
        lines = []
        for title, rows, total in sections:
            lines.append(f"{title}" + (f": {total}" if total else ""))
            lines += [f"  {name:<28}{value:>22}" for name, value in rows.items()]
        c = self.config
        lines.append(
            f"{c.n_kv_heads} KV heads for {c.n_heads} query heads: the KV cache is {self.kv_saving():g} times smaller "
            "than with full heads"
        )
        return "\n".join(lines)


def _bytes(sizes: dict[str, float]) -> dict[str, str]:
    return {name: bytes_text(size) for name, size in sizes.items()}


def bytes_text(size: float) -> str:
    """ "14.96 GiB": four digits and a binary unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:,.2f} TiB" if size >= 1000 else f"{size:.4g} TiB"


def _scaled(value: float) -> str:
    for unit in ("", "K", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.4g} {unit}FLOPs"
        value /= 1000
    return f"{value:.4g} EFLOPs"
