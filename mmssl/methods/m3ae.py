"""M3AE: one masked autoencoder of images and texts, paired or not (Geng et al. 2022, arXiv 2205.14204).

As the authors' code has it; a sample may lack its image or its text.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.encoder import EncoderConfig
from mmssl.errors import MmsslError
from mmssl.joint_masking import IndependentMask
from mmssl.losses import norm_pix_target, patch_statistics, undo_norm_pix
from mmssl.methods.joint import JointAutoencoder, Seen
from mmssl.methods.masked import fill_in
from mmssl.methods.sizes import SizedConfig
from mmssl.nn.gather import gather_tokens
from mmssl.nn.joint_decoder import Hidden, JointDecoder, Output
from mmssl.nn.transformer import BlockConfig
from mmssl.registry import register_method
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.text import TextTokenizerConfig


@dataclass(frozen=True)
class M3AEConfig(SizedConfig):
    """Settings of M3AE; the defaults are the released ViT-B/16, but for the vocabulary, which needs no download."""

    name: str = "m3ae"
    image_size: int | tuple[int, int] = 256
    """Height and width in pixels."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels."""
    mean: tuple[float, ...] = (0.5762, 0.5503, 0.5213)
    """Mean of each channel, of CC12M."""
    std: tuple[float, ...] = (0.3207, 0.3169, 0.3307)
    vocabulary: str = "bytes"
    """What the ids of a text mean: bytes, or a tokenizer of transformers by name or folder; the paper's is
    bert-base-uncased, of 30522 ids, without special tokens."""
    vocab_size: int = 259
    text_length: int = 64
    """Tokens of a text; longer ones are cut."""
    mask_ratio: float = 0.75
    """Fraction of the image's patches to mask, in (0, 1)."""
    text_mask_ratio: float = 0.75
    """Fraction of the text's tokens to mask, in (0, 1)."""
    mask_scope: Literal["sample", "batch"] = "sample"
    """A permutation for each sample, or one for the whole batch, as in the released code."""
    mask_padding: Literal["count", "skip"] = "count"
    """Whether padding counts as tokens of a text for its ratio, as in the released code."""
    norm_pix: bool = False
    """Predict each patch standardised by its own mean and variance."""
    image_weight: float = 1.0
    text_weight: float = 0.5
    """Weight of the text's loss; the code's own default is .1, its documented command has .5."""
    unpaired_text_weight: float | None = None
    """Weight of the text's loss in samples without an image; null: `text_weight`."""
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    gelu: Literal["exact", "tanh"] = "tanh"
    drop_path: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mask_ratio", "text_mask_ratio"):
            if not 0 < getattr(self, name) < 1:
                raise MmsslError(f"{name} must lie strictly between 0 and 1, got {getattr(self, name)}.")
        if min(self.image_weight, self.text_weight, self.unpaired_text_weight or 0) < 0:
            raise MmsslError("image_weight, text_weight and unpaired_text_weight must be 0 or more.")
        if self.decoder_dim % 4 or self.decoder_depth < 1:
            raise MmsslError(
                f"decoder_dim must be a multiple of 4 and decoder_depth 1 or more, got {self.decoder_dim} and "
                f"{self.decoder_depth}."
            )
        self.encoder_config()
        self.decoder_block()

    def encoder_config(self) -> EncoderConfig:
        """The encoder: images, then texts, each with a learned vector of its kind."""
        return EncoderConfig(
            tokenizers={
                "image": ImageTokenizerConfig("image", self.image_size, self.patch_size, 3, self.mean, self.std),
                "text": TextTokenizerConfig("text", self.vocabulary, self.vocab_size, self.text_length),
            },
            **self.encoder_shape(),
            type_embedding=True,
            gelu=self.gelu,
            drop_path=self.drop_path,
            norm_eps=self.norm_eps,
        )

    def decoder_block(self) -> BlockConfig:
        """Shape and options of the decoder's blocks."""
        return BlockConfig(self.decoder_dim, self.decoder_heads, norm_eps=self.norm_eps, gelu=self.gelu)

    def mask_sampler(self) -> IndependentMask:
        """What draws the masks."""
        ratios = {"image": self.mask_ratio, "text": self.text_mask_ratio}
        return IndependentMask(ratios, self.mask_scope, self.mask_padding)


