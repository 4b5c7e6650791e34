"""CLIP: contrastive language-image pretraining (Radford et al. 2021, arXiv 2103.00020).

The authors published no training code; the loss and the bound of its scale are OpenCLIP's. Leaving out patches in
training is FLIP's (Li et al. 2023, arXiv 2212.00794).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.losses import info_nce
from mmssl.masking import MASKS
from mmssl.methods.base import Method, default_keys
from mmssl.methods.sizes import SizedConfig
from mmssl.nn.linear import Linear
from mmssl.nn.processes import gather_rows, place_among
from mmssl.registry import register_method
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.text import TextTokenizerConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CLIPConfig(SizedConfig):
    """Settings of CLIP; the defaults are the paper's ViT-B/32, with a vocabulary that needs no download."""

    name: str = "clip"
    image_size: int | tuple[int, int] = 224
    """Height and width of the images in pixels."""
    patch_size: int | tuple[int, int] = 32
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    mask_ratio: float = 0.0
    """Fraction of the patches that training leaves out (FLIP: .5), in [0, 1); `embed` sees all of them."""
    mlp_ratio: float = 4.0
    text_dim: int = 512
    """Width of the text tower."""
    text_depth: int = 12
    text_heads: int = 8
    text_mlp_ratio: float = 4.0
    text_length: int = 77
    """Tokens of a text, its marks of beginning and end included."""
    vocabulary: str = "bytes"
    """`bytes`, or a tokenizer of transformers, by name or folder (`openai/clip-vit-base-patch32` is CLIP's own)."""
    vocab_size: int = 259
    text_end: int | None = None
    """Id of the mark at a text's end, where the text's vector is read; None: that of `bytes`, else unknown."""
    joint_dim: int = 512
    """Width of the space that images and texts share."""
    temperature: float = 0.07
    """At the start; it is learned."""
    max_scale: float = 100.0
    """Largest value of one over the temperature; the smallest is 1."""
    gelu: Literal["exact", "tanh", "quick"] = "quick"
    """OpenAI's models have the quick one, most of OpenCLIP's the exact one."""
    drop_path: float = 0.0
    """Of the image tower."""
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_ratio < 1:
            raise MmsslError(f"mask_ratio must lie in [0, 1), got {self.mask_ratio}.")
        if self.joint_dim < 1:
            raise MmsslError(f"joint_dim must be at least 1, got {self.joint_dim}.")
        if self.max_scale < 1 or not 1 / self.max_scale <= self.temperature <= 1:
            raise MmsslError(
                f"temperature must lie between 1 / max_scale and 1, got {self.temperature} with max_scale "
                f"{self.max_scale}."
            )
        if self.text_end is not None and not 0 <= self.text_end < self.vocab_size:
            raise MmsslError(f"text_end must be an id in 0..{self.vocab_size - 1}, got {self.text_end}.")
        self.encoder_config()
        self.text_config()

    def encoder_config(self) -> EncoderConfig:
        """The image tower: learned positions, a LayerNorm before the blocks."""
        image = ImageTokenizerConfig("image", self.image_size, self.patch_size, 3, self.mean, self.std)
        options = {"mlp_ratio": self.mlp_ratio, "drop_path": self.drop_path, "pre_norm": True}
        return self._tower({"image": image}, **self.encoder_shape(), **options)

    def text_config(self) -> EncoderConfig:
        """The text tower: causal, without a cls token; the last token stands for the text."""
        vocabulary = {"vocabulary": self.vocabulary, "vocab_size": self.vocab_size, "length": self.text_length}
        text = TextTokenizerConfig(**vocabulary, special=True, embed_std=0.02)
        shape = {"dim": self.text_dim, "depth": self.text_depth, "heads": self.text_heads}
        return self._tower({"text": text}, **shape, mlp_ratio=self.text_mlp_ratio, causal=True, cls_token=False)

    def _tower(self, tokenizers: dict, **options: Any) -> EncoderConfig:
        return EncoderConfig(tokenizers, norm_eps=self.norm_eps, gelu=self.gelu, positions="learned", **options)

    @property
    def end_id(self) -> int | None:
        """Id of the mark at a text's end, as far as it is known."""
        return self.vocab_size - 1 if self.text_end is None and self.vocabulary == "bytes" else self.text_end


