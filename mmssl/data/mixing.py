"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of a batch, each sample by its own key."""

import torch
from torch import Tensor

from mmssl.data.beta import beta_draw
from mmssl.data.transforms import MIX_STREAM, is_picture
from mmssl.errors import MmsslError
from mmssl.keys import uniform


class Mix:
    """Mixes every sample with the one at the mirrored place of the batch; labels become probabilities.

    `mix(batch, keys)` takes {"image": uint8 (B, 3, H, W), "label": int64 (B,)} and int64 keys (B,), and gives the same
    entries with `label` float32 (B, num_classes), rows summing to 1. Clips `video` (B, T, 3, H, W) and cameras
    `image/<camera>`, `video/<camera>` are mixed alike: all pictures of a sample share its weight and its box.

    Args:
        num_classes: K.
        mixup: alpha of the Beta distribution of mixup's weight, 0 for none; MAE fine-tunes with 0.8.
        cutmix: alpha of CutMix's, 0 for none; MAE fine-tunes with 1.0.
        prob: probability that a sample is mixed at all.
        switch: probability of CutMix where both are on.
        label_smoothing: share of a label that is spread evenly over all classes.
    """

    def __init__(
        self,
        num_classes: int,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        prob: float = 1.0,
        switch: float = 0.5,
        label_smoothing: float = 0.1,
    ):
        for name, value in (("prob", prob), ("switch", switch), ("label_smoothing", label_smoothing)):
            if not 0 <= value <= 1:
                raise MmsslError(f"{name} must lie in [0, 1], got {value!r}.")
        if mixup < 0 or cutmix < 0 or num_classes < 2:
            raise MmsslError(f"mixup, cutmix >= 0 and num_classes >= 2 needed, got {mixup}, {cutmix}, {num_classes}.")
        self.num_classes, self.mixup, self.cutmix = num_classes, mixup, cutmix
        self.prob = prob if mixup or cutmix else 0.0
        self.switch = switch if mixup and cutmix else float(bool(cutmix))
        self.label_smoothing = label_smoothing

    def __call__(self, batch: dict[str, Tensor], keys: Tensor) -> dict[str, Tensor]:
        label = batch["label"]
        if label.dim() != 1 or label.is_floating_point():
            raise MmsslError("mixup and cutmix need one class id a sample (task: single_label).")
        on, which, u, down, across = uniform(keys, 5, MIX_STREAM).unbind(1)  # (B,) each
        mixed, cut = on < self.prob, which < self.switch
        weight = torch.where(cut, beta_draw(u, self.cutmix), beta_draw(u, self.mixup))
        pictures = {key: x for key, x in batch.items() if is_picture(key)}
        sizes = {tuple(x.shape[-2:]) for x in pictures.values()}
        if len(sizes) != 1:
            found = sorted(sizes) or f"only {', '.join(batch)}"
            raise MmsslError(f"mixup and cutmix need images or clips of one size in the batch, got {found}.")
        box = _box(weight, down, across, sizes.pop())  # (B, H, W)
        weight = torch.where(cut, 1 - box.float().mean(dim=(1, 2)), weight)
        weight = torch.where(mixed, weight, torch.ones_like(weight))
        out = {key: _mixed(x, box, weight, cut, mixed) for key, x in pictures.items()}
        soft = smooth(label, self.num_classes, self.label_smoothing)
        return {**batch, **out, "label": soft * weight[:, None] + soft.flip(0) * (1 - weight[:, None])}


def _mixed(x: Tensor, box: Tensor, weight: Tensor, cut: Tensor, mixed: Tensor) -> Tensor:
    """Pictures (B, ..., H, W) with those of the mirrored place pasted in or blended over them."""
    wide = lambda values: values.view(-1, *[1] * (x.dim() - 1))  # noqa: E731
    other, blend = x.flip(0), wide(weight)
    pasted = torch.where(box.view(len(x), *[1] * (x.dim() - 3), *box.shape[1:]), other, x)
    blended = (x * blend + other * (1 - blend) + 0.5).to(torch.uint8)
    return torch.where(wide(mixed), torch.where(wide(cut), pasted, blended), x)


def smooth(label: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """float32 (B, K) from int64 (B,): 1 - smoothing on the class, smoothing / K everywhere (Szegedy et al. 2016)."""
    soft = torch.full((len(label), num_classes), smoothing / num_classes, device=label.device)
    return soft.scatter_add(1, label[:, None], torch.full_like(soft[:, :1], 1 - smoothing))


def _box(weight: Tensor, down: Tensor, across: Tensor, size: tuple[int, int]) -> Tensor:
    """bool (B, H, W): a box of share 1 - weight round a uniform centre, cut at the border as CutMix does."""
    height, width = size
    half = (1 - weight).clamp(min=0).sqrt() / 2
    rows = (torch.arange(height, device=weight.device) + 0.5) / height  # (H,)
    columns = (torch.arange(width, device=weight.device) + 0.5) / width
    return ((rows - down[:, None]).abs() < half[:, None])[:, :, None] & (
        (columns - across[:, None]).abs() < half[:, None]
    )[:, None, :]
