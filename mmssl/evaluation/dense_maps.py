"""Maps of patch tokens, with what is asked of every pixel beside them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.encoder import PICTURES, Features
from mmssl.errors import MmsslError
from mmssl.evaluation.dense_config import DenseConfig
from mmssl.evaluation.features import FeatureSet, encoded, in_order


def target_of(batch: dict[str, Tensor], plane: str, names: Sequence[str]) -> tuple[str, Tensor]:
    """A batch's target for a plane ("depth", "segmentation"): its key and itself, (B, 1, H, W) or ids (B, H, W).

    With several cameras it is that of the first picture in `names`. Raises an `MmsslError` where the batch lacks it, or
    holds clips.
    """
    cameras = [name.partition("/")[2] for name in names if name.split("/")[0] in PICTURES]
    key = next((key for key in (plane, *(f"{plane}/{camera}" for camera in cameras)) if key in batch), None)
    if key is None:
        raise MmsslError(
            f"the data give no {plane}, which is what is to be predicted; their batches hold {', '.join(batch)}."
        )
    dims = 3 if plane == "segmentation" else 4
    if batch[key].dim() != dims:
        raise MmsslError(f"{plane} is judged on single pictures, and the data give clips; give --clip none.")
    return key, batch[key]


def token_map(features: Features, names: Sequence[str], camera: str = "") -> Tensor:
    """Tokens (B, h, w, D) of the picture among `names`; of m pictures of one camera, joined to (B, h, w, m D).

    Args:
        camera: of the target, where the encoder reads several cameras.

    Raises:
        MmsslError: tokens of clips, or pictures whose lattices differ.
    """
    pictures = [name for name in names if name.split("/")[0] in PICTURES]
    first = next((name for name in pictures if name.partition("/")[2] == camera), pictures[0])
    same = [name for name in pictures if name.partition("/")[2] == first.partition("/")[2]]
    grids = {features.grid[name] for name in same}
    if len(grids) > 1 or len(next(iter(grids))) != 2:
        raise MmsslError(f"a head on every pixel needs pictures with one lattice of tokens, got {features.grid}.")
    return torch.cat([features.map(name) for name in same], -1)


def collect(
    dataset: Any, config: DenseConfig, plane: str, names: Sequence[str], encoder: nn.Module | None
) -> FeatureSet:
    """Maps of tokens (N, h, w, D), or (N, 0) without an encoder, and targets (N, H, W), of pictures that have a target.

    Raises:
        MmsslError: data without the target, clips, tokens that are no lattice, or more than `max_gb`.
    """
    options = (config.batch_size, config.workers)
    pairs = ((None, b) for b in in_order(dataset, *options)) if encoder is None else encoded(encoder, dataset, *options)
    maps, targets, index, has = [], [], [], []
    for features, batch in pairs:
        key, target = target_of(batch, plane, names)
        targets.append(config.plane(target))
        has.append(config.counted(targets[-1]).flatten(1).any(1) & batch.get(f"present/{key}", torch.tensor(True)))
        index.append(batch["index"])
        camera = key.partition("/")[2]
        maps.append(torch.empty(len(target), 0) if features is None else token_map(features, names, camera).cpu())
        _check_memory(dataset, maps[0], config.max_gb)
    places = torch.cat(index)
    if not any(part.any() for part in has):
        raise MmsslError(f"no picture of {dataset.name!r} has a {plane} (a class, or a finite depth above 0).")
    rows = torch.cat(has) & (places == torch.arange(len(places)))  # an unreadable sample was replaced by the next
    return FeatureSet(torch.cat(maps)[rows].float(), torch.cat(targets)[rows], None, places[rows])


def _check_memory(dataset: Any, first: Tensor, most: float) -> None:
    gigabytes = len(dataset) * first[0].numel() * 4 / 2**30
    if gigabytes > most:
        raise MmsslError(
            f"the patch tokens of {dataset.name!r} take {gigabytes:.1f} GB, more than max_gb={most:g}: judge on fewer "
            "samples (--limit), or raise it."
        )
