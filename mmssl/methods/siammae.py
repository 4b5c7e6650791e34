"""SiamMAE: siamese masked autoencoders (Gupta et al. 2023, arXiv 2305.14344), whose authors gave no code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmssl.encoder import EncoderConfig, Features
from mmssl.errors import MmsslError, unknown_name
from mmssl.losses import patch_statistics
from mmssl.methods.pixels import PixelAutoencoder, PixelConfig
from mmssl.nn.cross_decoder import ORDERS, CrossDecoder
from mmssl.nn.transformer import BlockConfig
from mmssl.registry import register_method
from mmssl.tokenizers.image import ImageTokenizerConfig

DECODERS: dict[str, tuple[int, int, int]] = {
    "tiny": (128, 4, 4),
    "small": (256, 4, 8),
    "base": (512, 8, 16),
    "large": (1024, 12, 16),
    "huge": (1024, 12, 16),
    "custom": (256, 4, 8),
}
"""Width, depth and heads of the decoder beside each size of encoder: S is the paper's, B and L are CropMAE's code's."""


@dataclass(frozen=True)
class SiamMAEConfig(PixelConfig):
    """Settings of SiamMAE; the defaults are the paper's ViT-S/16 (its best model has patches of 8)."""

    kind: ClassVar[str] = "video"

    name: str = "siammae"
    size: Literal["tiny", "small", "base", "large", "huge", "custom"] = "small"
    modality: str = "video"
    """The batch key to learn from: `video`, or one camera, `video/<camera>`; two frames, past and future."""
    mask_ratio: float = 0.95
    """Fraction of the future frame's patches to mask, in (0, 1); of the past frame none is masked."""
    mask: Literal["random"] = "random"
    norm_pix: bool = True
    """Predict each patch standardised by its own mean and variance; False: normalised pixels."""
    decoder_order: Literal["rsp", "cropmae"] = "rsp"
    """Order of a decoder block: cross-attention, self-attention, MLP, pre-norm (RSP's code); or cross-attention, MLP,
    self-attention, post-norm (CropMAE's code). The paper does not say."""
    decoder_dim: int | None = None
    """Decoder width; None: the size's own. So with depth and heads."""
    decoder_depth: int | None = None
    decoder_heads: int | None = None
    decoder_hidden: int | None = None
    """Hidden width of the decoder's MLPs; None: 4 times its width (rsp), or 2048 (cropmae)."""
    decoder_drop: float | None = None
    """Dropout in the decoder, of attention weights too; None: 0 (rsp), or .1 (cropmae)."""

    def __post_init__(self) -> None:
        if self.decoder_order not in ORDERS:
            raise unknown_name("decoder_order", self.decoder_order, ORDERS)
        if self.decoder_hidden is not None and self.decoder_hidden < 1:
            raise MmsslError(f"decoder_hidden must be at least 1, got {self.decoder_hidden}.")
        if self.decoder_drop is not None and not 0 <= self.decoder_drop < 1:
            raise MmsslError(f"decoder_drop must be in [0, 1), got {self.decoder_drop}.")
        super().__post_init__()
        if self.decoder_shape()[0] % 4:
            raise MmsslError(f"decoder_dim must be a multiple of 4, got {self.decoder_dim}.")

    def encoder_config(self) -> EncoderConfig:
        """MAE's encoder, of single images."""
        image = ImageTokenizerConfig("image", self.image_size, self.patch_size, self.channels, self.mean, self.std)
        options = {"drop_path": self.drop_path, "norm_eps": self.norm_eps}
        return EncoderConfig(tokenizers={"image": image}, **self.encoder_shape(), **options)

    def decoder_shape(self) -> tuple[int, int, int]:
        given = (self.decoder_dim, self.decoder_depth, self.decoder_heads)
        return tuple(b if a is None else a for a, b in zip(given, DECODERS[self.size], strict=True))

    def decoder_block(self) -> BlockConfig:
        dim, _, heads = self.decoder_shape()
        hidden, drop = (4 * dim, 0.0) if self.decoder_order == "rsp" else (2048, 0.1)
        hidden = hidden if self.decoder_hidden is None else self.decoder_hidden
        drop = drop if self.decoder_drop is None else self.decoder_drop
        ratio = (hidden + 0.5) / dim  # half a unit more, so that rounding takes none away in int(dim * ratio)
        return BlockConfig(dim, heads, ratio, norm_eps=self.norm_eps, drop=drop, attn_drop=drop)


