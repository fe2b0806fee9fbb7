"""The GGUF header parser: against the `gguf` package where a file is whole, and against every damage that files have."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest

from herder.gguf import BLOCKS, Header, read_gguf

U32, STRING, ARRAY = 4, 8, 9


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape=(32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def container(pairs=(), tensors=(), data=b"", *, version=3, n_tensors=None, n_pairs=None, magic=b"GGUF") -> bytes:
    """A GGUF file put together by hand, so that each field can be wrong."""
    counts = [len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs]
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


SOUND = container(
    [
        pair("general.architecture", STRING, text("llama")),
        pair("letters", ARRAY, struct.pack("<IQ", STRING, 3) + text("a") + text("Grüße") + text("")),
        pair("numbers", ARRAY, struct.pack("<IQ3i", 5, 3, -1, 0, 7)),
        pair("flag", 7, b"\x01"),
    ],
    [tensor("one", (4, 8)), tensor("two", (64,), 8, 128)],
    bytes(128 + 68),
)


@pytest.fixture
def read(tmp_path):
    def parse(data: bytes):
        (tmp_path / "model.gguf").write_bytes(data)
        return read_gguf(tmp_path / "model.gguf")

    return parse


def test_values_and_places_come_back(read):
    parsed = read(SOUND)
    assert parsed.metadata == {
        "general.architecture": "llama",
        "letters": ["a", "Grüße", ""],
        "numbers": [-1, 0, 7],
        "flag": True,
    }
    one, two = parsed.tensors.values()
    assert (one.shape, one.type, one.bytes, two.shape, two.type, two.bytes) == ((8, 4), "F32", 128, (64,), "Q8_0", 68)
    assert two.offset - one.offset == 128
    assert two.offset + two.bytes == len(SOUND)


def test_a_file_of_the_gguf_package_is_read_alike(tmp_path):
    gguf = pytest.importorskip("gguf", reason="the independent writer is the package gguf")
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_float32("half", 0.5)
    writer.add_int64("low", -(2**40))
    writer.add_array("words", ["日本", "x" * 300])
    writer.add_array("scores", [0.25, -1.5])
    writer.add_tensor("f16", np.ones((3, 5), np.float16))
    writer.add_tensor("q4", np.zeros((2, 36), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert ours.metadata == {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert [(t.name, list(t.shape), t.type, t.offset, t.bytes) for t in ours.tensors.values()] == [
        (t.name, t.shape.tolist()[::-1], t.tensor_type.name, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]


def test_sizes_of_the_blocks_are_the_packages():
    gguf = pytest.importorskip("gguf", reason="the independent table is the package gguf's")
    theirs = {int(t): (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    assert BLOCKS.items() <= theirs.items()


def test_a_file_cut_anywhere_is_refused_by_name(read):
    for cut in range(len(SOUND)):
        with pytest.raises(ValueError, match=r"model\.gguf") as caught:
            read(SOUND[:cut])
        assert type(caught.value) is ValueError


HUGE = 2**63 + 5
BAD = {
    "another magic": (container(magic=b"GGML"), "is not a GGUF file"),
    "version 1": (container(version=1), "version 1; versions 2 and 3"),
    "version 4": (container(version=4), "version 4"),
    "big-endian": (container(version=3 << 24), "big-endian"),
    "wild number of entries": (container(n_pairs=HUGE), "states 9223372036854775813 metadata entries"),
    "wild number of tensors": (container(n_tensors=2**40), "states 1099511627776 tensors"),
    "wild length of a key": (container([struct.pack("<Q", HUGE) + b"key" + bytes(32)]), "ends within the key of"),
    "wild string": (container([pair("k", STRING, struct.pack("<Q", 2**62))]), "ends within the value of 'k'"),
    "wild array of numbers": (container([pair("k", ARRAY, struct.pack("<IQ", 6, 2**61))]), "ends within"),
    "wild array of strings": (container([pair("k", ARRAY, struct.pack("<IQ", STRING, 2**60))]), "ends within"),
    "array of arrays": (container([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "unknown type number 9"),
    "unknown type of a value": (container([pair("k", 13, bytes(8))]), "unknown type number 13 in the value of 'k'"),
    "text that is not UTF-8": (container([pair("k", STRING, text(b"\xff\xfe"))]), "not UTF-8 in the value of 'k'"),
    "key twice": (container([pair("k", U32, bytes(4))] * 2), "the metadata key 'k' twice"),
    "tensor twice": (container((), [tensor("t"), tensor("t", offset=128)], bytes(256)), "the tensor 't' twice"),
    "five dimensions": (container((), [tensor("t", (1,) * 5)], bytes(128)), "5 dimensions"),
    "wild number of dimensions": (container((), [text("t") + struct.pack("<I", 2**31)], bytes(99)), "dimensions"),
    "empty dimension": (container((), [tensor("t", (32, 0))], bytes(128)), r"shape \(0, 32\)"),
    "row that is no block": (container((), [tensor("t", (33,), 2)], bytes(128)), r"\(33,\), which type Q4_0"),
    "unknown type of a tensor": (container((), [tensor("t", kind=77)], bytes(128)), "unknown type number 77"),
    "elements beyond the file": (container((), [tensor("t", (2**32, 2**31))], bytes(128)), "the file is truncated"),
    "offset beyond the file": (container((), [tensor("t", offset=2**63)], bytes(128)), "the file is truncated"),
    "offset off the alignment": (container((), [tensor("t", offset=4)], bytes(160)), "no multiple of 32"),
    "overlap": (container((), [tensor("t"), tensor("u", offset=96)], bytes(256)), "tensor 'u' over tensor 't'"),
    "alignment of 0": (container([pair("general.alignment", U32, bytes(4))]), "alignment 0"),
    "alignment of 48": (container([pair("general.alignment", U32, struct.pack("<I", 48))]), "alignment 48"),
    "alignment that is text": (container([pair("general.alignment", STRING, text("x"))]), "alignment 'x'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_is_refused_with_its_reason(read, name):
    data, says = BAD[name]
    with pytest.raises(ValueError, match=says):
        read(data)


def test_a_header_without_end_is_not_read_to_its_end(read, monkeypatch):
    monkeypatch.setattr("herder.gguf.HEADER_BYTES", 1 << 12)
    with pytest.raises(ValueError, match="has a header of more than"):
        read(container([pair("k", ARRAY, struct.pack("<IQ", 0, 1 << 13) + bytes(1 << 13))]))


def test_what_is_no_file_says_so(tmp_path):
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(ValueError, match="is not a file"):
            read_gguf(path)


def test_flipped_bytes_never_raise_anything_but_a_sentence():
    path, draw, refusals = Path("m.gguf"), random.Random(0), []
    for _ in range(20_000):
        data = bytearray(SOUND)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data) - 196)] = draw.choice((0, 1, 9, 127, 128, 255, draw.randrange(256)))
        try:
            Header(path, data, len(data)).read()
        except ValueError as error:
            refusals.append(error)
    assert len(refusals) > 5000
    assert {type(error) for error in refusals} == {ValueError}
    assert all(str(error).startswith("m.gguf ") for error in refusals)


def test_a_vocabulary_of_128k_with_its_merges_is_read_whole(read):
    tokens = [f"token{i}" for i in range(128_256)]
    merges = [f"left{i} right{i}" for i in range(280_147)]
    arrays = [
        pair(key, ARRAY, struct.pack("<IQ", STRING, len(rows)) + b"".join(map(text, rows)))
        for key, rows in (("tokens", tokens), ("merges", merges))
    ]
    parsed = read(container(arrays))
    assert parsed.metadata == {"tokens": tokens, "merges": merges}
