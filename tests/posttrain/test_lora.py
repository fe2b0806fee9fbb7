"""Low-rank adaptation against PEFT's own reading of the adapter, and against what it promises."""

from dataclasses import replace

import pytest
import torch

from herder.convert import load, save
from herder.model import Llama, LlamaConfig
from herder.posttrain import FineTuneConfig, LoraConfig, fine_tune
from herder.posttrain.lora import adapter_tensors, add_adapter, merge, save_adapter
from herder.records import Dialogue, read_jsonl, write_dialogues
from herder.train import OptimConfig, TrainConfig

CONFIG = LoraConfig(rank=4, alpha=8.0)


def small(tok) -> Llama:
    return Llama(LlamaConfig(tok.n_vocab, 32, 2, 4, 2, 48, max_seq_len=128, tie_embeddings=True)).init_weights(0)


def tokens(tok):
    return torch.tensor([tok.encode("a question of some length, and its answer", bos=True)])


def disturbed(model: Llama, config: LoraConfig) -> dict[str, torch.Tensor]:
    """An adapter as training leaves it: nothing of it zero."""
    add_adapter(model, config)
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(p, std=0.3)
    return adapter_tensors(model)


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(tok):
    model = small(tok)
    before = model(tokens(tok))
    add_adapter(model, CONFIG)
    assert torch.equal(model(tokens(tok)), before)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    c = model.config
    inner, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    sides = 2 * (c.dim + inner) + 2 * (c.dim + kv) + 3 * (c.dim + c.ffn_dim)
    assert trained == c.n_layers * CONFIG.rank * sides


@pytest.mark.parametrize("targets", [CONFIG.targets, ("q_proj", "down_proj")])
def test_merged_weights_give_the_outputs_of_the_model_with_its_adapter(tok, targets):
    config = replace(CONFIG, targets=targets)
    model, plain = small(tok), small(tok)
    before = plain(tokens(tok))
    adapter = disturbed(model, config)
    merge(plain, adapter, config)
    assert torch.allclose(plain(tokens(tok)), model(tokens(tok)), atol=1e-5)
    assert (plain(tokens(tok)) - before).abs().max() > 1e-2


def test_peft_reads_the_adapter_and_gives_the_same_outputs(tok, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the package peft")
    transformers = pytest.importorskip("transformers")
    model, plain = small(tok), small(tok)
    save(plain, tok, tmp_path / "base")
    adapter = disturbed(model, CONFIG)
    save_adapter(adapter, CONFIG, tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.allclose(theirs(tokens(tok)).logits, model(tokens(tok)), atol=1e-4)


def test_fine_tuning_with_an_adapter_learns_and_leaves_the_rest_as_it_was(tok, tmp_path):
    model = small(tok)
    with torch.no_grad():  # a head that can be sharp: it stays frozen
        model.model.embed_tokens.weight.mul_(10)
    save(model, tok, tmp_path / "base" / "model")
    pairs = [
        Dialogue([{"role": "user", "content": f"say {w}"}, {"role": "assistant", "content": w}])
        for w in ("one", "two", "six", "ten")
    ]
    write_dialogues(pairs, tmp_path / "dialogues" / "train.jsonl")
    optim = OptimConfig(lr=2e-2, warmup_steps=2, weight_decay=0.0)
    train = TrainConfig(optim=optim, dtype="bfloat16", device="cpu")
    config = FineTuneConfig(train, epochs=60, rows_per_step=2, seq_len=96, lora=CONFIG)
    inputs = {"base": tmp_path / "base", "dialogues": tmp_path / "dialogues"}
    fine_tune(config, inputs, tmp_path / "out")
    losses = [row["loss"] for row in read_jsonl(tmp_path / "out" / "metrics.jsonl")]
    assert losses[-1] < losses[0] / 2
    tuned, _ = load(tmp_path / "out" / "model")
    own = dict(model.named_parameters())
    for name, p in tuned.named_parameters():
        adapted = name.endswith("_proj.weight")
        assert torch.equal(p, own[name]) != adapted, name


@pytest.mark.parametrize(
    ("change", "says"),
    [({"rank": 0}, "rank is 0"), ({"targets": ("w1",)}, "targets names 'w1'"), ({"targets": ()}, "targets is empty")],
)
def test_an_adapter_that_cannot_be_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(CONFIG, **change)


def test_an_adapter_of_another_model_is_refused_by_the_tensor_that_does_not_fit(tok):
    model, plain = small(tok), small(tok)
    adapter = disturbed(model, CONFIG)
    with pytest.raises(ValueError, match=r"lora_A\.weight is \(4, 32\), expected \(8, 32\)"):
        merge(plain, adapter, replace(CONFIG, rank=8))
    with pytest.raises(ValueError, match="none of the model's targets q_proj"):
        merge(plain, adapter, replace(CONFIG, targets=("q_proj",)))
