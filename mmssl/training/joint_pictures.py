"""What a run over several modalities shows: each filled in, each from one other alone, and words in their places."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.data.text import TextEncoding, text_encoder
from mmssl.methods.joint import JointAutoencoder, is_picture
from mmssl.report.modalities import FILE, TEXTS
from mmssl.training import atomic

_CROSSED = 3  # samples of which each modality is predicted from each other


@torch.no_grad()
def save_modalities(method: JointAutoencoder, batch: dict[str, Tensor], folder: Path) -> None:
    """Write `modalities.npz` and `texts.json`, as `mmssl.report.modalities` reads them.

    Args:
        batch: held-out samples; those that have every modality are shown, where there are any.
    """
    batch = _complete(method, batch)
    found = method.reconstruct(batch)
    names = [key.removeprefix("target/") for key in found if key.startswith("target/")]
    pictures = [name for name in names if is_picture(name)]
    if pictures:
        arrays = {f"original/{name}": values_of(name, found[f"target/{name}"]) for name in pictures}
        arrays |= {f"masked/{name}": _masked(method, name, found) for name in pictures}
        arrays |= {f"reconstructed/{name}": values_of(name, found[f"prediction/{name}"]) for name in pictures}
        np.savez_compressed(folder / FILE, names=np.array(pictures), **arrays, **crossed(method, batch, pictures))
    if "text" in names:
        atomic.write_text(folder / TEXTS, json.dumps(texts(method, batch, found), ensure_ascii=False) + "\n")


def _complete(method: JointAutoencoder, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows that lack nothing; all of them where every row lacks something."""
    whole = torch.ones(len(batch["index"]), dtype=torch.bool, device=batch["index"].device)
    for real in method.encoder.valid(batch).values():
        whole &= real.any(1)
    return {key: x[whole] for key, x in batch.items()} if bool(whole.any()) else batch


def crossed(method: JointAutoencoder, batch: dict[str, Tensor], names: list[str]) -> dict[str, np.ndarray]:
    """ "<from>><to>" -> values of the one, predicted from the other alone, everything else hidden or left out."""
    batch, found = {key: x[:_CROSSED] for key, x in batch.items()}, {}
    read = method.encoder.present(batch)
    for given in [name for name in names if name in read] if len(names) > 1 else []:
        others = [name for name in read if name != given]
        filled = method.reconstruct(batch, masks=method.hide(batch, *others))
        for wanted in names:
            if wanted != given:
                found[f"{given}>{wanted}"] = values_of(wanted, filled[f"prediction/{wanted}"])
    return found


def values_of(name: str, picture: Tensor) -> np.ndarray:
    """uint8 (n, [T,] H, W, 3) of pixels in [0, 1]; float32 or int64 (n, H, W) of depth or ids."""
    kind = name.split("/")[0]
    if kind == "depth":
        return picture[:, 0].float().cpu().numpy()
    if kind == "segmentation":
        return picture.cpu().numpy()
    return (picture.clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()


def _masked(method: JointAutoencoder, name: str, found: dict[str, Tensor]) -> np.ndarray:
    """As `values_of`; what is hidden of depth is NaN: its own value for it could be a depth."""
    if not name.startswith("depth"):
        return values_of(name, found[f"masked/{name}"])
    tokenizer, mask = method.tokenizer(name), found[f"mask/{name}"]
    covered = tokenizer.unpatchify(mask[..., None].expand(-1, -1, tokenizer.patch_dim))
    return values_of(name, found[f"target/{name}"].masked_fill(covered, torch.nan))


def texts(method: JointAutoencoder, batch: dict[str, Tensor], found: dict[str, Tensor]) -> list[list[tuple]]:
    """Of each text its pieces as (text, state, truth): given, or filled in right or wrong; neighbours alike joined."""
    config = method.encoder.tokenizer("text").config
    encoder = text_encoder(TextEncoding(config.vocabulary, config.length, config.special))
    rows = []
    for row, mask in enumerate(found["mask/text"]):
        real = batch["text_mask"][row]
        said, true = (found[f"{key}/text"][row][real] for key in ("prediction", "target"))
        states = [("given" if not m else "right" if s == t else "wrong") for m, s, t in
                  zip(mask[real].tolist(), said.tolist(), true.tolist(), strict=True)]  # fmt: skip
        rows.append(_pieces(encoder, said, true, states))
    return rows


def _pieces(encoder: Any, said: Tensor, true: Tensor, states: list[str]) -> list[tuple]:
    pieces, start = [], 0
    for end in range(1, len(states) + 1):
        if end == len(states) or states[end] != states[start]:
            shown, truth = (encoder.decode(ids[None, start:end])[0] for ids in (said, true))
            pieces.append((shown, states[start], truth))
            start = end
    return pieces