@register_method("clip")
class CLIP(Method):
    """Two towers, of images and of texts; what belongs together is near in their joint space, all else far apart.

    Attributes:
        encoder: the image tower.
        text_encoder: the text tower.
        project: `image` and `text`, from each tower to the joint space, without bias.
        logit_scale: log of what cosines are multiplied with in the loss, learned.
    """

    config_class = CLIPConfig

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        self.encoder = Encoder(config.encoder_config())
        self.text_encoder = Encoder(config.text_config())
        towers = {"image": self.encoder, "text": self.text_encoder}
        self.project = nn.ModuleDict(
            {name: Linear(tower.embed_dim, config.joint_dim, bias=False) for name, tower in towers.items()}
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.temperature)))
        self.sampler = MASKS["random"](config.mask_ratio) if config.mask_ratio else None
        self._check_mask()
        self._start()

    def _check_mask(self) -> None:
        if self.sampler is not None and not self.sampler.visible(self.encoder.grids)["image"]:
            raise MmsslError(f"mask_ratio {self.config.mask_ratio} leaves no patch of an image; lower it.")

    @torch.no_grad()
    def _start(self) -> None:
        """Weights as OpenAI's code draws them; those of the image tower's blocks have the core's own start."""
        for linear in self.project.values():
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        width, depth = self.text_encoder.embed_dim, self.config.text_depth
        branch = (2 * depth * width) ** -0.5  # of what is added to the residual sum
        for block in self.text_encoder.blocks:
            stds = {block.attn.qkv: width**-0.5, block.attn.proj: branch}
            stds |= {block.mlp.fc1: (2 * width) ** -0.5, block.mlp.fc2: branch}
            for linear, std in stds.items():
                nn.init.normal_(linear.weight, std=std)

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        """As `Method.forward`; `masks` are the image tower's. The loss counts the rows that have image and text.

        Raises:
            MmsslError: no image or no text in the batch, or one sample in all processes together.
        """
        self._require_pairs(batch)
        first, total = place_among(len(batch["image"]))
        if total < 2:
            raise MmsslError(
                "CLIP tells the samples of a batch apart and learns nothing from one alone; raise loop.batch_size."
            )
        image, text = self._image(batch, *self._hidden(batch, masks, keys)), self._text(batch)
        images, texts = gather_rows(torch.cat([image, text], dim=1)).chunk(2, dim=1)  # each (processes * B, E)
        pairs, scale = self._pairs(batch), self.logit_scale.exp()
        pairs = None if pairs is None else gather_rows(pairs.to(torch.uint8)).bool()
        to_text, count = info_nce(image, texts, scale, first, pairs)
        to_image, _ = info_nce(text, images, scale, first, pairs)
        return {"loss": ((to_text + to_image) / 2, count), "logit_scale": scale.detach()}

    def embed(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Unit vectors (B, joint_dim) of the images and the texts of a batch; rows that lack them hold no meaning.

        Raises:
            MmsslError: neither in the batch.
        """
        towers = {"image": self._image, "text": self._text}
        found = {name: tower(batch) for name, tower in towers.items() if name in batch}
        if not found:
            raise MmsslError(f"CLIP embeds images and texts; the batch has neither: {sorted(batch)}.")
        return found

    def _hidden(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None, keys: Tensor | None
    ) -> tuple[dict[str, Tensor] | None, dict[str, int] | None]:
        """Masks of the image tower, given or drawn, and how many patches drawn ones leave."""
        if masks is not None or self.sampler is None:
            return masks, None
        keys = default_keys(batch, ["image"]) if keys is None else keys
        return self.sampler(self.encoder.grids, keys), self.sampler.visible(self.encoder.grids)

    def _image(
        self,
        batch: dict[str, Tensor],
        masks: dict[str, Tensor] | None = None,
        visible: dict[str, int] | None = None,
    ) -> Tensor:
        features = self.encoder({"image": batch["image"]}, masks, visible)
        return F.normalize(self.project["image"](features.pooled("cls")).float(), dim=-1)

    def _text(self, batch: dict[str, Tensor]) -> Tensor:
        ids, real = batch["text"], batch.get("text_mask")
        if real is None and self.config.end_id is not None:
            ends = ids == self.config.end_id
            real = (ends.long().cumsum(1) - ends.long()) == 0  # up to the first mark of the end
        given = {"text": ids} if real is None else {"text": ids, "text_mask": real}
        features = self.text_encoder(given)
        return F.normalize(self.project["text"](features.pooled("last")).float(), dim=-1)

    @staticmethod
    def _pairs(batch: dict[str, Tensor]) -> Tensor | None:
        """Which rows have image and text, bool (B,); None where all do."""
        present = [batch[key] for key in ("present/image", "present/text") if key in batch]
        return None if not present else present[0] & present[-1]

    @staticmethod
    def _require_pairs(batch: dict[str, Tensor]) -> None:
        missing = [name for name in ("image", "text") if name not in batch]
        if missing:
            raise MmsslError(
                f"CLIP learns from pairs, and the batch lacks {' and '.join(map(repr, missing))}: it has "
                f"{sorted(batch)}; give images with captions."
            )

    def check(self, batch: dict[str, Tensor]) -> None:
        self._require_pairs(batch)
        self.encoder.check(batch)
        self.text_encoder.check(batch)
        end = self.config.end_id
        if end is not None and bool(self._any_text(batch)) and not bool((batch["text"] == end).any()):
            raise MmsslError(
                f"no text of the batch holds the id {end}, the mark of a text's end, where CLIP reads it; set "
                "data.text.special to true."
            )

    @staticmethod
    def _any_text(batch: dict[str, Tensor]) -> Tensor:
        return batch["text_mask"].any() if "text_mask" in batch else torch.ones((), dtype=torch.bool)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Hold the learned scale between 1 and `max_scale`."""
        self.logit_scale.clamp_(0, math.log(self.config.max_scale))

    def no_decay(self) -> set[str]:
        return {"cls_token"}