@register_method("siammae")
class SiamMAE(PixelAutoencoder):
    """Encode a past frame whole and a future frame almost wholly masked, decode the future's patches from both.

    The batch has `video` (B, 2, C, H, W), past and future. The encoder is one of single images, exactly MAE's, shared
    by both frames; masks given to `forward` are the future frame's, {"image": bool (B, N)}.
    """

    config_class = SiamMAEConfig
    decoder_class = CrossDecoder
    statistics = ("past", "true")

    def __init__(self, config: SiamMAEConfig):
        super().__init__(config, order=config.decoder_order)

    @property
    def modality(self) -> str:
        return "image"

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        return super().forward(self._pair(batch), masks, keys)

    def check(self, batch: dict[str, Tensor]) -> None:
        pair = self._pair(batch)
        for frame in (pair["past"], pair["image"]):
            self.encoder.check({"image": frame})

    def decode(self, batch: dict[str, Tensor], features: Features, index: Tensor, key_mask: Tensor | None) -> Tensor:
        past = self.encoder({"image": batch["past"]})
        context = torch.cat([past.cls[:, None], past.tokens], dim=1)  # (B, 1 + N, D)
        return self.decoder(features.tokens, features.index, index, features.cls, key_mask, context=context)

    def reconstruct(
        self,
        batch: dict[str, Tensor],
        masks: dict[str, Tensor] | None = None,
        keys: Tensor | None = None,
        patch_stats: Literal["past", "true"] = "past",
    ) -> dict[str, Tensor]:
        """Fill in the masked patches of the future frame, as `MaskedAutoencoder.reconstruct`.

        `patch_stats` says where a norm-pix model takes the mean and variance of a masked patch from: "past", the past
        frame's patch at the same place; or "true", the masked patch itself, which leaks the answer.

        Returns:
            target, masked and prediction are (B, 2, C, H, W), their first frame the past as it is; mask and patches are
            the future frame's.
        """
        pair = self._pair(batch)
        found = super().reconstruct(pair, masks, keys, patch_stats)
        past = self.picture(self.goal(pair["past"]))
        shown = {name: torch.stack([past, found[name]], dim=1) for name in ("target", "masked", "prediction")}
        return found | shown

    def _statistics(
        self, batch: dict[str, Tensor], patches: Tensor, mask: Tensor, patch_stats: str
    ) -> tuple[Tensor, Tensor]:
        return patch_statistics(self.goal(batch["past"]) if patch_stats == "past" else patches)

    def _pair(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with its frames apart: `image` is the future and `past` the past, (B, C, H, W) each."""
        name, image = self.config.modality, self.tokenizer.config
        if not isinstance(batch, Mapping) or not isinstance(batch.get(name), Tensor):
            held = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise MmsslError(
                f"the batch lacks {name!r}, pairs of frames as a tensor (batch, 2, C, H, W): it is {held}."
            )
        wanted, shape = (2, image.channels, *image.image_size), tuple(batch[name].shape)
        if shape[1:] != wanted:
            pair = len(shape) == 5 and shape[1] == 2
            raise MmsslError(
                f"{name!r} must have the shape (batch, {', '.join(map(str, wanted))}), past and future, got {shape}; "
                + (f"set data.image_size to {list(image.image_size)}." if pair else "set data.clip.how to pair.")
            )
        past, future = batch[name].unbind(1)
        return {**batch, "past": past, "image": future}
