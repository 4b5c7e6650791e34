"""Losses against slow, obvious versions."""

import pytest
import torch

from mmssl.losses import masked_mse, norm_pix_channels, norm_pix_target, patch_statistics, undo_norm_pix


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


@pytest.mark.parametrize("per_channel", [False, True])
def test_many_patches_in_pieces_are_each_by_itself(monkeypatch, per_channel):
    patches = torch.randn(3, 7, 24) * 4 + 1
    whole = norm_pix_target(patches, per_channel)
    monkeypatch.setattr("mmssl.losses._PIECE", 100)  # four patches at once
    assert torch.equal(norm_pix_target(patches, per_channel), whole)
    assert torch.equal(norm_pix_target(patches[1:2, 3:4], per_channel), whole[1:2, 3:4])


def test_uint8_pixels_are_those_in_0_to_1():
    pixels = torch.randint(0, 256, (2, 5, 3, 8), dtype=torch.uint8)
    pixels[0, 0] = 7
    exact = norm_pix_target((pixels.double() / 255).float().mT.flatten(2), per_channel=True)
    torch.testing.assert_close(norm_pix_channels(pixels), exact, atol=1e-5, rtol=1e-5)
    assert norm_pix_channels(pixels)[0, 0].abs().max() == 0


def test_statistics_undo_the_target():
    patches = torch.randn(2, 3, 12) * 4 + 1
    for per_channel in (False, True):
        statistics = patch_statistics(patches, per_channel)
        assert statistics[0].shape == (2, 3, 3 if per_channel else 1)
        undone = undo_norm_pix(norm_pix_target(patches, per_channel), *statistics)
        torch.testing.assert_close(undone, patches, atol=1e-5, rtol=1e-5)


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
