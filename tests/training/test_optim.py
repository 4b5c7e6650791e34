"""Learning rates, decay, layers and LARS, each against its rule written out."""

import math

import pytest
import torch
from torch import nn

from mmssl.errors import MmsslError
from mmssl.training.lars import LARS
from mmssl.training.optim import OptimConfig, build_optimizer, layer_scales, parameter_groups, scale_gradients, set_lr


def maes_rule(epoch: float, lr: float, min_lr: float, warmup: float, epochs: float) -> float:
    if epoch < warmup:
        return lr * epoch / warmup
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def test_the_published_schedule():
    config = OptimConfig(base_lr=1.5e-4, warmup_epochs=40, min_lr=1e-6)
    per_epoch = 312
    schedule = config.schedule(4096, 800 * per_epoch, per_epoch)
    assert schedule.peak == pytest.approx(2.4e-3)
    for step in (0, 1, 311, 40 * 312 - 1, 40 * 312, 100_000, 800 * 312 - 1):
        wanted = maes_rule(step / per_epoch, 2.4e-3, 1e-6, 40, 800)
        assert schedule.lr_at(step / (800 * per_epoch)) == pytest.approx(wanted, rel=1e-9, abs=1e-15)
    assert schedule.lr_at(0) == 0 and schedule.lr_at(1) == pytest.approx(1e-6)


def test_an_absolute_rate_ignores_the_batch():
    assert OptimConfig(lr=0.01).schedule(4096, 10, 1).peak == 0.01
    assert OptimConfig(lr=0.01).schedule(4096, 10, 1).lr_at(0) == 0.01  # no warm-up


class Finetuned(nn.Module):
    """The names of an encoder with three blocks under a head."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.encoder.tokenizers = nn.ModuleDict({"image": nn.Linear(6, 4)})
        self.encoder.tokenizers["image"].pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.encoder.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.encoder.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def no_decay(self):
        return {"cls_token", "encoder.tokenizers.image.pos_embed"}


def test_layer_decay_is_maes():
    scales = layer_scales(Finetuned(), 0.5)
    for name in ("cls_token", "tokenizers.image.weight", "tokenizers.image.pos_embed"):
        assert scales[f"encoder.{name}"] == 0.5**4
    assert [scales[f"encoder.blocks.{k}.weight"] for k in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert scales["encoder.norm.weight"] == scales["head.weight"] == 1.0
    assert layer_scales(Finetuned().encoder, 0.5)["blocks.0.weight"] == 0.5**3  # an encoder by itself


def test_a_decoders_blocks_are_not_the_encoders():
    model = Finetuned()
    model.decoder = nn.Module()
    model.decoder.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
    assert layer_scales(model, 0.5)["decoder.blocks.7.weight"] == 1.0
    assert layer_scales(model, 0.5)["encoder.blocks.2.weight"] == 0.5


def test_what_decays():
    model = Finetuned()
    model.head.bias.requires_grad_(False)
    groups = parameter_groups(model, OptimConfig(weight_decay=0.3))
    decays = {name: g["weight_decay"] for g in groups for name in g["names"]}
    decayed = {name for name, decay in decays.items() if decay == 0.3}
    blocks = {f"encoder.blocks.{k}.weight" for k in range(3)}
    assert decayed == {"encoder.tokenizers.image.weight", "head.weight"} | blocks
    assert "head.bias" not in decays and set(decays.values()) == {0.0, 0.3}


def test_every_group_gets_its_rate():
    optimizer = build_optimizer(Finetuned(), OptimConfig(layer_decay=0.5))
    set_lr(optimizer, 0.2)
    rates = {name: g["lr"] for g in optimizer.param_groups for name in g["names"]}
    assert rates["head.weight"] == 0.2 and rates["encoder.blocks.0.weight"] == pytest.approx(0.2 / 8)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]
    assert optimizer.defaults["betas"] == (0.9, 0.95)


def slow_lars(weights, gradients, lr, momentum, trust, decay):
    """Loops over steps with scalars, as the paper writes it."""
    buffer = torch.zeros_like(weights)
    for gradient in gradients:
        update = gradient.clone()
        if weights.ndim > 1:
            update = gradient + decay * weights
            sizes = weights.pow(2).sum().sqrt().item(), update.pow(2).sum().sqrt().item()
            update = update * (trust * sizes[0] / sizes[1] if min(sizes) > 0 else 1.0)
        buffer = momentum * buffer + update
        weights = weights - lr * buffer
    return weights


@pytest.mark.parametrize("start", [torch.randn(5, 3), torch.zeros(5, 3), torch.randn(4)])
def test_lars_against_a_slow_one(start):
    gradients = [torch.randn_like(start), torch.zeros_like(start), torch.randn_like(start)]
    parameter = nn.Parameter(start.clone())
    optimizer = LARS([parameter], lr=2.0, momentum=0.9, trust=0.01, weight_decay=0.1)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), slow_lars(start, gradients, 2.0, 0.9, 0.01, 0.1))


def test_lars_and_sgd_are_built_from_the_config():
    lars = build_optimizer(Finetuned(), OptimConfig(name="lars", weight_decay=0, trust=0.002))
    assert isinstance(lars, LARS) and all(g["trust"] == 0.002 for g in lars.param_groups)
    sgd = build_optimizer(Finetuned(), OptimConfig(name="sgd", momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD) and all(g["momentum"] == 0.8 for g in sgd.param_groups)


@pytest.mark.parametrize("limit", [None, 0.5, 1e9])
def test_scaling_and_clipping_are_one_pass(limit):
    ours, theirs = Finetuned(), Finetuned()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad * 0.25
    norm = scale_gradients(list(ours.parameters()), torch.tensor(0.25), limit)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), limit if limit is not None else math.inf)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"warmup_steps": 1, "warmup_epochs": 1.0}, "not both"),
        ({"lr": -1.0}, "optim.lr must be a finite number"),
        ({"betas": (0.9, 1.0)}, "must lie in"),
        ({"layer_decay": 1.5}, "optim.layer_decay must lie in"),
    ],
)
def test_wrong_settings_are_said(fields, words):
    with pytest.raises(MmsslError, match=words):
        OptimConfig(**fields)


def test_a_warm_up_longer_than_the_run_is_said():
    with pytest.raises(MmsslError, match="warm-up of 40 steps"):
        OptimConfig(warmup_epochs=4).schedule(256, 30, 10)
