"""Fillers: what they give is known, and they never look at hidden pixels."""

import pytest
import torch

from mmssl.evaluation.interpolation import (
    gaussian,
    harmonic,
    inverse_distance,
    linear,
    mean_color,
    nearest,
    patch_fillers,
    tune,
)

FILLERS = patch_fillers(4)


def visible_patches(batch: int, side: int, patch: int, kept: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    n = (side // patch) ** 2
    keep = torch.rand(batch, n, generator=generator).argsort(1) < kept
    return keep.view(batch, side // patch, -1).repeat_interleave(patch, 1).repeat_interleave(patch, 2)


@pytest.mark.parametrize("name", FILLERS)
def test_hidden_pixels_are_never_read_and_visible_ones_come_back(name):
    torch.manual_seed(0)
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    visible = visible_patches(3, 16, 4, 4)
    spoiled = torch.where(visible[:, None], images, torch.nan)
    filled = FILLERS[name](spoiled, visible)
    assert torch.isfinite(filled).all()
    assert torch.equal(filled, FILLERS[name](torch.where(visible[:, None], images, 9.0), visible))
    assert torch.equal(torch.where(visible[:, None], filled, 0), torch.where(visible[:, None], images, 0))
    assert filled.min() >= images.min() - 1e-6 and filled.max() <= images.max() + 1e-6  # all of them are averages


@pytest.mark.parametrize("name", FILLERS)
def test_a_plain_picture_is_filled_exactly_even_without_a_visible_patch_beside(name):
    images = torch.full((2, 3, 16, 16), 0.3, dtype=torch.float64)
    torch.testing.assert_close(FILLERS[name](images, visible_patches(2, 16, 4, 1)), images, atol=1e-6, rtol=0)
    nothing = torch.zeros(2, 16, 16, dtype=torch.bool)
    assert torch.isfinite(FILLERS[name](images, nothing)).all()
    assert torch.equal(FILLERS[name](images, ~nothing), images)


def test_mean_color_and_nearest_by_hand():
    images = torch.tensor([[[[0.0, 0.2, 9.0, 0.8]]]], dtype=torch.float64)
    visible = torch.tensor([[[True, True, False, True]]])
    assert mean_color(images, visible)[0, 0, 0, 2].item() == pytest.approx(1 / 3)
    assert nearest(images, torch.tensor([[[True, False, False, True]]]))[0, 0, 0].tolist() == [0.0, 0.0, 0.8, 0.8]


def test_gaussian_and_inverse_distance_equal_the_slow_sums():
    torch.manual_seed(1)
    images = torch.rand(1, 2, 6, 7, dtype=torch.float64)
    visible = torch.rand(1, 6, 7) < 0.4
    places = visible[0].nonzero().double()
    for filler, weight in (
        (lambda x, v: gaussian(x, v, 1.7), lambda d: (-(d**2) / (2 * 1.7**2)).exp()),
        (lambda x, v: inverse_distance(x, v, 3.0), lambda d: d**-3),
    ):
        filled = filler(images, visible)
        for row, column in (~visible[0]).nonzero().tolist():
            w = weight((places - torch.tensor([row, column])).norm(dim=1))
            expected = (images[0][:, visible[0]] * w).sum(1) / w.sum()
            torch.testing.assert_close(filled[0, :, row, column], expected, atol=1e-7, rtol=1e-6)


def test_harmonic_pixels_are_the_mean_of_their_neighbours():
    torch.manual_seed(2)
    images = torch.rand(1, 1, 12, 12, dtype=torch.float64)
    visible = torch.ones(1, 12, 12, dtype=torch.bool)
    visible[:, 3:9, 4:10] = False
    filled = harmonic(images, visible)[0, 0]
    around = (filled[2:8, 4:10] + filled[4:10, 4:10] + filled[3:9, 3:9] + filled[3:9, 5:11]) / 4
    torch.testing.assert_close(filled[3:9, 4:10], around)


def test_harmonic_and_linear_continue_a_ramp_into_a_hole():
    ramp = torch.linspace(0, 1, 12, dtype=torch.float64).expand(1, 1, 12, 12).clone()
    visible = torch.ones(1, 12, 12, dtype=torch.bool)
    visible[:, 3:9, 4:10] = False
    for filler in (harmonic, linear):
        torch.testing.assert_close(filler(ramp, visible), ramp)


def test_tuning_takes_the_best_bandwidth_of_each_family():
    torch.manual_seed(3)
    smooth = torch.nn.functional.interpolate(torch.rand(4, 3, 3, 3), size=16, mode="bilinear").double()
    visible = visible_patches(4, 16, 4, 6)
    tuned = tune(FILLERS, smooth, visible)
    assert set(tuned) == {"mean_color", "nearest", "harmonic", "linear", "gaussian", "inverse_distance"}
    error = lambda filler: (filler(smooth, visible) - smooth).square().mean().item()  # noqa: E731
    gaussians = [error(f) for name, f in FILLERS.items() if name.startswith("gaussian")]
    assert error(tuned["gaussian"]) == min(gaussians) < max(gaussians)
