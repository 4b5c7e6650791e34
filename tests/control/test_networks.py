"""Networks of control against plain torch: ensembles, averages, Adam, and what they refuse."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mmssl.control.base import Spaces
from mmssl.control.networks import (
    ACTIVATIONS,
    Average,
    Ensemble,
    adam,
    mlp,
    orthogonal,
    orthogonal_members,
    outputs_of,
    step,
    vector_layout,
)
from mmssl.errors import MmsslError

STATE = {"state": ((5,), np.dtype(np.float32))}


def plain_critics(ensemble, activation="relu"):
    """The members of an ensemble as networks of their own, with copies of its weights."""
    nets = []
    for k in range(ensemble.members):
        sizes = [ensemble.weight[0].shape[1], *(w.shape[2] for w in ensemble.weight)]
        net = mlp(sizes, activation)
        for layer, weight, bias in zip(net[::2], ensemble.weight, ensemble.bias, strict=True):
            layer.weight.data.copy_(weight[k].T)
            layer.bias.data.copy_(bias[k, 0])
        if ensemble.norm is not None:
            norm = nn.LayerNorm(sizes[1])
            norm.weight.data.copy_(ensemble.norm[0][k, 0])
            norm.bias.data.copy_(ensemble.norm[1][k, 0])
            net = nn.Sequential(net[0], norm, nn.Tanh(), *net[2:])
        nets.append(net)
    return nets


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("normed", [False, True])
def test_an_ensemble_is_so_many_networks(activation, members, normed):
    """Values, gradients by all weights and by the inputs; alone and together."""
    torch.manual_seed(0)
    ensemble = Ensemble((7, 16, 12, 1), members, activation, normed)
    if normed:
        for p in ensemble.norm:
            p.data.uniform_(0.5, 1.5)
    nets = plain_critics(ensemble, activation)
    obs, action, weights = torch.randn(9, 4), torch.randn(9, 3, requires_grad=True), torch.randn(members, 9)
    mine, theirs = ensemble(obs, action), torch.stack([net(torch.cat([obs, action], 1))[:, 0] for net in nets])
    torch.testing.assert_close(mine, theirs)
    (by_input,) = torch.autograd.grad((mine * weights).sum(), action, retain_graph=True)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), action, retain_graph=True)
    torch.testing.assert_close(by_input, expected)
    (mine * weights).sum().backward()
    (theirs * weights).sum().backward()
    for k, net in enumerate(nets):
        torch.testing.assert_close(ensemble.member(k, obs, action), theirs[k])
        (alone,) = torch.autograd.grad(ensemble.member(k, obs, action).sum(), action)
        (expected,) = torch.autograd.grad(net(torch.cat([obs, action], 1)).sum(), action)
        torch.testing.assert_close(alone, expected)
        linear = [layer for layer in net if isinstance(layer, nn.Linear)]
        for layer, weight, bias in zip(linear, ensemble.weight, ensemble.bias, strict=True):
            torch.testing.assert_close(weight.grad[k], layer.weight.grad.T)
            torch.testing.assert_close(bias.grad[k, 0], layer.bias.grad)
        if normed:
            torch.testing.assert_close(ensemble.norm[0].grad[k, 0], net[1].weight.grad)
            torch.testing.assert_close(ensemble.norm[1].grad[k, 0], net[1].bias.grad)


def test_where_weights_begin():
    """The range of nn.Linear; orthogonal ones; members differ."""
    torch.manual_seed(0)
    ensemble = Ensemble((64, 256, 1))
    for weight, bias, fan in zip(ensemble.weight, ensemble.bias, (64, 256), strict=True):
        for values in (weight, bias):
            assert values.abs().max() <= fan**-0.5
        assert weight.std().item() == pytest.approx((fan * 3) ** -0.5, rel=0.1)
        assert not torch.equal(weight[0], weight[1])
    first, last = orthogonal_members(ensemble).weight
    torch.testing.assert_close(first[1] @ first[1].T, torch.eye(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(last[0].T @ last[0], torch.eye(1))
    assert not ensemble.bias[0].any()
    net = orthogonal(mlp((8, 8, 4)), 2.0, last=0.5)
    torch.testing.assert_close(net[0].weight @ net[0].weight.T, 4 * torch.eye(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(net[2].weight @ net[2].weight.T, 0.25 * torch.eye(4), atol=1e-5, rtol=0)


def test_an_average_follows():
    torch.manual_seed(0)
    online, target = mlp((3, 4, 1)), mlp((3, 4, 1))
    average = Average(online, target)
    before = copy.deepcopy(target.state_dict())
    for name, value in online.state_dict().items():
        torch.testing.assert_close(before[name], value)
        value += 1
    average.step(0.25)
    assert not any(p.requires_grad for p in target.parameters())
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * online.state_dict()[name])


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.99)])
def test_adam_is_torchs(betas):
    """Several steps, a rate that changes, and going on from a saved state."""
    torch.manual_seed(0)
    mine = mlp((3, 8, 2))
    theirs = copy.deepcopy(mine)
    own, reference = (
        adam(mine.parameters(), 1e-2, 1e-5, betas),
        torch.optim.Adam(theirs.parameters(), 1e-2, betas, 1e-5),
    )
    for k in range(6):
        if k == 3:
            for optimizer in (own, reference):
                optimizer.param_groups[0]["lr"] = 3e-3
            state = copy.deepcopy(own.state_dict())
            own = adam(mine.parameters(), 1.0, 1e-5, betas)
            own.load_state_dict(state)
        x = torch.randn(16, 3)
        step(own, mine(x).square().mean())
        reference.zero_grad()
        theirs(x).square().mean().backward()
        reference.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_step_leaves_other_parameters_without_gradients():
    actor, critic = mlp((3, 8, 2)), Ensemble((5, 8, 1))
    obs = torch.randn(4, 3)
    before = copy.deepcopy(actor.state_dict())
    step(adam(actor.parameters(), 0.1), -critic(obs, actor(obs)).amin(0).mean())
    assert all(p.grad is None for p in critic.parameters())
    assert not any(torch.equal(before[name], value) for name, value in actor.state_dict().items())


@pytest.mark.parametrize("net", [mlp((4, 8, 3), last=nn.Tanh()), nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))])
def test_outputs_follow_the_weights(net):
    """In numpy where that is possible, else by torch."""
    outputs, x = outputs_of(net, "cpu"), torch.randn(2, 4)
    for _ in range(2):
        given = outputs(x.numpy())
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, net(x).detach().numpy(), atol=1e-6)
        optimizer = adam(net.parameters(), 0.1)
        step(optimizer, net(x).square().sum())


def test_what_is_refused():
    with pytest.raises(MmsslError, match="activation must be one of relu, tanh, elu, selu, gelu, got 'swish'"):
        mlp((2, 3, 1), "swish")
    with pytest.raises(MmsslError, match="got 'swish'"):
        Ensemble((2, 3, 1), activation="swish")
    with pytest.raises(MmsslError, match="the last width of an ensemble must be 1, got 2"):
        Ensemble((2, 3, 2))
    assert set(ACTIVATIONS) == {"relu", "tanh", "elu", "selu", "gelu"}
    assert vector_layout(Spaces(STATE, 2), "td3") == (5, 2)
    with pytest.raises(MmsslError, match="sac needs continuous actions and this task has 4 discrete; take ppo"):
        vector_layout(Spaces(STATE, 4, discrete=True), "sac")
    pictures = {"image/front": ((9, 8, 8), np.dtype(np.uint8))}
    for seen in (pictures, STATE | pictures):
        with pytest.raises(MmsslError, match=r"td3 learns from vectors and this world shows .*image/front; observe"):
            vector_layout(Spaces(seen, 2), "td3")
