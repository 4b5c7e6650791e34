"""How long one Audio-MAE pretraining step takes: decoder of 16 windowed blocks against one of 8 global blocks.

    python benchmarks/audiomae_step.py                               # ViT-S, 1024 x 128 spectrograms, batch 8, CPU
    python benchmarks/audiomae_step.py --clock cpu --threads 1       # on a machine that others use too
    python benchmarks/audiomae_step.py --device cuda --sizes base --batch 64 --dtypes bf16

Both sides get the same raw spectrograms and the same random masks. A share of the matrix rate counts each side's own
multiply-adds, a ratio of times does not: the windowed decoder has twice the blocks. How it is measured:
`step_timing.py`, beside this file.
"""

from functools import partial
from math import prod

import torch
import tyro
from step_timing import Settings, Step, Task, run, training_step
from torch import Tensor

from mmssl.keys import sample_keys
from mmssl.methods.audiomae import AudioMAE, AudioMAEConfig
from mmssl.tokenizers.audio import AUDIOSET_MEAN, AUDIOSET_STD

SIDES = ("window", "window compiled", "global", "global compiled")
WINDOW = (4, 4)


def make_step(size: str, side: str, dtype: str, batch: int, device: str) -> Step:
    """One whole training step of a side."""
    torch.manual_seed(0)
    config = side_config(size, side)
    model = AudioMAE(config).to(device)
    forward = torch.compile(model) if side.endswith("compiled") else model
    shape = (batch, 1, config.frames, config.mel_bins)
    spectrograms = AUDIOSET_MEAN + AUDIOSET_STD * torch.randn(shape, device=device)  # raw log-mel
    keys = sample_keys(0, 0, 0, torch.arange(batch, device=device))

    def loss() -> Tensor:
        total, count = forward({"audio": spectrograms}, keys=keys)["loss"]
        return total / count

    return training_step(model, loss, dtype, device)


def side_config(size: str, side: str) -> AudioMAEConfig:
    return AudioMAEConfig(size=size, decoder=side.split()[0])


def multiply_adds(config: AudioMAEConfig) -> float:
    """Of a step with one clip: forward, and twice that backward (the patches themselves need no gradient)."""
    shape, (width, depth, _) = config.encoder_config(), config.decoder_shape()
    patch = prod((config.patch_size,) * 2 if isinstance(config.patch_size, int) else config.patch_size)
    tokens = config.frames * config.mel_bins // patch
    visible = int(tokens * (1 - config.mask_ratio))
    masked = tokens - visible
    seen = prod(WINDOW) if config.decoder == "window" else tokens + 1  # keys of a query
    others = 0 if config.decoder == "window" else 1  # the cls token
    embed = visible * patch * shape.dim

    def block(n: int, dim: int, out: int, keys: int) -> float:
        """`n` tokens in, `out` tokens out: k and v of all, everything else of those that come out."""
        return 2 * n * dim**2 + 10 * out * dim**2 + 2 * out * keys * dim

    forward = shape.depth * block(visible + 1, shape.dim, visible + 1, visible + 1) + visible * shape.dim * width
    forward += (depth - 1) * block(tokens + others, width, tokens + others, seen)
    forward += block(tokens + others, width, masked, seen) + masked * width * patch
    return 3 * forward + 2 * embed


def task(size: str) -> Task:
    work = {side: multiply_adds(side_config(size, side)) for side in SIDES}
    return Task(f"Audio-MAE ViT-{size}/16, 1024x128", "clips", partial(make_step, size), work)


def main(settings: Settings) -> None:
    run([task(size) for size in settings.sizes], settings)


if __name__ == "__main__":
    main(tyro.cli(Settings, default=Settings(batch=8, sides=SIDES, baseline="global")))
