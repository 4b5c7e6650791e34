"""Images and texts as unit vectors of the space that a method gives both, for retrieval and zero-shot answers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmssl.data.text import text_encoder
from mmssl.errors import MmsslError
from mmssl.evaluation.features import device_of, in_order
from mmssl.methods.base import Method
from mmssl.training.asked import text_encoding


@torch.no_grad()
def embed_images(method: Method, dataset: Any, batch_size: int = 256, workers: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors float32 (N, E) on the CPU of all samples that have a readable image, and their places int64 (N,).

    Raises:
        MmsslError: a dataset without images, or a method without such a space.
    """
    if len(dataset) == 0:
        raise MmsslError(f"the dataset {dataset.name!r} has no samples in this split.")
    device, seen, vectors, places = device_of(method), 0, [], []
    for batch in in_order(dataset, batch_size, workers):
        if "image" not in batch:
            raise MmsslError(f"the dataset {dataset.name!r} gives no images; its batches hold {', '.join(batch)}.")
        rows = len(batch["index"])
        # An unreadable sample was replaced by the next, which is there already.
        kept = batch["index"] == torch.arange(seen, seen + rows)
        kept &= batch.get("present/image", torch.ones(rows, dtype=torch.bool))
        seen += rows
        found = method.embed({"image": batch["image"].to(device)})["image"].float().cpu()
        vectors.append(found[kept])
        places.append(batch["index"][kept])
    return torch.cat(vectors), torch.cat(places)


@torch.no_grad()
def embed_texts(method: Method, texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """Vectors float32 (len(texts), E) on the CPU, in the order of the texts; a text of several times is read once.

    Raises:
        MmsslError: a method that reads no text.
    """
    encoding = text_encoding(method, None)
    if encoding is None:
        raise MmsslError(f"the method {method.config.name!r} reads no text; CLIP's does.")
    encode, device, once = text_encoder(encoding), device_of(method), list(dict.fromkeys(texts))
    vectors = []
    for first in range(0, len(once), batch_size):
        ids, mask = encode(once[first : first + batch_size])
        batch = {"text": ids.to(device), "text_mask": mask.to(device)}
        vectors.append(method.embed(batch)["text"].float().cpu())
    place = {text: k for k, text in enumerate(once)}
    return torch.cat(vectors)[[place[text] for text in texts]]
