"""The oneDNN linear layer is nn.Linear: values, gradients, dtypes, compile."""

import pytest
import torch
from torch import nn

import mmssl.nn.linear
from mmssl.nn.linear import Linear, _takes_onednn


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """Small products too take the way that is tested here."""
    monkeypatch.setattr(mmssl.nn.linear, "_SMALLEST", 0)


def twins(bias=True):
    torch.manual_seed(0)
    ours = Linear(24, 40, bias=bias)
    plain = nn.Linear(24, 40, bias=bias)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 5, 24), (1, 1, 24), (0, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(shape, bias):
    ours, plain = twins(bias)
    x = torch.randn(shape, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    a, b = ours(x), plain(y)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    weight = torch.randn(40)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-5)


def test_gradients_by_differences():
    """The Function's own formulas, in double precision through the same code."""
    ours, _ = twins()
    x = torch.randn(3, 24)
    direction = torch.randn(3, 24)
    moved = [(ours(x + e * direction).double() ** 2).sum() for e in (-1e-2, 1e-2)]
    x.requires_grad_()
    (ours(x).double() ** 2).sum().backward()
    slope = (moved[1] - moved[0]).item() / 2e-2
    assert (x.grad * direction).sum().item() == pytest.approx(slope, rel=1e-3)


def test_strided_input_and_frozen_weights():
    ours, plain = twins()
    x = torch.randn(5, 24, 3, requires_grad=True)
    ours.requires_grad_(False)
    out = ours(x.transpose(1, 2))
    torch.testing.assert_close(out, plain(x.transpose(1, 2)), atol=1e-5, rtol=1e-5)
    out.sum().backward()
    assert x.grad is not None and ours.weight.grad is None


def test_other_dtypes_and_autocast_take_the_plain_way():
    ours, plain = twins()
    x = torch.randn(4, 24)
    assert not _takes_onednn(x.double(), ours.weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not _takes_onednn(x, ours.weight)
        assert ours(x).dtype == torch.bfloat16
        assert torch.equal(ours(x), plain(x))


def test_small_products_take_the_plain_way(monkeypatch):
    ours, _ = twins()
    assert _takes_onednn(torch.randn(4, 24), ours.weight) == torch.backends.mkldnn.is_available()
    monkeypatch.undo()
    assert not _takes_onednn(torch.randn(4, 24), ours.weight)


def test_it_compiles_in_one_graph():
    ours, plain = twins()
    x = torch.randn(6, 24, requires_grad=True)
    out = torch.compile(ours, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(out, plain(x), atol=1e-5, rtol=1e-5)
    out.sum().backward()
    torch.testing.assert_close(x.grad, plain.weight.sum(0).expand(6, -1), atol=1e-5, rtol=1e-5)
