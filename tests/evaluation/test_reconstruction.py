"""The judge of reconstructions: what a model could know decides, never what it could not."""

import numpy as np
import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.evaluation.reconstruction import judge_reconstruction


@pytest.fixture
def pictures(in_memory):
    """(train, test) of smooth random pictures, 16x16."""
    parts = []
    for seed, n in ((0, 24), (1, 12)):
        small = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        images = torch.nn.functional.interpolate(small, size=16, mode="bicubic").clamp(0, 1)
        parts.append(in_memory((images * 255).byte()))
    return tuple(parts)


def cheat(method, knows: float):
    """Make a method predict its own target, blurred by noise: what a good model would give."""
    reconstruct = method.reconstruct

    def better(batch, **options):
        found = reconstruct(batch, **options)
        torch.manual_seed(0)
        mask = found["mask"][..., None]
        target = found["target_patches"]
        found["prediction_patches"] = (target + (1 - knows) * torch.randn_like(target)) * mask
        tokenizer = method.tokenizer
        if not method.config.norm_pix:
            patches = torch.where(mask, found["prediction_patches"], target)
            found["prediction"] = tokenizer.restore(tokenizer.unpatchify(patches)).clamp(0, 1)
        return found

    method.reconstruct = better
    return method


def test_every_contestant_is_scored_and_the_best_interpolation_is_the_best(make_mae, pictures):
    found = judge_reconstruction(make_mae(norm_pix=False), *pictures, images=12, pictures=3)
    families = {"mean_color", "nearest", "harmonic", "linear", "gaussian", "inverse_distance"}
    assert set(found.mse) == set(found.explained) == families | {"model", "best_interpolation", "mean_frame"}
    assert found.mse["best_interpolation"] == min(found.mse[name] for name in families) == found.mse[found.best]
    assert found.mse["best_interpolation"] < found.mse["mean_color"] and found.explained["best_interpolation"] > 0.1
    assert found.mse["model"] > found.mse["best_interpolation"]  # fresh weights know nothing


def test_a_model_that_knows_wins_and_one_that_knows_nothing_does_not(make_mae, pictures):
    knowing = judge_reconstruction(cheat(make_mae(False), 1.0), *pictures, images=12)
    assert knowing.mse["model"] < 1e-9 and knowing.explained["model"] > 0.999
    fresh = judge_reconstruction(make_mae(False), *pictures, images=12)
    assert abs(fresh.explained["model"]) < 0.2


def test_a_norm_pix_model_gets_no_statistics_of_masked_patches(make_mae, pictures):
    """Perfect normalised patches explain everything there, but in pixels mean and contrast still have to be guessed."""
    found = judge_reconstruction(cheat(make_mae(True), 1.0), *pictures, images=12)
    assert found.explained["model"] > 0.999
    assert found.mse["model"] > 1e-4 and "model_own_statistics" in found.mse


def test_hidden_pixels_do_not_reach_the_model_score(make_mae, pictures, in_memory):
    """Turning every picture into another one under the mask changes no prediction, so only the answer moves."""
    method, seen = make_mae(True), []
    reconstruct = method.reconstruct

    def spy(batch, **options):
        found = reconstruct(batch, **options)
        other = {"image": torch.where(hidden(found["mask"]), 255 - batch["image"], batch["image"])}
        again = reconstruct(other, masks={"image": found["mask"]})
        seen.append((found["prediction"] - again["prediction"]).abs().max().item())
        return found

    def hidden(mask):
        return mask.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)

    method.reconstruct = spy
    judge_reconstruction(method, *pictures, images=8)
    assert seen and max(seen) < 1e-5


def test_the_batch_size_changes_nothing_and_the_seed_changes_the_masks(make_mae, pictures):
    scores = [
        judge_reconstruction(make_mae(), *pictures, images=12, batch_size=b, seed=s).mse
        for b, s in ((5, 0), (64, 0), (64, 1))
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert scores[0]["nearest"] != scores[2]["nearest"]


def test_pictures_show_what_they_say(make_mae, pictures):
    found = judge_reconstruction(make_mae(False), *pictures, images=12, pictures=4).pictures
    assert {name: x.shape for name, x in found.items()} == dict.fromkeys(found, (4, 16, 16, 3))
    assert list(found) == ["original", "masked", "reconstructed", "interpolated"]
    np.testing.assert_array_equal(found["original"][0], pictures[1].images[0].permute(1, 2, 0))
    shown = (found["masked"] != 128).any(-1)
    assert 0.2 < shown.mean() < 0.3  # a quarter is visible
    for name in ("reconstructed", "interpolated"):
        np.testing.assert_array_equal(found[name][shown], found["original"][shown])


def test_a_method_of_other_modalities_is_refused(make_mae, pictures):
    train, test = pictures
    test.modality = "audio"
    with pytest.raises(MmsslError, match="image"):
        judge_reconstruction(make_mae(), train, test)
