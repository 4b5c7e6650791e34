"""A head for every pixel, trained on frozen maps of tokens, or with the encoder as one model."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.evaluation.dense_config import DenseConfig, Task
from mmssl.evaluation.dense_heads import ConvHead, PatchHead
from mmssl.evaluation.dense_maps import target_of, token_map
from mmssl.evaluation.features import FeatureSet, device_of
from mmssl.evaluation.fitting import fit_head
from mmssl.evaluation.modalities import only
from mmssl.training.loop import LoopConfig, fit
from mmssl.training.optim import OptimConfig, Schedule

_WARMUP = 0.05  # of the steps


def make_head(config: DenseConfig, outputs: int, maps: Tensor, size: tuple[int, int]) -> nn.Module:
    """The head of the settings for maps (B, h, w, D) and pictures of `size` (H, W)."""
    shape = (maps.shape[3], outputs, tuple(maps.shape[1:3]), size)
    return PatchHead(*shape) if config.head == "linear" else ConvHead(*shape, config.width)


def fit_frozen(
    train: FeatureSet, task: Task, config: DenseConfig, seed: int, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Train a head on maps and targets; returns a function from maps (M, h, w, D) to answers (M, H, W)."""
    size, lr = tuple(train.labels.shape[1:]), config.lr or 1e-3
    return fit_head(
        lambda: make_head(config, task.outputs, train.features[:1], size),
        lambda head: torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=config.weight_decay),
        Schedule(lr, 0.0, _WARMUP),
        train,
        "dense",
        steps=config.steps,
        batch_size=config.train_batch,
        seed=seed,
        device=device,
        clip_grad=1.0,
        scaler=task,
    )


class DenseModel(nn.Module):
    """An encoder and a head, as the training loop wants them.

    Args:
        encoder: trained along; not a copy.
        names: the modalities that it is shown.
        head: reads maps of its tokens.
        plane: the target's, "depth" or "segmentation".
    """

    def __init__(
        self, encoder: nn.Module, names: Sequence[str], head: nn.Module, task: Task, config: DenseConfig, plane: str
    ):
        super().__init__()
        self.encoder, self.head, self.task = encoder, head, task
        self.names, self.config, self.plane = tuple(names), config, plane

    def check(self, batch: dict[str, Tensor]) -> None:
        """As the encoder's, on what it is shown."""
        if hasattr(self.encoder, "check"):
            self.encoder.check(only(batch, self.names))

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        """Loss (sum, count) over the pictures that have a target."""
        key, target = target_of(batch, self.plane, self.names)
        maps = token_map(self.encoder(only(batch, self.names)), self.names, key.partition("/")[2])
        target = self.config.plane(target)
        losses = self.task.losses(self.head(maps).float(), target)
        has = self.task.counted(target).flatten(1).any(1)
        if f"present/{key}" in batch:
            has = has & batch[f"present/{key}"]
        return {"loss": ((losses * has).sum(), has.sum().float())}

    def no_decay(self) -> set[str]:
        """cls token and positions do not decay in fine-tuning."""
        names = [name for name, _ in self.named_parameters()]
        return {n for n in names if n.endswith("cls_token") or n.rpartition(".")[2].startswith("pos_embed")}


def tune(
    encoder: nn.Module, names: Sequence[str], train: Any, task: Task, config: DenseConfig, plane: str, seed: int
) -> DenseModel:
    """Train a copy of an encoder with a head on the pictures of a dataset; the given encoder is not changed."""
    device = device_of(encoder)
    own = copy.deepcopy(encoder).requires_grad_(True)
    first = train.fetch(torch.tensor([0]))
    size = tuple(target_of(first, plane, names)[1].shape[-2:])
    with torch.no_grad():
        maps = token_map(encoder({k: x.to(device) for k, x in only(first, names).items()}), names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DenseModel(own, names, make_head(config, task.outputs, maps, size), task, config, plane)
    batch = min(config.train_batch, len(train))
    loop = LoopConfig(steps=config.steps, batch_size=batch, seed=seed, clip_grad=1.0, device=device.type)
    optim = OptimConfig(
        lr=config.lr or 5e-4,
        betas=(0.9, 0.999),
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        warmup_steps=max(1, round(config.steps * _WARMUP)),
    )
    fit(model, train, loop, optim, quiet=True).leave()
    return model.to(device)
