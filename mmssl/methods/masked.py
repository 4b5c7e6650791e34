"""What the masked autoencoders share: encode the visible patches, decode the masked ones, compare."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mmssl.encoder import Encoder, EncoderConfig, Features
from mmssl.errors import MmsslError, unknown_name
from mmssl.losses import masked_mse, norm_pix_target, patch_statistics, undo_norm_pix
from mmssl.masking import MASKS, MaskSampler, ragged_index, visible_index
from mmssl.methods.base import Method, default_keys
from mmssl.methods.sizes import SizedConfig
from mmssl.nn.decoders import MaskedDecoder
from mmssl.nn.transformer import BlockConfig
from mmssl.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class MaskedConfig(SizedConfig):
    """Settings that they all have. A subclass sets `kind` and `masks`, and makes the encoder's config."""

    kind: ClassVar[str] = "image"
    """The batch key to learn from."""
    masks: ClassVar[tuple[str, ...]] = ("random",)
    """Names of the samplers that fit its lattice."""
    lattice: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that say how many patches there are."""
    channels: ClassVar[int] = 1
    """How many values of a patch belong to one place, the fastest in its order."""
    device: ClassVar[str] = "camera"
    """What one of several sources is called."""

    modality: str = ""
    """The batch key to learn from; a subclass names its own."""
    mask_ratio: float = 0.75
    """Fraction of the patches to mask, in (0, 1)."""
    mask: str = "random"
    norm_pix: bool = True
    """Predict each patch standardised by its own mean and variance."""
    decoder_dim: int | None = 512
    decoder_depth: int | None = 8
    decoder_heads: int | None = 16
    drop_path: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask not in self.masks:
            raise unknown_name("mask", self.mask, self.masks)
        if not 0 < self.mask_ratio < 1:
            raise MmsslError(f"mask_ratio must lie strictly between 0 and 1, got {self.mask_ratio}.")
        if self.modality != self.kind and not self.modality.startswith(f"{self.kind}/"):
            raise MmsslError(
                f"{self.name!r} learns from '{self.kind}' or '{self.kind}/<{self.device}>', not from {self.modality!r}."
            )
        if self.decoder_shape()[1] < 1:
            raise MmsslError(f"decoder_depth must be at least 1, got {self.decoder_depth}.")
        self.encoder_config()
        self.decoder_block()
        self.mask_sampler()

    def decoder_shape(self) -> tuple[int, int, int]:
        """Width, depth and heads of the decoder."""
        return self.decoder_dim, self.decoder_depth, self.decoder_heads

    def mask_sampler(self) -> MaskSampler:
        """What draws the masks."""
        return MASKS[self.mask](self.mask_ratio)

    def mask_words(self) -> str:
        """The mask's settings, as errors show them."""
        return f"mask_ratio {self.mask_ratio}"

    def encoder_config(self) -> EncoderConfig:
        """The encoder that these settings describe."""
        raise NotImplementedError

    def decoder_block(self) -> BlockConfig:
        dim, _, heads = self.decoder_shape()
        return BlockConfig(dim=dim, heads=heads, norm_eps=self.norm_eps, qkv_bias=self.encoder_config().qkv_bias)


class Seen(NamedTuple):
    """A batch after the encoder, and where the masked patches are."""

    features: Features
    index: Tensor
    """Places of the masked patches, int64 (B, m)."""
    valid: Tensor | None
    """bool (B, m), False where a row has fewer masked patches; None = all rows have as many."""
    mask: Tensor
    """bool (B, N), True = masked."""


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


