"""MAE: masked autoencoders (He et al. 2022, arXiv 2111.06377), as the authors' PyTorch code has it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mmssl.encoder import EncoderConfig
from mmssl.errors import MmsslError
from mmssl.methods.pixels import PixelAutoencoder, PixelConfig
from mmssl.registry import register_method
from mmssl.tokenizers.image import ImageTokenizerConfig


@dataclass(frozen=True)
class MAEConfig(PixelConfig):
    """Settings of MAE; the defaults are the paper's ViT-B/16 (its huge model has patches of 14)."""

    kind: ClassVar[str] = "image"
    masks: ClassVar[tuple[str, ...]] = ("random", "block", "grid")

    name: str = "mae"
    mask: Literal["random", "block", "grid"] = "random"
    norm_pix: bool = True
    """Predict each patch standardised by its own mean and variance; False: normalised pixels."""
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_dim % 4:
            raise MmsslError(f"decoder_dim must be a multiple of 4, got {self.decoder_dim}.")

    def encoder_config(self) -> EncoderConfig:
        tokenizer = ImageTokenizerConfig("image", self.image_size, self.patch_size, self.channels, self.mean, self.std)
        return EncoderConfig(
            tokenizers={self.modality: tokenizer},
            **self.encoder_shape(),
            drop_path=self.drop_path,
            layer_scale=self.layer_scale,
            norm_eps=self.norm_eps,
        )


@register_method("mae")
class MAE(PixelAutoencoder):
    """Encode the visible patches, decode the masked ones, compare with the normalised pixels.

    Target, reconstruction and weights are `MaskedAutoencoder`'s; the encoder's cls token goes through the decoder.
    """

    config_class = MAEConfig
