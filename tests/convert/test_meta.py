"""Meta's files: what is written runs in the published reference code, and its shards merge back to the bit."""

import json
import shutil
import zipfile

import pytest
import torch

from herder.convert import convert, load, open_checkpoint, save
from herder.convert.meta import config_of, ffn_dim, ffn_fields, params_json
from herder.model import SHAPES, Llama, LlamaConfig, RopeScaling

HEADS = 8


def model_of(tok, **more):
    config = LlamaConfig(tok.n_vocab, 64, 2, HEADS, more.pop("n_kv_heads", 4), 96, max_seq_len=200, **more)
    return Llama(config).init_weights(3).eval()


def saved(tok, folder, **more):
    model = model_of(tok, **more)
    save(model, tok, folder, format="meta")
    (folder / "checksums.json").unlink()
    return model


def edit(path, change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The reference's modules; its layers ask for a process group, which exists while these tests run."""
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


@pytest.mark.parametrize("more", [{}, {"tie_embeddings": True}, {"rope_scaling": RopeScaling(), "n_kv_heads": 8}])
def test_what_is_written_runs_in_the_reference_code(published, tok, tmp_path, more):
    model = saved(tok, tmp_path / "m", **more)
    params = json.loads((tmp_path / "m" / "params.json").read_text())
    theirs = published.Transformer(published.ModelArgs(max_seq_len=200, max_batch_size=2, **params))
    weights = torch.load(tmp_path / "m" / "consolidated.00.pth", map_location="cpu", mmap=True, weights_only=True)
    theirs.load_state_dict(weights, strict=True)
    tokens = torch.randint(0, tok.n_vocab, (2, 150), generator=torch.Generator().manual_seed(0))
    assert (theirs(tokens, 0) - model(tokens)).abs().max() < 1e-4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_there_and_back_is_bit_identical(tok, tmp_path, tied, dtype):
    model = model_of(tok, tie_embeddings=tied).to(dtype)
    save(model, tok, tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", "meta")
    convert(tmp_path / "b", tmp_path / "c", "hf")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert load(tmp_path / "b")[1].fingerprint == tok.fingerprint


def test_the_file_is_a_sound_zip_with_aligned_tensors_and_a_shared_head(tok, tmp_path):
    saved(tok, tmp_path / "m", tie_embeddings=True)
    path = tmp_path / "m" / "consolidated.00.pth"
    assert zipfile.ZipFile(path).testzip() is None
    tensors = torch.load(path, mmap=True, weights_only=True)
    assert tensors["output.weight"].data_ptr() == tensors["tok_embeddings.weight"].data_ptr()
    assert all(t.data_ptr() % 64 == 0 for t in tensors.values())
    assert open_checkpoint(tmp_path / "m").names()[-1] == "model.norm.weight"


def shards_of(whole, size):
    """Cut as the published code cuts, with its own function; with more ranks than the four KV heads, neighbours get copies."""
    published = pytest.importorskip("llama_models.checkpoint", reason="needs the packages llama-models and fairscale")
    if size <= 4:
        return [published.reshard_mp([whole], size, rank) for rank in range(size)]
    of_one_head = shards_of(whole, 4)
    return [
        published.reshard_mp([shard], size // 4, part, size // 4) for shard in of_one_head for part in range(size // 4)
    ]


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("embedding_dim", [0, 1])
def test_shards_merge_back_to_the_bit(tok, tmp_path, size, embedding_dim):
    """Embeddings cut along the width were Llama 2's way."""
    model = saved(tok, tmp_path / "m")
    path = tmp_path / "m" / "consolidated.00.pth"
    whole = torch.load(path, weights_only=True) | {"rope.freqs": torch.ones(4)}
    path.unlink()
    for rank, shard in enumerate(shards_of(whole, size)):
        if embedding_dim == 1:
            shard["tok_embeddings.weight"] = whole["tok_embeddings.weight"].chunk(size, 1)[rank].clone()
        torch.save(shard, tmp_path / "m" / f"consolidated.{rank:02d}.pth")
    assert equal(load(tmp_path / "m")[0], model)


def test_copies_of_a_kv_head_that_differ_are_named(tok, tmp_path):
    saved(tok, tmp_path / "m")
    path = tmp_path / "m" / "consolidated.00.pth"
    for rank, shard in enumerate(shards_of(torch.load(path, weights_only=True), 8)):
        shard["layers.1.attention.wv.weight"][0, 0] += rank == 3
        torch.save(shard, tmp_path / "m" / f"consolidated.{rank:02d}.pth")
    with pytest.raises(
        ValueError, match=r"consolidated\.03\.pth: layers\.1\.attention\.wv\.weight differs from its copy"
    ):
        load(tmp_path / "m")


def test_a_model_is_tied_where_its_head_equals_its_embeddings(tok, tmp_path):
    for tied in (True, False):
        model = saved(tok, tmp_path / f"{tied}", tie_embeddings=tied)
        params = tmp_path / f"{tied}" / "params.json"
        edit(params, {"herder": {}})
        loaded, _ = load(tmp_path / f"{tied}")
        assert loaded.config.tie_embeddings == tied
        assert equal(loaded, model)


PUBLISHED = {
    "llama3-8b": (4096, 32, 32, 8, 1.3, 1024, False),
    "llama3-70b": (8192, 80, 64, 8, 1.3, 4096, False),
    "llama3.1-8b": (4096, 32, 32, 8, 1.3, 1024, True),
    "llama3.1-70b": (8192, 80, 64, 8, 1.3, 4096, True),
    "llama3.1-405b": (16384, 126, 128, 8, 1.2, 4096, True),
    "llama3.1-405b-kv16": (16384, 126, 128, 16, 1.2, 4096, True),
    "llama3.2-1b": (2048, 16, 32, 8, 1.5, 256, True),
    "llama3.2-3b": (3072, 28, 24, 8, 1.0, 256, True),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters_give_the_published_shapes(tmp_path, name):
    dim, layers, heads, kv_heads, multiplier, multiple, scaled = PUBLISHED[name]
    params = {
        "dim": dim,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": kv_heads,
        "vocab_size": 128_256,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple,
        "norm_eps": 1e-5,
        "rope_theta": 500_000.0,
    } | ({"use_scaled_rope": True} if scaled else {})
    config = config_of(params, tmp_path / "params.json", 128_256, SHAPES[name].tie_embeddings)
    assert config == SHAPES[name]
    assert config_of(params_json(config), tmp_path, 0, config.tie_embeddings) == config


@pytest.mark.parametrize("width", [1, 7, 97, 255, 256, 1536, 14_336, 50_001])
@pytest.mark.parametrize("dim", [64, 576, 4096])
def test_every_width_of_the_feed_forward_layers_can_be_stated(dim, width):
    fields = ffn_fields(LlamaConfig(10, dim, 1, 4, 4, width))
    assert ffn_dim(dim, fields["multiple_of"], fields["ffn_dim_multiplier"]) == width


@pytest.mark.parametrize(
    ("more", "says"),
    [({"head_dim": 32}, "no head_dim"), ({"rope_scaling": RopeScaling(factor=3.0)}, "cannot state RopeScaling")],
)
def test_a_shape_that_the_reference_code_cannot_have_is_refused(tok, tmp_path, more, says):
    with pytest.raises(ValueError, match=says):
        save(model_of(tok, **more), tok, tmp_path / "m", format="meta")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_layers": 3}, r"lacks the tensor layers\.2\.attention_norm\.weight"),
        ({"n_layers": 1}, r"holds the tensor layers\.1\.attention\.wk\.weight"),
        (
            {"multiple_of": 256},
            r"layers\.0\.feed_forward\.w1\.weight has shape \(96, 64\), params\.json says \(256, 64\)",
        ),
        ({"multiple_of": 0}, "params.json: "),
        ({"ffn_dim_multiplier": 1e308}, "params.json "),
        ({"ffn_dim_multiplier": "x"}, "could not convert"),
        ({"n_heads": 7}, "params.json: dim 64 is not divisible"),
        ({"dim": None}, "another type"),
        ({"vision_chunk_size": 448}, "vision_chunk_size says this is another model"),
        ({"quantization_args": {"scheme": "int4"}}, "quantization_args says this is another model"),
        ({"herder": 3}, "field herder"),
        ({"n_layers": 2**31 - 1}, "lacks the tensor"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(tok, tmp_path, change, says):
    saved(tok, tmp_path / "m")
    edit(tmp_path / "m" / "params.json", change)
    with pytest.raises(ValueError, match=says):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("norm.weight"), "lacks the tensor norm.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "holds the tensor extra"),
        (lambda t: t.update({"norm.weight": torch.ones(3)}), r"norm.weight has shape \(3,\), params.json says \(64,\)"),
        (lambda t: t.update({"norm.weight": torch.tensor(1.0)}), r"norm.weight has shape \(\)"),
        (lambda t: t.update({"norm.weight": torch.ones(64, dtype=torch.int8)}), "stored as int8"),
        (lambda t: t.update({"norm.weight": torch.ones(64).to(torch.float8_e4m3fn)}), "stored as float8_e4m3fn"),
        (lambda t: t.update({"norm.weight": torch.ones(64, device="meta")}), "not a plain tensor"),
        (lambda t: t.update({"norm.weight": "text"}), "no named tensor"),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_named(tok, tmp_path, change, says):
    saved(tok, tmp_path / "m")
    path = tmp_path / "m" / "consolidated.00.pth"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)
    with pytest.raises(ValueError, match=says):
        load(tmp_path / "m")


def test_missing_and_unequal_shards_are_named(tok, tmp_path):
    saved(tok, tmp_path / "m")
    first = tmp_path / "m" / "consolidated.00.pth"
    shutil.copy(first, tmp_path / "m" / "consolidated.02.pth")
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth is missing"):
        load(tmp_path / "m")
    shutil.copy(first, tmp_path / "m" / "consolidated.01.pth")
    torch.save(
        torch.load(first, weights_only=True) | {"norm.weight": torch.ones(2)}, tmp_path / "m" / "consolidated.01.pth"
    )
    with pytest.raises(ValueError, match=r"consolidated\.01\.pth: norm\.weight is missing or of another shape"):
        load(tmp_path / "m")
    (tmp_path / "m" / "consolidated.02.pth").unlink()
    shutil.copy(first, tmp_path / "m" / "consolidated.01.pth")
    with pytest.raises(ValueError, match=rf"tok_embeddings\.weight has shape \({2 * tok.n_vocab}, 64\)"):
        load(tmp_path / "m")


def test_a_folder_without_a_tokenizer_says_so(tok, tmp_path):
    saved(tok, tmp_path / "m")
    for path in (tmp_path / "m").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        load(tmp_path / "m")
