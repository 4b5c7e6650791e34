"""Mixup of waveforms as Audio-MAE fine-tunes with it, each sample by its own key; labels are mixed alike."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from mmssl.data.audio_augment import centred, end_marked, real_samples
from mmssl.data.beta import beta_draw
from mmssl.data.transforms import MIX_STREAM
from mmssl.errors import MmsslError
from mmssl.keys import uniform


class WaveformMix:
    """Mixes every chosen sample with the one at the mirrored place of the batch; labels become shares.

    `mix(batch, keys)` takes {"audio": float32 (B, 1, S), "label": int64 (B,) or float32 (B, K)} and int64 keys (B,),
    and gives the same entries with `label` float32 (B, K). Both sounds are centred (their means are taken off), mixed
    with a weight from Beta(alpha, alpha), and centred again. A mixed sound is as long as the first one was: of a longer
    partner the rest is cut off, behind a shorter one is silence. (The authors take any sample of the data as partner;
    the mirrored place of a shuffled batch is one, too, but with `data.balance` both are drawn balanced.)

    Args:
        num_classes: K.
        prob: probability that a sample is mixed at all.
        alpha: of the beta distribution; Audio-MAE's 10 gives mostly about half and half.
        task: what labels mean, single_label (B,) or multi_label (B, K).
    """

    def __init__(
        self,
        num_classes: int,
        prob: float = 0.5,
        alpha: float = 10.0,
        task: Literal["single_label", "multi_label"] = "multi_label",
    ):
        if not 0 <= prob <= 1:
            raise MmsslError(f"prob must lie in [0, 1], got {prob!r}.")
        if alpha <= 0 or num_classes < 2:
            raise MmsslError(f"alpha > 0 and num_classes >= 2 are needed, got {alpha} and {num_classes}.")
        if task not in ("single_label", "multi_label"):
            raise MmsslError(
                f"sounds are mixed where their labels are classes (single_label, multi_label), not {task}."
            )
        self.num_classes, self.prob, self.alpha, self.task = num_classes, prob, alpha, task

    def __call__(self, batch: dict[str, Tensor], keys: Tensor) -> dict[str, Tensor]:
        x, label = batch.get("audio"), self._shares(batch["label"])
        if x is None or x.dim() != 3:
            found = f"only {', '.join(batch)}" if x is None else f"shape {tuple(x.shape)}"
            raise MmsslError(f"waveforms audio (batch, 1, samples) are needed to be mixed, got {found}.")
        on, weight = uniform(keys, 2, MIX_STREAM)[..., None, None].unbind(1)  # (B, 1, 1) each
        mixed, weight = on < self.prob, beta_draw(weight, self.alpha)
        length = real_samples(x)
        x0 = centred(x, length)
        both = centred(_within(weight * x0 + (1 - weight) * x0.flip(0), length), length)
        share = torch.where(mixed, weight, torch.ones_like(weight))[:, 0]  # (B, 1)
        out = torch.where(mixed, end_marked(both, length), x)
        return {**batch, "audio": out, "label": label * share + label.flip(0) * (1 - share)}

    def _shares(self, label: Tensor) -> Tensor:
        """Labels as float32 (B, K)."""
        single = self.task == "single_label"
        if single == (label.dim() == 1 and not label.is_floating_point()):
            label = one_hot(label, self.num_classes) if single else label
            if label.dim() == 2 and label.shape[1] == self.num_classes:
                return label.float()
        wanted = "int64 (batch,)" if single else f"float32 (batch, {self.num_classes})"
        raise MmsslError(f"labels of {self.task} to mix must be {wanted}, got {label.dtype} {tuple(label.shape)}.")


def _within(x: Tensor, length: Tensor) -> Tensor:
    return torch.where(torch.arange(x.shape[-1], device=x.device) < length, x, 0.0)
