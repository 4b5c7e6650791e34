"""Windows over a lattice, and cosine attention inside them."""

import pytest
import torch

from mmssl.nn.windowed_attention import RelativeBias, cosine_attention
from mmssl.nn.windows import partition, shift_mask


def test_windows_of_a_small_lattice():
    lattice = torch.arange(16).view(4, 4)
    assert partition(lattice, (2, 2), (0, 0)).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert partition(lattice, (2, 2), (1, 0))[-1].tolist() == [14, 15, 2, 3]
    assert partition(lattice, (2, 2), (1, 1))[0].tolist() == [5, 6, 9, 10]


def test_the_shift_in_time_separates_two_of_32_windows():
    mask = shift_mask((64, 8), (4, 4), (2, 0))
    assert mask.shape == (32, 16, 16) and (mask[:30] == 0).all()
    halves = torch.arange(16) // 8  # the last rows of the lattice, then its first
    expected = torch.where(halves[:, None] == halves[None], 0.0, -100.0)
    assert (mask[30:] == expected).all()
    assert (shift_mask((64, 8), (4, 4), (0, 0)) == 0).all()


def test_keys_that_are_not_real_weigh_nothing():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 4, 2, 8)
    tau, bias = torch.tensor([0.5, 0.01]), torch.randn(1, 2, 4, 4)
    real = torch.ones(2, 3, 4, dtype=torch.bool)
    real[0, 1, 2:] = False
    real[1, 2] = False  # none is left: all are
    out = cosine_attention(q, k, v, tau, bias, real)
    first = cosine_attention(q[:1, 1:2, :, :, :], k[:1, 1:2, :2], v[:1, 1:2, :2], tau, bias[..., :2])
    torch.testing.assert_close(out[0, 1], first[0, 0])
    torch.testing.assert_close(out[1, 2], v[1, 2].mean(0).flatten().expand(4, -1))
    torch.testing.assert_close(out[1, 0], cosine_attention(q, k, v, tau, bias)[1, 0])


def test_small_norms_are_clamped_and_zeros_give_finite_gradients():
    q = torch.full((1, 1, 2, 1, 4), 1e-4, requires_grad=True)  # |q| |k| = 4e-8, below 1e-6
    k = (q.detach().clone() * torch.tensor([1.0, -1.0]).view(2, 1, 1)).requires_grad_()
    v, tau, bias = torch.eye(2).view(1, 1, 2, 1, 2), torch.ones(1), torch.zeros(1, 1, 2, 2)
    out = cosine_attention(q, k, v, tau, bias)
    expected = torch.tensor([0.04, -0.04]).softmax(0)
    torch.testing.assert_close(out[0, 0, 0], expected)
    zero = torch.zeros(1, 1, 2, 1, 4, requires_grad=True)
    cosine_attention(zero, zero, v, tau, bias)[..., 0].sum().backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("small", [False, True], ids=["any norm", "below the clamp"])
def test_attention_passes_gradcheck(small):
    torch.manual_seed(0)
    scale = 1e-4 if small else 1.0
    q, k, v = (scale * torch.randn(3, 2, 2, 3, 2, 4, dtype=torch.float64)).unbind()
    tau, bias = torch.tensor([0.7, 0.2], dtype=torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (q, k, v / scale, tau, bias)]
    assert torch.autograd.gradcheck(cosine_attention, inputs, eps=1e-8 if small else 1e-6, atol=1e-4)


def test_bias_drops_as_the_authors_do():
    """A tenth of the hidden values and of the results, each pair of tokens for itself; nothing in evaluation."""
    torch.manual_seed(0)
    bias = RelativeBias((4, 4), heads=16)
    with torch.no_grad():
        bias.fc2.bias.fill_(5.0)
    draws = torch.stack([bias().detach() for _ in range(20)])  # (20, heads, L, L)
    assert abs(float((draws == 0).float().mean()) - 0.1) < 0.01
    assert not torch.equal(draws[0] == 0, draws[1] == 0)
    diagonal = draws.diagonal(dim1=-2, dim2=-1)  # pairs with one offset
    assert ((diagonal == 0).any(-1) & (diagonal != 0).any(-1)).float().mean() > 0.5
    kept = draws[draws != 0]
    exact = bias.eval()()
    assert torch.equal(exact, bias()) and kept.std() > 0.01
    torch.testing.assert_close(draws.mean(0).mean(), exact.mean(), atol=0.1, rtol=0)
