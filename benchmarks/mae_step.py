"""How long one MAE pretraining step takes: ours against transformers' ViTMAE and a plain MAE of timm blocks.

    python benchmarks/mae_step.py                                    # ViT-S/16, batch 32, fp32 and bf16, on the CPU
    python benchmarks/mae_step.py --sizes small base --rounds 3
    python benchmarks/mae_step.py --device cuda --sizes base --batch 256 --dtypes bf16

How it is measured: `step_timing.py`, beside this file.
"""

from functools import partial

import torch
import tyro
from step_timing import BASELINE, Settings, Step, Task, run, training_step
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from mmssl.keys import sample_keys
from mmssl.losses import norm_pix_target
from mmssl.methods.mae import MAE, MAEConfig

SIDES = ("ours", "ours compiled", BASELINE, "timm blocks")


class TimmMAE(nn.Module):
    """MAE as one would write it first: timm's blocks, all patches embedded, all tokens predicted."""

    def __init__(self, config: MAEConfig):
        super().__init__()
        shape = config.encoder_config()
        dim, width, patch = shape.dim, config.decoder_dim, 16

        def blocks(n: int, dim: int, heads: int) -> nn.Sequential:
            return nn.Sequential(*(TimmBlock(dim, heads, qkv_bias=True) for _ in range(n)))

        self.embed = PatchEmbed(224, patch, 3, dim)
        self.pos = nn.Parameter(torch.randn(1, 196, dim) * 0.02, requires_grad=False)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks, self.norm = blocks(shape.depth, dim, shape.heads), nn.LayerNorm(dim)
        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos = nn.Parameter(torch.randn(1, 197, width) * 0.02, requires_grad=False)
        self.decoder = blocks(config.decoder_depth, width, config.decoder_heads)
        self.decoder_norm, self.pred = nn.LayerNorm(width), nn.Linear(width, patch * patch * 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x) + self.pos
        batch, n, dim = tokens.shape
        shuffle = torch.rand(batch, n, device=x.device).argsort(1)
        restore, kept = shuffle.argsort(1), n // 4
        visible = tokens.gather(1, shuffle[:, :kept, None].expand(-1, -1, dim))
        latent = self.norm(self.blocks(torch.cat([self.cls.expand(batch, -1, -1), visible], 1)))
        latent = self.decoder_embed(latent)
        full = torch.cat([latent[:, 1:], self.mask_token.expand(batch, n - kept, -1)], 1)
        full = full.gather(1, restore[..., None].expand(-1, -1, full.shape[-1]))
        full = self.decoder(torch.cat([latent[:, :1], full], 1) + self.decoder_pos)
        prediction = self.pred(self.decoder_norm(full))[:, 1:]
        patches = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).reshape(batch, n, -1)
        error = (prediction - norm_pix_target(patches)).square().mean(-1)
        mask = (restore >= kept).float()
        return (error * mask).sum() / mask.sum()


def transformers_mae(config: MAEConfig) -> nn.Module:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    shape = config.encoder_config()
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=shape.dim,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.dim,
            norm_pix_loss=True,
            layer_norm_eps=1e-6,
        )
    )


def make_step(config: MAEConfig, side: str, dtype: str, batch: int, device: str) -> Step:
    """One whole training step of a side."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, device=device)
    if side.startswith("ours"):
        model = MAE(config).to(device)
        forward = torch.compile(model) if side == "ours compiled" else model
        keys = sample_keys(0, 0, 0, torch.arange(batch, device=device))

        def loss() -> Tensor:
            total, count = forward({"image": images}, keys=keys)["loss"]
            return total / count
    else:
        model = (transformers_mae(config) if side == BASELINE else TimmMAE(config)).to(device).train()
        pixels = (images / 255 - 0.45) / 0.225  # normalised in the loader, where these users do it: not timed

        def loss() -> Tensor:
            return model(pixel_values=pixels).loss if side == BASELINE else model(pixels)

    return training_step(model, loss, dtype, device)


def multiply_adds(config: MAEConfig) -> float:
    """Of a step of ours with one image: forward, and twice that backward (the patches themselves need no gradient)."""
    shape = config.encoder_config()
    tokens, patch, visible = 196, 768, 49
    embed = visible * patch * shape.dim

    def block(n: int, dim: int, out: int) -> float:
        """`n` tokens in, `out` tokens out: k and v of all, everything else of those that come out."""
        return 2 * n * dim**2 + 10 * out * dim**2 + 2 * out * n * dim

    masked, width = tokens - visible, config.decoder_dim
    forward = shape.depth * block(visible + 1, shape.dim, visible + 1) + (visible + 1) * shape.dim * width
    forward += (config.decoder_depth - 1) * block(tokens + 1, width, tokens + 1) + block(tokens + 1, width, masked)
    forward += masked * width * patch
    return 3 * forward + 2 * embed


def task(size: str) -> Task:
    config = MAEConfig(size=size)
    return Task(f"ViT-{size}/16", "images", partial(make_step, config), multiply_adds(config))


def main(settings: Settings) -> None:
    run([task(size) for size in settings.sizes], settings)


if __name__ == "__main__":
    main(tyro.cli(Settings, default=Settings(sides=SIDES)))
