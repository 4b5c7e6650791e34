"""The encoder: tokenizers and one shared trunk, from a batch to `Features`.

It is the same object before pretraining, after it, and inside a policy. Weight names are timm's where timm has them
(`cls_token`, `blocks.N.*`, `norm.*`); each modality has `tokenizers.<modality>.proj` and `.pos_embed` (1, N, D), a
table of patch positions without a row for cls (ST-MAE's: `.pos_embed_spatial` and `.pos_embed_temporal`).
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmssl import __version__
from mmssl.config import from_dict, to_dict
from mmssl.encoder_config import PICTURES, SIZES, EncoderConfig
from mmssl.errors import MmsslError, unknown_name
from mmssl.features import Features
from mmssl.masking import ragged_index, visible_index
from mmssl.nn.gather import gather_tokens
from mmssl.nn.transformer import Block, init_weights
from mmssl.registry import TOKENIZERS
from mmssl.tokenizers.base import Tokenizer

__all__ = ["PICTURES", "SIZES", "Encoder", "EncoderConfig", "Features", "load_strictly"]

_OF = {"image_size": "images or clips", "frames": "clips", "mel_bins": "sound"}  # what has these settings


class _Part(NamedTuple):
    """Visible tokens of one modality."""

    tokens: Tensor  # (B, n, D)
    index: Tensor  # int64 (B, n), places in the lattice of all modalities
    valid: Tensor | None  # bool (B, n), None where all are real


class Encoder(nn.Module):
    """Tokenizers and a shared transformer trunk. `encoder(batch) -> Features`.

    A batch may lack some of the modalities, which then cost nothing. Dosovitskiy et al. 2021 (arXiv 2010.11929), with
    the details of MAE (arXiv 2111.06377): fixed sine-cosine positions added before masking, cls added after it.
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
        if config.type_embedding:
            vectors = {name: nn.Parameter(0.02 * torch.randn(1, 1, config.dim)) for name in config.modalities}
            self.type_embed = nn.ParameterDict(vectors)
        self.norm_pre = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.pre_norm else nn.Identity()
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
        return self.config.modalities

    @property
    def grids(self) -> dict[str, tuple[int, ...]]:
        """Modality -> lattice shape, in token order."""
        return {name: self.tokenizer(name).grid for name in self.modalities}

    @property
    def offsets(self) -> dict[str, int]:
        """Modality -> place of its first token in the lattice of all modalities."""
        sizes = [math.prod(grid) for grid in self.grids.values()]
        return dict(zip(self.modalities, [0, *accumulate(sizes)], strict=False))

    def tokenizer(self, modality: str) -> Tokenizer:
        """What reads a modality: its own tokenizer, or the one that all views share."""
        shared = modality.partition("/")[0]
        if modality not in self.tokenizers and (modality not in self.modalities or shared not in self.tokenizers):
            raise unknown_name("modality", modality, self.modalities)
        return self.tokenizers[modality if modality in self.tokenizers else shared]

    def forward(
        self,
        batch: dict[str, Tensor],
        masks: dict[str, Tensor] | None = None,
        visible: dict[str, int] | None = None,
        budget: int | None = None,
        ragged: bool = False,
    ) -> Features:
        """Encode a batch.

        Args:
            batch: modality -> raw input, as DESIGN says, of at least one modality; `present/<modality>` bool (B,) marks
                rows that have it.
            masks: modality -> bool (B, N), True = masked; a modality that is not named is wholly visible.
            visible: modality -> number of visible tokens, the largest of a row (a sampler's `visible(grids)`). Without
                it that is read from the masks, which waits for the device; rows with fewer are padded.
            budget: number of visible tokens over all modalities, where the masks leave so many in every row.
            ragged: rows may have fewer visible tokens than `visible` says, which are then padding.
        """
        for name in masks or {}:
            if name not in self.modalities and name not in self.tokenizers:
                raise unknown_name("modality of a mask", name, self.modalities)
        x, index, valid = self._tokens(batch, masks or {}, visible, budget, ragged)
        key_mask = valid
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)  # (B, 1 + n, D)
            key_mask = valid if valid is None else nn.functional.pad(valid, (1, 0), value=True)
        x = self.norm_pre(x)
        for block in self.blocks:
            x = block(x, key_mask)
        x = self.norm(x)
        if valid is None:
            valid = torch.ones_like(index, dtype=torch.bool)
        grids = self.grids_of(batch)
        if self.cls_token is None:
            return Features(x, index, valid, None, grids)
        return Features(x[:, 1:], index, valid, x[:, 0], grids)

    def _tokens(
        self,
        batch: dict[str, Tensor],
        masks: dict[str, Tensor],
        visible: dict[str, int] | None,
        budget: int | None,
        ragged: bool,
    ) -> _Part:
        """Visible tokens of all modalities in the batch, one after the other."""
        exact = budget is None and not ragged
        parts = [self._part(batch, name, masks.get(name), visible, exact) for name in self.present(batch)]
        if len(parts) == 1:
            part = parts[0]
        else:
            tokens, index, valid = (list(values) for values in zip(*parts, strict=True))
            if any(v is not None for v in valid):
                valid = [
                    torch.ones_like(i, dtype=torch.bool) if v is None else v for i, v in zip(index, valid, strict=True)
                ]
            else:
                valid = None
            part = _Part(torch.cat(tokens, 1), torch.cat(index, 1), None if valid is None else torch.cat(valid, 1))
        if budget is None or part.valid is None or part.tokens.shape[1] < budget:
            return part
        order = visible_index(~part.valid, budget)
        full = not self.valid(batch)  # then every row has as many as the budget says
        valid = None if full else part.valid.gather(1, order)
        return _Part(gather_tokens(part.tokens, order), part.index.gather(1, order), valid)

    def _part(
        self,
        batch: dict[str, Tensor],
        name: str,
        mask: Tensor | None,
        visible: dict[str, int] | None,
        exact: bool,
    ) -> _Part:
        tokenizer, x = self.tokenizer(name), self.require(batch, name)
        real, count = self._real(batch, name), None if visible is None else visible.get(name)
        if mask is None:
            tokens, shape = tokenizer(x), (len(x), math.prod(tokenizer.grid_of(x)))
            index, valid = torch.arange(shape[1], device=x.device).expand(shape), real
        else:
            self.check_mask(mask, x, name)
            index, valid = _places(mask, real, count, exact)
            tokens = tokenizer(x, index)
        return _Part(self._typed(tokens, name), index + self._offset(name), valid)

    def _typed(self, tokens: Tensor, name: str) -> Tensor:
        if not self.config.type_embedding:
            return tokens
        if name in self.type_embed:
            return tokens + self.type_embed[name]
        return tokens + torch.stack([self.type_embed[f"{name}/{view}"] for view in self.config.views]).mean(0)

    def _offset(self, name: str) -> int:
        return self.offsets[name if name in self.modalities else f"{name}/{self.config.views[0]}"]

    def _real(self, batch: dict[str, Tensor], name: str) -> Tensor | None:
        """Which tokens of a modality are real, bool (B, N); None where all are."""
        real, present = self.tokenizer(name).padding(batch), batch.get(f"present/{name}")
        if present is None:
            return real
        shape = (len(present), math.prod(self.tokenizer(name).grid_of(batch[name])))
        return present[:, None].expand(shape) if real is None else real & present[:, None]

    def valid(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Modality -> which of its tokens are real, bool (B, N), of those that may be padding or missing in a row."""
        found = {name: self._real(batch, name) for name in self.present(batch)}
        return {name: real for name, real in found.items() if real is not None}

    def present(self, batch: dict[str, Tensor]) -> list[str]:
        """The modalities that a batch has, in token order; an `MmsslError` where it has none."""
        if not isinstance(batch, Mapping):
            raise MmsslError(
                f"a batch is a dict such as {{{self.modalities[0]!r}: tensor}}, got {type(batch).__name__}."
            )
        names = [name for name in self.modalities if name in batch]
        alone = [n for n in self.tokenizers if n in batch and n not in self.modalities]  # one view of no name
        names += [name for name in alone if not any(other.startswith(f"{name}/") for other in names)]
        if not names:
            wanted = repr(self.modalities[0]) if len(self.modalities) == 1 else f"any of {list(self.modalities)}"
            raise MmsslError(
                f"the batch lacks the modality {wanted}: it has {sorted(batch)}, and this encoder needs "
                f"{list(self.modalities)}{'' if len(self.modalities) == 1 else ', at least one of them'}."
            )
        return names

    def grids_of(self, batch: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Modality -> lattice shape of what a batch has, in token order."""
        return {name: self.tokenizer(name).grid_of(batch[name]) for name in self.present(batch)}

    def check_mask(self, mask: Tensor, x: Tensor, name: str) -> None:
        """Raise an `MmsslError` where a mask is not bool (B, N) of one modality's input x, or not on its device."""
        wanted = (x.shape[0], math.prod(self.tokenizer(name).grid_of(x)))
        if mask.dtype != torch.bool or tuple(mask.shape) != wanted:
            raise MmsslError(
                f"the mask of {name!r} must be bool with the shape {wanted} (True = masked), "
                f"got {mask.dtype} {tuple(mask.shape)}."
            )
        if mask.device != x.device:
            raise MmsslError(f"the mask of {name!r} is on {mask.device} and the batch on {x.device}.")

    def require(self, batch: dict[str, Tensor], modality: str) -> Tensor:
        """The input of one modality, its dtype and shape checked; an `MmsslError` where it is missing or wrong."""
        self.present(batch)
        if modality not in batch:
            raise MmsslError(f"the batch lacks the modality {modality!r}: it has {sorted(batch)}.")
        self.tokenizer(modality).check_shape(batch[modality])
        return batch[modality]

    def check(self, batch: dict[str, Tensor]) -> None:
        """Raise an `MmsslError` for anything wrong with a batch: no modality, dtype, shape or value range.

        It looks at the values, so it is called once on the first batch and not in every step.
        """
        for name in self.present(batch):
            self.tokenizer(name).check(self.require(batch, name))

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


def _places(mask: Tensor, real: Tensor | None, count: int | None, exact: bool) -> tuple[Tensor, Tensor | None]:
    """Places of the visible tokens (B, n), and which of them are there, bool (B, n) or None = all.

    exact: a mask leaves `count` tokens in every row, and not at most so many.
    """
    if count is None:
        return ragged_index(mask if real is None else mask | ~real)
    index = visible_index(mask, count)
    if exact and real is None:
        return index, None
    return index, (~mask if real is None else ~mask & real).gather(1, index)


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
