"""On a CUDA device: the same model, the same losses, the same tokens as on a CPU."""

import pytest
import torch

from herder.engine import Engine, Sampling
from herder.model import Llama, LlamaConfig
from herder.model.attention import Packing
from herder.posttrain import SupervisedFineTuning
from herder.tokenizer import ChatFormat
from herder.train import OptimConfig, TrainConfig, train
from herder.train.objective import Rows
from herder.train.outputs import compute

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def packed_rows(vocab):
    g = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(0, vocab, (2, 256), generator=g) for _ in range(2))
    doc_ids = torch.repeat_interleave(torch.arange(9), torch.tensor([60, 1, 100, 95, 40, 88, 77, 50, 1])).view(2, 256)
    return Rows(tokens, targets, torch.ones(2, 256), doc_ids)


def test_packed_documents_give_the_same_log_probs_and_gradients_as_on_a_cpu():
    config = LlamaConfig(512, 128, 2, 4, 2, 256, max_seq_len=256)
    rows, results = packed_rows(512), []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        model = Llama(config).init_weights(0).to(device, dtype)
        out = compute(model, rows.to(device), Packing.of(rows.doc_ids), frozenset({"token_log_probs"}))
        out.token_log_probs.sum().backward()
        grads = torch.cat([p.grad.float().flatten().cpu() for p in model.parameters()])
        results.append((out.token_log_probs.detach().cpu(), grads))
    (a, ga), (b, gb) = results
    assert (a - b).abs().max() < 0.05
    assert (ga - gb).norm() / ga.norm() < 0.02


def test_training_and_generation_run_on_the_device(tok, tmp_path):
    chat = ChatFormat(tok)
    dialogues = [[{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"{i}"}] for i in range(10)]
    turns = [chat.encode(d) for d in dialogues]
    model = Llama(LlamaConfig(tok.n_vocab, 128, 2, 4, 2, 256, max_seq_len=256)).init_weights(0)
    objective = SupervisedFineTuning(turns, 128, 2, 60.0, 0, tok.pad_id)
    numbers = train(
        model, objective, TrainConfig(OptimConfig(kind="muon", lr=3e-3, warmup_steps=3), device="cuda"), tmp_path
    )
    assert numbers["loss"] < 0.5
    prompts = [chat.encode(d[:1], add_generation_prompt=True).ids for d in dialogues]
    on_gpu = Engine(model, tok, device="cuda").generate(prompts, Sampling(temperature=0, max_tokens=8))
    on_cpu = Engine(model, tok, device="cpu").generate(prompts, Sampling(temperature=0, max_tokens=8))
    assert [c.ids for c in on_gpu] == [c.ids for c in on_cpu]
    assert sum(c.text == d[1]["content"] for c, d in zip(on_gpu, dialogues, strict=True)) >= 8