class MaskedAutoencoder(Method):
    """Base of the methods. A subclass says what is predicted (`goal`) and how it looks (`picture`).

    `decoder.*` are the decoder's weights, `encoder.*` the encoder's. Keywords of `__init__` are the decoder's.
    """

    hidden_value: ClassVar[float] = 0.0
    """What a masked place looks like."""
    per_channel: ClassVar[bool] = False
    """Norm-pix over each channel by itself (`mmssl.losses.norm_pix_target`)."""
    decoder_class: ClassVar[type[MaskedDecoder]] = MaskedDecoder
    statistics: ClassVar[tuple[str, ...]] = ("visible", "true")
    """Where `reconstruct` may take the mean and variance of a masked patch from."""

    def __init__(self, config: MaskedConfig, **decoder: Any):
        super().__init__(config)
        self.encoder = Encoder(config.encoder_config())
        self.sampler = config.mask_sampler()
        self.grid = self.tokenizer.grid
        self._check_mask()
        self.decoder = self.make_decoder(**decoder)

    def make_decoder(self, **options: Any) -> nn.Module:
        """The decoder, with the options of its class."""
        dim, depth, _ = self.config.decoder_shape()
        positions = self.tokenizer.position_table(dim, self.encoder.config.positions)
        block = self.config.decoder_block()
        return self.decoder_class(self.encoder.embed_dim, self.goal_dim, positions, block, depth, **options)

    def _check_mask(self) -> None:
        visible, total = self.sampler.visible(self.encoder.grids)[self.modality], self.tokenizer.num_tokens
        if not 0 < visible < total:
            ways = ["the mask's ratio", *self.config.lattice]
            raise MmsslError(
                f"{self.config.mask_words()} leaves {visible} of {total} patches visible; at least one must be visible "
                f"and one masked: change {', '.join(ways[:-1])} or {ways[-1]}."
            )

    @property
    def modality(self) -> str:
        """The encoder's modality that is masked and predicted, by whose name masks are given."""
        return self.config.modality

    @property
    def tokenizer(self) -> Tokenizer:
        return self.encoder.tokenizers[self.modality]

    @property
    def goal_dim(self) -> int:
        """Number of values predicted for a token."""
        return self.tokenizer.patch_dim

    def goal(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """What is to be predicted for input x, before norm-pix: (B, N, P) float, or its rows at `index` (B, n)."""
        return self.tokenizer.target(x, index)

    def target(self, x: Tensor, index: Tensor) -> Tensor:
        """What the loss compares with: the goal at `index` (B, n), after norm-pix, (B, n, P)."""
        goal = self.goal(x, index)
        return norm_pix_target(goal, self.per_channel, self.config.channels) if self.config.norm_pix else goal

    def picture(self, patches: Tensor) -> Tensor:
        """Patches (B, N, P) as `goal` has them -> what one looks at, in raw units."""
        return self.tokenizer.restore(self.tokenizer.unpatchify(patches))

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        seen = self._encode(batch, masks, keys)
        patches = self._decode(batch, seen).patches
        return {"loss": masked_mse(patches, self.target(batch[self.modality], seen.index), seen.valid)}

    def _predict(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None, keys: Tensor | None) -> Prediction:
        return self._decode(batch, self._encode(batch, masks, keys))

    def _encode(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None, keys: Tensor | None) -> Seen:
        modality, grids = self.modality, self.encoder.grids
        self.encoder.require(batch, modality)
        if self.tokenizer.grid != self.grid:
            raise MmsslError(f"the encoder was resized to a lattice of {grids[modality]}, the decoder has {self.grid}.")
        if masks is None:
            masks = self.sampler(grids, default_keys(batch, [modality]) if keys is None else keys)
            visible = self.sampler.visible(grids)
            index = visible_index(~masks[modality], self.tokenizer.num_tokens - visible[modality])
            return Seen(self.encoder(batch, masks, visible), index, None, masks[modality])
        features = self.encoder(batch, masks)
        return Seen(features, *ragged_index(~self._explicit(masks)), masks[modality])

    def _decode(self, batch: dict[str, Tensor], seen: Seen) -> Prediction:
        key_mask = None if seen.valid is None else self._key_mask(seen.features.valid, seen.valid)
        patches = self.decode(batch, seen.features, seen.index, key_mask)
        return Prediction(patches, *seen[1:])

    def decode(self, batch: dict[str, Tensor], features: Features, index: Tensor, key_mask: Tensor | None) -> Tensor:
        """Predictions (B, m, P) at the masked places `index` (B, m) from the features of the visible ones."""
        return self.decoder(features.tokens, features.index, index, features.cls, key_mask)

    def _explicit(self, masks: dict[str, Tensor]) -> Tensor:
        if self.modality not in masks:
            raise MmsslError(f"masks must hold {self.modality!r}, got {sorted(masks)}.")
        return masks[self.modality]

    def _key_mask(self, visible: Tensor, masked: Tensor) -> Tensor:
        """bool (B, [1 +] n + m), True = a real token of the decoder's sequence."""
        key_mask = torch.cat([visible, masked], dim=1)
        has_cls = self.encoder.cls_token is not None or self.decoder.cls_token is not None
        return nn.functional.pad(key_mask, (1, 0), value=True) if has_cls else key_mask

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
        authors' demos do, which leaks the answer: label it so wherever it is shown. A raw-pixel model needs neither.

        Returns:
            mask: bool (B, N), True = masked.
            target: what is predicted, float32 as `picture` has it: (B, [T,] C, H, W) in [0, 1] of pixels, raw log-mel
                (B, 1, T, M) of sound.
            masked: the same with one value in place of the masked patches: grey, or silence.
            prediction: the same with the masked patches filled in; visible patches are those of the input.
            prediction_patches: (B, N, P) in the space of the loss, zeros where visible.
            target_patches: (B, N, P) in the space of the loss.
        """
        if patch_stats not in self.statistics:
            raise unknown_name("patch_stats", patch_stats, self.statistics)
        prediction = self._predict(batch, masks, keys)
        mask = prediction.mask[..., None]  # (B, N, 1)
        patches = target_patches = self.goal(batch[self.modality])  # (B, N, P)
        place = prediction.index[..., None].expand_as(prediction.patches)
        pixels = predicted = torch.zeros_like(patches).scatter(1, place, prediction.patches.float()) * mask
        if self.config.norm_pix:
            target_patches = norm_pix_target(patches, self.per_channel, self.config.channels)
            pixels = undo_norm_pix(predicted, *self._statistics(batch, patches, prediction.mask, patch_stats))
        target, hidden = self.picture(patches), self.tokenizer.unpatchify(mask.expand_as(patches))
        return {
            "mask": prediction.mask,
            "target": target,
            "masked": torch.where(hidden, self.hidden_value, target),
            "prediction": self.picture(torch.where(mask, pixels, patches)),
            "prediction_patches": predicted,
            "target_patches": target_patches,
        }

    def _statistics(
        self, batch: dict[str, Tensor], patches: Tensor, mask: Tensor, patch_stats: str
    ) -> tuple[Tensor, Tensor]:
        """Mean and scale of each patch, each (B, N, 1 or C)."""
        stats = torch.cat(patch_statistics(patches, self.per_channel, self.config.channels), dim=-1)
        return (fill_in(stats, mask, self.grid) if patch_stats == "visible" else stats).chunk(2, dim=-1)


def fill_in(values: Tensor, mask: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Values (B, N, C) with the masked places filled from the visible ones, weighted by squared inverse distance."""
    axes = torch.meshgrid(*(torch.arange(n, device=values.device) for n in grid), indexing="ij")
    place = torch.stack([axis.flatten() for axis in axes], dim=1).float()  # (N, axes)
    weight = 1 / torch.cdist(place, place).square().clamp(min=1e-3)  # (N, N)
    weight = weight[None] * (~mask)[:, None, :]  # (B, N, N)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.where(mask[..., None], weight @ values, values)
