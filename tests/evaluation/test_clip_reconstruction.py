"""The judge of reconstructed clips: fillers against loops, lattices, and models whose merit is known."""

import numpy as np
import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.evaluation.clip_interpolation import clip_fillers, copy_past, gaussian, inverse_distance, mean_color, nearest
from mmssl.evaluation.clip_reconstruction import judge_clips, lattice_of
from mmssl.losses import norm_pix_target
from mmssl.methods.base import create_method

TINY = {"size": "custom", "dim": 24, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 4, "mask_ratio": 0.75}
TINY |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
METHODS = {"videomae": {"frames": 4}, "stmae": {"frames": 4}, "siammae": {}}


def make(name: str, norm_pix: bool = True):
    torch.manual_seed(0)
    return create_method(name, **TINY, **METHODS[name], norm_pix=norm_pix).eval()


@pytest.fixture
def data(in_memory_clips):
    """(train, test) of smooth pictures that drift sideways, a pixel a frame: interpolation and copying both help."""

    def build(frames: int):
        parts = []
        for n, seed in ((12, 0), (9, 1)):
            generator = torch.Generator().manual_seed(seed)
            coarse = torch.rand(n, 3, 4, 6, generator=generator)
            wide = torch.nn.functional.interpolate(coarse, size=(16, 24), mode="bicubic").clamp(0, 1)
            clips = torch.stack([wide[..., t : t + 16] for t in range(frames)], 1)
            parts.append(in_memory_clips((clips * 255).byte(), how="pair" if frames == 2 else "dense"))
        return parts

    return build


