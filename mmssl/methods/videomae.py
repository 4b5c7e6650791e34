"""VideoMAE (Tong et al. 2022, arXiv 2203.12602), as the authors' PyTorch code has it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmssl.encoder import EncoderConfig
from mmssl.losses import norm_pix_channels
from mmssl.methods.pixels import PixelAutoencoder, PixelConfig
from mmssl.nn.gather import gather_tokens
from mmssl.registry import register_method
from mmssl.tokenizers.video import VideoTokenizerConfig

DECODERS: dict[str, tuple[int, int, int]] = {
    "tiny": (96, 4, 3),
    "small": (192, 4, 3),
    "base": (384, 4, 6),
    "large": (512, 12, 8),
    "huge": (640, 12, 8),
}
"""Width, depth and heads of the decoder beside each size of encoder; S to H are the authors', tiny is ours."""


@dataclass(frozen=True)
class VideoMAEConfig(PixelConfig):
    """Settings of VideoMAE; the defaults are the paper's ViT-B on Kinetics-400."""

    kind: ClassVar[str] = "video"
    masks: ClassVar[tuple[str, ...]] = ("tube", "random")

    name: str = "videomae"
    frames: int = 16
    """Frames of a clip."""
    tubelet: int = 2
    """Frames of a token; must divide the frames."""
    modality: str = "video"
    """The batch key to learn from: `video`, or one camera, `video/<camera>`."""
    mask_ratio: float = 0.9
    """Fraction of the patches to mask, in (0, 1); the authors take .75 on UCF101."""
    mask: Literal["tube", "random"] = "tube"
    """`tube` masks the same places at every time; `random` any tokens."""
    norm_pix: bool = True
    """Predict each patch standardised by the mean and variance of each of its channels; False: pixels in [0, 1]."""
    decoder_dim: int | None = None
    """Decoder width; None: the size's own, half the encoder's for `custom`. So with depth (4) and heads (half)."""
    decoder_depth: int | None = None
    decoder_heads: int | None = None

    def decoder_shape(self) -> tuple[int, int, int]:
        encoder = self.encoder_shape()
        half = (encoder["dim"] // 2, 4, max(1, encoder["heads"] // 2))
        given = (self.decoder_dim, self.decoder_depth, self.decoder_heads)
        return tuple(b if a is None else a for a, b in zip(given, DECODERS.get(self.size, half), strict=True))

    def encoder_config(self) -> EncoderConfig:
        lattice = {name: getattr(self, name) for name in ("frames", "image_size", "patch_size", "tubelet")}
        tokenizer = VideoTokenizerConfig(**lattice, channels=self.channels, mean=self.mean, std=self.std)
        return EncoderConfig(
            tokenizers={self.modality: tokenizer},
            **self.encoder_shape(),
            drop_path=self.drop_path,
            norm_eps=self.norm_eps,
            qkv_bias="qv",
            cls_token=False,
            positions="sinusoid",
        )


@register_method("videomae")
class VideoMAE(PixelAutoencoder):
    """Encode the visible tubelets, decode the masked ones, compare with their pixels.

    The target is made of pixels in [0, 1], norm-pix over each channel by itself. There is no cls token, no bias of k
    and none on the way into the decoder; positions are fixed. Linear layers start xavier-uniform, the patch embedding
    as torch's Conv3d, the mask token truncated normal.
    """

    config_class = VideoMAEConfig
    per_channel = True

    def __init__(self, config: VideoMAEConfig):
        super().__init__(config, embed_bias=False)
        self.tokenizer.proj.reset_parameters()  # torch draws a linear layer as a convolution of the same fan-in
        nn.init.trunc_normal_(self.decoder.mask_token, std=0.02, a=-0.02, b=0.02)

    def goal(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Patches of pixels in [0, 1]."""
        patches = self._raw(x, index).mT.flatten(2).float()
        return patches / 255 if x.dtype == torch.uint8 else patches

    def target(self, x: Tensor, index: Tensor) -> Tensor:
        return norm_pix_channels(self._raw(x, index)) if self.config.norm_pix else self.goal(x, index)

    def _raw(self, x: Tensor, index: Tensor | None) -> Tensor:
        """Patches as they travel, the channel slowest: (B, n, C, P / C)."""
        patches = self.tokenizer.cut(x)
        return patches if index is None else gather_tokens(patches, index)

    def picture(self, patches: Tensor) -> Tensor:
        return self.tokenizer.unpatchify(patches).clamp(0, 1)

    def no_decay(self) -> set[str]:
        """The mask token does not decay, nor would trained positions."""
        return {"mask_token", "pos_embed", "cls_token"}
