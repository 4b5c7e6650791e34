"""Losses against slow, obvious versions."""

import pytest
import torch

from mmssl.losses import masked_mse, norm_pix_target


def test_norm_pix_is_maes():
    patches = torch.randn(2, 3, 12) * 4 + 1
    for b in range(2):
        for n in range(3):
            values = patches[b, n].tolist()
            mean = sum(values) / 12
            var = sum((v - mean) ** 2 for v in values) / 11
            expected = torch.tensor([(v - mean) / (var + 1e-6) ** 0.5 for v in values])
            torch.testing.assert_close(norm_pix_target(patches)[b, n], expected, atol=1e-5, rtol=1e-5)


def test_norm_pix_per_channel_is_videomaes():
    patches = torch.randn(2, 3, 12)
    result = norm_pix_target(patches, per_channel=True).view(2, 3, 4, 3)
    for c in range(3):
        values = patches.view(2, 3, 4, 3)[..., c]
        expected = (values - values.mean(-1, keepdim=True)) / (values.std(-1, keepdim=True) + 1e-6)
        torch.testing.assert_close(result[..., c], expected)


def test_a_flat_patch_is_not_nan():
    for per_channel in (False, True):
        assert norm_pix_target(torch.full((1, 1, 12), 3.0), per_channel).abs().max() == 0


def test_masked_mse_is_the_mean_over_masked_tokens():
    prediction, target = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    slow, count = 0.0, 0
    for b in range(2):
        for m in range(3):
            if valid[b, m]:
                slow += sum((prediction[b, m, i] - target[b, m, i]).item() ** 2 for i in range(5)) / 5
                count += 1
    total, number = masked_mse(prediction, target, valid)
    assert total.item() == pytest.approx(slow, rel=1e-5) and number.item() == count == 3
    total, number = masked_mse(prediction, target)
    assert (total / number).item() == pytest.approx(((prediction - target) ** 2).mean().item(), rel=1e-5)


def test_masked_mse_of_bfloat16_is_summed_in_float32():
    total, count = masked_mse(torch.ones(64, 64, 8).bfloat16(), torch.zeros(64, 64, 8))
    assert total.dtype == count.dtype == torch.float32 and total.item() == 4096
