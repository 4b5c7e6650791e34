"""Classifiers that others fine-tuned: encoder, pooling and head of a published file."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.nn.heads import LinearHead
from mmssl.weights.layout import Facts, require
from mmssl.weights.load import read_published_file
from mmssl.weights.official import build_encoder


class Classifier(nn.Module):
    """Encoder, pooling, linear head. `classifier(batch) -> logits (B, classes)`.

    The MAE authors' fine-tuned models pool the mean of the patch tokens and norm it after (`fc_norm`); models without
    `fc_norm` read the normed cls token.
    """

    def __init__(self, encoder: Encoder, head: LinearHead, pooling: Literal["mean", "cls"]):
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.pooling = pooling

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.encoder(batch).pooled(self.pooling))


def load_classifier(
    path: str | Path, *, heads: int | None = None, device: str | torch.device | None = None
) -> Classifier:
    """A fine-tuned classifier from a file in the MAE authors' or timm's layout, in evaluation mode.

    Args:
        path: `.pth` or `.safetensors` file with `head.{weight,bias}`.
        heads: attention heads of the encoder, where they are not the published ones for its width.
        device: where to put it; default the CPU.

    Raises:
        MmsslError: as `mmssl.load`; also where the file holds no head.
    """
    published = read_published_file(Path(path), Facts(heads=heads))
    state = published.state
    if "head.weight" not in state:
        raise MmsslError(f"{path} holds no classifier (no head.weight); read its encoder with mmssl.load.")
    pooled_norm = "fc_norm.weight" in state
    require(state, ["head.bias"] + ["fc_norm.bias"] * pooled_norm, str(path))
    classes, dim = state["head.weight"].shape
    head = LinearHead(dim, classes, norm=pooled_norm)
    with torch.no_grad():
        for part, name in ((head.fc, "head"), (head.norm, "fc_norm"))[: 1 + pooled_norm]:
            part.weight.copy_(state[f"{name}.weight"])
            part.bias.copy_(state[f"{name}.bias"])
    classifier = Classifier(build_encoder(published), head, "mean" if pooled_norm else "cls")
    return classifier.to(device or "cpu").eval()