def patchy(seed=0):
    """Random clips (2, 3, 4, 12, 12) and a visibility (2, 4, 12, 12) of whole patches of 4 x 4."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.rand(2, 3, 4, 12, 12, generator=generator)
    visible = torch.rand(2, 4, 3, 3, generator=generator) < 0.4
    return clips, visible.repeat_interleave(4, 2).repeat_interleave(4, 3)


def places():
    return [(t, y, x) for t in range(4) for y in range(12) for x in range(12)]


def distance(one, other, pace):
    return (((one[0] - other[0]) * pace) ** 2 + (one[1] - other[1]) ** 2 + (one[2] - other[2]) ** 2) ** 0.5


@pytest.mark.parametrize("pace", [0.5, 2.0, 1e4])
def test_nearest_and_gaussian_are_the_slow_ones(pace):
    clips, visible = patchy()
    near, blurred = nearest(clips, visible, pace=pace), gaussian(clips, visible, sigma=3.0, pace=pace)
    known = [place for place in places() if visible[0][place]]
    values = torch.stack([clips[0][:, t, y, x] for t, y, x in known])
    for place in places()[:: 7 * 5]:
        away = torch.tensor([distance(place, other, pace) for other in known])
        got = near[0][:, *place]
        if visible[0][place]:
            assert torch.equal(got, clips[0][:, *place]) and torch.equal(blurred[0][:, *place], got)
            continue
        best = values[away <= away.min() + 1e-6]  # several may be as near
        assert (best - got).abs().sum(1).min() < 1e-6
        weight = (-(away.double() ** 2) / 18).exp()
        if weight.sum() > 1e-5:
            expected = (weight[:, None] * values).sum(0) / weight.sum()
            torch.testing.assert_close(blurred[0][:, *place].double(), expected, atol=1e-4, rtol=1e-4)


def test_inverse_distance_is_the_slow_one():
    clips, visible = patchy()
    filled = inverse_distance(clips, visible, (2, 4, 4), power=2.0, pace=3.0)
    patches = [(t, y, x) for t in range(2) for y in range(3) for x in range(3)]
    block = lambda x, t, r, c: x[..., 2 * t : 2 * t + 2, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]  # noqa: E731
    seen = [place for place in patches if block(visible[1], *place).all()]
    assert seen
    for t, y, x in patches:
        if not block(visible[1], t, y, x).any():
            weight = [1 / ((6 * (t - a)) ** 2 + (4 * (y - b)) ** 2 + (4 * (x - c)) ** 2) for a, b, c in seen]
            mean = torch.stack([block(clips[1], *place).mean((1, 2, 3)) for place in seen])
            expected = (torch.tensor(weight)[:, None] * mean).sum(0) / sum(weight)
            torch.testing.assert_close(block(filled[1], t, y, x), expected.view(3, 1, 1, 1).expand(3, 2, 4, 4))


def test_copying_and_mean():
    clips, visible = patchy()
    visible[:, 0] = True
    filled = copy_past(clips, visible)
    hidden = ~visible[:, None].expand_as(clips)
    assert torch.equal(filled[hidden], clips[:, :, :1].expand_as(clips)[hidden])
    assert torch.equal(filled[~hidden], clips[~hidden])
    mean = clips[0][:, visible[0]].mean(1)
    torch.testing.assert_close(mean_color(clips, visible)[0][:, ~visible[0]].mean(1), mean)
    assert (mean_color(clips, torch.zeros_like(visible)) == 0.5).all()


def test_no_filler_looks_at_hidden_pixels_or_changes_visible_ones():
    clips, visible = patchy()
    visible[:, 0] = True
    other = torch.where(visible[:, None], clips, 1 - clips)
    fillers = clip_fillers((1, 4, 4), pair=True)
    assert {"copy_past", "mean_color"} < set(fillers) and "copy_past" not in clip_fillers((1, 4, 4))
    for name, filler in fillers.items():
        filled = filler(clips, visible)
        assert torch.equal(filled, filler(other, visible)), name
        assert torch.equal(filled[visible[:, None].expand_as(clips)], clips[visible[:, None].expand_as(clips)]), name
        assert filled.isfinite().all() and filled.min() >= -1e-5 and filled.max() <= 1 + 1e-5, name


@pytest.mark.parametrize(
    "name, first, block", [("videomae", 0, (2, 4, 4)), ("stmae", 0, (1, 4, 4)), ("siammae", 1, (1, 4, 4))]
)
def test_a_lattice_knows_a_methods_patches(name, first, block, data):
    method, (_, test) = make(name), data(2 if name == "siammae" else 4)
    found = method.reconstruct({"video": test.clips})
    lattice = lattice_of(next(iter(method.encoder.grids.values())), found["target"].shape)
    assert (lattice.first, lattice.block) == (first, block)
    target = found["target"].transpose(1, 2)
    visible = lattice.visible(found["mask"], target.shape[2])
    hidden = ~visible[:, None].expand_as(target)
    assert (found["masked"].transpose(1, 2)[hidden] == 0.5).all()
    assert torch.equal(found["masked"].transpose(1, 2)[~hidden], target[~hidden])
    patches = lattice.patches(target)
    assert torch.equal(lattice.clips(patches, target), target)
    mean, std = (x.view(-1, 1, 1, 1) for x in (method.tokenizer.mean, method.tokenizer.std))
    own = norm_pix_target(lattice.patches((target - mean) / std), name == "videomae")
    torch.testing.assert_close(own, found["target_patches"], atol=2e-3, rtol=2e-3)


def cheat(method):
    """Make a method predict what it hides: in the space of its loss, and in pixels where it predicts those."""
    reconstruct = method.reconstruct

    def better(batch, **options):
        found = reconstruct(batch, **options)
        found["prediction_patches"] = found["target_patches"] * found["mask"][..., None]
        if not method.config.norm_pix:
            found["prediction"] = found["target"]
        return found

    method.reconstruct = better
    return method


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_knows_wins_and_a_fresh_one_does_not(name, data):
    train, test = data(2 if name == "siammae" else 4)
    knowing = judge_clips(cheat(make(name, norm_pix=False)), train, test)
    assert knowing.mse["model"] < 1e-9 and knowing.explained["model"] > 0.999
    normalised = judge_clips(cheat(make(name, norm_pix=True)), train, test)
    assert normalised.explained["model"] > 0.999 > normalised.explained["best_interpolation"]
    fresh = judge_clips(make(name), train, test)
    assert fresh.mse["model"] > fresh.mse["best_interpolation"] and fresh.explained["model"] < 0.3
    assert "model_own_statistics" in fresh.mse and "model_own_statistics" not in knowing.mse


def test_every_contestant_is_scored_and_the_best_is_the_best(data):
    found = judge_clips(make("siammae"), *data(2))
    families = {"mean_color", "nearest", "gaussian", "inverse_distance", "copy_past"}
    assert set(found.mse) == families | {"model", "model_own_statistics", "best_interpolation", "mean_frame"}
    assert set(found.explained) == set(found.mse)
    assert found.mse["best_interpolation"] == min(found.mse[name] for name in families) == found.mse[found.best]
    assert found.mse["copy_past"] < found.mse["mean_color"] < found.mse["mean_frame"]


def test_the_error_of_copying_is_the_change_on_masked_patches(data):
    train, test = data(2)
    method, seen = make("siammae"), []
    reconstruct = method.reconstruct
    method.reconstruct = lambda batch, **options: seen.append(reconstruct(batch, **options)) or seen[-1]
    found = judge_clips(method, train, test)
    mask = seen[-1]["mask"].view(9, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(9, 3, 16, 16)
    change = (test.clips[:, 1].float() - test.clips[:, 0].float()) / 255
    assert found.mse["copy_past"] == pytest.approx(change[mask].square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_hidden_pixels_do_not_reach_a_models_score(name, data):
    """Other pixels under the mask change no prediction, so a norm-pix model is not helped by what it must predict."""
    test, method = data(2 if name == "siammae" else 4)[1], make(name)
    found = method.reconstruct({"video": test.clips})
    key, grid = next(iter(method.encoder.grids.items()))
    hidden = ~lattice_of(grid, test.clips.shape).visible(found["mask"], test.clips.shape[1])  # whole tubelets
    other = torch.where(hidden[:, :, None], 255 - test.clips, test.clips)
    again = method.reconstruct({"video": other}, masks={key: found["mask"]})
    torch.testing.assert_close(found["prediction"], again["prediction"], atol=1e-5, rtol=1e-5)


def test_the_batch_size_changes_nothing_and_the_seed_changes_the_masks(data):
    settings = ((4, 0), (64, 0), (64, 1))
    scores = [judge_clips(make("videomae"), *data(4), batch_size=b, seed=s).mse for b, s in settings]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4) and scores[0]["nearest"] != scores[2]["nearest"]


def test_pictures_are_clips(data):
    train, test = data(4)
    found = judge_clips(make("videomae"), train, test, clips=6, pictures=2).pictures
    assert {name: x.shape for name, x in found.items()} == dict.fromkeys(found, (2, 4, 16, 16, 3))
    assert list(found) == ["original", "masked", "reconstructed", "interpolated"]
    np.testing.assert_array_equal(found["original"][0], test.clips[0].movedim(1, -1))
    shown = (found["masked"] != 128).any(-1)
    assert 0.2 < shown.mean() < 0.3
    for name in ("reconstructed", "interpolated"):
        np.testing.assert_array_equal(found[name][shown], found["original"][shown])


def test_images_are_refused(data, make_mae, classification):
    with pytest.raises(MmsslError, match="clips are needed"):
        judge_clips(make_mae(), *classification)
