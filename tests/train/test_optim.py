"""The optimizer's arithmetic against its definitions: schedule, clipping, which weights decay, which matrices Muon takes."""

import math

import pytest
import torch
from torch import nn
from train.toy import TINY

from herder.model import Llama
from herder.train import OptimConfig
from herder.train.optim import Optimizer
from herder.train.replica import Replica


def optimizer(**more):
    model = Llama(TINY).init_weights(0)
    return Replica(model, OptimConfig(**more), torch.float32), model


def test_the_schedule_is_a_linear_warm_up_and_a_cosine_to_the_final_share():
    config = OptimConfig(warmup_steps=10, lr_final=0.1)
    scales = [config.scale(step, 110) for step in range(110)]
    assert scales[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert scales[10] == pytest.approx(1.0)
    assert scales[60] == pytest.approx((1 + 0.1) / 2)
    assert config.scale(110, 110) == pytest.approx(0.1)
    assert scales[10:] == sorted(scales[10:], reverse=True)


def test_a_gradient_above_the_clip_is_scaled_to_it_and_one_below_is_left():
    updates = []
    for size in (1.0, 1000.0):
        opt, _ = optimizer(clip=1.0, lr=1e-2, weight_decay=0.0, eps=1.0)
        direction = torch.randn(opt.flat.shape, generator=torch.Generator().manual_seed(0))
        opt.flat.copy_(direction / direction.norm() * size)
        before = torch.cat([m.detach().flatten().clone() for m in opt.masters.values()])
        opt.step(1.0, opt.grad_norm())
        updates.append(torch.cat([m.detach().flatten() for m in opt.masters.values()]) - before)
        assert not opt.flat.any()
    assert updates[0].norm() > 0
    assert torch.allclose(updates[0], updates[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_matrices_decay_and_norms_do_not(kind):
    """Without a gradient nothing moves but what decays, and that by learning rate times decay."""
    opt, model = optimizer(kind=kind, lr=0.1, lr_muon=0.1, weight_decay=0.5)
    before = {name: m.detach().clone() for name, m in opt.masters.items()}
    opt.step(1.0, 0.0)
    for name, p in model.named_parameters():
        expected = before[name] * (0.95 if p.dim() == 2 else 1.0)
        assert torch.allclose(p, expected, atol=1e-6), name


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else():
    opt, _ = optimizer(kind="muon")
    (muon, _), (adamw, _) = opt.optimizer.updates
    assert isinstance(muon, torch.optim.Muon)
    names = {id(m): name for name, m in opt.masters.items()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert taken == {name for name in opt.names if "_proj" in name}
    assert rest == {name for name in opt.names if "norm" in name or "embed" in name or "lm_head" in name}


def test_ranks_that_share_muons_matrices_do_bit_for_bit_what_one_does():
    """Masters and every moment, over steps of which the later ones depend on the moments."""
    config, ranks = OptimConfig(kind="muon", lr=1e-2), 3

    def fresh(rank=0, copies=1):
        model = Llama(TINY).init_weights(0)
        return Optimizer(
            {n: nn.Parameter(p.detach().clone()) for n, p in model.named_parameters()}, config, rank, copies
        )

    alone, together = fresh(), [fresh(rank, ranks) for rank in range(ranks)]
    assert sorted(len(part) for part in together[0].shared) == [4, 5, 5]
    for step in range(4):
        for optimizer in (alone, *together):
            noise = torch.Generator().manual_seed(step)
            for p in optimizer.masters.values():
                p.grad = torch.randn(p.shape, generator=noise)
            optimizer.step(1.0)
        for owner, optimizer in enumerate(together):
            for other in together:
                for mine, theirs in zip(optimizer.shared[owner], other.shared[owner], strict=True):
                    theirs.data.copy_(mine)
        for optimizer in together:
            state = optimizer.state()
            assert all(torch.equal(t, state[name]) for name, t in alone.state().items())


def test_a_tied_head_is_one_weight_before_and_after_the_change_of_dtype():
    from dataclasses import replace

    model = Llama(replace(TINY, tie_embeddings=True)).init_weights(0)
    opt = Replica(model, OptimConfig(), torch.bfloat16)
    assert "lm_head.weight" not in opt.masters
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert opt.masters["model.embed_tokens.weight"].dtype == torch.float32


def test_the_first_adamw_step_is_the_papers_formula():
    opt, _ = optimizer(lr=1e-3, weight_decay=0.0, clip=math.inf)
    gradient = torch.randn(opt.flat.shape, generator=torch.Generator().manual_seed(1))
    opt.flat.copy_(gradient)
    before = torch.cat([m.detach().flatten().clone() for m in opt.masters.values()])
    opt.step(0.5, opt.grad_norm())
    after = torch.cat([m.detach().flatten() for m in opt.masters.values()])
    assert torch.allclose(after - before, -5e-4 * gradient / (gradient.abs() + 1e-8), atol=1e-6)
