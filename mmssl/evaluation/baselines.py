"""What a score is compared with: the same encoder with random weights, and the raw pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.encoder import Features
from mmssl.errors import MmsslError
from mmssl.evaluation.frames import FrameEncoder


def random_like(encoder: nn.Module, seed: int = 0) -> nn.Module:
    """A freshly initialised encoder of the same class and configuration, on the same device, in eval mode."""
    if isinstance(encoder, FrameEncoder):
        return FrameEncoder(random_like(encoder.encoder, seed), encoder.at_once)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(encoder)(encoder.config)
    device = next(iter(encoder.state_dict().values())).device
    return fresh.to(device).requires_grad_(False).eval()


class PixelEncoder(nn.Module):
    """Raw pixels in the place of features: what a probe can read from the picture without any learning before it.

    Tokens are patches of pixels in [0, 1], without positions; those of a clip are patches of two frames. Every fixed
    pooling gives the whole picture or clip as one vector, since an average patch would be a straw man.

    Args:
        modality: the batch key of the images or clips.
        patch_size: height and width of a patch in pixels, after the image was made smaller.
        max_side: larger images are shrunk (area average) until their longer side is at most this; frames of a clip to
            half of it.
    """

    pooling = "flat"  # overrules the pooling that a probe asks for
    without_positions = True

    def __init__(self, modality: str = "image", patch_size: int = 8, max_side: int = 64):
        super().__init__()
        self.modality, self.patch_size, self.max_side = modality, patch_size, max_side
        self.register_buffer("place", torch.empty(0), persistent=False)  # says on which device it works

    def forward(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None) -> Features:
        """(B, C, H, W) or (B, T, C, H, W), uint8 or float in [0, 1] -> `Features` with tokens (B, N, values)."""
        if self.modality not in batch:
            raise MmsslError(f"the batch lacks {self.modality!r}; it has {', '.join(batch)}.")
        x = batch[self.modality]
        clip = x if x.dim() == 5 else x[:, None]  # (B, T, C, H, W)
        frames = clip.flatten(0, 1)
        frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
        frames, grid = self._shrunk(frames, self.max_side // 2 if x.dim() == 5 else self.max_side)
        tokens = F.unfold(frames, self.patch_size, stride=self.patch_size).transpose(1, 2)  # (B * T, N, C * p * p)
        tube = 2 if x.dim() == 5 and clip.shape[1] % 2 == 0 else 1
        tokens = tokens.unflatten(0, (len(x), -1, tube)).transpose(2, 3)  # (B, T / 2, N, 2, C * p * p)
        tokens = tokens.flatten(3).flatten(1, 2)  # (B, T / 2 * N, 2 * C * p * p)
        index = torch.arange(tokens.shape[1], device=x.device).expand(len(x), -1)
        valid = torch.ones(index.shape, dtype=torch.bool, device=x.device)
        grid = (clip.shape[1] // tube, *grid) if x.dim() == 5 else grid
        return Features(tokens, index, valid, None, {self.modality: grid})

    def _shrunk(self, frames: Tensor, most: int) -> tuple[Tensor, tuple[int, int]]:
        """Frames (M, C, H, W) of at most `most` pixels a side, which patches divide, and their lattice."""
        p = self.patch_size
        factor = min(1.0, most / max(frames.shape[2:]))
        size = [max(p, round(side * factor / p) * p) for side in frames.shape[2:]]
        if size != list(frames.shape[2:]):
            frames = F.interpolate(frames, size=size, mode="area" if factor < 1 else "bilinear")
        return frames, (size[0] // p, size[1] // p)
