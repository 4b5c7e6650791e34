"""MV-MAE: the multi-view masked autoencoder of MV-MWM (Seo et al. 2023, arXiv 2302.02408), as the released code has it.

With no views but one and a single frame it is the autoencoder of MWM (Seo et al. 2022, arXiv 2206.14244).
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mmssl.encoder import EncoderConfig
from mmssl.errors import MmsslError, unknown_name
from mmssl.joint_masking import ViewMask
from mmssl.methods.joint import JointAutoencoder, Seen
from mmssl.methods.sizes import SizedConfig
from mmssl.nn.positions import sincos_2d
from mmssl.nn.transformer import BlockConfig
from mmssl.nn.view_decoder import ViewDecoder
from mmssl.registry import register_method
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.tokenizers.conv_video import ConvImageTokenizerConfig, ConvVideoTokenizerConfig
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class MVMAEConfig(SizedConfig):
    """Settings of MV-MAE; the defaults are those of the released code for two cameras."""

    name: str = "mvmae"
    size: Literal["tiny", "small", "base", "large", "huge", "custom"] = "custom"
    dim: int | None = 256
    depth: int | None = 8
    heads: int | None = 4
    views: tuple[str, ...] = ("front", "wrist")
    """Cameras, read as `video/<camera>`; a batch may lack some of them. Without any, clips `video` of one camera."""
    modality: Literal["video", "image"] = "video"
    """Clips, or single images `image/<camera>` (frames 1)."""
    frames: int = 4
    """Frames of a clip; the encoder reads shorter clips too, as the first ones."""
    image_size: int | tuple[int, int] = 96
    """Height and width in pixels, of all views."""
    patch_size: int | tuple[int, int] = 16
    """Side of a patch in pixels; a power of two with early_conv."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    early_conv: bool = True
    """Tokens come out of convolutions over whole frames, and their features are masked; else patches are projected."""
    mask_ratio: float = 0.9
    """Fraction of the tokens to mask, in (0, 1); with hidden views ratio + (1 - ratio) * hidden_views / views."""
    hidden_views: int = 1
    """How many views are hidden wholly, in each sample and frame; fewer where a batch has no more than these."""
    draw: Literal["uniform", "coins"] = "uniform"
    """Which views: each set of them equally often; or by a coin for each view from the first to the last (the released
    code), which of three views or more prefers the first ones. Of two it is the same."""
    loss_on: Literal["all", "masked"] = "all"
    """The loss counts all patches (the released code), or the masked ones alone."""
    decoder_dim: int = 256
    decoder_depth: int = 6
    decoder_heads: int = 4
    drop_path: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("modality", ("video", "image")), ("loss_on", ("all", "masked"))):
            if getattr(self, name) not in allowed:
                raise unknown_name(name, getattr(self, name), allowed)
        if self.modality == "image" and self.frames != 1:
            raise MmsslError(f"images are clips of one frame, got frames {self.frames}; set frames to 1.")
        if self.decoder_dim % 4:
            raise MmsslError(f"decoder_dim must be a multiple of 4, got {self.decoder_dim}.")
        if self.decoder_depth < 1:
            raise MmsslError(f"decoder_depth must be at least 1, got {self.decoder_depth}.")
        self.encoder_config()
        self.decoder_block()
        self.mask_sampler()

    def tokenizer_config(self) -> TokenizerConfig:
        """Settings of the one tokenizer that all views share."""
        names = ("image_size", "patch_size", "mean", "std", "early_conv")
        given = {name: getattr(self, name) for name in names}
        if self.modality == "image":
            return ConvImageTokenizerConfig(**given)
        return ConvVideoTokenizerConfig(frames=self.frames, **given)

    def encoder_config(self) -> EncoderConfig:
        """The encoder: a tokenizer that all views share, and a learned vector of each view."""
        return EncoderConfig(
            tokenizers={self.modality: self.tokenizer_config()},
            **self.encoder_shape(),
            views=self.views,
            type_embedding=True,
            drop_path=self.drop_path,
            norm_eps=self.norm_eps,
        )

    def decoder_block(self) -> BlockConfig:
        """Shape of the decoder's blocks."""
        return BlockConfig(dim=self.decoder_dim, heads=self.decoder_heads, norm_eps=self.norm_eps)

    def mask_sampler(self) -> ViewMask:
        """What draws the masks."""
        return ViewMask(self.mask_ratio, self.hidden_views, self.draw)


@register_method("mvmae")
class MVMAE(JointAutoencoder):
    """Encode a few tokens of all views and frames together, decode every patch of them, compare with the pixels.

    A batch has one view or several, or one of no name; of clips as many frames as the settings say, or fewer.
    """

    config_class = MVMAEConfig

    def __init__(self, config: MVMAEConfig):
        super().__init__(config, config.encoder_config(), config.mask_sampler())
        tokenizer = self.encoder.tokenizers[config.modality]
        self.grid = tokenizer.grid
        self._check_mask()
        self.decoder = ViewDecoder(
            self.encoder.embed_dim,
            tokenizer.patch_dim,
            self.encoder.modalities,
            sincos_2d(config.decoder_dim, self.grid[-2:])[None],
            config.frames,
            config.decoder_block(),
            config.decoder_depth,
        )

    def _check_mask(self) -> None:
        config, views = self.config, len(self.encoder.modalities)
        shown = self.sampler.budget(self.encoder.grids)
        if shown < 1:
            raise MmsslError(
                f"mask_ratio {config.mask_ratio} with {config.hidden_views} of {views} views hidden leaves no patch "
                "visible; lower mask_ratio, or change frames, image_size or patch_size."
            )

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        seen = self.see(batch, masks, keys)
        parts = {name: self._error(name, batch, said, seen) for name, said in self.fill(batch, seen).items()}
        total = sum(value for value, _ in parts.values())
        count = sum(count for _, count in parts.values())
        shown = {f"loss_{name}": (value / n.clamp(min=1)).detach() for name, (value, n) in parts.items()}
        return {"loss": (total, count), **shown}

    def _error(self, name: str, batch: dict[str, Tensor], said: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
        """Squared error of each patch that counts, summed, and their number."""
        error = (said.float() - self.goal(name, batch[name])).square().mean(-1)  # (B, N)
        counted = seen.masks[name] if self.config.loss_on == "masked" else seen.masks[name] | True
        counted = counted & seen.real[name] if name in seen.real else counted
        return (error * counted).sum(), counted.sum().float()

    def fill(self, batch: dict[str, Tensor], seen: Seen) -> dict[str, Tensor]:
        """View -> what the decoder says about every patch, normalised pixels (B, N, P)."""
        found = seen.features
        for name, grid in found.grid.items():
            if grid[-2:] != self.grid[-2:] or self.tokenizer(name).grid != self.grid:
                raise MmsslError(
                    f"the encoder was resized to a lattice of {self.tokenizer(name).grid}, the decoder has {self.grid}."
                )
        lattice = {name: grid[0] if len(grid) == 3 else 1 for name, grid in found.grid.items()}
        return self.decoder(found.tokens, found.index, found.valid, found.cls, lattice)
