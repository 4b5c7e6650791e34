"""Batched augmentation: each sample its own parameters, from its key alone."""

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from mmssl.data.mixing import Mix, smooth
from mmssl.data.transforms import Augmentation, BatchAugment, colour, erase, shift_hue
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys

QUIET = {"crop_scale": None, "hflip": 0.0}
KINDS = {
    "hflip": Augmentation(crop_scale=None, hflip=0.5),
    "brightness": Augmentation(**QUIET, brightness=0.4),
    "contrast": Augmentation(**QUIET, contrast=0.4),
    "saturation": Augmentation(**QUIET, saturation=0.4),
    "hue": Augmentation(**QUIET, hue=0.3),
    "grayscale": Augmentation(**QUIET, grayscale=0.5),
    "erase": Augmentation(**QUIET, erase=0.9),
    "color_prob": Augmentation(**QUIET, brightness=0.8, color_prob=0.5),
}


def pictures(n: int = 16, size: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def keys(n: int, seed: int = 0) -> torch.Tensor:
    return sample_keys(seed, 0, 0, torch.arange(n))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_one_picture_come_out_different(kind):
    batch = {"image": pictures(1).expand(16, -1, -1, -1).contiguous()}
    out = BatchAugment(KINDS[kind])(batch, keys(16))["image"]
    assert out.dtype == torch.uint8 and out.shape == batch["image"].shape
    assert len({tuple(row.flatten().tolist()) for row in out}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_depends_on_its_own_key_alone(kind):
    batch, augment = {"image": pictures()}, BatchAugment(KINDS[kind])
    out = augment(batch, keys(16))["image"]
    assert torch.equal(out, augment(batch, keys(16))["image"])
    turned = augment({"image": batch["image"].flip(0)}, keys(16).flip(0))["image"].flip(0)
    alone = torch.cat([augment({"image": batch["image"][k : k + 1]}, keys(16)[k : k + 1])["image"] for k in range(16)])
    assert torch.equal(out, turned) and torch.equal(out, alone)
    assert not torch.equal(out, augment(batch, keys(16, seed=1))["image"])


def test_flip_takes_depth_ids_cameras_and_all_frames_along():
    x = pictures(8)
    batch = {
        "image": x, "image/side": x, "video": x[:, None].expand(-1, 3, -1, -1, -1), "depth": x[:, :1].float(),
        "segmentation": x[:, 0].long(), "label": torch.arange(8),
    }  # fmt: skip
    out = BatchAugment(Augmentation(crop_scale=None, hflip=0.5))(batch, keys(8))
    flipped = torch.tensor([not torch.equal(a, b) for a, b in zip(out["image"], x, strict=True)])
    assert flipped.any() and not flipped.all()
    expected = torch.where(flipped[:, None, None, None], x.flip(-1), x)
    assert torch.equal(out["image"], expected) and torch.equal(out["image/side"], expected)
    assert all(torch.equal(out["video"][:, t], expected) for t in range(3))
    assert torch.equal(out["depth"], expected[:, :1].float()) and torch.equal(
        out["segmentation"], expected[:, 0].long()
    )
    assert torch.equal(out["label"], torch.arange(8)) and batch["image"] is x


def test_frames_of_a_clip_share_their_parameters():
    clip = pictures(4)[:, None].expand(-1, 3, -1, -1, -1).contiguous()
    strong = Augmentation(**QUIET, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, grayscale=0.3, erase=1.0)
    out = BatchAugment(strong)({"video": clip}, keys(4))["video"]
    assert all(torch.equal(out[:, 0], out[:, t]) for t in (1, 2)) and not torch.equal(out, clip)


@pytest.mark.parametrize(
    ("field", "theirs"), [("brightness", F.adjust_brightness), ("saturation", F.adjust_saturation)]
)
def test_colour_follows_torchvisions_formulas(field, theirs):
    x, augmentation = pictures(6), Augmentation(**QUIET, **{field: 0.5})
    out = colour(x[:, None], keys(6), augmentation)[:, 0]
    for before, after in zip(x, out, strict=True):
        errors = [
            (theirs(before, f).int() - after.int()).abs().max().item() for f in torch.linspace(0.5, 1.5, 401).tolist()
        ]
        assert min(errors) <= 2


def test_contrast_follows_torchvision():
    x = pictures(6)
    out = colour(x[:, None], keys(6), Augmentation(**QUIET, contrast=0.5))[:, 0]
    for before, after in zip(x, out, strict=True):
        factors = torch.linspace(0.5, 1.5, 401).tolist()
        assert min((F.adjust_contrast(before, f).int() - after.int()).abs().max().item() for f in factors) <= 2


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.1, 0.4])
def test_hue_is_torchvisions(turn):
    x = pictures(5).float() / 255
    ours = shift_hue(x[:, None], torch.full((5, 1, 1, 1), turn))[:, 0]
    assert (ours - F.adjust_hue(x, turn)).abs().max() < 1e-4


