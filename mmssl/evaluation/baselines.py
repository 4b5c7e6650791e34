"""What a score is compared with: the same encoder with random weights, and the raw pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.encoder import Features
from mmssl.errors import MmsslError


def random_like(encoder: nn.Module, seed: int = 0) -> nn.Module:
    """A freshly initialised encoder of the same class and configuration, on the same device, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(encoder)(encoder.config)
    device = next(iter(encoder.state_dict().values())).device
    return fresh.to(device).requires_grad_(False).eval()


class PixelEncoder(nn.Module):
    """Raw pixels in the place of features: what a probe can read from the picture without any learning before it.

    Tokens are patches of pixels in [0, 1], without positions. Every fixed pooling gives the whole picture as one
    vector, since an average patch would be a straw man.

    Args:
        modality: the batch key of the images.
        patch_size: height and width of a patch in pixels, after the image was made smaller.
        max_side: larger images are shrunk (area average) until their longer side is at most this.
    """

    pooling = "flat"  # overrules the pooling that a probe asks for
    without_positions = True

    def __init__(self, modality: str = "image", patch_size: int = 8, max_side: int = 64):
        super().__init__()
        self.modality, self.patch_size, self.max_side = modality, patch_size, max_side
        self.register_buffer("place", torch.empty(0), persistent=False)  # says on which device it works

    def forward(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None) -> Features:
        """{modality: (B, C, H, W) uint8 or float in [0, 1]} -> Features with tokens (B, N, p * p * C)."""
        if self.modality not in batch:
            raise MmsslError(f"the batch lacks {self.modality!r}; it has {', '.join(batch)}.")
        x = batch[self.modality]
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        p = self.patch_size
        factor = min(1.0, self.max_side / max(x.shape[2:]))
        size = [max(p, round(side * factor / p) * p) for side in x.shape[2:]]
        if size != list(x.shape[2:]):
            x = F.interpolate(x, size=size, mode="area") if factor < 1 else F.interpolate(x, size=size, mode="bilinear")
        grid = (size[0] // p, size[1] // p)
        tokens = F.unfold(x, p, stride=p).transpose(1, 2)  # (B, N, C * p * p)
        index = torch.arange(grid[0] * grid[1], device=x.device).expand(len(x), -1)
        valid = torch.ones(index.shape, dtype=torch.bool, device=x.device)
        return Features(tokens, index, valid, None, {self.modality: grid})