@register_method("m3ae")
class M3AE(JointAutoencoder):
    """Encode the visible patches and words together, fill in the masked ones of both.

    The loss of a sample is the mean squared error of its masked patches, plus `text_weight` times the mean
    cross-entropy of its masked words; that of a batch is the mean over its samples, and what a sample lacks counts 0.

    Attributes:
        decoder: `JointDecoder`; texts are decoded to the logits of their vocabulary.
    """

    config_class = M3AEConfig

    def __init__(self, config: M3AEConfig):
        super().__init__(config, config.encoder_config(), config.mask_sampler())
        self.grids = self.encoder.grids
        self._check_masks()
        outputs = {}
        for name, tokenizer in self.encoder.tokenizers.items():
            values = config.vocab_size if name == "text" else tokenizer.patch_dim
            outputs[name] = Output(tokenizer.position_table(config.decoder_dim, "sincos"), values)
        self.decoder = JointDecoder(self.encoder.embed_dim, outputs, config.decoder_block(), config.decoder_depth)

    def _check_masks(self) -> None:
        settings = {"image": "mask_ratio", "text": "text_mask_ratio"}
        for name, visible in self.sampler.visible(self.grids).items():
            total = torch.Size(self.grids[name]).numel()
            if not 0 < visible < total:
                raise MmsslError(
                    f"{settings[name]} {self.sampler.ratio_of(name)} leaves {visible} of {total} tokens of {name} "
                    "visible; at least one must be visible and one masked: change it, or the size of the input."
                )

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        seen = self.see(batch, masks, keys)
        hidden, said = self.decode(seen)
        rows, found = len(seen.features.index), {}
        total = torch.zeros(rows, device=seen.features.index.device)  # (B,)
        for name, values in said.items():
            error, right = self._errors(name, batch[name], hidden[name].index, values)
            loss, there = _mean_of_rows(error, hidden[name].valid)
            total = total + self._weights(name, seen) * loss
            found[f"loss_{name}"] = (loss.sum() / there.sum().clamp(min=1)).detach()
            if right is not None:
                found["text_accuracy"] = _share(right, hidden[name].valid)
        return {"loss": (total.sum(), torch.full_like(total[0], rows)), **found}

    def decode(self, seen: Seen) -> tuple[dict[str, Hidden], dict[str, Tensor]]:
        """The masked tokens of each modality in the batch, and what the decoder says of them: (B, m, P)."""
        features = seen.features
        if any(grid != self.grids[name] for name, grid in self.encoder.grids.items()):
            raise MmsslError(f"the encoder was resized to {self.encoder.grids}, the decoder has {self.grids}.")
        hidden = {name: Hidden(*seen.places(name)) for name in features.grid}
        ragged = seen.hidden is None or bool(seen.real)
        valid = features.valid if ragged else None
        return hidden, self.decoder(features.tokens, features.index, hidden, features.cls, valid)

    def _errors(self, name: str, x: Tensor, index: Tensor, said: Tensor) -> tuple[Tensor, Tensor | None]:
        """Error of each masked token (B, m), and of texts whether it was said right."""
        if name == "text":
            goal = x.gather(1, index)
            error = F.cross_entropy(said.float().flatten(0, 1), goal.flatten(), reduction="none").view(goal.shape)
            return error, said.detach().argmax(-1) == goal
        goal = self.encoder.tokenizer(name).target(x, index)
        goal = norm_pix_target(goal) if self.config.norm_pix else goal
        return (said.float() - goal).square().mean(-1), None

    def _weights(self, name: str, seen: Seen) -> float | Tensor:
        """Weight of a modality's loss in each sample."""
        if name == "image":
            return self.config.image_weight
        alone = (
            self.config.text_weight if self.config.unpaired_text_weight is None else self.config.unpaired_text_weight
        )
        if "image" not in seen.features.grid:
            return alone
        if "image" not in seen.real:
            return self.config.text_weight
        return torch.where(seen.real["image"].any(1), self.config.text_weight, alone)

    def fill(self, batch: dict[str, Tensor], seen: Seen) -> dict[str, Tensor]:
        """Modality -> normalised pixels (B, N, P), or the likeliest ids (B, L); zeros where nothing was masked."""
        hidden, said = self.decode(seen)
        found = {}
        for name, values in said.items():
            values = values.argmax(-1) if name == "text" else self._pixels(name, batch, seen, hidden[name], values)
            place = hidden[name].index
            shape = (len(values), seen.masks[name].shape[1], *values.shape[2:])
            place = place if values.ndim == 2 else place[..., None].expand_as(values)
            found[name] = torch.zeros(shape, dtype=values.dtype, device=values.device).scatter(1, place, values)
        return found

    def _pixels(self, name: str, batch: dict[str, Tensor], seen: Seen, hidden: Hidden, values: Tensor) -> Tensor:
        """Predicted patches (B, m, P) as normalised pixels; a norm-pix model's with the visible patches' statistics."""
        if not self.config.norm_pix:
            return values.float()
        patches = self.goal(name, batch[name])
        stats = torch.cat(patch_statistics(patches), dim=-1)  # (B, N, 2)
        mean, scale = gather_tokens(fill_in(stats, seen.masks[name], self.grids[name]), hidden.index).chunk(2, dim=-1)
        return undo_norm_pix(values.float(), mean, scale)

    def no_decay(self) -> set[str]:
        """The released code names them: cls, type and mask vectors, and the table of words; norms do decay there."""
        names = ("cls_token", "type_embed", "mask_token", "embedding")
        return {name for name, _ in self.named_parameters() if any(part in name for part in names)}


def _mean_of_rows(error: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean of each row's errors (B,), 0 for a row without any, and whether it has any."""
    if valid is None:
        return error.mean(1), torch.ones(len(error), dtype=torch.bool, device=error.device)
    count = valid.sum(1)
    return (error * valid).sum(1) / count.clamp(min=1), count > 0


def _share(right: Tensor, valid: Tensor | None) -> Tensor:
    """Share of the tokens that count which are right."""
    counted = torch.ones_like(right) if valid is None else valid
    return (right & counted).sum() / counted.sum().clamp(min=1)
