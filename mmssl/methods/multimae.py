"""MultiMAE: masked autoencoders of several aligned pictures (Bachmann et al. 2022, arXiv 2204.01678).

As the authors' code has it: one encoder over a few tokens of all modalities, one decoder for each output task.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.losses import mean_over_samples, norm_pix_target
from mmssl.methods.joint import JointAutoencoder, Seen
from mmssl.methods.multimae_settings import MultiMAEConfig, Task
from mmssl.nn.task_decoder import TaskDecoder, init_apart
from mmssl.registry import TOKENIZERS, register_method
from mmssl.tokenizers.base import Tokenizer


@register_method("multimae")
class MultiMAE(JointAutoencoder):
    """Encode a few tokens of all modalities together, predict every task from them, compare what was masked.

    The loss of a task is the mean over each sample's masked values, then over the samples that have any: squared error
    of pixels, absolute error of depth, cross-entropy of classes, squared error of whatever else.

    Attributes:
        decoders: task name -> `TaskDecoder`.
        targets: modality -> tokenizer of what is predicted and not read; it only cuts patches, and learns nothing.
        log_vars: log of the variance of each task where these are learned, else None.
    """

    config_class = MultiMAEConfig

    def __init__(self, config: MultiMAEConfig):
        super().__init__(config, config.encoder_config(), config.mask_sampler())
        self.tasks, only = config.tasks(), [name for name in config.out_tasks if name not in config.in_tasks]
        self.targets = nn.ModuleDict({name: _make_tokenizer(config, name).requires_grad_(False) for name in only})
        self.grids = {name: self.tokenizer(name).grid for name in (*config.in_tasks, *only)}
        self._check_budget()
        self.decoders = nn.ModuleDict({task.name: self._make_decoder(task) for task in self.tasks})
        uncertain = config.weighting == "uncertainty"
        self.log_vars = nn.Parameter(torch.zeros(len(self.tasks))) if uncertain else None
        self.encoder.blocks.apply(init_apart)

    def _check_budget(self) -> None:
        total, given = sum(torch.Size(grid).numel() for grid in self.encoder.grids.values()), self.config.budget
        if given >= total:
            raise MmsslError(
                f"a budget of {given} tokens masks none of the {total} that {', '.join(self.encoder.modalities)} have "
                f"together; lower budget (the paper keeps a sixth: {max(1, total // 6)}), or make patches smaller."
            )

    def _make_decoder(self, task: Task) -> TaskDecoder:
        tokenizer, config, grids = self.tokenizer(task.modality), self.config, self.encoder.grids
        others = [name for name, grid in grids.items() if len(grid) != len(tokenizer.grid)]  # vectors beside pictures
        return TaskDecoder(
            self.encoder.embed_dim,
            tokenizer.patch_dim * getattr(tokenizer, "classes", 1),
            task.modality,
            tokenizer.grid,
            tokenizer.position_table(config.decoder_dim, "sincos_row"),
            grids,
            config.decoder_block(),
            config.decoder_depth,
            {name: self.tokenizer(name).position_table(config.decoder_dim, "sincos_row") for name in others},
        )

    def tokenizer(self, name: str) -> Tokenizer:
        return self.targets[name] if name in self.targets else self.encoder.tokenizer(name)

    def check(self, batch: dict[str, Tensor]) -> None:
        super().check(batch)
        for name in self._only(batch):
            self.targets[name].check(batch[name])

    def _only(self, batch: dict[str, Tensor]) -> list[str]:
        """What a batch has of the modalities that are predicted and not read."""
        return [name for name in self.targets if name in batch]

    def see(self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None, keys: Tensor | None) -> Seen:
        """As the base class; what is not read counts as masked wholly."""
        for name, grid in self.encoder.grids.items():
            if grid != self.grids[name]:
                raise MmsslError(
                    f"the encoder was resized to a lattice of {grid} of {name!r}, the decoders have {self.grids[name]}."
                )
        seen = super().see(batch, masks, keys)
        for name in self._only(batch):
            shape = (len(batch[name]), self.targets[name].num_tokens)
            seen.masks[name] = torch.ones(shape, dtype=torch.bool, device=batch[name].device)
            if f"present/{name}" in batch:
                seen.real[name] = batch[f"present/{name}"][:, None].expand(shape)
        return seen

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        seen = self.see(batch, masks, keys)
        losses = {task: self._loss(task, batch, seen) for task in self.tasks if task.modality in batch}
        rows = torch.full((), len(seen.features.index), dtype=torch.float32, device=seen.features.index.device)
        parts = {f"loss_{task.name}": loss.detach() for task, loss in losses.items()}
        return {"loss": (self._weigh(losses) * rows, rows), **parts}

    def _weigh(self, losses: dict[Task, Tensor]) -> Tensor:
        """Sum of the tasks' losses; a learned variance counts where its task has a loss."""
        if self.log_vars is None:
            return sum(losses.values(), torch.zeros((), device=self.encoder.cls_token.device))
        values = {task: losses.get(task, torch.zeros_like(self.log_vars[0])) for task in self.tasks}
        loss = torch.stack(list(values.values()))
        return torch.where(loss != 0, (-self.log_vars).exp() * loss + self.log_vars, 0).sum()

    def _loss(self, task: Task, batch: dict[str, Tensor], seen: Seen) -> Tensor:
        said, goal = self.decode(task, seen).float(), self.goal(task.modality, batch[task.modality])
        counted = seen.counted(task.modality)[..., None]  # (B, N, 1)
        if not goal.is_floating_point():  # ids (B, N, P), -1 = no class
            logits = said.unflatten(-1, (goal.shape[-1], -1))  # (B, N, P, classes)
            error = F.cross_entropy(logits.flatten(0, 2), goal.flatten(), ignore_index=-1, reduction="none")
            return mean_over_samples(error.view(goal.shape), counted & (goal >= 0))
        goal = norm_pix_target(goal) if task.norm_pix else goal
        error = (said - goal).abs() if task.modality.split("/")[0] == "depth" else (said - goal).square()
        return mean_over_samples(error.mean(-1, keepdim=True), counted)

    def decode(self, task: Task, seen: Seen) -> Tensor:
        """What the task's decoder says of all of its places, (B, N, P), or logits (B, N, P * classes), class fastest.

        Decoders of classes compute in the precision of their weights under autocast too, as the authors' do.
        """
        decoder, features = self.decoders[task.name], seen.features
        ragged = seen.hidden is None or bool(seen.real)
        inputs = (features.index, features.cls, features.valid if ragged else None)
        if not hasattr(self.tokenizer(task.modality), "classes"):
            return decoder(features.tokens, *inputs)
        dtype, (index, cls, valid) = decoder.pred.weight.dtype, inputs
        with torch.autocast(features.tokens.device.type, enabled=False):
            return decoder(features.tokens.to(dtype), index, cls.to(dtype), valid)

    def fill(self, batch: dict[str, Tensor], seen: Seen) -> dict[str, Tensor]:
        """Modality -> every token as the encoder's other tokens tell it: normalised pixels, depth, or ids."""
        found = {}
        for task in self.tasks:
            if not task.norm_pix:
                said, tokenizer = self.decode(task, seen).float(), self.tokenizer(task.modality)
                ids = hasattr(tokenizer, "classes")
                found[task.modality] = said.unflatten(-1, (tokenizer.patch_dim, -1)).argmax(-1) if ids else said
        return found


def _make_tokenizer(config: MultiMAEConfig, name: str) -> Tokenizer:
    settings = config.tokenizer_config(name)
    return TOKENIZERS.get(settings.name)(settings, name, config.encoder_shape()["dim"], "sincos_row")
