"""Passes in memory that is used again, against autograd."""

import pytest
import torch
from torch import nn

from mmssl.control.networks import Average, Ensemble, adam, mlp
from mmssl.control.scratch import Memory, ScratchNet


def assert_same(net, expected, x, weights=None):
    """Outputs, gradients by the weights and by the input are those of `expected(x)`, (K, B, O)."""
    x = x.clone().requires_grad_()
    outputs, mine = expected(x), net(x.detach(), keep=True)
    torch.testing.assert_close(mine, outputs)
    given = torch.randn(outputs.shape)
    by_input, *by_weights = torch.autograd.grad((outputs * given).sum(), [x, *(weights or [])])
    found = net.backward(given, weights=weights is not None, inputs=True)
    torch.testing.assert_close(found, by_input)
    for parameter, gradient in zip(weights or [], by_weights, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("sizes", [(5, 16, 12, 1), (5, 16, 1), (5, 1)])
def test_an_ensemble(members, sizes):
    torch.manual_seed(0)
    ensemble = Ensemble(sizes, members)
    net = ScratchNet(ensemble, Memory(), learns=True)
    for rows in (7, 3, 7):
        assert_same(net, lambda x: ensemble(x)[..., None], torch.randn(rows, 5), list(ensemble.parameters()))
    last = ScratchNet(ensemble, Memory(), slice(members - 1, members))
    assert_same(last, lambda x: ensemble.member(members - 1, x)[None, :, None], torch.randn(4, 5))


@pytest.mark.parametrize("sizes", [(5, 16, 12, 3), (5, 8, 1), (5, 2)])
def test_a_perceptron(sizes):
    torch.manual_seed(0)
    plain = mlp(sizes)
    net = ScratchNet(plain, Memory(), learns=True)
    for rows in (6, 2):
        assert_same(net, lambda x: plain(x)[None], torch.randn(rows, 5), list(plain.parameters()))


def test_networks_share_memory_without_disturbing_each_other():
    """A pass that is kept stays through passes of others that are not; weights are seen as they are."""
    torch.manual_seed(0)
    memory, online, target = Memory(), Ensemble((4, 8, 8, 1)), Ensemble((4, 8, 8, 1))
    average, x, given = Average(online, target), torch.randn(5, 4), torch.randn(2, 5, 1)
    nets = ScratchNet(online, memory, learns=True), ScratchNet(target, memory)
    expected = torch.autograd.grad((online(x) * given[..., 0]).sum(), list(online.parameters()))
    nets[0](x, keep=True)
    nets[1](torch.randn(5, 4))
    nets[0](torch.randn(5, 4))
    nets[0].backward(given)
    for parameter, gradient in zip(online.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    adam(online.parameters(), 0.1).step()
    average.step(0.5)
    for net, plain in zip(nets, (online, target), strict=True):
        torch.testing.assert_close(net(x)[..., 0], plain(x))
    size = sum(t.numel() for t in memory.tensors.values())
    nets[1](x)
    assert sum(t.numel() for t in memory.tensors.values()) == size == 2 * 2 * 2 * 5 * 8


def test_what_fits():
    for net in (mlp((3, 4, 2)), mlp((3, 4, 2), last=nn.Tanh()), mlp((3, 2)), Ensemble((3, 4, 1))):
        assert ScratchNet.fits(net)
    others = mlp((3, 4, 2), "elu"), mlp((3, 4, 2), last=nn.ReLU()), nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    critics = Ensemble((3, 4, 1), activation="tanh"), Ensemble((3, 4, 1), normed=True)
    for net in (*others, *critics, nn.Linear(3, 2)):
        assert not ScratchNet.fits(net)
