"""MTM: masked trajectory models (Wu et al. 2023, arXiv 2305.02968), as the authors' code has it.

One model of states, actions, returns and whatever else a step has. What is hidden of a trajectory decides what it is: a
policy, a forward or an inverse model of the dynamics, a planner between way-points, or a representation.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.methods.base import default_keys
from mmssl.methods.joint import JointAutoencoder, Seen
from mmssl.methods.mtm_patterns import known_of, pattern_steps
from mmssl.methods.mtm_settings import MTMConfig
from mmssl.nn.trajectory_decoder import TrajectoryDecoder, start_as_torch
from mmssl.registry import register_method
from mmssl.tokenizers.bins import BinsTokenizer
from mmssl.trajectory_masking import over_tokens

Known = str | Mapping[str, Any] | Iterable[int]


@register_method("mtm")
class MTM(JointAutoencoder):
    """Encode what is visible of a trajectory, predict every token of it, the visible ones too.

    The loss of a sample is the mean squared error (cross-entropy of bins) over its tokens of a modality, summed over
    the modalities; that of a batch is the mean over its samples. Padding counts nothing, nor what a sample lacks.

    Attributes:
        decoder: `TrajectoryDecoder`.
        trajectory_length: steps of a window, for which the data are asked.
    """

    config_class = MTMConfig

    def __init__(self, config: MTMConfig):
        super().__init__(config, config.encoder_config(), config.mask_sampler())
        self.grids, self.trajectory_length = self.encoder.grids, config.length
        tokenizers = {name: self.encoder.tokenizer(name) for name in self.grids}
        tables = {name: t.position_table(config.dim, "sincos_half") for name, t in tokenizers.items()}
        values = {name: t.patch_dim for name, t in tokenizers.items()}
        self.decoder = TrajectoryDecoder(tables, values, config.decoder_block(), config.decoder_depth)
        start_as_torch(self.encoder, self.encoder.blocks)
        start_as_torch(self.decoder, self.decoder.blocks)

    def see(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None, keys: Tensor | None) -> Seen:
        """Hide and encode what the batch has, as the base class says; `Seen.hidden` is the number of encoded tokens.

        A CPU reads how many tokens are visible; elsewhere, and in compiled code, nothing waits for that: all places of
        the lattice go through the encoder, and nothing looks at the hidden ones.
        """
        reads = _reads_counts(batch)
        if reads and "valid" in batch and bool(batch["valid"].all()):  # nothing is padding: attention needs no mask
            batch = {key: x for key, x in batch.items() if key != "valid"}
        grids, real = self.encoder.grids_of(batch), self.encoder.valid(batch)
        if masks is None:
            keys = default_keys(batch, list(grids)) if keys is None else keys
            masks = self.sampler(grids, keys, real or None)
        else:
            masks = self._completed(masks, grids, batch)
        counts = {name: torch.Size(grid).numel() for name, grid in grids.items()}
        ragged = True
        if reads:
            shown = {name: ~mask & real[name] if name in real else ~mask for name, mask in masks.items()}
            counts, ragged = _counts(shown)
        features = self.encoder(batch, masks, counts, ragged=ragged)
        return Seen(features, masks, real, counts)

    def _completed(
        self, masks: dict[str, Tensor], grids: dict[str, tuple[int, ...]], batch: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The given masks, and visible ones of the other modalities of the batch, in token order."""
        found = {}
        for name, grid in grids.items():
            shape, x = torch.Size(grid).numel(), batch[name]
            found[name] = masks[name] if name in masks else torch.zeros(len(x), shape, dtype=torch.bool).to(x.device)
            self.encoder.check_mask(found[name], x, name)
        return found | {name: mask for name, mask in masks.items() if name not in found}

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        seen = self.see(batch, masks, keys)
        rows = len(seen.features.index)
        total, shown = torch.zeros((), device=seen.features.index.device), {}
        for name, said in self.decode(seen).items():
            error = self._error(name, said.float(), self.goal(name, batch[name]))  # (B, N)
            counted = seen.masks[name] if self.config.loss_on == "masked" else torch.ones_like(seen.masks[name])
            loss = _mean_of_rows(error, counted & seen.real[name] if name in seen.real else counted)
            total = total + loss.sum()
            hidden = seen.counted(name)
            shown[f"loss_{name}"] = loss.mean().detach()
            shown[f"hidden_{name}"] = ((error * hidden).sum() / hidden.sum().clamp(min=1)).detach()
        return {"loss": (total, torch.full_like(total, rows)), **shown}

    def _error(self, name: str, said: Tensor, goal: Tensor) -> Tensor:
        """Error of each token (B, N)."""
        if isinstance(self.tokenizer(name), BinsTokenizer):
            place = goal.argmax(-1).flatten()
            return F.cross_entropy(said.flatten(0, 1), place, reduction="none").view(goal.shape[:2])
        if self.config.norm == "l2":
            goal = F.normalize(goal, dim=-1)
        return (said - goal).square().mean(-1)

    def decode(self, seen: Seen) -> dict[str, Tensor]:
        """What the model says of every token of each modality in the batch: (B, N, P), logits of bins."""
        if self.encoder.grids != self.grids:
            raise MmsslError(f"the encoder was resized to {self.encoder.grids}, the decoder has {self.grids}.")
        features, offsets, names = seen.features, self.encoder.offsets, list(seen.features.grid)
        counts = [seen.hidden[name] for name in names]
        tokens, index, valid = (x.split(counts, dim=1) for x in (features.tokens, features.index, features.valid))
        return self.decoder(
            dict(zip(names, tokens, strict=True)),
            {name: places - offsets[name] for name, places in zip(names, index, strict=True)},
            {name: torch.Size(grid).numel() for name, grid in features.grid.items()},
            dict(zip(names, valid, strict=True)),
            seen.real,
        )

    def fill(self, batch: dict[str, Tensor], seen: Seen) -> dict[str, Tensor]:
        """Modality -> what the model says of every token, (B, N, P), standardised, or logits of bins."""
        return {name: said.float() for name, said in self.decode(seen).items()}

    def known(self, pattern: str, length: int | None = None, **where: Any) -> dict[str, Tensor]:
        """Modality -> which steps a pattern takes as known, bool (length,): see `trajectory_masking.pattern_steps`."""
        length = self.config.length if length is None else length
        return {name: pattern_steps(pattern, name, length, **where) for name in self.encoder.modalities}

    def predict(self, trajectory: dict[str, Tensor], known: Known = "rcbc", **where: Any) -> dict[str, Tensor]:
        """Fill in what is not known of trajectories. Dropout is off, and no gradient is kept.

        Args:
            trajectory: modality -> (B, T, D) in raw units, T at most `config.length`; frames as the data have them.
                What is not known of it is never looked at. A modality that it lacks is wholly unknown. `valid` bool
                (B, T), False = padding.
            known: a pattern by name (`known`), with its `step` and `way` in `where`; or modality -> bool (T,) or
                (B, T), True = known, where one that is not named is not known; or the steps at which all is known.

        Returns:
            modality -> (B, T, D), all modalities of the model: as given where known, else what the model says, in raw
            units (frames in [0, 1]).

        Raises:
            MmsslError: an unknown pattern or modality, other dimensions than in training, NaN where something is known.
        """
        if self.config.norm == "l2":
            raise MmsslError("a model with norm 'l2' predicts directions and no lengths; train one with norm 'none'.")
        batch = {name: trajectory[name] for name in self.encoder.present(trajectory)}
        first = next(iter(batch.values()))
        shown = known_of(known, self.encoder.modalities, list(batch), first, self.known, where)
        batch = self._whole(batch, shown, first)
        if "valid" in trajectory:
            batch["valid"] = trajectory["valid"]
        grids = self.encoder.grids_of(batch)
        masks = {name: ~over_tokens(shown[name], grid) for name, grid in grids.items()}
        was_training = self.training
        self.eval()
        with torch.no_grad():
            said = self.fill(batch, self.see(batch, masks, None))
        self.train(was_training)
        found = {}
        for name, values in said.items():
            x, prediction = batch[name], self.tokenizer(name).picture(values)
            given = x.float() / 255 if x.dtype == torch.uint8 else x.float()
            found[name] = torch.where(_beside(shown[name], given), given, prediction)
        return found

    def _whole(self, batch: dict[str, Tensor], known: dict[str, Tensor], first: Tensor) -> dict[str, Tensor]:
        """What is known of every modality, zeros elsewhere."""
        found = {}
        for name in self.encoder.modalities:
            tokenizer = self.encoder.tokenizer(name)
            if name in batch:
                tokenizer.check_shape(batch[name])
                x = batch[name].to(first.device)
                if x.shape[:2] != first.shape[:2]:
                    raise MmsslError(
                        f"all modalities of a trajectory must have the same number of rows and the same number of "
                        f"steps, got {tuple(x.shape[:2])} of {name!r} beside {tuple(first.shape[:2])}."
                    )
                found[name] = torch.where(_beside(known[name], x), x, torch.zeros_like(x))
                tokenizer.check(found[name])
            else:
                config = tokenizer.config
                shape = tokenizer.shape[1:] if hasattr(tokenizer, "shape") else (config.width,)
                found[name] = torch.zeros(*first.shape[:2], *shape, device=first.device)
        return found

    def no_decay(self) -> set[str]:
        """The released code names them: the learned vectors of tokens and masks."""
        names = ("type_embed", "mask_token", "slot_embed")
        return {name for name, _ in self.named_parameters() if any(part in name for part in names)}


def _reads_counts(batch: dict[str, Tensor]) -> bool:
    """Whether numbers of tokens are read from a batch's masks: on a CPU, and not in compiled code."""
    return next(iter(batch.values())).device.type == "cpu" and not torch.compiler.is_compiling()


def _counts(shown: dict[str, Tensor]) -> tuple[dict[str, int], bool]:
    """Modality -> largest number of visible tokens of a row, and whether a row has fewer."""
    counts = {name: visible.sum(1) for name, visible in shown.items()}
    most = {name: int(count.max()) if len(count) else 0 for name, count in counts.items()}
    return most, any(bool((count < most[name]).any()) for name, count in counts.items())


def _mean_of_rows(error: Tensor, counted: Tensor) -> Tensor:
    """Mean of each row's errors (B,) over the tokens that count (B, N), 0 for a row without any."""
    return (error * counted).sum(1) / counted.sum(1).clamp(min=1)


def _beside(known: Tensor, x: Tensor) -> Tensor:
    """known (B, T) in as many axes as x (B, T, ...)."""
    return known.view(*known.shape, *[1] * (x.ndim - 2))
