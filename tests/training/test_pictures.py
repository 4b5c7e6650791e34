"""The arrays that the report draws after pretraining, of images, clips and pairs of frames."""

import types

import numpy as np
import pytest
import torch

from mmssl.data.clips import ClipSampling
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.training.pictures import feature_arrays, pixels, save_pictures

TINY = {"size": "custom", "dim": 16, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 4, "mask_ratio": 0.5}
TINY |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


class Held:
    """A dataset of `n` samples under one batch key, and the config that opens it; it has no test split if told so."""

    def __init__(self, key: str, shape: tuple[int, ...], n: int = 12, split: bool = True):
        generator = torch.Generator().manual_seed(0)
        self.x = {key: torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)}
        self.clip = ClipSampling(frames=shape[0]) if len(shape) == 4 else None
        self.split, self.asked = split, []

    def open(self, split: str = "train"):
        if split == "test" and not self.split:
            raise MmsslError("nothing is held out.")
        return self

    def __len__(self) -> int:
        return 12

    def fetch(self, places):
        self.asked.append(places.tolist())
        return {key: x[places] for key, x in self.x.items()} | {"index": places}


def make(name: str, **settings):
    torch.manual_seed(1)  # not that of the fresh encoder, which would begin alike
    return create_method(name, **TINY, **settings).eval()


@pytest.mark.parametrize(
    "name, settings, held, shapes",
    [
        ("mae", {}, ("image", (3, 16, 16)), ((8, 16, 16, 3), (8, 4, 4, 16))),
        ("videomae", {"frames": 6}, ("video", (6, 3, 16, 16)), ((4, 6, 16, 16, 3), (6, 4, 4, 16))),
        ("stmae", {"frames": 6}, ("video", (6, 3, 16, 16)), ((4, 3, 16, 16, 3), (6, 4, 4, 16))),
        ("siammae", {}, ("video", (2, 3, 16, 16)), ((8, 2, 16, 16, 3), (6, 4, 4, 16))),
    ],
)
@pytest.mark.parametrize("split", [True, False])
def test_shapes_and_what_is_hidden(name, settings, held, shapes, split, tmp_path):
    data = Held(*held, split=split)
    save_pictures(make(name, **settings), data, tmp_path / "figures")
    with np.load(tmp_path / "figures/reconstruction.npz") as file:
        found = {key: file[key] for key in file}
    assert set(found) == {"original", "masked", "reconstructed"}
    assert {x.shape for x in found.values()} == {shapes[0]} and {x.dtype.name for x in found.values()} == {"uint8"}
    hidden = (found["masked"] == 128).all(-1)
    assert hidden.mean() == pytest.approx(0.25 if name == "siammae" else 0.5, abs=0.01)
    for key in ("masked", "reconstructed"):
        assert np.abs(found[key][~hidden].astype(int) - found["original"][~hidden]).max() <= 1
    with np.load(tmp_path / "figures/features.npz") as file:
        assert file["tokens"].shape == file["random"].shape == shapes[1]
        assert file["image"].shape == (*shapes[1][:1], 16, 16, 3) and not np.allclose(file["tokens"], file["random"])
    assert data.asked[0][0] == 0 and data.asked[0][-1] == 11 and len(data.asked[0]) == shapes[0][0]


def test_frames_of_clips_stand_beside_the_features_of_their_tubelets():
    method, x = make("videomae", frames=8), Held("video", (8, 3, 16, 16)).x
    found = feature_arrays(method.encoder, method.encoder, x)
    maps = method.encoder(x).map()  # (12, 4, 4, 4, 16)
    rows = [(clip, time) for clip in (0, 1) for time in (0, 2, 3)]
    for k, (clip, time) in enumerate(rows):
        assert np.array_equal(found["image"][k], x["video"][clip, 2 * time].movedim(0, -1).numpy())
        np.testing.assert_allclose(found["tokens"][k], maps[clip, time].detach().numpy(), atol=1e-5)
    assert np.array_equal(found["tokens"], found["random"])


def test_an_image_encoder_shows_frames_of_clips_one_by_one():
    encoder, x = make("siammae").encoder, Held("video", (2, 3, 16, 16)).x
    found = feature_arrays(encoder, encoder, x)
    assert np.array_equal(found["image"], pixels(x["video"][:3].flatten(0, 1)))
    alone = encoder({"image": x["video"][1, 1][None]}).map()[0].detach().numpy()
    np.testing.assert_allclose(found["tokens"][3], alone, atol=1e-5)
    cameras = {"video/side": x["video"], "video/top": 255 - x["video"]}
    assert np.array_equal(feature_arrays(encoder, encoder, cameras)["image"], found["image"])


def test_what_cannot_be_shown_is_left_out(tmp_path):
    encoder = make("mae").encoder
    assert feature_arrays(encoder, encoder, {"audio": torch.zeros(2, 1, 9)}) == {}
    blind = types.SimpleNamespace(modalities=("depth", "text"))
    assert feature_arrays(blind, blind, {"image": torch.zeros(2, 3, 16, 16)}) == {}
    method = make("mae")
    method.reconstruct = lambda batch: (_ for _ in ()).throw(MmsslError("it does not reconstruct."))
    save_pictures(method, Held("image", (3, 16, 16)), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["features.npz"]


def test_pixels_are_rounded():
    x = torch.tensor([[[0.0]], [[0.5]], [[2.0]]])  # (3, 1, 1)
    assert pixels(x).tolist() == [[[0, 128, 255]]] and pixels(x.expand(4, 2, 3, 1, 1)).shape == (4, 2, 1, 1, 3)
