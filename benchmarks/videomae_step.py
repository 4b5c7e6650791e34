"""How long one VideoMAE pretraining step takes: ours against transformers' VideoMAEForPreTraining.

    python benchmarks/videomae_step.py                               # ViT-S, 16 x 224 x 224, batch 4, on the CPU
    python benchmarks/videomae_step.py --clock cpu --threads 1       # on a machine that others use too
    python benchmarks/videomae_step.py --device cuda --sizes base --batch 64 --dtypes bf16

Both sides get the same clips and the same tube masks (theirs wants them from outside). How it is measured:
`step_timing.py`, beside this file.
"""

from functools import partial

import torch
import tyro
from step_timing import Settings, Step, Task, run, training_step
from torch import Tensor, nn

from mmssl.keys import sample_keys
from mmssl.methods.videomae import VideoMAE, VideoMAEConfig
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD


def transformers_videomae(config: VideoMAEConfig) -> nn.Module:
    from transformers import VideoMAEConfig as TheirConfig
    from transformers import VideoMAEForPreTraining

    shape, (width, depth, heads) = config.encoder_config(), config.decoder_shape()
    return VideoMAEForPreTraining(
        TheirConfig(
            hidden_size=shape.dim,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.dim,
            decoder_hidden_size=width,
            decoder_num_hidden_layers=depth,
            decoder_num_attention_heads=heads,
            decoder_intermediate_size=4 * width,
            norm_pix_loss=True,
            layer_norm_eps=1e-6,
            use_mean_pooling=False,
        )
    )


def make_step(config: VideoMAEConfig, side: str, dtype: str, batch: int, device: str) -> Step:
    """One whole training step of a side."""
    torch.manual_seed(0)
    clips = torch.randint(0, 256, (batch, 16, 3, 224, 224), dtype=torch.uint8, device=device)
    keys = sample_keys(0, 0, 0, torch.arange(batch, device=device))
    if side.startswith("ours"):
        model = VideoMAE(config).to(device)
        forward = torch.compile(model) if side == "ours compiled" else model

        def loss() -> Tensor:
            total, count = forward({"video": clips}, keys=keys)["loss"]
            return total / count
    else:
        sampler = VideoMAE(VideoMAEConfig(size="tiny")).sampler
        mask = sampler({"video": (8, 14, 14)}, keys)["video"]  # made in the loader, as the authors do: not timed
        model = transformers_videomae(config).to(device).train()
        mean, std = (torch.tensor(s, device=device).view(-1, 1, 1) for s in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = (clips / 255 - mean) / std  # so is this

        def loss() -> Tensor:
            return model(pixel_values=pixels, bool_masked_pos=mask).loss

    return training_step(model, loss, dtype, device)


def multiply_adds(config: VideoMAEConfig) -> float:
    """Of a step of ours with one clip: forward, and twice that backward (the patches themselves need no gradient)."""
    shape, (width, depth, _) = config.encoder_config(), config.decoder_shape()
    tokens, patch, visible = 1568, 1536, 160
    embed = visible * patch * shape.dim

    def block(n: int, dim: int, out: int) -> float:
        """`n` tokens in, `out` tokens out: k and v of all, everything else of those that come out."""
        return 2 * n * dim**2 + 10 * out * dim**2 + 2 * out * n * dim

    masked = tokens - visible
    forward = shape.depth * block(visible, shape.dim, visible) + visible * shape.dim * width
    forward += (depth - 1) * block(tokens, width, tokens) + block(tokens, width, masked) + masked * width * patch
    return 3 * forward + 2 * embed


def task(size: str) -> Task:
    config = VideoMAEConfig(size=size)
    return Task(f"VideoMAE ViT-{size}/16, 16x224", "clips", partial(make_step, config), multiply_adds(config))


def main(settings: Settings) -> None:
    run([task(size) for size in settings.sizes], settings)


if __name__ == "__main__":
    main(tyro.cli(Settings, default=Settings(batch=4)))
