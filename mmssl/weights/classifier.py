"""Classifiers that others fine-tuned: encoder, pooling and head of a published file or folder."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.nn.heads import LinearHead
from mmssl.tokenizers.image import as_pair
from mmssl.weights.layout import Published, require
from mmssl.weights.load import Modality, agree, check_modality, recognise, resized
from mmssl.weights.published import read_published_file, read_transformers_folder
from mmssl.weights.timm_models import read_timm_classifier


class Classifier(nn.Module):
    """Encoder, pooling, linear head. `classifier(batch) -> logits (B, classes)`.

    The fine-tuned models of MAE, VideoMAE, ST-MAE and Audio-MAE pool the mean of the patch tokens and norm it after
    (`fc_norm`); models without `fc_norm` read the normed cls token, or the first patch token where they have none
    (transformers' VideoMAE without use_mean_pooling).
    """

    def __init__(self, encoder: Encoder, head: LinearHead, pooling: Literal["mean", "cls", "first"]):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pooling = pooling

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.encoder(batch)
        return self.head(features.tokens[:, 0] if self.pooling == "first" else features.pooled(self.pooling))


def load_classifier(
    source: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    frames: int | None = None,
    modality: Modality | None = None,
    heads: int | None = None,
    device: str | torch.device | None = None,
) -> Classifier:
    """A fine-tuned classifier of images, video or audio, in evaluation mode.

    Args:
        source: a `.pth` or `.safetensors` file of the authors of MAE, VideoMAE, ST-MAE or Audio-MAE, or of timm, with
            `head.{weight,bias}`; or a folder or hub name: a transformers ViTForImageClassification or
            VideoMAEForVideoClassification, or a timm ViT.
        image_size: height and width in pixels, as for `mmssl.load`.
        frames: frames of a clip or spectrogram, as for `mmssl.load`.
        modality: what it reads, as for `mmssl.load`.
        heads: attention heads of the encoder, where they are not the published ones for its width.
        device: where to put it; default the CPU.

    Raises:
        MmsslError: as `mmssl.load`; also where the source holds no head.
    """
    kind, path = recognise(source)
    check_modality(modality)
    said = {"image_size_guess": None if image_size is None else as_pair(image_size), "frames": frames}
    encoder = pooling = None
    if kind == "transformers":
        layout, published = read_transformers_folder(path, **said)
    elif kind == "timm folder":
        encoder, published, pooling = read_timm_classifier(path, modality)
    elif kind == "file":
        layout, published = read_published_file(path, modality, heads=heads, **said)
    else:
        raise MmsslError(f"{source} is no fine-tuned classifier of others; read its encoder with mmssl.load.")
    if "head.weight" not in published.state:
        raise MmsslError(f"{source} holds no classifier (no head.weight); read its encoder with mmssl.load.")
    head = _head(published)
    encoder = resized(encoder or layout.encoder(published), image_size, frames)
    agree(source, "heads", heads, encoder.config.heads)
    agree(source, "modality", modality, encoder.modalities[0])
    if pooling is None:
        pooling = "mean" if isinstance(head.norm, nn.LayerNorm) else "cls" if encoder.config.cls_token else "first"
    return Classifier(encoder, head, pooling).to(device or "cpu").eval()


def _head(published: Published) -> LinearHead:
    """The head with its weights, behind a norm where the file has one that comes after pooling."""
    state = published.state
    pooled_norm = "fc_norm.weight" in state
    require(state, ["head.bias"] + ["fc_norm.bias"] * pooled_norm, published.source)
    classes, dim = state["head.weight"].shape
    head = LinearHead(dim, classes, norm=pooled_norm)
    with torch.no_grad():
        for part, name in ((head.fc, "head"), (head.norm, "fc_norm"))[: 1 + pooled_norm]:
            part.weight.copy_(state[f"{name}.weight"])
            part.bias.copy_(state[f"{name}.bias"])
    if pooled_norm:
        head.norm.eps = published.facts.head_norm_eps
    return head
