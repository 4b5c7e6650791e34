"""ST-MAE: masked autoencoders as spatiotemporal learners (Feichtenhofer et al. 2022, arXiv 2205.09113; mae_st)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmssl.encoder import EncoderConfig
from mmssl.methods.pixels import PixelAutoencoder, PixelConfig
from mmssl.nn.gather import gather_tokens
from mmssl.nn.transformer import Attention
from mmssl.registry import register_method
from mmssl.tokenizers.video import VideoTokenizerConfig


@dataclass(frozen=True)
class STMAEConfig(PixelConfig):
    """Settings of ST-MAE; the defaults are the authors' recommended command, with ViT-L."""

    kind: ClassVar[str] = "video"
    masks: ClassVar[tuple[str, ...]] = ("random", "tube")

    name: str = "stmae"
    size: Literal["tiny", "small", "base", "large", "huge", "custom"] = "large"
    frames: int = 16
    """Frames of a clip."""
    tubelet: int = 2
    """Frames of a token; must divide the frames."""
    modality: str = "video"
    """The batch key to learn from: `video`, or one camera, `video/<camera>`."""
    mask_ratio: float = 0.9
    """Fraction of the patches to mask, in (0, 1)."""
    mask: Literal["random", "tube"] = "random"
    """`random` masks any tokens, whatever their place or time; `tube` the same places at every time."""
    norm_pix: bool = True
    """Predict each frame's patch standardised by its own mean and variance; False: normalised pixels."""
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    """The authors' own, not ImageNet's."""
    std: tuple[float, ...] = (0.225, 0.225, 0.225)
    decoder_dim: int = 512
    decoder_depth: int = 4
    decoder_heads: int = 16

    def encoder_config(self) -> EncoderConfig:
        lattice = {name: getattr(self, name) for name in ("frames", "image_size", "patch_size", "tubelet")}
        tokenizer = VideoTokenizerConfig(**lattice, channels=self.channels, mean=self.mean, std=self.std)
        return EncoderConfig(
            tokenizers={self.modality: tokenizer},
            **self.encoder_shape(),
            drop_path=self.drop_path,
            norm_eps=self.norm_eps,
            positions="separable",
        )


@register_method("stmae")
class STMAE(PixelAutoencoder):
    """Encode the visible tubelets, decode the masked ones, compare each with one frame's patch.

    Of T frames T / tubelet are predicted, evenly spread from the first to the last: 8 of 16. Positions are learned, of
    places plus of times; the encoder's cls token stays out of the decoder, which has its own. The authors' separate
    position of a cls token is a part of that token here.
    """

    config_class = STMAEConfig

    def __init__(self, config: STMAEConfig):
        super().__init__(config, own_cls=True)
        for module in self.modules():
            if isinstance(module, Attention):
                xavier_each(module.qkv)
        nn.init.trunc_normal_(self.decoder.cls_token, std=0.02)
        token, position = (nn.init.trunc_normal_(torch.empty(1, 1, self.encoder.embed_dim), std=0.02) for _ in range(2))
        self.encoder.cls_token.data = token + position
        self.register_buffer("shown", target_frames(config.frames, self.grid[0]), persistent=False)

    @property
    def goal_dim(self) -> int:
        return self.tokenizer.patch_dim // self.config.tubelet

    def goal(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Patches of the predicted frames, normalised: (B, N, p * q * C), or the rows at `index`."""
        patches = self.tokenizer.cut(x[:, self.shown], tubelet=1)  # (B, N, C, p * q)
        patches = patches if index is None else gather_tokens(patches, index)
        return self.tokenizer.prepare_patches(patches.mT.flatten(2))


def target_frames(frames: int, count: int) -> Tensor:
    """Which of the frames are predicted: floor(linspace(0, frames - 1, count)), int64 (count,)."""
    return torch.arange(count) * (frames - 1) // max(count - 1, 1)


def xavier_each(qkv: nn.Linear) -> None:
    """Xavier-uniform for q, k and v each as a matrix of its own, as the authors' separate layers have it."""
    for part in qkv.weight.data.chunk(3):
        nn.init.xavier_uniform_(part)
