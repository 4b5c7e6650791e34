"""What a score is compared with: the same encoder with random weights, and the raw pixels or spectrograms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.encoder import PICTURES, Features
from mmssl.errors import MmsslError
from mmssl.evaluation.frames import FrameEncoder
from mmssl.evaluation.modalities import ChosenEncoder
from mmssl.tokenizers.audio import AudioTokenizer, audio_tokenizer
from mmssl.tokenizers.vector import copy_statistics


def random_like(encoder: nn.Module, seed: int = 0) -> nn.Module:
    """A freshly initialised encoder of the same class and configuration, on the same device, in eval mode."""
    if isinstance(encoder, FrameEncoder):
        return FrameEncoder(random_like(encoder.encoder, seed), encoder.at_once)
    if isinstance(encoder, ChosenEncoder):
        return ChosenEncoder(random_like(encoder.encoder, seed), encoder.modalities, encoder.asked)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(encoder)(encoder.config)
    copy_statistics(encoder, fresh)
    device = next(iter(encoder.state_dict().values())).device
    return fresh.to(device).requires_grad_(False).eval()


def raw_inputs(encoder: nn.Module, modality: str) -> dict[str, nn.Module]:
    """What stands in the place of features where nothing is learned before the probe, by the name that tables show.

    Of pictures and clips their pixels, and of several modalities those of all that are pictures; of sound the
    statistics of the encoder's spectrogram, and the spectrogram. Of text alone there is nothing.
    """
    if isinstance(encoder, ChosenEncoder):
        pictures = [name for name in encoder.modalities if name.split("/")[0] in PICTURES]
        if not pictures:
            return {}
        if len(pictures) > 1 or pictures[0].split("/")[0] in ("depth", "segmentation"):
            tokenizers = {name: encoder.encoder.tokenizer(name) for name in pictures}
            classes = {name: getattr(tokenizer.config, "classes", 0) for name, tokenizer in tokenizers.items()}
            return {"pixels": SeveralPixels(classes, encoder.asked)}
        modality = pictures[0]
    tokenizer = audio_tokenizer(encoder)
    if tokenizer is None or modality != tokenizer.modality:
        return {"pixels": PixelEncoder(modality)}
    return {"logmel": LogMelStatistics(tokenizer), "spectrogram": SpectrogramEncoder(tokenizer)}


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
        self.modality, self.modalities = modality, (modality,)
        self.patch_size, self.max_side = patch_size, max_side
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


class SeveralPixels(nn.Module):
    """The pixels of several modalities of pictures; depth in metres, ids as one plane a class of at most 16 x 16.

    All have the same lattice. Tokens are padded with zeros to the width of the widest modality's.

    Args:
        classes: modality -> number of classes of a segmentation, 0 for anything else.
        asked: a user named these modalities, as `ChosenEncoder` has it.
    """

    pooling = "flat"
    without_positions = True

    def __init__(self, classes: dict[str, int], asked: bool = False):
        super().__init__()
        self.classes, self.modalities, self.asked = classes, tuple(classes), asked
        sizes = {name: (2, 16) if n else (8, 64) for name, n in classes.items()}
        self.parts = nn.ModuleDict({name: PixelEncoder(name, *size) for name, size in sizes.items()})

    def forward(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None) -> Features:
        """Those of its modalities that a batch has -> `Features` with tokens (B, all N, values)."""
        there = [name for name in self.modalities if name in batch]
        if not there:
            raise MmsslError(f"the batch has none of {', '.join(self.modalities)}; it has {', '.join(batch)}.")
        found = [self.parts[name]({name: self._planes(batch[name], self.classes[name])}) for name in there]
        width = max(features.tokens.shape[2] for features in found)
        tokens = torch.cat([F.pad(f.tokens, (0, width - f.tokens.shape[2])) for f in found], 1)
        index = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        grid = {name: shape for features in found for name, shape in features.grid.items()}
        return Features(tokens, index, torch.ones_like(index, dtype=torch.bool), None, grid)

    @staticmethod
    def _planes(x: Tensor, classes: int) -> Tensor:
        """Ids (B, H, W) -> shares of classes (B, classes, H / 4, W / 4), 0 for ids that are none; the rest as it is."""
        if not classes:
            return x
        return F.avg_pool2d((x[:, None] == torch.arange(classes, device=x.device)[:, None, None]).float(), 4)


class SpectrogramEncoder(PixelEncoder):
    """The log-mel spectrogram itself as a picture, where it is larger shrunk to at most 64 frames or mel bins.

    Args:
        tokenizer: what makes the spectrogram, with its length, its mel bins and its statistics.
    """

    def __init__(self, tokenizer: AudioTokenizer, patch_size: int = 8, max_side: int = 64):
        super().__init__(tokenizer.modality, patch_size, max_side)
        self.tokenizer = tokenizer

    def forward(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None) -> Features:
        """Waveforms (B, 1, S) or raw log-mel (B, 1, T, M) -> `Features` with tokens (B, N, values)."""
        return super().forward({self.modality: self.tokenizer.prepare(_sound(batch, self.modality))})


class LogMelStatistics(nn.Module):
    """Mean and standard deviation over time of each mel bin: what a sound is made of, without any order in time.

    The one token of a sound is (2 M,): M means, then M standard deviations, of the normalised spectrogram. Frames of
    padding do not count.

    Args:
        tokenizer: what makes the spectrogram.
    """

    pooling = "flat"
    without_positions = True

    def __init__(self, tokenizer: AudioTokenizer):
        super().__init__()
        self.modality, self.tokenizer = tokenizer.modality, tokenizer

    def forward(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None) -> Features:
        """Waveforms (B, 1, S) or raw log-mel (B, 1, T, M) -> `Features` with tokens (B, 1, 2 M)."""
        raw = self.tokenizer.spectrogram(_sound(batch, self.modality))[:, 0]  # (B, T, M)
        real = (raw != 0).any(-1) if self.tokenizer.config.pad == "fbank" else torch.ones_like(raw[..., 0]).bool()
        real[:, 0] = True
        weight = real[..., None] / real.sum(1)[:, None, None]  # (B, T, 1)
        levels = self.tokenizer.prepare(raw[:, None])[:, 0]
        mean = (weight * levels).sum(1, keepdim=True)  # (B, 1, M)
        spread = (weight * (levels - mean).square()).sum(1, keepdim=True).sqrt()
        tokens = torch.cat([mean, spread], -1)
        index = torch.zeros(len(tokens), 1, dtype=torch.int64, device=tokens.device)
        return Features(tokens, index, torch.ones_like(index, dtype=torch.bool), None, {self.modality: (1, 1)})


def _sound(batch: dict[str, Tensor], modality: str) -> Tensor:
    if modality not in batch:
        raise MmsslError(f"the batch lacks {modality!r}; it has {', '.join(batch)}.")
    return batch[modality]
