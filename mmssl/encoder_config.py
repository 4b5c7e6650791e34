"""The settings of an encoder, and its named sizes."""

from dataclasses import dataclass, field
from typing import Any, Literal

from mmssl.errors import MmsslError
from mmssl.nn.resnets import resnet_dim
from mmssl.nn.transformer import BlockConfig
from mmssl.tokenizers.base import Positions, TokenizerConfig
from mmssl.tokenizers.conv_map import ConvMapTokenizerConfig
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.resnet import ResNetTokenizerConfig

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
"""Width, depth and heads of the named sizes: ViT-Ti, S, B, L and H."""


_CONVOLUTIONS = (ConvMapTokenizerConfig, ResNetTokenizerConfig)  # whole networks, which need no trunk
_PLAIN = {"depth": 0, "heads": 1, "cls_token": False, "final_norm": False, "positions": "none"}

PICTURES = ("image", "video", "depth", "segmentation")
"""What a camera gives; each camera may have its own, `image/<camera>`."""


def _one_image() -> dict[str, TokenizerConfig]:
    return {"image": ImageTokenizerConfig()}


@dataclass(frozen=True)
class EncoderConfig:
    """Shape and options of an encoder."""

    tokenizers: dict[str, TokenizerConfig] = field(default_factory=_one_image)
    """Batch key -> settings of its tokenizer."""
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: Literal["full", "qv", "none"] = "full"
    norm_eps: float = 1e-6
    gelu: Literal["exact", "tanh", "quick"] = "exact"
    norm: Literal["pre", "post"] = "pre"
    layer_scale: float | None = None
    drop_path: float = 0.0
    """Drop path of the last block; it grows linearly from 0 at the first."""
    drop: float = 0.0
    attn_drop: float = 0.0
    """Dropout of the attention weights."""
    cls_token: bool = True
    final_norm: bool = True
    """LayerNorm after the last block."""
    pre_norm: bool = False
    """LayerNorm before the first block (CLIP)."""
    causal: bool = False
    """Each token looks at itself and at those before it alone (CLIP's text)."""
    type_embedding: bool = False
    """A learned vector of each modality, or of each view, is added to its tokens (M3AE)."""
    views: tuple[str, ...] = ()
    """Cameras that share the tokenizers of pictures: `image` is then read from `image/<camera>` of each. A batch with
    `image` alone is one view of no name, which takes the mean of the views' type vectors."""
    positions: Positions = "sincos"
    """Fixed tables with the column first (MAE) or the row first (`sincos_row`), VideoMAE's `sinusoid`, learned ones
    (`learned`, ST-MAE's `separable`), half of the fixed ones (`sincos_half`, MTM), or none."""

    def __post_init__(self) -> None:
        if not self.tokenizers:
            raise MmsslError("an encoder needs at least one tokenizer.")
        if any("." in name for name in self.tokenizers):
            raise MmsslError(f"modality names cannot hold a dot, got {list(self.tokenizers)}; rename the camera.")
        convolutions = all(isinstance(config, _CONVOLUTIONS) for config in self.tokenizers.values())
        if self.depth < (0 if convolutions else 1):
            raise MmsslError(f"depth must be at least 1 (0 for convolutions alone), got {self.depth}.")
        if len(set(self.views)) < len(self.views) or any("." in view for view in self.views):
            raise MmsslError(f"views must be different names without a dot, got {list(self.views)}.")
        if self.views and not any(name in PICTURES for name in self.tokenizers):
            raise MmsslError(f"views are of {', '.join(PICTURES)}; this encoder reads {', '.join(self.tokenizers)}.")
        self.block(0)

    @classmethod
    def of_convolutions(cls, filters: int = 32, modality: str = "image", **settings: Any) -> "EncoderConfig":
        """A convolutional network and nothing else: tokens are the last map (D = `filters`), there is no cls.

        Args:
            settings: of the tokenizer `conv_map`: image_size, channels, layers, mean, std, start.
        """
        return cls({modality: ConvMapTokenizerConfig(**settings)}, dim=filters, **_PLAIN)

    @classmethod
    def of_resnet(cls, modality: str = "image", **settings: Any) -> "EncoderConfig":
        """A ResNet and nothing else: tokens are its last map, there is no cls.

        Args:
            settings: of the tokenizer `resnet`: network, width, image_size, channels, mean, std.
        """
        config = ResNetTokenizerConfig(**settings)
        return cls({modality: config}, dim=resnet_dim(config.network, config.width), **_PLAIN)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Batch keys that the encoder reads, in token order."""
        names = []
        for name in self.tokenizers:
            names += [f"{name}/{view}" for view in self.views] if self.views and name in PICTURES else [name]
        return tuple(names)

    def block(self, i: int) -> BlockConfig:
        """Settings of block `i`."""
        drop_path = self.drop_path * i / max(self.depth - 1, 1)
        names = ("dim", "heads", "mlp_ratio", "qkv_bias", "norm_eps", "gelu", "norm", "layer_scale", "drop")
        names += ("attn_drop", "causal")
        return BlockConfig(**{name: getattr(self, name) for name in names}, drop_path=drop_path)
