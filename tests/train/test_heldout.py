"""Bits per byte on held-out documents, against each document by itself."""

import math

import pytest
import torch
from train.toy import TINY, shards

from herder.model import Llama
from herder.train.heldout import HeldOut


def alone(model, source):
    """(nats, bytes) of every document of a source, one forward pass each."""
    for index in range(source.n_documents):
        ids = torch.tensor(source.document(index).astype("int64"))[None]
        logp = model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])
        yield -float(logp.sum()), int(source.bytes[index])


def test_packed_rows_measure_what_each_document_measures_alone(tmp_path):
    found = shards(tmp_path / "x")
    model = Llama(TINY).init_weights(0).eval()
    pairs = [pair for source in found.sources.values() for pair in alone(model, source)]
    measure = HeldOut(found, seq_len=4096, max_tokens=10**9)(model)
    assert measure.n == len(pairs) == 60
    expected = sum(n for n, _ in pairs) / math.log(2) / sum(b for _, b in pairs)
    assert measure.value == pytest.approx(expected, rel=1e-5)


def test_a_limit_takes_whole_documents_of_every_source(tmp_path):
    found = shards(tmp_path / "x")
    half = HeldOut(found, seq_len=64, max_tokens=sum(s.n_tokens for s in found.sources.values()) // 2)
    assert 20 <= len(half.bytes) <= 40
    assert len(HeldOut(found, seq_len=64, max_tokens=3).bytes) == 1
