"""Model folders: what is saved is what is loaded, here and in `transformers`, and what `transformers` wrote is read."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import TOKENS, edit, model_of, saved

from herder.convert import load, open_checkpoint, save
from herder.convert.checkpoint import parameter_shapes
from herder.convert.huggingface import split, write_hf
from herder.convert.transfer import InMemory
from herder.model import SHAPES, Llama, RopeScaling
from herder.tokenizer import ChatFormat


def theirs_of(tok, **more):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=tok.n_vocab + 8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        **more,
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("more", [{}, {"tie_embeddings": True}, {"rope_scaling": RopeScaling(original_max_seq_len=16)}])
def test_a_saved_model_loads_as_it_was_here_and_in_transformers(tok, tmp_path, more):
    model = model_of(tok, **more)
    save(model, tok, tmp_path / "model")
    loaded, tokenizer = load(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert tokenizer.encode("def f(x): return x") == tok.encode("def f(x): return x")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert (theirs(TOKENS).logits - model(TOKENS)).abs().max() < 1e-5
    assert set(theirs.generation_config.eos_token_id) == tok.stop_ids
    assert theirs.generation_config.bos_token_id == tok.bos_id


def test_scaled_rope_is_stated_in_the_field_that_older_transformers_read(tok, tmp_path):
    """transformers 4 knows rope_scaling alone, and without it rotates unscaled and says nothing."""
    save(model_of(tok, rope_scaling=RopeScaling(original_max_seq_len=16)), tok, tmp_path / "scaled")
    save(model_of(tok), tok, tmp_path / "plain")
    scaled, plain = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("scaled", "plain"))
    assert scaled["rope_scaling"].items() >= {"rope_type": "llama3", "factor": 8.0}.items()
    assert scaled["rope_scaling"]["original_max_position_embeddings"] == 16
    assert "rope_scaling" not in plain


def test_a_model_in_many_files_loads_here_and_in_transformers(tok, tmp_path):
    model = model_of(tok).to(torch.bfloat16)
    write_hf(InMemory(model, tok), tmp_path / "m", shard_bytes=20_000)
    files = sorted(p.name for p in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(
        torch.equal(a, b) for a, b in zip(load(tmp_path / "m")[0].parameters(), model.float().parameters(), strict=True)
    )
    transformers = pytest.importorskip("transformers")
    theirs, about = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    ours = dict(model.named_parameters())
    assert all(torch.equal(p.float(), ours[name].float()) for name, p in theirs.named_parameters())


def test_the_safetensors_library_reads_what_is_written_and_its_checksum_is_that_of_the_file(tok, tmp_path):
    from herder.train.checkpoint import checksum

    model = model_of(tok)
    save(model, tok, tmp_path / "m")
    with safe_open(tmp_path / "m" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert all(torch.equal(file.get_tensor(name), p) for name, p in model.named_parameters())
    sums = json.loads((tmp_path / "m" / "checksums.json").read_text())
    assert sums.keys() == {p.name for p in (tmp_path / "m").iterdir()} - {"checksums.json"}
    assert all(checksum(tmp_path / "m" / name) == value for name, value in sums.items())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["10GB", "30KB"])
def test_what_transformers_wrote_is_read_to_the_bit(tok, tmp_path, tied, dtype, shard):
    theirs = theirs_of(tok, tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 5e5}).to(
        dtype
    )
    theirs.save_pretrained(tmp_path / "m", max_shard_size=shard)
    tok.save(tmp_path / "m")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.dtype == dtype
    expected = dict(theirs.named_parameters())
    assert set(checkpoint.names()) == set(expected)
    assert all(torch.equal(checkpoint.tensor(name), p) for name, p in expected.items())
    model, _ = load(tmp_path / "m")
    assert (model(TOKENS) - theirs.float()(TOKENS).logits).abs().max() < 1e-4


def test_old_bin_files_single_and_many_are_read_and_their_frequencies_ignored(tok, tmp_path):
    model = model_of(tok)
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    for kind, zipped in (("one", True), ("old", False), ("many", True)):
        folder = saved(tok, tmp_path / kind)
        (folder / "model.safetensors").unlink()
        if kind != "many":
            torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        else:
            names = list(tensors)
            places = {name: f"pytorch_model-{1 + (i % 2):05d}-of-00002.bin" for i, name in enumerate(names)}
            for file in set(places.values()):
                torch.save({n: tensors[n] for n in names if places[n] == file}, folder / file)
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        loaded, _ = load(folder)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": {"type": "llama3", "factor": 4}},
        {"rope_parameters": None, "rope_theta": 1e6, "rope_scaling": {"rope_type": "llama3", "factor": 4}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6, "factor": 4}},
    ],
)
def test_configurations_of_older_forms_mean_the_same(tok, tmp_path, change):
    folder = saved(tok, tmp_path / "m")
    rest = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    for rope in (change["rope_parameters"], change.get("rope_scaling")):
        if rope:
            rope |= rest
    edit(folder / "config.json", change | {"dtype": None, "torch_dtype": "float32", "head_dim": None})
    config = load(folder)[0].config
    assert config.rope_theta == 1e6
    assert config.rope_scaling == RopeScaling(4.0, 1.0, 4.0, 16)


def test_a_tied_head_that_is_stored_as_well_must_be_equal(tok, tmp_path):
    model = model_of(tok, tie_embeddings=True)
    save(model, tok, tmp_path / "m")
    (tmp_path / "m" / "checksums.json").unlink()
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    save_file(tensors | {"lm_head.weight": model.lm_head.weight.detach().clone()}, tmp_path / "m" / "model.safetensors")
    assert torch.equal(load(tmp_path / "m")[0](TOKENS), model(TOKENS))
    save_file(tensors | {"lm_head.weight": model.lm_head.weight.detach() + 1}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head.weight is stored and differs"):
        load(tmp_path / "m")


def test_shapes_are_those_of_the_model(tok):
    for config in (model_of(tok).config, model_of(tok, tie_embeddings=True).config, SHAPES["llama3.2-1b"]):
        with torch.device("meta"):
            model = Llama(config)
        assert list(parameter_shapes(config)) == [(name, tuple(p.shape)) for name, p in model.named_parameters()]


def test_files_are_cut_at_their_limit_and_a_larger_tensor_has_its_own():
    specs = [(str(i), (n,), torch.float32) for i, n in enumerate((1, 2, 3, 100, 1, 1))]
    assert [[name for name, _, _ in shard] for shard in split(specs, 12)] == [["0", "1"], ["2"], ["3"], ["4", "5"]]


def test_a_step_folder_stands_for_its_model(tok, tmp_path):
    save(model_of(tok), tok, tmp_path / "step" / "model")
    assert load(tmp_path / "step")[0].config == model_of(tok).config


def test_a_tokenizer_with_fewer_ids_than_rows_is_accepted_and_with_more_refused(tok, tmp_path):
    padded = Llama(replace(model_of(tok).config, vocab_size=tok.n_vocab + 64)).init_weights(0)
    save(padded, tok, tmp_path / "padded")
    assert load(tmp_path / "padded")[1].n_vocab == tok.n_vocab
    small = Llama(replace(model_of(tok).config, vocab_size=100)).init_weights(0)
    with pytest.raises(ValueError, match="use the one it trained with"):
        save(small, tok, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    tensors = {name: p.detach().contiguous() for name, p in small.named_parameters()}
    save_file(tensors, tmp_path / "padded" / "model.safetensors")
    (tmp_path / "padded" / "checksums.json").unlink()
    edit(tmp_path / "padded" / "config.json", {"vocab_size": 100})
    with pytest.raises(ValueError, match=rf"has {tok.n_vocab} ids, the model 100"):
        load(tmp_path / "padded")


def test_saving_replaces_a_model_and_never_somebodys_folder(tok, tmp_path):
    for _ in range(2):
        save(model_of(tok), tok, tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not replaced"):
        save(model_of(tok), tok, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_write_that_fails_leaves_the_older_model_and_nothing_else(tok, tmp_path):
    saved(tok, tmp_path / "m", without_checksums=False)

    class Failing(InMemory):
        def tensor(self, name):
            if "layers.1" in name:
                raise OSError(28, "No space left on device")
            return super().tensor(name)

    with pytest.raises(OSError, match="No space left"):
        write_hf(Failing(model_of(tok), tok), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    load(tmp_path / "m")


def test_the_tokenizer_comes_back_from_tokenizer_json_alone(tok, tmp_path):
    """A tokenizer.model of tiktoken's beside config.json would be taken for SentencePiece's by llama.cpp's converter."""
    save(model_of(tok), tok, tmp_path / "m")
    assert not (tmp_path / "m" / "tokenizer.model").exists()
    loaded = load(tmp_path / "m")[1]
    assert (loaded.fingerprint, loaded.dialect, loaded.special) == (tok.fingerprint, tok.dialect, tok.special)


def test_the_template_renders_in_transformers_to_the_ids_of_the_chat_format(tok, tmp_path):
    transformers = pytest.importorskip("transformers")
    save(model_of(tok), tok, tmp_path / "m")
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == ChatFormat(tok).encode(messages, add_generation_prompt=True).ids


def test_auto_tokenizer_gives_our_ids(tok, tmp_path):
    transformers = pytest.importorskip("transformers")
    save(model_of(tok), tok, tmp_path / "m")
    text = "def f(x): return x  # Grüße aus Köln"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert theirs.encode(text, add_special_tokens=False) == tok.encode(text)
