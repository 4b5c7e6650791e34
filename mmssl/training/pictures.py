"""Pictures of what a pretrained method does, as arrays in the run's `figures/`, for the report."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmssl.data.loading import DataConfig, Dataset
from mmssl.errors import MmsslError
from mmssl.methods.base import Method
from mmssl.methods.joint import JointAutoencoder
from mmssl.tokenizers.audio import audio_tokenizer
from mmssl.training.joint_pictures import save_modalities
from mmssl.training.sounds import COUNT, save_sounds, sound_features

_CLIPS = 4  # clips that are shown: each has many frames
_FRAMES = 3  # frames of one clip whose features are shown


@torch.no_grad()
def save_pictures(method: Method, data: DataConfig, folder: Path, count: int = 8) -> None:
    """Write what the report draws of held-out samples; a method gets the pictures that it can have.

    Of several modalities see `joint_pictures.save_modalities`.
    `reconstruction.npz`: original, masked, reconstructed, uint8 (n, H, W, 3), or (n, T, H, W, 3) of clips (T = 2: a
    past and a future frame). `spectrograms.npz` and `sound/` of sounds: see `sounds.save_sounds`. `features.npz`: see
    `feature_arrays`; beside the encoder stands a fresh one.
    """
    hears = audio_tokenizer(method.encoder)
    batch = _some_samples(data, count if hears is None else COUNT)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(method, JointAutoencoder):
        save_modalities(method, batch, folder)
    else:
        _save_reconstruction(method, batch, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = type(method.encoder)(method.encoder.config).eval()
    arrays = feature_arrays(method.encoder, fresh, method.as_seen(batch))
    if arrays:
        _save(folder / "features.npz", **arrays)


def _save_reconstruction(method: Method, batch: dict[str, Tensor], folder: Path) -> None:
    hears = audio_tokenizer(method.encoder)
    with contextlib.suppress(MmsslError):  # not every method has something to show
        found = method.reconstruct(batch)
        shown = {"original": "target", "masked": "masked", "reconstructed": "prediction"}
        if hears is not None:
            save_sounds(folder, hears, batch[hears.modality], found)
        else:
            _save(folder / "reconstruction.npz", **{name: pixels(found[key]) for name, key in shown.items()})


def _some_samples(data: DataConfig, count: int) -> dict[str, Tensor]:
    """`count` samples, or a few clips, spread over the held-out part, or the training part where none can be read."""
    try:
        return _some_of(data.open(split="test"), count)
    except MmsslError:  # nothing is held out, or nothing of it is whole
        return _some_of(data.open(), count)


def _some_of(dataset: Dataset, count: int) -> dict[str, Tensor]:
    if len(dataset) == 0:
        raise MmsslError(f"dataset {dataset.name!r} has no samples to show.")
    if dataset.clip is not None and dataset.clip.frames > 2:
        count = min(count, _CLIPS)
    return dataset.fetch(torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long())


@torch.no_grad()
def feature_arrays(encoder: nn.Module, random: nn.Module, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Pictures and their patch features, for a picture coloured by PCA.

    Of clips a few frames stand for the whole: for a video encoder the first frames of some of its tokens, for an
    encoder of images frames that it encodes one by one.

    Returns:
        image: uint8 (n, H, W, 3); tokens, random: float32 (n, h, w, D), of the encoder and of a random one; of sounds
        see `sounds.sound_features`. Of several modalities the first that is of pictures is shown. {} for an encoder
        that reads something else.
    """
    hears = audio_tokenizer(encoder)
    if hears is not None and hears.modality in batch:
        return sound_features(encoder, random, hears, batch[hears.modality])
    shown = _shown(encoder, batch)
    if shown is None:
        return {}
    maps = {name: _maps(model, shown) for name, model in (("tokens", encoder), ("random", random))}
    return {"image": pixels(shown.images), **maps}


class _Shown(NamedTuple):
    """What an encoder reads, the pictures of it, and the places in time of these; None for single images."""

    inputs: dict[str, Tensor]
    images: Tensor  # (n, 3, H, W)
    times: list[int] | None


def _shown(encoder: nn.Module, batch: dict[str, Tensor]) -> _Shown | None:
    key = next((name for name in encoder.modalities if name.split("/")[0] in ("image", "video")), None)
    if key is None:
        return None
    kind, _, camera = key.partition("/")
    if kind == "image" and key in batch:
        return _Shown({key: batch[key]}, batch[key], None)
    videos = [name for name in batch if name.split("/")[0] == "video" and camera in ("", name.partition("/")[2])]
    if not videos:
        return None
    clip = batch[videos[0]]  # (n, T, 3, H, W)
    clip = clip[: 2 if clip.shape[1] > 2 else _FRAMES]
    if kind == "image":
        frames = clip[:, _spread(clip.shape[1], _FRAMES)].flatten(0, 1)
        return _Shown({key: frames}, frames, None)
    times = _spread(encoder.grids[key][0], _FRAMES)
    tubelet = clip.shape[1] // encoder.grids[key][0]
    return _Shown({key: clip}, clip[:, [tubelet * t for t in times]].flatten(0, 1), times)


def _maps(encoder: nn.Module, shown: _Shown) -> np.ndarray:
    device = next(encoder.parameters()).device
    maps = encoder({key: x.to(device) for key, x in shown.inputs.items()}).map()
    if shown.times is not None:
        maps = maps[:, shown.times].flatten(0, 1)  # (n, t, h, w, D) -> (n * times, h, w, D)
    return maps.float().cpu().numpy()


def _spread(total: int, most: int) -> list[int]:
    """At most `most` places of `total`, evenly spread."""
    return torch.linspace(0, total - 1, min(total, most)).round().long().tolist()


def pixels(image: Tensor) -> np.ndarray:
    """(..., 3, H, W), uint8 or float in [0, 1] -> uint8 (..., H, W, 3)."""
    if image.dtype != torch.uint8:
        image = (image.clamp(0, 1) * 255).round().byte()
    return image.movedim(-3, -1).cpu().numpy()


def _save(path: Path, **arrays: Any) -> None:
    np.savez_compressed(path, **arrays)
