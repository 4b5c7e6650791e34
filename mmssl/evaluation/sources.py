"""What a command line names, opened: encoders by source and device, and the two splits that judge them."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmssl.config import from_dict, read_yaml
from mmssl.data.loading import DataConfig, open_dataset
from mmssl.errors import MmsslError, unknown_name
from mmssl.evaluation.features import Splits
from mmssl.weights.load import load


def choose_device(name: str) -> torch.device:
    """The device called auto (the best there is), cpu, cuda or mps.

    Raises:
        MmsslError: an unknown name, or a device that this machine does not have.
    """
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if found["cuda"] else "cpu")
    if name.split(":")[0] not in found:
        raise unknown_name("device", name, ["auto", *found])
    if not found[name.split(":")[0]]:
        raise MmsslError(f"this machine has no usable {name!r} device; use auto or cpu, and see `mmssl doctor`.")
    return torch.device(name)


def load_encoder(source: str | Path, device: str = "auto") -> nn.Module:
    """A frozen encoder in eval mode from anything that `mmssl.load` reads."""
    return load(source).to(choose_device(device)).requires_grad_(False).eval()


def image_size_of(encoder: nn.Module) -> tuple[int, int]:
    """(H, W) of the images that an encoder takes."""
    for tokenizer in encoder.tokenizers.values():
        if getattr(tokenizer.config, "image_size", None) is not None:
            return tuple(tokenizer.config.image_size)
    raise MmsslError(f"this encoder takes no images; it reads {', '.join(encoder.modalities)}.")


def open_splits(
    source: str | Path,
    data: tuple[str, ...],
    image_size: tuple[int, int],
    target: str | None,
    camera: str | None = None,
    limit: int | None = None,
) -> Splits:
    """Training and test part of the data that judges an encoder.

    Args:
        source: the run or weights; without `data`, the run's own data are taken.
        data: card's name, folder, or recorded datasets.
        target: which label; None for the dataset's own.
        limit: at most so many samples of each part, spread evenly.
    """
    parts = [open_part(source, data, image_size, split, target, camera) for split in ("train", "test")]
    if parts[0].task is None and parts[0].targets:
        raise MmsslError(f"choose what to predict with --target: {', '.join(parts[0].targets)}.")
    return Splits(*(part if limit is None else thin_out(part, limit) for part in parts))


def open_part(
    source: str | Path,
    data: tuple[str, ...],
    image_size: tuple[int, int],
    split: str,
    target: str | None = None,
    camera: str | None = None,
) -> Any:
    """One split of the given data, or of the run's own."""
    if data:
        return open_dataset(data, split=split, image_size=image_size, target=target, camera=camera)
    config = Path(source) / "config.yaml"
    if not config.is_file():
        raise MmsslError("no data to judge on: give --data a card's name, a folder or a recorded dataset.")
    section = read_yaml(config).get("data")
    if section is None:
        raise MmsslError(f"{config} names no data: give --data a card's name, a folder or a recorded dataset.")
    given = {name: value for name, value in (("target", target), ("camera", camera)) if value is not None}
    return from_dict(DataConfig, section, f"{config}: data").open(split=split, image_size=image_size, **given)


def thin_out(dataset: Any, limit: int) -> Any:
    """At most `limit` samples of a dataset, spread evenly."""
    if limit < 1:
        raise MmsslError(f"limit must be at least 1, got {limit}.")
    if len(dataset) <= limit:
        return dataset
    return dataset.subset(torch.linspace(0, len(dataset) - 1, limit).round().long())