def test_erase_replaces_a_rectangle_of_the_asked_share():
    x = torch.zeros(400, 1, 3, 40, 40, dtype=torch.uint8)
    out = erase(x, keys(400), Augmentation(**QUIET, erase=0.25))[:, 0]
    touched = out.amax(1) > 0  # (B, H, W); a pixel of noise is hardly ever black in three channels
    share = touched.flatten(1).float().mean(1)
    hit = share > 0
    assert 0.17 < hit.float().mean() < 0.33
    assert share[hit].min() > 0.01 and share[hit].max() < 0.4
    rows, columns = touched[hit][0].any(1), touched[hit][0].any(0)
    assert touched[hit][0][rows][:, columns].float().mean() > 0.95
    inside = out[hit].permute(0, 2, 3, 1)[touched[hit]].float().mean(0) / 255
    assert (inside - torch.tensor([0.485, 0.456, 0.406])).abs().max() < 0.05


def test_settings_are_checked():
    for wrong in (
        {"hflip": 1.5},
        {"hue": 0.7},
        {"crop_scale": (0.9, 0.2)},
        {"rand_augment": 11.0},
        {"crop_attempts": 0},
    ):
        with pytest.raises(MmsslError, match=next(iter(wrong))):
            Augmentation(**wrong)


def labelled(n: int = 256) -> dict:
    x = torch.zeros(n, 3, 16, 16, dtype=torch.uint8)
    x[n // 2 :] = 200  # the mirrored partner of a dark picture is a bright one
    return {"image": x, "label": (torch.arange(n) >= n // 2).long()}


@pytest.mark.parametrize("options", [{"cutmix": 0.0}, {"mixup": 0.0}, {}])
def test_labels_are_mixed_as_the_pictures_are(options):
    batch = labelled()
    out = Mix(2, label_smoothing=0.0, **options)(batch, keys(256))
    assert out["image"].dtype == torch.uint8 and out["label"].dtype == torch.float32
    assert torch.allclose(out["label"].sum(1), torch.ones(256))
    bright = out["image"].float().mean(dim=(1, 2, 3)) / 200
    assert (bright - out["label"][:, 1]).abs().max() < 0.01
    assert len(out["label"][:, 0].unique()) > 30  # every sample has its own weight


def test_cutmix_pastes_and_mixup_blends():
    cut = Mix(2, mixup=0.0)(labelled(), keys(256))["image"]
    assert set(cut.unique().tolist()) == {0, 200}
    blend = Mix(2, cutmix=0.0)(labelled(), keys(256))["image"]
    assert bool((blend.flatten(1).amax(1) == blend.flatten(1).amin(1)).all()) and len(blend.unique()) > 50


def test_weights_follow_the_beta_distribution():
    weights = Mix(2, cutmix=0.0, mixup=0.8, label_smoothing=0.0)(labelled(4000), keys(4000))["label"][:2000, 0]
    expected = torch.distributions.Beta(0.8, 0.8).sample((20000,))
    for q in (0.1, 0.3, 0.5, 0.9):
        assert abs(weights.quantile(q) - expected.quantile(q)) < 0.05


def test_no_mixing_still_smooths():
    batch = labelled(8)
    out = Mix(5, mixup=0.0, cutmix=0.0, label_smoothing=0.1)(batch, keys(8))
    assert torch.equal(out["image"], batch["image"])
    assert torch.allclose(out["label"], smooth(batch["label"], 5, 0.1))
    assert out["label"][0].tolist() == pytest.approx([0.92, 0.02, 0.02, 0.02, 0.02])


def test_mixing_needs_class_ids():
    with pytest.raises(MmsslError, match=r"one class id a sample"):
        Mix(3)({"image": pictures(2), "label": torch.zeros(2, 4)}, keys(2))
