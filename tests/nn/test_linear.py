"""The oneDNN linear layer is nn.Linear: values, gradients, dtypes, compile."""

import pytest
import torch
from torch import nn

import mmssl.nn.linear
from mmssl.nn.linear import Linear, _takes_onednn


@pytest.fixture(autouse=True, params=[False, True], ids=["AVX2", "AVX512"])
def any_size_and_processor(monkeypatch, request):
    """Small products too take the way that is tested here, and that of either kind of processor."""
    monkeypatch.setattr(mmssl.nn.linear, "_SMALLEST", 0)
    monkeypatch.setattr(mmssl.nn.linear, "_HAS_AVX512", request.param)


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


def test_other_dtypes_and_native_bfloat16_take_the_plain_way(monkeypatch):
    monkeypatch.setattr(mmssl.nn.linear, "MULTIPLIES_BF16", True)
    ours, plain = twins()
    x = torch.randn(4, 24)
    assert not _takes_onednn(x.double(), ours.weight.double())
    assert not _takes_onednn(x.bfloat16(), ours.weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not _takes_onednn(x, ours.weight)
        assert ours(x).dtype == torch.bfloat16
        assert torch.equal(ours(x), plain(x))


@pytest.mark.parametrize("backward_under_autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_without_hardware_is_float32_rounded(monkeypatch, dtype, backward_under_autocast):
    monkeypatch.setattr(mmssl.nn.linear, "MULTIPLIES_BF16", False)
    ours, plain = twins()
    x = torch.randn(4, 24).to(dtype).requires_grad_()
    y = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(x)
        if backward_under_autocast:
            out.sum().backward()
    if not backward_under_autocast:
        out.sum().backward()
    plain(y).sum().backward()
    assert out.dtype == torch.bfloat16 and x.grad.dtype == dtype and ours.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out, plain(y).bfloat16(), atol=0, rtol=0.008)  # one unit in the last place
    torch.testing.assert_close(x.grad.float(), y.grad, atol=1e-5, rtol=0.008)
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad, atol=0.02, rtol=0.008)  # x is kept in bfloat16
    torch.testing.assert_close(ours.bias.grad, plain.bias.grad)
    with torch.autocast("cpu", torch.float16):
        assert not _takes_onednn(x, ours.weight)


def test_bfloat16_weights_without_hardware(monkeypatch):
    monkeypatch.setattr(mmssl.nn.linear, "MULTIPLIES_BF16", False)
    ours, plain = twins()
    ours, x = ours.bfloat16(), torch.randn(4, 24).bfloat16()
    plain.load_state_dict(ours.state_dict())
    out = ours(x)
    out.sum().backward()
    torch.testing.assert_close(out, plain(x.float()).bfloat16(), atol=0, rtol=0.008)
    assert ours.weight.grad.dtype == ours.bias.grad.dtype == torch.bfloat16


def test_small_products_take_the_plain_way(monkeypatch):
    ours, _ = twins()
    assert _takes_onednn(torch.randn(4, 24), ours.weight) == torch.backends.mkldnn.is_available()
    monkeypatch.undo()
    assert not _takes_onednn(torch.randn(4, 24), ours.weight)


@pytest.mark.parametrize("native", [False, True])
def test_it_compiles_in_one_graph_under_autocast(monkeypatch, native):
    monkeypatch.setattr(mmssl.nn.linear, "MULTIPLIES_BF16", native)
    ours, plain = twins()
    x = torch.randn(6, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.compile(ours, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(out.float(), plain(x), atol=0.02, rtol=0.02)
    out.sum().backward()
    torch.testing.assert_close(x.grad, plain.weight.sum(0).expand(6, -1), atol=0.02, rtol=0.02)


def test_it_compiles_in_one_graph():
    ours, plain = twins()
    x = torch.randn(6, 24, requires_grad=True)
    out = torch.compile(ours, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(out, plain(x), atol=1e-5, rtol=1e-5)
    out.sum().backward()
    torch.testing.assert_close(x.grad, plain.weight.sum(0).expand(6, -1), atol=1e-5, rtol=1e-5)
