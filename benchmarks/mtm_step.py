"""What a training step of MTM costs, against the same model made of torch.nn.TransformerEncoder.

    python benchmarks/mtm_step.py --threads 2                                 # published shape, Hopper's dimensions
    python benchmarks/mtm_step.py --threads 2 --sizes small --batch 1024
    python benchmarks/mtm_step.py --device cuda --batch 2048 --dtypes fp32 bf16

`torch`: every token goes through the encoder, a mask token where one is hidden. `torch visible`: as the authors do,
the visible tokens alone, and mask tokens in the decoder. Both have dropout as published, and their masks are drawn
beforehand, where ours draws them in the step. A step here is eight of training, each with another mask of the published
distribution, the same ones for every side. How it is measured: `step_timing.py`, beside this file.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from step_timing import Settings, Step, Task, run, training_step
from torch import Tensor

from mmssl.keys import sample_keys
from mmssl.methods.base import create_method
from mmssl.trajectory_masking import TrajectoryMask

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "methods"))
from mtm_reference import Oracle, trunk

WIDTHS, LENGTH, STEPS = {"state": 11, "action": 3, "return": 1}, 4, 8
SHAPES = {"published": (512, 4, 2, 1), "small": (128, 4, 2, 1)}  # width, heads, encoder and decoder layers


@dataclass
class StepSettings(Settings):
    """What to time."""

    sizes: tuple[str, ...] = ("published",)
    dtypes: tuple[str, ...] = ("fp32",)
    batch: int = 256
    sides: tuple[str, ...] = ("ours", "torch visible", "torch")
    baseline: str = "torch"


class Whole(Oracle):
    """The model with every token in the encoder."""

    def forward(self, trajectory: dict[str, Tensor], visible: dict[str, Tensor]) -> dict[str, Tensor]:
        everything = {name: torch.ones_like(steps) for name, steps in visible.items()}
        return super().forward({name: x * visible[name][:, None] for name, x in trajectory.items()}, everything)


def masks_of(number: int, device: str) -> dict[str, Tensor]:
    """Visible steps (T,) of each modality under the number-th mask."""
    keys = sample_keys(number, 0, 0, torch.zeros(1, dtype=torch.int64))
    masks = TrajectoryMask()({name: (LENGTH,) for name in WIDTHS}, keys)
    return {name: ~mask[0].to(device) for name, mask in masks.items()}


def make_step(size: str, side: str, dtype: str, batch: int, device: str) -> Step:
    """Eight training steps of one side."""
    torch.manual_seed(0)
    dim, heads, depth, decoder_depth = SHAPES[size]
    shape = {"dim": dim, "heads": heads, "depth": depth, "decoder_depth": decoder_depth}
    data = {name: torch.randn(batch, LENGTH, n, device=device) for name, n in WIDTHS.items()}
    count = [0]
    if side.startswith("ours"):
        model = create_method("mtm", widths=WIDTHS, **shape).to(device).train()
        forward = torch.compile(model) if side.endswith("compiled") else model

        def loss() -> Tensor:
            count[0] = (count[0] + 1) % STEPS
            row = torch.zeros(batch, dtype=torch.int64, device=device)
            total, rows = forward(data, keys=sample_keys(count[0], 0, 0, row))["loss"]
            return total / rows

    else:
        model = (Oracle if side == "torch visible" else Whole)(WIDTHS, LENGTH, **shape)
        model.encoder, model.decoder = trunk(dim, heads, depth, 0.1), trunk(dim, heads, decoder_depth, 0.1)
        model, masks = model.to(device).train(), [masks_of(number, device) for number in range(STEPS)]

        def loss() -> Tensor:
            count[0] = (count[0] + 1) % STEPS
            said = model(data, masks[count[0]])
            return sum(torch.nn.functional.mse_loss(said[name], x) for name, x in data.items())

    one = training_step(model, loss, dtype, device)

    def step() -> None:
        for _ in range(STEPS):
            one()

    return step


def work(size: str, side: str) -> float:
    """Multiply-adds of eight steps with one sample: forward, and twice that backward."""
    dim, _, depth, layers = SHAPES[size]
    n, total = LENGTH * len(WIDTHS), 0.0
    for number in range(STEPS):
        seen = n if side == "torch" else sum(int(steps.sum()) for steps in masks_of(number, "cpu").values())
        block = [12 * m * dim**2 + 2 * m * m * dim for m in (seen, n)]
        linear = seen if side.startswith("ours") else n  # of the decoder's first layer
        total += depth * block[0] + layers * block[1] + (linear + n) * dim**2
    return 3 * total


def main(settings: StepSettings) -> None:
    for size in settings.sizes:
        sides = {side: work(size, side) for side in settings.sides}
        run([Task(f"MTM, {size}", "x 8 samples", partial(make_step, size), sides)], settings)


if __name__ == "__main__":
    main(tyro.cli(StepSettings))
