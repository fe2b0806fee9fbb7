"""Training speed against `transformers`: one core, bf16, the 8M model, the same packed documents with the same isolation.

Both sides take the same batches (random tokens, documents of 64 to 448 tokens, 256 on average, packed into rows without
loss), the same AdamW with clipping, bf16 weights from fp32 masters or autocast, and count every position as a token. The
peer's best setting is searched, not assumed: scaled-dot-product or eager attention, a boolean mask made once per batch or
packing told by position ids, bf16 weights or autocast. Turns alternate, the median of turns counts, and the ratio is what to
compare between machines.

    OMP_NUM_THREADS=1 python benchmarks/train.py [--seq 2048] [--seconds 60]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from herder.model import SHAPES, Llama
from herder.model.attention import Packing
from herder.steps import machine
from herder.train.objective import Rows, mean_log_loss
from herder.train.optim import OptimConfig
from herder.train.outputs import compute
from herder.train.replica import Replica

TOKENS_PER_STEP = 4096


def make_rows(seq_len: int, seed: int, vocab: int) -> Rows:
    """One step of packed documents; a document cut by a row's end goes on as the next row's first."""
    g = torch.Generator().manual_seed(seed)
    rows = TOKENS_PER_STEP // seq_len
    tokens = torch.randint(0, vocab, (rows, seq_len + 1), generator=g)
    lengths = torch.randint(64, 449, (TOKENS_PER_STEP // 64 + 1,), generator=g)
    doc_ids = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[: rows * (seq_len + 1)].view(rows, -1)
    weights = (doc_ids[:, 1:] == doc_ids[:, :-1]).float()
    return Rows(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, doc_ids[:, :-1].contiguous())


class Herder:
    name = "herder"

    def __init__(self, shape):
        self.model = Llama(shape).init_weights(0).train()
        self.replica = Replica(self.model, OptimConfig(kind="adamw", warmup_steps=1), torch.bfloat16)

    def step(self, rows: Rows) -> float:
        sums = torch.zeros(2, dtype=torch.float64)
        for micro in rows.micro_batches(max(1, 4096 // rows.tokens.shape[1])):
            loss = mean_log_loss(compute(self.model, micro, Packing.of(micro.doc_ids), frozenset()), micro)
            loss.sum.backward()
            self.replica.accumulate()
            sums += torch.stack([loss.weight.double(), loss.sum.detach().double()])
        self.replica.reduce(sums)
        self.replica.step(1.0, self.replica.grad_norm())
        return float(sums[1] / sums[0])


class Peer:
    def __init__(self, shape, attention: str, packing: str, precision: str):
        import transformers

        self.name = f"transformers {transformers.__version__} {attention}, {packing}, {precision}"
        config = transformers.LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.dim,
            intermediate_size=shape.ffn_dim,
            num_hidden_layers=shape.n_layers,
            num_attention_heads=shape.n_heads,
            num_key_value_heads=shape.n_kv_heads,
            rms_norm_eps=shape.norm_eps,
            tie_word_embeddings=shape.tie_embeddings,
            max_position_embeddings=shape.max_seq_len,
            rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
            attn_implementation=attention,
            use_cache=False,
        )
        self.model = transformers.LlamaForCausalLM(config)
        self.model.load_state_dict(Llama(shape).init_weights(0).state_dict())
        self.autocast, self.packing = precision == "autocast", packing
        if not self.autocast:
            self.model.to(torch.bfloat16)
        self.replica = torch.optim.AdamW(self.model.parameters(), lr=3e-4, betas=(0.9, 0.95), fused=True)

    def step(self, rows: Rows) -> float:
        packing = Packing.of(rows.doc_ids)
        positions = packing.positions(len(rows))
        targets = rows.targets.masked_fill(rows.weights == 0, -100)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            if self.packing == "position ids":
                logits = self.model(input_ids=rows.tokens, position_ids=positions).logits
            else:
                length = rows.tokens.shape[1]
                same = rows.doc_ids[:, :, None] == rows.doc_ids[:, None, :]
                mask = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
                logits = self.model(input_ids=rows.tokens, attention_mask=mask, position_ids=positions).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.replica.step()
        self.replica.zero_grad()
        return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seq", type=int, nargs="+", default=[2048, 512])
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape, results = SHAPES["bench-8m"], {}
    for seq_len in options.seq:
        batches = [make_rows(seq_len, seed, shape.vocab_size) for seed in range(options.turns + 1)]
        peers = [
            Peer(shape, "sdpa", packing, precision)
            for packing in ("position ids", "mask")
            for precision in ("autocast", "bf16 weights")
        ]
        sides = [Herder(shape), *peers, Peer(shape, "eager", "mask", "autocast")]
        seconds: dict[str, list[float]] = {side.name: [] for side in sides}
        for turn, rows in enumerate(batches):
            losses = {}
            for side in sides:
                start = time.process_time()
                losses[side.name] = side.step(rows)
                if turn:  # the first turn warms up
                    seconds[side.name].append(time.process_time() - start)
            if turn == 0:
                assert max(losses.values()) - min(losses.values()) < 0.02, losses  # the same model on the same data
        rates = {name: TOKENS_PER_STEP / statistics.median(s) for name, s in seconds.items()}
        best = max((n for n in rates if n != "herder"), key=rates.get)
        print(f"T={seq_len}, documents of about 256 tokens, {TOKENS_PER_STEP} tokens a step, CPU time of one core")
        for name, rate in rates.items():
            print(f"  {name:58} {rate:8,.0f} tokens/s")
        print(f"  ratio to the best setting of transformers: {rates['herder'] / rates[best]:.2f}")
        results[f"T={seq_len}"] = {"herder": rates["herder"], "peer": rates[best], "setting": best}
        results[f"T={seq_len}"]["ratio"] = rates["herder"] / rates[best]
    print(json.dumps({"benchmark": "train", "machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
