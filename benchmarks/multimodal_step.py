"""What several modalities cost: M3AE on images alone against MAE, MultiMAE by its modalities and visible tokens.

    python benchmarks/multimodal_step.py                              # ViT-S/16, batch 32, all three tables, on the CPU
    python benchmarks/multimodal_step.py --tables m3ae --rounds 15
    python benchmarks/multimodal_step.py --tables encoder multimae --batch 8
    python benchmarks/multimodal_step.py --clock cpu --threads 1      # on a machine that others use too
    python benchmarks/multimodal_step.py --device cuda --sizes base --batch 256 --dtypes bf16

`m3ae`: both methods have one size, one decoder, exact GELU, norms of 1e-6 and plain pixels as targets, so that nothing
but what M3AE needs for several modalities tells them apart. Its pairs have 64 bytes of text, of which a row has 16 to
64. `encoder` (MultiMAE's alone: masks drawn, forward, backward, AdamW) and `multimae` (a whole step with a decoder of
each task, and one more of images): a side `98 of 392` shows 98 tokens of the 392 that two modalities have; image,
depth and segmentation have 196 each. How it is measured: `step_timing.py`, beside this file.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import tyro
from step_timing import Settings, Step, Task, run, training_step
from torch import Tensor

from mmssl.encoder import SIZES
from mmssl.keys import sample_keys
from mmssl.methods.base import Method, create_method
from mmssl.methods.multimae import MultiMAEConfig
from mmssl.methods.multimae_settings import TASKS

TABLES = ("m3ae", "encoder", "multimae")
PATCHES, PATCH, TEXT, VOCABULARY = 196, 768, 64, 259
PIXELS = {"image": 768, "depth": 256, "segmentation": 16}  # values that are predicted of a patch
READ = {"image": 768, "depth": 256, "segmentation": 16 * 64}  # values that are projected to a token


@dataclass
class StepSettings(Settings):
    """What to time; each table has its own sides, and `--sides` is not used."""

    tables: tuple[Literal["m3ae", "encoder", "multimae"], ...] = TABLES
    compiled: bool = False
    """M3AE and MAE under torch.compile too."""
    budgets: tuple[int, ...] = (49, 98, 196)
    """Visible tokens of MultiMAE's three modalities; the second one is that of one and two modalities too."""


def block(n: int, dim: int, out: int | None = None) -> float:
    """Multiply-adds of a block: `n` tokens in, `out` tokens out; k and v of all, the rest of those that come out."""
    out = n if out is None else out
    return 2 * n * dim**2 + 10 * out * dim**2 + 2 * out * n * dim


def make_batch(names: tuple[str, ...], batch: int, device: str) -> dict[str, Tensor]:
    """Noise in the place of some modalities."""
    made = {
        "image": lambda: torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, device=device),
        "depth": lambda: 1 + torch.rand(batch, 1, 224, 224, device=device),
        "segmentation": lambda: torch.randint(0, 133, (batch, 224, 224), device=device),
        "text": lambda: torch.randint(1, VOCABULARY, (batch, TEXT), device=device),
    }
    found = {name: made[name]() for name in names}
    if "text" in names:
        length = torch.linspace(16, TEXT, batch, device=device).long()[:, None]
        found["text_mask"] = torch.arange(TEXT, device=device) < length
    return found


# M3AE against MAE


def make_pair(size: str, side: str, dtype: str, batch: int, device: str) -> Step:
    """One whole training step of MAE or M3AE."""
    torch.manual_seed(0)
    shape = {"size": size, "image_size": 224, "patch_size": 16, "mask_ratio": 0.75}
    model = make_mae(shape) if side.startswith("mae") else create_method("m3ae", **shape, gelu="exact")
    forward = torch.compile(model) if side.endswith("compiled") else model
    data = make_batch(("image", "text") if "pairs" in side else ("image",), batch, device)
    return step_of(model.to(device), forward, data, dtype, batch, device)


def make_mae(shape: dict) -> Method:
    return create_method("mae", **shape, norm_pix=False)


def step_of(model: Method, forward: torch.nn.Module, data: dict, dtype: str, batch: int, device: str) -> Step:
    """Forward, backward and AdamW of a method."""
    keys = sample_keys(0, 0, 0, torch.arange(batch, device=device))

    def loss() -> Tensor:
        total, count = forward(data, keys=keys)["loss"]
        return total / count

    return training_step(model.train(), loss, dtype, device)


