"""PPO's written-out gradients against autograd's, and the small networks that they run on against torch."""

import numpy as np
import pytest
import torch
from torch import nn

from mmssl.control.fused_mlp import FlatAdam, FlatParameters, RowMlp, TwinMlp
from mmssl.control.networks import mlp
from mmssl.control.policies import CategoricalPolicy, GaussianPolicy
from mmssl.control.ppo_gradient import Autograd, Losses, Minibatch, WrittenOut
from mmssl.errors import MmsslError

ACTIVATIONS = ("tanh", "relu", "elu", "selu")


def nets(activation="tanh", hidden=(16, 12), actions=3, seed=0):
    torch.manual_seed(seed)
    return mlp((5, *hidden, actions), activation), mlp((5, *hidden, 1), activation)


def bound(first, second):
    twin = TwinMlp(first, second)
    flat = FlatParameters(twin.parameters)
    twin.bind()
    return twin, flat


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(16,), (16, 12), (8, 9, 10)])
def test_twin_is_both_nets(activation, hidden):
    """Outputs and all gradients are those of the two nets by autograd, for several batch sizes in turn."""
    first, second = nets(activation, hidden)
    copies = nets(activation, hidden)
    twin, flat = bound(first, second)
    for rows in (7, 6, 7):
        x, slopes = torch.randn(rows, 5) * 2, (torch.randn(rows, 3), torch.randn(rows, 1))
        outputs = twin.forward(x.numpy())
        flat.vector.grad.fill_(9.0)  # is overwritten
        twin.backward(*(s.numpy() for s in slopes))
        for net, copy, output, slope in zip((first, second), copies, outputs, slopes, strict=True):
            expected = copy(x)
            np.testing.assert_allclose(output, expected.detach(), rtol=1e-5, atol=1e-6)
            grads = torch.autograd.grad((expected * slope).sum(), list(copy.parameters()))
            for parameter, grad in zip(net.parameters(), grads, strict=True):
                torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-5)


def test_twin_refuses():
    plain = nets()
    others = [nets(hidden=(16, 11))[1], nets("relu")[1], nn.Sequential(*plain[1], nn.Tanh()), nn.Linear(5, 1)]
    others += [mlp((5, 16, 12, 1), "gelu"), nn.Sequential(nn.Linear(5, 16, bias=False), nn.Tanh(), nn.Linear(16, 1))]
    assert TwinMlp.fits(*plain) and not any(TwinMlp.fits(plain[0], other) for other in others)
    with pytest.raises(MmsslError, match="two plain perceptrons of equal hidden layers"):
        TwinMlp(plain[0], others[0])
    for net in plain:
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
    with pytest.raises(MmsslError, match="must be a FlatParameters"):
        TwinMlp(*plain).bind()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numpy_forward(activation):
    net = nets(activation)[0]
    assert RowMlp.fits(net) and not RowMlp.fits(nn.Sequential(nn.Linear(2, 2), nn.GELU()))
    fast, x = RowMlp(nn.Sequential(nn.Sequential(net[0], net[1]), net[2:])), torch.randn(4, 5)
    np.testing.assert_allclose(fast(x.numpy()), net(x).detach(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        net[0].weight.mul_(0.5)  # the weights are the net's own
    np.testing.assert_allclose(fast(x.numpy()), net(x).detach(), rtol=1e-5, atol=1e-6)


def test_flat_adam_is_torchs():
    """Six steps of the same gradients: the same weights, in the middle of which the state goes to another one."""
    one, two = nets(), nets()
    flat = FlatParameters([p for net in one for p in net.parameters()])
    own = FlatAdam(flat.vector, 1e-2, 1e-5)
    theirs = torch.optim.Adam([p for net in two for p in net.parameters()], 1e-2, eps=1e-5)
    for step in range(6):
        for p, q in zip((p for net in one for p in net.parameters()), theirs.param_groups[0]["params"], strict=True):
            q.grad = torch.randn(q.shape)
            p.grad.copy_(q.grad)
        if step == 3:
            saved, own = own.state_dict(), FlatAdam(flat.vector, 1.0, 1e-5)
            own.load_state_dict(saved)
        own.step()
        theirs.step()
    for p, q in zip((p for net in one for p in net.parameters()), theirs.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def minibatch(actor, discrete, rows=33):
    """Transitions some of whose ratios are far outside of the clip range, on both sides and with both signs."""
    generator = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    obs = normal(rows, 5)
    drawn = torch.randint(3, (rows,), generator=generator) if discrete else normal(rows, 3)
    with torch.no_grad():
        log_prob = actor.log_prob(actor.net(obs), drawn)[0] + 0.3 * normal(rows)
    return Minibatch(obs, drawn, log_prob, normal(rows), normal(rows), 0.5 * normal(rows))


def actor_of(discrete):
    actor, critic = nets(seed=3)
    return (CategoricalPolicy(actor) if discrete else GaussianPolicy(actor, 3, log_std=-0.3)), critic


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("losses", [Losses(0.2, None, 0.25, 0.0), Losses(0.1, 0.2, 2.0, 0.05)])
def test_written_out_is_autograd(discrete, losses):
    """Gradient, its clipping, log-ratios and values of a whole minibatch."""
    sides = [kind(*actor_of(discrete), losses) for kind in (Autograd, WrittenOut)]
    batch = minibatch(sides[0].actor, discrete)
    for largest in (None, 0.05):
        found = []
        for side in sides:
            part = next(iter(side.parts(batch, [20, 13])))
            log_ratio, value = side(part)
            if largest is not None:
                side.clip(largest)
                assert side.flat.vector.grad.norm() < largest * 1.001
            modules = side.actor, side.critic if isinstance(side, Autograd) else side.nets.nets[1]
            found.append([log_ratio, value, *(p.grad for m in modules for p in m.parameters())])
        assert max(abs(found[0][0].exp() - 1)) > 2 * losses.clip  # the clip is at work
        for k, (a, b) in enumerate(zip(*found, strict=True)):
            rounding = 1e-5 if k == 0 else 1e-6  # a log-ratio is the difference of numbers up to 40
            torch.testing.assert_close(a, b, rtol=1e-5, atol=rounding)


@pytest.mark.parametrize("value_clip", [None, 0.2])
def test_slopes_are_derivatives(value_clip):
    losses, generator = Losses(0.2, value_clip, 0.7, 0.0), torch.Generator().manual_seed(0)
    x, advantage, old = (torch.randn(50, generator=generator) for _ in range(3))
    moved, value = (0.3 * x).requires_grad_(), (old + 0.3 * x).detach().requires_grad_()
    (grad,) = torch.autograd.grad(losses.policy(moved, advantage), moved)
    np.testing.assert_allclose(losses.policy_slope(moved.detach().numpy(), advantage.numpy()), grad, atol=1e-7)
    (grad,) = torch.autograd.grad(0.7 * losses.value(value, advantage, old), value)
    own = losses.value_slope(value.detach().numpy(), advantage.numpy(), old.numpy())
    np.testing.assert_allclose(own, grad, atol=1e-7)
