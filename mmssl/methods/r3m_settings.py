"""Settings of R3M (`r3m.py`)."""

from dataclasses import dataclass
from typing import Literal

from mmssl.encoder import EncoderConfig
from mmssl.errors import MmsslError, unknown_name
from mmssl.methods.r3m_language import OWN, TextMean
from mmssl.methods.sizes import SizedConfig
from mmssl.nn.resnets import RESNETS
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD, ImageTokenizerConfig, as_pair
from mmssl.tokenizers.text import TextTokenizerConfig


@dataclass(frozen=True)
class R3MConfig(SizedConfig):
    """Settings of R3M; the defaults are the released recipe's, but for the language model, which needs a download."""

    name: str = "r3m"
    network: Literal["resnet18", "resnet34", "resnet50", "vit"] = "resnet50"
    """A ResNet of torchvision's, or `vit`: a transformer of that `size`."""
    width: int = 64
    """Channels of a ResNet's first stage; 64 as published."""
    modality: str = "video"
    """The batch key to learn from: `video`, or one camera, `video/<camera>`; five frames."""
    image_size: int | tuple[int, int] = 224
    """Height and width of the frames in pixels."""
    patch_size: int | tuple[int, int] = 32
    """Height and width of a patch of a `vit` in pixels."""
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    pooling: Literal["mean", "cls"] = "mean"
    """What stands for a frame: the mean of its tokens, or the cls token of a `vit`."""
    tcn_weight: float = 1.0
    """Of the time-contrastive loss."""
    language_weight: float = 1.0
    """Of the language-conditioned reward; 0 reads no text. (The code's own default is 0, the released model's 1.)"""
    l1_weight: float = 1e-5
    """Of the mean L1 norm of the frames' vectors."""
    l2_weight: float = 1e-5
    """Of their mean L2 norm."""
    similarity: Literal["l2", "cosine"] = "l2"
    """Of two frames: minus their distance, or the cosine."""
    negatives: int = 3
    """Other clips that each term tells a clip from."""
    negatives_from: Literal["permutations", "others"] = "permutations"
    """`permutations` of the batch, as released: one may leave a clip in its place, which is then its own negative, as
    similar as can be; `others`: any clip but the own one, as the paper says."""
    language: str = OWN
    """`own`: a small tower over the bytes of a text, trained with the rest; or a model of transformers by name or
    folder, frozen (`distilbert-base-uncased` as published)."""
    language_mean: TextMean = "all"
    """Which places of a frozen model's text are averaged: all of the batch's longest, padding included (released), or
    the text's own (`real`)."""
    text_length: int = 64
    """Tokens of an annotation."""
    text_dim: int = 128
    """Width of the own tower."""
    text_depth: int = 2
    text_heads: int = 4
    reward_dim: int = 1024
    """Width of the four hidden layers that score how far an instruction is carried out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "image_size", as_pair(self.image_size))
        if self.network not in (*RESNETS, "vit"):
            raise unknown_name("network", self.network, (*RESNETS, "vit"))
        if self.modality.split("/")[0] != "video":
            raise MmsslError(f"'r3m' learns from 'video' or 'video/<camera>', not from {self.modality!r}.")
        if self.network != "vit" and self.pooling == "cls":
            raise MmsslError(f"a {self.network} has no cls token; pool 'mean'.")
        for name in ("negatives", "reward_dim"):
            if getattr(self, name) < 1:
                raise MmsslError(f"{name} must be at least 1, got {getattr(self, name)}.")
        weights = {name: getattr(self, f"{name}_weight") for name in ("tcn", "language", "l1", "l2")}
        if min(weights.values()) < 0 or not (self.tcn_weight or self.language_weight):
            raise MmsslError(f"the weights must be 0 or more, tcn or language above 0, got {weights}.")
        self.encoder_config()
        self.text_config()

    def encoder_config(self) -> EncoderConfig:
        """The encoder, of single images."""
        shared = {"image_size": self.image_size, "channels": self.channels, "mean": self.mean, "std": self.std}
        if self.network != "vit":
            return EncoderConfig.of_resnet(network=self.network, width=self.width, **shared)
        image = ImageTokenizerConfig("image", patch_size=self.patch_size, **shared)
        return EncoderConfig({"image": image}, **self.encoder_shape(), cls_token=self.pooling == "cls")

    def text_config(self) -> EncoderConfig:
        """The own text tower."""
        shape = {"dim": self.text_dim, "depth": self.text_depth, "heads": self.text_heads}
        text = TextTokenizerConfig(length=self.text_length, embed_std=0.02)
        return EncoderConfig({"text": text}, **shape, cls_token=False)