def pair_task(size: str, compiled: bool) -> Task:
    names = ("mae", "m3ae image", "m3ae pairs")
    sides = [*names, *(f"{name} compiled" for name in names)] if compiled else names
    work = {side: pair_work(size, "pairs" in side) for side in sides}
    return Task(f"M3AE and MAE, ViT-{size}/16", "samples", partial(make_pair, size), work)


def pair_work(size: str, pairs: bool) -> float:
    """Multiply-adds of a step with one sample: forward, and twice that backward."""
    (dim, depth, _), width, layers = SIZES[size], 512, 8
    seen, hidden = 49 + 16 * pairs, 147 + 48 * pairs
    forward = depth * block(seen + 1, dim) + (seen + 1) * dim * width
    forward += (layers - 1) * block(seen + hidden + 1, width) + block(seen + hidden + 1, width, hidden)
    forward += 147 * width * PATCH + 48 * pairs * width * VOCABULARY
    return 3 * forward + 2 * 49 * PATCH * dim


# MultiMAE by its modalities and its visible tokens


def make_multimae(size: str, part: str, side: str, dtype: str, batch: int, device: str) -> Step:
    """One step of the encoder alone or of the whole method, for a side such as `98 of 392`."""
    torch.manual_seed(0)
    config = side_config(size, side)
    model, data = create_method(config).to(device), make_batch(config.in_tasks, batch, device)
    if part == "multimae":
        return step_of(model, model, data, dtype, batch, device)
    keys = sample_keys(0, 0, 0, torch.arange(batch, device=device))

    def loss() -> Tensor:
        return model.see(data, None, keys).features.tokens.float().square().mean()

    return training_step(EncoderAlone(model), loss, dtype, device)


class EncoderAlone(torch.nn.Module):
    """What is trained where decoders are left out."""

    def __init__(self, model: Method):
        super().__init__()
        self.encoder = model.encoder.train()


def side_config(size: str, side: str) -> MultiMAEConfig:
    visible, total = (int(word) for word in side.split(" of "))
    names = TASKS[: total // PATCHES]
    return MultiMAEConfig(size=size, in_tasks=names, out_tasks=names, budget=visible)


def multimae_task(size: str, part: str, budgets: tuple[int, ...]) -> Task:
    middle = budgets[min(1, len(budgets) - 1)]
    sides = [f"{middle} of {PATCHES * count}" for count in (1, 2)] + [f"{n} of {3 * PATCHES}" for n in budgets]
    work = {side: multimae_work(side_config(size, side), part) for side in sides}
    title = "MultiMAE's encoder" if part == "encoder" else "MultiMAE, whole step"
    return Task(f"{title}, ViT-{size}/16", "samples", partial(make_multimae, size, part), work)


def multimae_work(config: MultiMAEConfig, part: str) -> float:
    """Multiply-adds of a step with one sample: forward, and twice that backward; the budget split evenly."""
    (dim, depth, _), seen, width = SIZES[config.size], config.budget, config.decoder_dim
    embed = sum(READ[name] for name in config.in_tasks) * seen / len(config.in_tasks) * dim
    forward = depth * block(seen + 1, dim)
    for task in config.tasks() if part == "multimae" else ():
        values = PIXELS[task.modality] * (config.classes if task.modality == "segmentation" else 1)
        forward += (seen + 1) * dim * width + 2 * (seen + 1) * width**2 + 2 * PATCHES * (seen + 1) * width
        forward += 10 * PATCHES * width**2 + config.decoder_depth * block(PATCHES, width) + PATCHES * width * values
    return 3 * forward + 2 * embed


def settings_for(task: Task, settings: StepSettings) -> StepSettings:
    """The same settings with a table's own sides, compared with the first one."""
    sides = tuple(task.multiply_adds)
    return StepSettings(**{**vars(settings), "sides": sides, "baseline": sides[0]})


def main(settings: StepSettings) -> None:
    for size in settings.sizes:
        for table in settings.tables:
            task = pair_task(size, settings.compiled) if table == "m3ae" else None
            task = task or multimae_task(size, table, settings.budgets)
            run([task], settings_for(task, settings))


if __name__ == "__main__":
    main(tyro.cli(StepSettings))
