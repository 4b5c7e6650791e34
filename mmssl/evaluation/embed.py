"""`mmssl embed`: the features of any dataset in one safetensors file, with an index that says what each row is."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mmssl.errors import MmsslError, unknown_name
from mmssl.evaluation.features import POOLINGS, extract
from mmssl.evaluation.frames import fit_to
from mmssl.evaluation.sources import DataChoice, load_encoder
from mmssl.training.atomic import write_text


def embed(
    weights: str,
    *,
    data: tuple[str, ...] = (),
    out: Path = Path("features.safetensors"),
    pooling: str = "mean",
    split: str = "all",
    target: str | None = None,
    camera: str | None = None,
    clip: tuple[str, ...] = (),
    modalities: tuple[str, ...] = (),
    batch_size: int = 256,
    workers: int = 0,
    device: str = "auto",
    max_gb: float = 16.0,
) -> Path:
    """Write the features of a dataset to a safetensors file.

    It holds `features` float32 (N, D) and `index` int64 (N,), and `labels` and `groups` where the data have them.
    Beside `OUT.safetensors` stands `OUT.json`, which names every row's file or frame and its group (episode).

    Args:
        weights: a run folder, an exported folder, a published checkpoint, or a hub or timm name.
        data: what to embed: a card's name, a folder, or recorded datasets.
        out: the file to write.
        pooling: mean, cls, max, grid4 (patch tokens averaged to 4x4 cells, those of a clip over time too), bands (of
            sound: each band of frequencies averaged over time), flat, or tokens (N x tokens x D).
        split: train, test or all.
        target: which label goes along, e.g. task or state.
        camera: which camera of a recorded dataset.
        clip: how clips are sampled, e.g. how=dense frames=8 stride=2, or none; of sound e.g. seconds=5; by default as
            the run did, or dense, or as long as the encoder reads.
        modalities: what an encoder of several is shown, e.g. image depth; by default all that the data have too.
        batch_size: images, or frames of clips, in one pass.
        workers: processes that read images or clips.
        device: auto, cpu, cuda or mps.
        max_gb: memory that the features may take.
    """
    out = Path(out)
    _refuse(data, pooling, out)
    encoder = load_encoder(weights, device)
    choice = DataChoice.for_encoder(encoder, weights, data, clip, modalities, target=target, camera=camera)
    dataset = choice.part(split)
    encoder = fit_to(choice.reader(encoder), dataset)
    found = extract(encoder, dataset, pooling, batch_size=batch_size, workers=workers, max_gb=max_gb)
    out.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"features": found.features, "index": found.index, "labels": found.labels, "groups": found.groups}
    tensors = {name: x.contiguous() for name, x in tensors.items() if x is not None}
    about = {"weights": str(weights), "data": list(data), "split": split, "pooling": pooling}
    about["modalities"] = list(encoder.modalities)
    save_file(tensors, out, metadata={k: v if isinstance(v, str) else " ".join(v) for k, v in about.items()})
    write_text(out.with_suffix(".json"), json.dumps({**about, **_describe(dataset, found.index)}, indent=1) + "\n")
    print(
        f"{tuple(found.features.shape)} features of {dataset.name} in {out}, their names in {out.with_suffix('.json')}"
    )
    return out


def _refuse(data: tuple[str, ...], pooling: str, out: Path) -> None:
    if not data:
        raise MmsslError("nothing to embed: give --data a card's name, a folder or a recorded dataset.")
    if pooling not in (*POOLINGS, "tokens"):
        raise unknown_name("pooling", pooling, (*POOLINGS, "tokens"))
    if out.suffix != ".safetensors":
        raise MmsslError(f"the features are written to a .safetensors file, and {out} does not end so.")


def _describe(dataset, index: torch.Tensor) -> dict:
    groups = dataset.groups
    rows = [
        {"index": i, "name": dataset.sample_name(i), **({} if groups is None else {"group": int(groups[i])})}
        for i in index.tolist()
    ]
    return {
        "dataset": dataset.name,
        "task": dataset.task,
        "target": dataset.target,
        "classes": dataset.classes,
        "rows": rows,
    }
