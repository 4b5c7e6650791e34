"""What algorithms from pixels share: crops and shifts against slow versions, convolutions, policies, wrong worlds."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmssl.control.base import Spaces
from mmssl.control.crops import bilinear_shift, draw_shifts, random_crop, shift
from mmssl.control.curl import CURL, CURLConfig
from mmssl.control.drqv2 import DrQv2, DrQv2Config
from mmssl.control.networks import Ensemble, orthogonal_members
from mmssl.control.pixel_networks import Look, code, join_pictures, picture_layout
from mmssl.errors import MmsslError

sys.path.insert(0, str(Path(__file__).parent))
from pixel_toys import spaces_of, world

SMALL = {"layers": 2, "filters": 4, "features": 8, "hidden": (16, 16), "batch_size": 8, "capacity": 200}
ALGORITHMS = [(CURL, CURLConfig(crop=(20, 20), **SMALL)), (DrQv2, DrQv2Config(pad=2, **SMALL))]
BOTH = pytest.mark.parametrize(("kind", "config"), ALGORITHMS, ids=["curl", "drqv2"])


def pictures(n: int = 5, channels: int = 6, size: tuple[int, int] = (9, 11)) -> torch.Tensor:
    shape = (n, channels, *size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("convert", [torch.Tensor.byte, torch.Tensor.float])
def test_a_crop_is_one_window_of_all_channels(convert):
    x = convert(pictures())
    found = random_crop(x, (6, 7), torch.Generator().manual_seed(3))
    assert found.shape == (5, 6, 6, 7) and found.dtype == x.dtype
    for picture, crop in zip(x, found, strict=True):
        windows = [picture[:, t : t + 6, s : s + 7] for t in range(4) for s in range(5)]
        assert sum(torch.equal(window, crop) for window in windows) == 1


@pytest.mark.parametrize(("authors", "last"), [(False, 16), (True, 15)])
def test_all_places_of_a_crop_occur_and_each_sample_has_its_own(authors, last):
    """100 to 84 pixels has 17 places an axis, of which the authors' code draws 16."""
    rows = torch.arange(100, dtype=torch.float32)[None, None, :, None] * 1000 + torch.arange(100)
    corner = random_crop(rows.expand(6000, 1, 100, 100), (84, 84), torch.Generator().manual_seed(0), authors)[
        :, 0, 0, 0
    ]
    top, left = (corner // 1000).long(), (corner % 1000).long()
    for place in (top, left):
        assert place.unique().tolist() == list(range(last + 1))
    counts = torch.bincount(top * 17 + left)
    assert (counts > 0).sum() == (last + 1) ** 2 and counts.max() < 60


def authors_shift(x: torch.Tensor, shifts: torch.Tensor, pad: int) -> torch.Tensor:
    """RandomShiftsAug of facebookresearch/drqv2, of square pictures, with its draw given as (row, column)."""
    n, _, h, w = x.shape
    assert h == w
    x = F.pad(x, (pad,) * 4, "replicate")
    eps = 1.0 / (h + 2 * pad)
    line = torch.linspace(-1.0 + eps, 1.0 - eps, h + 2 * pad, dtype=x.dtype)[:h]
    line = line.unsqueeze(0).repeat(h, 1).unsqueeze(2)
    grid = torch.cat([line, line.transpose(1, 0)], dim=2).unsqueeze(0).repeat(n, 1, 1, 1)
    moved = shifts.flip(1)[:, None, None].to(x.dtype) * (2.0 / (h + 2 * pad))
    return F.grid_sample(x, grid + moved, padding_mode="zeros", align_corners=False)


def slow_shift(x: torch.Tensor, shifts: torch.Tensor, pad: int) -> torch.Tensor:
    """Pixel by pixel."""
    out, (height, width) = torch.empty_like(x), x.shape[2:]
    for b, (down, right) in enumerate(shifts.tolist()):
        for i in range(height):
            for j in range(width):
                row, column = min(max(i + down - pad, 0), height - 1), min(max(j + right - pad, 0), width - 1)
                out[b, :, i, j] = x[b, :, row, column]
    return out


@pytest.mark.parametrize("size", [(9, 11), (10, 10)])
def test_shifts_are_the_slow_ones_and_those_by_interpolation(size):
    x, pad = pictures(40, 3, size), 4
    shifts = draw_shifts(40, pad, torch.Generator().manual_seed(0))
    found = shift(x, shifts, pad)
    assert found.dtype == torch.uint8 and torch.equal(found, slow_shift(x, shifts, pad))
    torch.testing.assert_close(bilinear_shift(x, shifts, pad), found.float(), atol=2e-2, rtol=0)  # of 255
    if size[0] == size[1]:
        torch.testing.assert_close(authors_shift(x.float(), shifts, pad), found.float(), atol=2e-2, rtol=0)


def test_a_fraction_of_a_pixel_is_interpolated():
    x, half = pictures(2, 3, (8, 8)), torch.tensor([[4.0, 4.5], [3.25, 4.0]])
    found = bilinear_shift(x, half, 4)
    torch.testing.assert_close(found[0, :, :, :-1], (x[0, :, :, :-1].float() + x[0, :, :, 1:]) / 2, atol=2e-2, rtol=0)
    torch.testing.assert_close(found, authors_shift(x.float(), half, 4), atol=2e-2, rtol=0)


def test_all_shifts_occur():
    shifts = draw_shifts(3000, 4, torch.Generator().manual_seed(0))
    assert len(shifts.unique(dim=0)) == 81 and shifts.min() == 0 and shifts.max() == 8


def test_the_convolutions_are_plain_ones_on_pixels_over_255():
    torch.manual_seed(0)
    look, x = Look(6, (15, 13), layers=3, filters=5, start="delta", offset=0.5), pictures(2, 6, (15, 13))
    y = x.float() / 255 - 0.5
    for k, conv in enumerate(look.convs.layers):
        y = F.conv2d(y, conv.weight, conv.bias, stride=2 if k == 0 else 1).clamp(min=0)
    assert look.width == y[0].numel() and torch.equal(look(x), y.flatten(1))


def test_members_begin_orthogonal():
    critics = orthogonal_members(Ensemble((6, 9, 4, 1)))
    for weight, bias in zip(critics.weight, critics.bias, strict=True):
        assert not torch.equal(weight[0], weight[1]) and bias.abs().max() == 0
        for member in weight.detach():
            short = member if member.shape[0] <= member.shape[1] else member.T
            torch.testing.assert_close(short @ short.T, torch.eye(len(short)), atol=1e-5, rtol=0)
    linear, norm = code(30, 4)
    torch.testing.assert_close(linear.weight @ linear.weight.T, torch.eye(4), atol=1e-5, rtol=0)
    assert linear.bias.abs().max() == 0 and norm.weight.shape == (4,)


@BOTH
def test_cameras_stand_side_by_side_and_vectors_follow_the_code(kind, config):
    rng = np.random.default_rng(0)
    seen = {"image/a": ((9, 24, 24), np.dtype(np.uint8)), "proprio": ((3,), np.dtype(np.float32))}
    seen |= {"image/b": ((9, 24, 24), np.dtype(np.uint8))}
    algorithm = kind(config, Spaces(seen, 2), 0)
    obs = {name: rng.integers(0, 255, (4, *s)).astype(d) for name, (s, d) in seen.items()}
    obs["proprio"] /= 255
    policy = algorithm.policy()
    action = policy.act(obs)
    assert action.shape == (4, 2) and action.dtype == np.float32 and np.abs(action).max() <= 1
    stacked = join_pictures({name: torch.from_numpy(obs[name]) for name in ("image/a", "image/b")})
    assert stacked.shape == (4, 18, 24, 24)
    middle = stacked[:, :, 2:22, 2:22] if kind is CURL else stacked
    net = policy.net
    with torch.no_grad():
        mean = net.body(torch.cat([net.code(net.look(middle)), torch.from_numpy(obs["proprio"])], 1))[:, :2]
    mean = mean.tanh() if kind is CURL else mean
    np.testing.assert_allclose(action, mean.numpy(), atol=1e-6)
    for name in seen:
        changed = policy.act({**obs, name: obs[name][::-1].copy()})
        assert np.abs(changed - action).max() > 1e-5, name


@BOTH
def test_wrong_worlds_are_one_sentence(kind, config):
    state = {"state": ((3,), np.dtype(np.float32))}
    with pytest.raises(MmsslError, match=f"{config.name} learns from pictures and this world shows state alone; make"):
        kind(config, Spaces(state, 2), 0)
    with pytest.raises(MmsslError, match=f"{config.name} needs continuous actions and this task has 3 discrete"):
        kind(config, dataclasses.replace(spaces_of(), action_dim=3, discrete=True), 0)
    one, two = (((3, side, side), np.dtype(np.uint8)) for side in (24, 30))
    with pytest.raises(MmsslError, match=r"cameras of one size, got \(3, 24, 24\), \(3, 30, 30\)"):
        kind(config, Spaces({"image/a": one, "image/b": two}, 2), 0)
    with pytest.raises(MmsslError, match=r"9 convolutions leave nothing of pictures of .* at least 35 a side"):
        kind(dataclasses.replace(config, layers=9), spaces_of(), 0)


def test_a_picture_smaller_than_the_crop_is_refused():
    with pytest.raises(MmsslError, match="a crop of 84x84 pixels does not fit into pictures of 24x24; make the"):
        CURL(CURLConfig(**SMALL), spaces_of(), 0)


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (CURLConfig, {"crop": None}, "the contrast is between two crops"),
        (CURLConfig, {"batch_size": 1}, "batch_size must be at least 2, got 1"),
        (CURLConfig, {"encoder_tau": 0.0}, r"encoder_tau must lie in \(0, 1\], got 0.0"),
        (CURLConfig, {"alpha": 0.0}, "alpha must be above 0, got 0.0"),
        (CURLConfig, {"compile": True}, "curl is not compiled; leave out compile"),
        (CURLConfig, {"encoder_lr": 0.0}, "encoder_lr must be above 0, got 0.0"),
        (CURLConfig, {"log_std": (2.0, -10.0)}, r"log_std must be a lower and a higher bound, got \[2.0, -10.0\]"),
        (DrQv2Config, {"n_step": 0}, "n_step must be at least 1, got 0"),
        (DrQv2Config, {"pad": -1}, "pad must be 0 or more, got -1"),
        (DrQv2Config, {"lr": 0.0}, "lr must be above 0, got 0.0"),
        (DrQv2Config, {"tau": 2.0}, r"must lie in \(0, 1\], got 0.99 and 2.0"),
    ],
)
def test_impossible_settings_are_one_sentence(config, settings, words):
    with pytest.raises(MmsslError, match=words):
        config(**settings)


def test_the_layout_of_pictures():
    assert picture_layout(Spaces(**world(stack=3).spaces()), "x") == (9, (24, 24))
