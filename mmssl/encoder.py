"""The encoder: tokenizers and one shared trunk, from a batch to `Features`.

It is the same object before pretraining, after it, and inside a policy. Weight names are timm's where timm has them
(`cls_token`, `blocks.N.*`, `norm.*`); each modality has `tokenizers.<modality>.proj` and `.pos_embed` (1, N, D), a
table of patch positions without a row for cls (ST-MAE's: `.pos_embed_spatial` and `.pos_embed_temporal`).
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmssl import __version__
from mmssl.config import from_dict, to_dict
from mmssl.errors import MmsslError, unknown_name
from mmssl.masking import ragged_index, visible_index
from mmssl.nn.transformer import Block, BlockConfig, init_weights
from mmssl.registry import TOKENIZERS
from mmssl.tokenizers.base import Positions, Tokenizer, TokenizerConfig
from mmssl.tokenizers.image import ImageTokenizerConfig

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
"""Width, depth and heads of the named sizes: ViT-Ti, S, B, L and H."""


_OF = {"image_size": "images or clips", "frames": "clips", "mel_bins": "sound"}  # what has these settings


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
    gelu: Literal["exact", "tanh"] = "exact"
    norm: Literal["pre", "post"] = "pre"
    layer_scale: float | None = None
    drop_path: float = 0.0
    """Drop path of the last block; it grows linearly from 0 at the first."""
    drop: float = 0.0
    cls_token: bool = True
    final_norm: bool = True
    """LayerNorm after the last block."""
    positions: Positions = "sincos"
    """Fixed tables with the column first (MAE) or the row first (`sincos_row`), VideoMAE's `sinusoid`, learned ones
    (`learned`, ST-MAE's `separable`), or none."""

    def __post_init__(self) -> None:
        if not self.tokenizers:
            raise MmsslError("an encoder needs at least one tokenizer.")
        if any("." in name for name in self.tokenizers):
            raise MmsslError(f"modality names cannot hold a dot, got {list(self.tokenizers)}; rename the camera.")
        if self.depth < 1:
            raise MmsslError(f"depth must be at least 1, got {self.depth}.")
        self.block(0)

    def block(self, i: int) -> BlockConfig:
        """Settings of block `i`."""
        drop_path = self.drop_path * i / max(self.depth - 1, 1)
        names = ("dim", "heads", "mlp_ratio", "qkv_bias", "norm_eps", "gelu", "norm", "layer_scale", "drop")
        return BlockConfig(**{name: getattr(self, name) for name in names}, drop_path=drop_path)


@dataclass
class Features:
    """What an encoder gives.

    Attributes:
        tokens: (B, N, D) patch tokens after the final norm, without cls; under masks only the visible ones.
        index: int64 (B, N), place of each token in the whole lattice (modalities one after the other).
        valid: bool (B, N), False = padding.
        cls: (B, D) or None.
        grid: modality -> lattice shape, in token order.
    """

    tokens: Tensor
    index: Tensor
    valid: Tensor
    cls: Tensor | None
    grid: dict[str, tuple[int, ...]]

    def pooled(self, how: Literal["mean", "cls", "max"] = "mean") -> Tensor:
        """One vector a sample (B, D): mean or maximum of the valid patch tokens (0 without any), or the cls token."""
        if how == "cls":
            if self.cls is None:
                raise MmsslError("this encoder has no cls token; pool with 'mean' or 'max'.")
            return self.cls
        if how == "mean":
            weight = self.valid.to(self.tokens.dtype)[..., None]  # (B, N, 1)
            return (self.tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
        if how == "max":
            if self.tokens.shape[1] == 0:
                return self.tokens.sum(1)
            largest = self.tokens.masked_fill(~self.valid[..., None], -math.inf).amax(1)
            return largest.masked_fill(~self.valid.any(1, keepdim=True), 0)
        raise unknown_name("pooling", how, ("mean", "cls", "max"))

    def map(self, modality: str | None = None) -> Tensor:
        """Tokens of one unmasked modality as a feature map: (B, h, w, D) for an image, (B, t, h, w, D) for a clip."""
        name = modality or next(iter(self.grid))
        if name not in self.grid:
            raise unknown_name("modality", name, self.grid)
        sizes = {n: math.prod(g) for n, g in self.grid.items()}
        if self.tokens.shape[1] != sum(sizes.values()):
            raise MmsslError("a feature map needs all tokens; encode without masks.")
        start = sum(size for n, size in list(sizes.items())[: list(sizes).index(name)])
        tokens = self.tokens[:, start : start + sizes[name]]
        return tokens.reshape(tokens.shape[0], *self.grid[name], tokens.shape[-1])


class Encoder(nn.Module):
    """Tokenizers and a shared transformer trunk. `encoder(batch) -> Features`.

    Dosovitskiy et al. 2021 (arXiv 2010.11929), with the details of MAE (arXiv 2111.06377): fixed sine-cosine positions
    added before masking, cls added after it.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.tokenizers = nn.ModuleDict(
            {
                name: TOKENIZERS.get(c.name)(c, name, config.dim, config.positions)
                for name, c in config.tokenizers.items()
            }
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if config.cls_token else None
        self.blocks = nn.ModuleList(Block(config.block(i)) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.final_norm else nn.Identity()
        self.blocks.apply(init_weights)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    @property
    def embed_dim(self) -> int:
        return self.config.dim

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.tokenizers)

    @property
    def grids(self) -> dict[str, tuple[int, ...]]:
        """Modality -> lattice shape, in token order."""
        return {name: tokenizer.grid for name, tokenizer in self.tokenizers.items()}

    def forward(
        self,
        batch: dict[str, Tensor],
        masks: dict[str, Tensor] | None = None,
        visible: dict[str, int] | None = None,
    ) -> Features:
        """Encode a batch.

        Args:
            batch: modality -> raw input, as DESIGN says; `present/<modality>` bool (B,) marks rows that have it.
            masks: modality -> bool (B, N), True = masked; a modality that is not named is wholly visible.
            visible: modality -> number of visible tokens, the same in every row (a sampler's `visible(grids)`). Without
                it the largest count is read from the masks, which waits for the device; rows with fewer are padded.
        """
        for name in masks or {}:
            if name not in self.tokenizers:
                raise unknown_name("modality of a mask", name, self.modalities)
        x, index, valid = self._tokens(batch, masks, visible)
        key_mask = valid
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)  # (B, 1 + n, D)
            key_mask = valid if valid is None else nn.functional.pad(valid, (1, 0), value=True)
        for block in self.blocks:
            x = block(x, key_mask)
        x = self.norm(x)
        if valid is None:
            valid = torch.ones_like(index, dtype=torch.bool)
        if self.cls_token is None:
            return Features(x, index, valid, None, self.grids)
        return Features(x[:, 1:], index, valid, x[:, 0], self.grids)

    def _tokens(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None, visible: dict[str, int] | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (B, n, D), their places (B, n), and which are real (B, n) or None where all are."""
        parts, start = [], 0
        for name, tokenizer in self.tokenizers.items():
            x = self.require(batch, name)
            mask = (masks or {}).get(name)
            index, valid = self._places(x, tokenizer, mask, (visible or {}).get(name))
            tokens = tokenizer(x) if mask is None else tokenizer(x, index)
            if f"present/{name}" in batch:
                present = batch[f"present/{name}"][:, None].expand(index.shape)
                valid = present if valid is None else valid & present
            parts.append((tokens, index + start, valid))
            start += tokenizer.num_tokens
        if len(parts) == 1:
            return parts[0]
        valid = None
        if any(v is not None for *_, v in parts):
            valid = torch.cat([torch.ones_like(i, dtype=torch.bool) if v is None else v for _, i, v in parts], dim=1)
        return torch.cat([t for t, *_ in parts], dim=1), torch.cat([i for _, i, _ in parts], dim=1), valid

    @staticmethod
    def _places(
        x: Tensor, tokenizer: Tokenizer, mask: Tensor | None, visible: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """Places of the visible tokens (B, n), and which of them are real (None = all)."""
        wanted = (x.shape[0], tokenizer.num_tokens)
        if mask is None:
            return torch.arange(wanted[1], device=x.device).expand(wanted), None
        if mask.dtype != torch.bool or tuple(mask.shape) != wanted:
            raise MmsslError(
                f"the mask of {tokenizer.modality!r} must be bool with the shape {wanted} (True = masked), "
                f"got {mask.dtype} {tuple(mask.shape)}."
            )
        if mask.device != x.device:
            raise MmsslError(f"the mask of {tokenizer.modality!r} is on {mask.device} and the batch on {x.device}.")
        return ragged_index(mask) if visible is None else (visible_index(mask, visible), None)

    def require(self, batch: dict[str, Tensor], modality: str) -> Tensor:
        """The input of one modality, its dtype and shape checked; an `MmsslError` where it is missing or wrong."""
        if not isinstance(batch, Mapping):
            raise MmsslError(f"a batch is a dict such as {{{modality!r}: tensor}}, got {type(batch).__name__}.")
        if modality not in batch:
            raise MmsslError(
                f"the batch lacks the modality {modality!r}: it has {sorted(batch)}, and this encoder needs "
                f"{list(self.modalities)}."
            )
        self.tokenizers[modality].check_shape(batch[modality])
        return batch[modality]

    def check(self, batch: dict[str, Tensor]) -> None:
        """Raise an `MmsslError` for anything wrong with a batch: a missing modality, dtype, shape or value range.

        It looks at the values, so it is called once on the first batch and not in every step.
        """
        for name, tokenizer in self.tokenizers.items():
            tokenizer.check(self.require(batch, name))

    def resize(
        self,
        image_size: int | tuple[int, int] | None = None,
        frames: int | None = None,
        mel_bins: int | None = None,
    ) -> "Encoder":
        """Take images of another size, clips of other sizes or lengths, sounds of other lengths, in place.

        Position tables are interpolated, over places and over times; VideoMAE's sinusoid is made anew. Those of sound
        are cut, or continued where they are a formula (`mmssl.nn.positions.recut_positions`). Raises an `MmsslError`,
        and changes nothing, where a patch size or a tubelet does not divide the new size.

        Args:
            image_size: height and width in pixels.
            frames: frames of a clip, or of a spectrogram.
            mel_bins: mel bins of a spectrogram.
        """
        given = {"image_size": image_size, "frames": frames, "mel_bins": mel_bins}
        given = {name: value for name, value in given.items() if value is not None}
        configs = {name: tokenizer.config for name, tokenizer in self.tokenizers.items()}
        for setting in given:
            if not any(hasattr(config, setting) for config in configs.values()):
                lacks = _OF[setting]
                raise MmsslError(f"this encoder reads {list(self.modalities)} and no {lacks}; leave out {setting}.")
        changed = {}
        for name, config in configs.items():
            wanted = {setting: value for setting, value in given.items() if hasattr(config, setting)}
            changed |= {name: replace(config, **wanted)} if wanted else {}
        for name, config in changed.items():
            self.tokenizers[name].resize(config)
        self.config = replace(self.config, tokenizers={**self.config.tokenizers, **changed})
        return self

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = {"library": "mmssl", "version": __version__, "encoder": to_dict(self.config)}
        (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "Encoder":
        """Read what `save_pretrained` wrote; the encoder is in evaluation mode.

        Raises an `MmsslError` where the folder does not hold an encoder of ours, or a file of it is damaged.
        """
        encoder = cls(from_dict(EncoderConfig, _read_description(Path(folder)), "the encoder's config"))
        weights = Path(folder) / "model.safetensors"
        try:
            state = load_file(weights)
        except (OSError, SafetensorError) as error:
            raise MmsslError(f"{weights} is missing or damaged ({error}); copy or export it again.") from None
        load_strictly(encoder, state, str(weights))
        return encoder.eval()

    def push_to_hub(self, repo: str, private: bool = False) -> str:
        """Upload `save_pretrained`'s files to a Hugging Face model repository; returns its address."""
        from huggingface_hub import HfApi

        api = HfApi()
        url = api.create_repo(repo, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.upload_folder(repo_id=repo, folder_path=folder)
        return str(url)


def _read_description(folder: Path) -> dict:
    path = folder / "config.json"
    try:
        description = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MmsslError(f"{path} is missing or not valid JSON ({error}).") from None
    if "encoder" not in description:
        raise MmsslError(f"{path} does not describe an mmssl encoder; load other formats with mmssl.load.")
    return description["encoder"]


def load_strictly(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that must fit exactly; otherwise an `MmsslError` names the first keys that do not."""
    own = module.state_dict()
    wrong = {
        "missing": [k for k in own if k not in state],
        "unknown": [k for k in state if k not in own],
        "other shape": [
            f"{k} {tuple(state[k].shape)}, not {tuple(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ],
    }
    found = [f"{what}: {', '.join(keys[:3])}" for what, keys in wrong.items() if keys]
    if found:
        raise MmsslError(f"{source} does not fit this model ({'; '.join(found)}); it is of another method or size.")
    module.load_state_dict(state)
