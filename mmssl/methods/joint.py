"""What the masked autoencoders of several modalities share: whatever a batch has is masked, encoded and shown."""

from typing import NamedTuple

import torch
from torch import Tensor

from mmssl.encoder import PICTURES, Encoder, EncoderConfig, Features
from mmssl.errors import MmsslError, unknown_name
from mmssl.joint_masking import JointMask
from mmssl.masking import ragged_index, visible_index
from mmssl.methods.base import Method, MethodConfig, default_keys
from mmssl.tokenizers.base import Tokenizer


class Seen(NamedTuple):
    """A batch after the encoder, and what was hidden of it."""

    features: Features
    masks: dict[str, Tensor]
    """Modality -> bool (B, N), True = masked, of every modality in the batch."""
    real: dict[str, Tensor]
    """Modality -> bool (B, N), False = padding, or missing in the row; those without either are left out."""
    hidden: dict[str, int] | None
    """Modality -> number of masked tokens, the largest of a row, as the sampler knows it; None for given masks."""

    def counted(self, name: str) -> Tensor:
        """Tokens of a modality that are there and masked, bool (B, N)."""
        return self.masks[name] & self.real[name] if name in self.real else self.masks[name]

    def places(self, name: str) -> tuple[Tensor, Tensor | None]:
        """Places of the masked tokens, int64 (B, m), and which of them count, bool (B, m) or None = all.

        It waits for the device where masks were given, and never where they were drawn.
        """
        mask, counted = self.masks[name], self.counted(name)
        if self.hidden is None:
            return ragged_index(~counted)
        index = visible_index(~mask, self.hidden[name])
        if name not in self.real and self.hidden[name] < mask.shape[1]:
            return index, None
        return index, counted.gather(1, index)


class JointAutoencoder(Method):
    """Base of the methods. A subclass makes the decoders, and writes `forward` and `fill`.

    Args:
        config: the method's settings.
        encoder: the encoder's.
        sampler: draws the masks of all modalities at once.
    """

    def __init__(self, config: MethodConfig, encoder: EncoderConfig, sampler: JointMask):
        super().__init__(config)
        self.encoder = Encoder(encoder)
        self.sampler = sampler

    def see(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None, keys: Tensor | None) -> Seen:
        """Hide and encode what the batch has.

        Args:
            batch: as `Encoder.forward` takes it; it may lack modalities.
            masks: modality -> bool (B, N), True = masked, in place of the sampler's; one that is not named is visible.
            keys: int64 (B,), the source of the sampler's randomness.
        """
        grids, real = self.encoder.grids_of(batch), self.encoder.valid(batch)
        if masks is not None:
            features = self.encoder(batch, masks)
            return Seen(features, self._whole(masks, grids, features), real, None)
        keys = default_keys(batch, list(grids)) if keys is None else keys
        masks = self.sampler(grids, keys, real or None)
        features = self.encoder(batch, masks, self.sampler.visible(grids), self.sampler.budget(grids))
        return Seen(features, masks, real, self.sampler.hidden(grids))

    @staticmethod
    def _whole(masks: dict[str, Tensor], grids: dict[str, tuple[int, ...]], features: Features) -> dict[str, Tensor]:
        """The given masks, and visible ones of the other modalities of the batch."""
        rows, device = len(features.index), features.index.device
        empty = {name: torch.zeros(rows, torch.Size(grid).numel(), dtype=torch.bool) for name, grid in grids.items()}
        return {name: masks[name] if name in masks else mask.to(device) for name, mask in empty.items()}

    def tokenizer(self, name: str) -> Tokenizer:
        """What cuts a modality into what is predicted of it."""
        return self.encoder.tokenizer(name)

    def goal(self, name: str, x: Tensor) -> Tensor:
        """What is to be predicted of one modality, before any norm-pix: (B, N, P), or ids (B, N, ...)."""
        return self.tokenizer(name).target(x)

    def fill(self, batch: dict[str, Tensor], seen: Seen) -> dict[str, Tensor]:
        """Modality -> what the model says about every token, as `goal` has it; of modalities that the batch lacks too,
        where the method predicts them. Only what it says of masked tokens is used.
        """
        raise NotImplementedError

    @torch.no_grad()
    def reconstruct(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Fill in what is hidden of every modality.

        Args:
            batch, masks, keys: as `forward` takes them.

        Returns:
            for each modality m that is predicted: `mask/m` bool (B, N), True = masked; `target/m`, `masked/m` and
            `prediction/m` in the units of `Tokenizer.picture`: pixels in [0, 1], standardised depth, ids. A modality
            that the batch lacks has a `prediction/m` alone. Without `/m` the same of the first one that is of images or
            clips, or of the first one.
        """
        seen = self.see(batch, masks, keys)
        found: dict[str, Tensor] = {}
        for name, values in self.fill(batch, seen).items():
            tokenizer = self.tokenizer(name)
            if name not in batch:
                found[f"prediction/{name}"] = tokenizer.picture(values)
                continue
            goal, mask = self.goal(name, batch[name]), seen.masks[name]
            spread = mask.view(*mask.shape, *[1] * (goal.ndim - 2))
            found |= {
                f"mask/{name}": mask,
                f"target/{name}": tokenizer.picture(goal),
                f"masked/{name}": _hide(tokenizer, goal, spread),
                f"prediction/{name}": tokenizer.picture(torch.where(spread, values.to(goal.dtype), goal)),
            }
        return found | self._plainly(found)

    def _plainly(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        names = [key.removeprefix("target/") for key in found if key.startswith("target/")]
        pictures = [name for name in names if name.split("/")[0] in ("image", "video")]
        first = (pictures or names)[:1]
        return {key: found[f"{key}/{name}"] for name in first for key in ("mask", "target", "masked", "prediction")}

    def hide(self, batch: dict[str, Tensor], *names: str, keep: float = 0.0) -> dict[str, Tensor]:
        """Masks that hide whole modalities, and show all of the others: for prediction of one from another.

        Args:
            names: modalities to hide.
            keep: share of their tokens that is still shown, at equal distances.
        """
        masks = {}
        for name in names:
            if name not in self.encoder.modalities and name not in self.encoder.tokenizers:
                raise unknown_name("modality", name, self.encoder.modalities)
            if name not in batch:
                raise MmsslError(
                    f"the batch lacks the modality {name!r}, which is to be hidden; it has {sorted(batch)}."
                )
            n = torch.Size(self.encoder.tokenizer(name).grid_of(batch[name])).numel()
            step = torch.arange(n, device=batch[name].device) * keep
            shown = step.floor() < (step + keep).floor()
            masks[name] = ~shown.expand(len(batch[name]), n)
        return masks


def _hide(tokenizer: Tokenizer, goal: Tensor, mask: Tensor) -> Tensor:
    """A picture of the goal with the tokenizer's `hidden_value` at its masked tokens, mask (B, N, ...)."""
    shown = tokenizer.picture(goal)
    covered = mask if goal.ndim == 2 else tokenizer.enlarge(tokenizer.unpatchify(mask.expand_as(goal)))  # text: ids
    return torch.where(covered, torch.full_like(shown, tokenizer.hidden_value), shown)


def is_picture(name: str) -> bool:
    """Whether a modality is of pictures: images, clips, depth or segmentation, of any camera."""
    return name.split("/")[0] in PICTURES
