"""The settings of MTM."""

from dataclasses import dataclass, field
from typing import Literal

from mmssl.encoder import EncoderConfig
from mmssl.errors import MmsslError, unknown_name
from mmssl.methods.base import MethodConfig
from mmssl.nn.transformer import BlockConfig
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.tokenizers.bins import BinsTokenizerConfig
from mmssl.tokenizers.vector import VECTORS, VectorTokenizerConfig
from mmssl.tokenizers.video import VideoTokenizerConfig
from mmssl.trajectory_masking import KEPT, Pattern, TrajectoryMask


def _hopper() -> dict[str, int]:
    return {"state": 11, "action": 3, "return": 1}


@dataclass(frozen=True)
class MTMConfig(MethodConfig):
    """Settings of MTM; the defaults are the authors' for D4RL, with the dimensions of Hopper."""

    name: str = "mtm"
    widths: dict[str, int] = field(default_factory=_hopper)
    """Modality -> numbers of a vector, in token order: of state, proprio, features, action, reward and return."""
    length: int = 4
    """Steps of a window; shorter ones are read too."""
    cameras: tuple[str, ...] = ()
    """Cameras whose frames are read and predicted too (`video/<camera>`); with image_size and none, `video`."""
    image_size: int | tuple[int, int] | None = None
    """Height and width of frames in pixels; null: no frames."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels."""
    dim: int = 512
    depth: int = 2
    heads: int = 4
    decoder_depth: int = 1
    drop: float = 0.1
    """Dropout of the attention weights, after the attention and in the MLP."""
    norm_eps: float = 1e-5
    mask: Pattern = "autoregressive"
    """The pattern of the masks (`mmssl.trajectory_masking.TrajectoryMask`)."""
    kept: tuple[float, ...] = KEPT
    """Fractions of a modality's tokens that stay visible, of which one is drawn; the authors' code calls them mask
    ratios. After that the future is hidden, where the mask is autoregressive."""
    chance: tuple[float, float, float] = (0.2, 0.1, 0.7)
    """Of observations, returns and actions to be the first that an autoregressive mask hides at the present step."""
    mask_scope: Literal["batch", "sample"] = "batch"
    """One mask for the whole batch (the released code), or one for each sample."""
    loss_on: Literal["all", "masked"] = "all"
    """The loss counts all tokens (the released code), or the masked ones alone."""
    norm: Literal["none", "l2"] = "none"
    """l2: a target is divided by its length; `predict` then cannot tell lengths."""
    bins: int | None = None
    """Every number is a token of its own, one of so many bins, and is predicted by cross-entropy."""
    bin_limit: float = 4.0
    """The bins reach from minus to plus so many standard deviations."""
    min_std: float = 0.1
    """A dimension of which the standard deviation is below this is not divided by it."""

    def __post_init__(self) -> None:
        for name, allowed in (("mask_scope", ("batch", "sample")), ("loss_on", ("all", "masked")),
                              ("norm", ("none", "l2"))):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise unknown_name(name, getattr(self, name), allowed)
        for name in self.widths:
            if name not in VECTORS:
                raise unknown_name("modality of widths", name, VECTORS)
        if not self.widths and self.image_size is None:
            raise MmsslError("a trajectory needs at least one modality; give widths, such as {state: 11, action: 3}.")
        if self.cameras and self.image_size is None:
            raise MmsslError(f"cameras {list(self.cameras)} need image_size, the size of their frames.")
        if self.length < 1 or self.decoder_depth < 1 or self.dim % 2:
            raise MmsslError(
                f"length and decoder_depth must be 1 or more and dim even, got {self.length}, {self.decoder_depth} and "
                f"{self.dim}."
            )
        self.encoder_config()
        self.decoder_block()
        self.mask_sampler()

    def tokenizer_configs(self) -> dict[str, TokenizerConfig]:
        """Modality -> settings of its tokenizer, in token order: frames last."""
        plain = {"frames": self.length, "min_std": self.min_std}
        binned = {} if self.bins is None else {"bins": self.bins, "limit": self.bin_limit}
        kind = VectorTokenizerConfig if self.bins is None else BinsTokenizerConfig
        configs: dict[str, TokenizerConfig] = {
            name: kind(width=width, **plain, **binned) for name, width in self.widths.items()
        }
        if self.image_size is not None:
            frames = VideoTokenizerConfig("video", self.length, self.image_size, self.patch_size, tubelet=1)
            configs |= {f"video/{camera}": frames for camera in self.cameras} or {"video": frames}
        return configs

    def encoder_config(self) -> EncoderConfig:
        """The encoder: a learned vector of each modality, half of the sine-cosine table of the time, no cls."""
        return EncoderConfig(
            tokenizers=self.tokenizer_configs(),
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            norm_eps=self.norm_eps,
            drop=self.drop,
            attn_drop=self.drop,
            cls_token=False,
            type_embedding=True,
            positions="sincos_half",
        )

    def decoder_block(self) -> BlockConfig:
        """Shape and options of the decoder's blocks: those of the encoder's."""
        return BlockConfig(self.dim, self.heads, norm_eps=self.norm_eps, drop=self.drop, attn_drop=self.drop)

    def mask_sampler(self) -> TrajectoryMask:
        """What draws the masks."""
        return TrajectoryMask(self.mask, self.kept, self.chance, self.mask_scope)
