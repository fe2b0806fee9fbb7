"""What the trainer computes for objectives, against plain autograd."""

import pytest
import torch
from train.toy import TINY

from herder.model import Llama
from herder.model.attention import Packing
from herder.train import outputs
from herder.train.objective import Rows
from herder.train.outputs import compute, token_log_probs


@pytest.mark.parametrize("chunk", [2**20, 64 * 7])
def test_log_probs_and_their_gradients_equal_autograd(chunk, monkeypatch):
    monkeypatch.setattr(outputs, "CHUNK_LOGITS", chunk)
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, 8, dtype=torch.float64, generator=g).requires_grad_() for n in (50, 64))
    targets, upstream = torch.randint(0, 64, (50,), generator=g), torch.randn(50, dtype=torch.float64, generator=g)
    ours = token_log_probs(h, w, targets)
    grads = torch.autograd.grad((ours * upstream).sum(), (h, w))
    plain = (h @ w.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    expected = torch.autograd.grad((plain * upstream).sum(), (h, w))
    assert torch.allclose(ours, plain, atol=1e-12)
    for a, b in zip(grads, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def rows():
    g = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(0, 64, (2, 20), generator=g) for _ in range(2))
    weights = torch.zeros(2, 20)
    weights[0, 3:9], weights[0, 12], weights[1, 5:7] = 1.0, 0.5, 2.0
    doc_ids = (torch.arange(20) // 10).expand(2, -1)
    segments = torch.full((2, 20), -1)
    segments[0, 3:9], segments[0, 12], segments[1, 5], segments[1, 6] = 0, 1, 1, -1
    return Rows(tokens, targets, weights, doc_ids, segments)


def test_the_head_sees_only_positions_that_predict_something():
    model, r = Llama(TINY).init_weights(0), rows()
    seen = []
    model.model.norm.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[0]))
    out = compute(model, r, Packing.of(r.doc_ids), frozenset({"token_log_probs"}))
    assert seen == [len(r.select)] == [9]
    expected = model(r.tokens, r.doc_ids).log_softmax(-1).gather(-1, r.targets[..., None])[..., 0]
    assert torch.allclose(out.token_log_probs, expected[r.weights != 0], atol=1e-5)


def test_segment_sums_are_weighted_sums_over_each_rows_segments():
    model, r = Llama(TINY).init_weights(0), rows()
    out = compute(model, r, Packing.of(r.doc_ids), frozenset({"segment_sums"}))
    logp = model(r.tokens, r.doc_ids).log_softmax(-1).gather(-1, r.targets[..., None])[..., 0] * r.weights
    expected = torch.stack([torch.stack([logp[i][r.segments[i] == s].sum() for s in (0, 1)]) for i in (0, 1)])
    assert torch.allclose(out.segment_sums, expected, atol=1e-5)


def test_segment_sums_without_segments_are_refused():
    model, r = Llama(TINY).init_weights(0), rows()
    bare = Rows(r.tokens, r.targets, r.weights, r.doc_ids)
    with pytest.raises(ValueError, match="carry no segments"):
        compute(model, bare, Packing.of(bare.doc_ids), frozenset({"segment_sums"}))
