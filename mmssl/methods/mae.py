"""MAE: masked autoencoders (He et al. 2022, arXiv 2111.06377), as the authors' PyTorch code has it."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmssl.encoder import SIZES, Encoder, EncoderConfig
from mmssl.errors import MmsslError, unknown_name
from mmssl.losses import masked_mse, norm_pix_target
from mmssl.masking import MASKS, ragged_index, visible_index
from mmssl.methods.base import Method, MethodConfig, default_keys
from mmssl.nn.decoders import MaskedDecoder
from mmssl.nn.transformer import BlockConfig
from mmssl.registry import register_method
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD, ImageTokenizer, ImageTokenizerConfig


@dataclass(frozen=True)
class MAEConfig(MethodConfig):
    """Settings of MAE; the defaults are the paper's ViT-B/16."""

    name: str = "mae"
    size: Literal["tiny", "small", "base", "large", "huge", "custom"] = "base"
    """Named encoder size; `custom` takes dim, depth and heads from below."""
    dim: int | None = None
    """Encoder width, in place of the size's."""
    depth: int | None = None
    """Number of encoder blocks, in place of the size's."""
    heads: int | None = None
    """Encoder attention heads, in place of the size's."""
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels (the paper's huge model has 14)."""
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    modality: str = "image"
    """The batch key to learn from: `image`, or one camera, `image/<camera>`."""
    mask_ratio: float = 0.75
    """Fraction of the patches to mask, in (0, 1)."""
    mask: Literal["random", "block", "grid"] = "random"
    norm_pix: bool = True
    """Predict each patch standardised by its own mean and variance; False: normalised pixels."""
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    drop_path: float = 0.0
    layer_scale: float | None = None
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.size != "custom" and self.size not in SIZES:
            raise unknown_name("size", self.size, (*SIZES, "custom"))
        if self.mask not in MASKS:
            raise unknown_name("mask", self.mask, MASKS)
        if not 0 < self.mask_ratio < 1:
            raise MmsslError(f"mask_ratio must lie strictly between 0 and 1, got {self.mask_ratio}.")
        missing = [n for n in ("dim", "depth", "heads") if getattr(self, n) is None]
        if self.size == "custom" and missing:
            raise MmsslError(f"size 'custom' needs dim, depth and heads; {', '.join(missing)} not given.")
        if self.modality != "image" and not self.modality.startswith("image/"):
            raise MmsslError(f"MAE learns from 'image' or 'image/<camera>', not from {self.modality!r}.")
        if self.decoder_depth < 1:
            raise MmsslError(f"decoder_depth must be at least 1, got {self.decoder_depth}.")
        if self.decoder_dim % 4:
            raise MmsslError(f"decoder_dim must be a multiple of 4, got {self.decoder_dim}.")
        self.encoder_config()
        self.decoder_block()

    def encoder_config(self) -> EncoderConfig:
        """The encoder that these settings describe."""
        named = SIZES.get(self.size, (None, None, None))
        given = (self.dim, self.depth, self.heads)
        dim, depth, heads = (b if a is None else a for a, b in zip(given, named, strict=True))
        tokenizer = ImageTokenizerConfig("image", self.image_size, self.patch_size, self.channels, self.mean, self.std)
        return EncoderConfig(
            tokenizers={self.modality: tokenizer},
            dim=dim,
            depth=depth,
            heads=heads,
            drop_path=self.drop_path,
            layer_scale=self.layer_scale,
            norm_eps=self.norm_eps,
        )

    def decoder_block(self) -> BlockConfig:
        return BlockConfig(dim=self.decoder_dim, heads=self.decoder_heads, norm_eps=self.norm_eps)


@register_method("mae")
class MAE(Method):
    """Encode the visible patches, decode the masked ones, compare with the pixels.

    `decoder.*` are the decoder's weights, `encoder.*` the encoder's.
    """

    config_class = MAEConfig

    def __init__(self, config: MAEConfig):
        super().__init__(config)
        self.encoder = Encoder(config.encoder_config())
        self.sampler = MASKS[config.mask](config.mask_ratio)
        self.grid = self.tokenizer.grid
        positions = self.tokenizer.position_table(config.decoder_dim, "sincos")
        self.decoder = MaskedDecoder(
            self.encoder.embed_dim, self.tokenizer.patch_dim, positions, config.decoder_block(), config.decoder_depth
        )
        visible = self.sampler.visible(self.encoder.grids)[config.modality]
        if not 0 < visible < self.tokenizer.num_tokens:
            raise MmsslError(
                f"mask_ratio {config.mask_ratio} leaves {visible} of {self.tokenizer.num_tokens} patches visible; "
                "at least one must be visible and one masked: change mask_ratio, image_size or patch_size."
            )

    @property
    def tokenizer(self) -> ImageTokenizer:
        return self.encoder.tokenizers[self.config.modality]

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        prediction = self._predict(batch, masks, keys)
        target = self.tokenizer.target(batch[self.config.modality], prediction.index)  # (B, m, P)
        if self.config.norm_pix:
            target = norm_pix_target(target)
        return {"loss": masked_mse(prediction.patches, target, prediction.valid)}

    def _predict(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None, keys: Tensor | None) -> "Prediction":
        modality, grids = self.config.modality, self.encoder.grids
        self.encoder.require(batch, modality)
        if self.tokenizer.grid != self.grid:
            raise MmsslError(f"the encoder was resized to a lattice of {grids[modality]}, the decoder has {self.grid}.")
        if masks is None:
            masks = self.sampler(grids, default_keys(batch, [modality]) if keys is None else keys)
            visible = self.sampler.visible(grids)
            features = self.encoder(batch, masks, visible)
            index = visible_index(~masks[modality], self.tokenizer.num_tokens - visible[modality])
            valid = key_mask = None
        else:
            features = self.encoder(batch, masks)
            index, valid = ragged_index(~self._explicit(masks))
            cls = torch.ones_like(features.valid[:, :1])
            key_mask = None if valid is None else torch.cat([cls, features.valid, valid], dim=1)
        patches = self.decoder(features.tokens, features.index, index, features.cls, key_mask)
        return Prediction(patches, index, valid, masks[modality])

    def _explicit(self, masks: dict[str, Tensor]) -> Tensor:
        if self.config.modality not in masks:
            raise MmsslError(f"masks must hold {self.config.modality!r}, got {sorted(masks)}.")
        return masks[self.config.modality]

    @torch.no_grad()
    def reconstruct(
        self,
        batch: dict[str, Tensor],
        masks: dict[str, Tensor] | None = None,
        keys: Tensor | None = None,
        patch_stats: Literal["visible", "true"] = "visible",
    ) -> dict[str, Tensor]:
        """Fill in the masked patches.

        A norm-pix model predicts patches without their mean and variance. `patch_stats` says where these come from:
        "visible" estimates them from the visible patches; "true" takes them from the masked patches themselves, as the
        authors' demo does, which leaks the answer: label it so wherever it is shown. A raw-pixel model needs neither.

        Returns:
            mask: bool (B, N), True = masked.
            prediction: (B, C, H, W) float32 in [0, 1]; visible patches are those of the input.
            target: the input as (B, C, H, W) float32 in [0, 1].
            prediction_patches: (B, N, P) in the space of the loss, zeros where visible.
            target_patches: (B, N, P) in the space of the loss.
        """
        if patch_stats not in ("visible", "true"):
            raise unknown_name("patch_stats", patch_stats, ("visible", "true"))
        tokenizer, norm_pix = self.tokenizer, self.config.norm_pix
        prediction = self._predict(batch, masks, keys)
        masked = prediction.mask[..., None]  # (B, N, 1)
        patches = tokenizer.target(batch[self.config.modality])  # (B, N, P)
        place = prediction.index[..., None].expand_as(prediction.patches)
        predicted = torch.zeros_like(patches).scatter(1, place, prediction.patches.float()) * masked
        pixels = predicted
        if norm_pix:
            var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
            stats = torch.cat([mean, (var + 1e-6).sqrt()], dim=-1)  # (B, N, 2)
            if patch_stats == "visible":
                stats = fill_in(stats, prediction.mask, tokenizer.grid)
            pixels = predicted * stats[..., 1:] + stats[..., :1]
        pixels = torch.where(masked, pixels, patches)
        return {
            "mask": prediction.mask,
            "prediction": tokenizer.restore(tokenizer.unpatchify(pixels)).clamp(0, 1),
            "target": tokenizer.restore(tokenizer.unpatchify(patches)).clamp(0, 1),
            "prediction_patches": predicted,
            "target_patches": norm_pix_target(patches) if norm_pix else patches,
        }


class Prediction(NamedTuple):
    """What the decoder says about the masked patches."""

    patches: Tensor
    """(B, m, P)."""
    index: Tensor
    """Their places, int64 (B, m)."""
    valid: Tensor | None
    """bool (B, m), False where a row has fewer masked patches; None = all count."""
    mask: Tensor
    """bool (B, N), True = masked."""


def fill_in(values: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Values (B, N, C) with the masked places filled from the visible ones, weighted by squared inverse distance."""
    row, column = torch.meshgrid(*(torch.arange(n, device=values.device) for n in grid), indexing="ij")
    place = torch.stack([row.flatten(), column.flatten()], dim=1).float()  # (N, 2)
    weight = 1 / torch.cdist(place, place).square().clamp(min=1e-3)  # (N, N)
    weight = weight[None] * (~mask)[:, None, :]  # (B, N, N)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.where(mask[..., None], weight @ values, values)
