"""How long one MAE pretraining step takes: ours against transformers' ViTMAE and a plain MAE of timm blocks.

    python benchmarks/mae_step.py                                    # ViT-S/16, batch 32, fp32 and bf16, on the CPU
    python benchmarks/mae_step.py --sizes small base --rounds 3
    python benchmarks/mae_step.py --device cuda --sizes base --batch 256 --dtypes bf16

A step is forward, backward and fused AdamW, with the same optimizer for every side, on the same images. The sides take
turns within each round, in an order that rotates, so that a slow minute of the machine hits all of them; a ratio is the
median of the rounds' own ratios, with their quartiles. The share is, for every side alike, the multiply-adds that our
model does (linear layers and attention; backward counted as twice forward), over the time and over the fastest square
matrix product that this machine did in the same run, by any library that torch can call.
"""

import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
import tyro
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from mmssl.keys import sample_keys
from mmssl.losses import norm_pix_target
from mmssl.methods.mae import MAE, MAEConfig
from mmssl.nn.linear import linear

Step = Callable[[], None]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Settings:
    """What to time."""

    sizes: tuple[str, ...] = ("small",)
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    batch: int = 32
    rounds: int = 7
    device: str = "cpu"
    sides: tuple[str, ...] = ("ours", "ours compiled", "transformers", "timm blocks")
    threads: int | None = None
    """CPU threads; default: torch's own choice."""
    clock: Literal["wall", "cpu"] = "wall"
    """`cpu` counts the processor time of this process: for a machine that others use too, with one thread."""


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


def make_step(side: str, config: MAEConfig, dtype: str, batch: int, device: str) -> Step:
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
        model = (transformers_mae(config) if side == "transformers" else TimmMAE(config)).to(device).train()
        pixels = (images / 255 - 0.45) / 0.225  # normalised in the loader, where these users do it: not timed

        def loss() -> Tensor:
            return model(pixel_values=pixels).loss if side == "transformers" else model(pixels)

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    cast = torch.autocast(device, torch.bfloat16) if dtype == "bf16" else nullcontext()

    def step() -> None:
        with cast:
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def multiply_adds(config: MAEConfig, batch: int) -> float:
    """Multiply-adds of a step of ours: forward, and twice that backward (the patches themselves need no gradient)."""
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
    return batch * (3 * forward + 2 * embed)


def seconds(call: Step, settings: Settings) -> float:
    clock = time.process_time if settings.clock == "cpu" else time.perf_counter
    start = clock()
    call()
    if settings.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


@dataclass
class MatrixRate:
    """The fastest square matrix product seen, in multiply-adds a second; fp32 by MKL and by oneDNN."""

    dtype: str
    settings: Settings
    best: float = 0.0
    operands: list[Tensor] = field(default_factory=list)

    def measure(self) -> None:
        device = self.settings.device
        n = 8192 if device == "cuda" else 2048
        self.operands = self.operands or [torch.randn(n, n, device=device, dtype=DTYPES[self.dtype])] * 2
        a, b = self.operands
        for product in (lambda: a @ b, lambda: linear(a, b)):
            product()
            self.best = max(self.best, n**3 / min(seconds(product, self.settings) for _ in range(3)))


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


def compare(size: str, dtype: str, settings: Settings) -> None:
    config = MAEConfig(size=size)
    steps = {}
    for side in settings.sides:
        try:
            step = make_step(side, config, dtype, settings.batch, settings.device)
            step()
            step()
            steps[side] = step
        except Exception as error:  # no compiler, no transformers: the other sides still say something
            print(f"  {side}: left out ({type(error).__name__}: {str(error).splitlines()[0][:80]})")
    rate, times = MatrixRate(dtype, settings), {side: [] for side in steps}
    for number in range(settings.rounds):
        rate.measure()
        order = list(steps)[number % len(steps) :] + list(steps)[: number % len(steps)]
        for side in order:
            times[side].append(seconds(steps[side], settings))
    print_table(size, dtype, settings, times, multiply_adds(config, settings.batch), rate.best)


def print_table(size: str, dtype: str, settings: Settings, times: dict, work: float, rate: float) -> None:
    print(f"\nViT-{size}/16, {dtype}, batch {settings.batch}, {settings.device}, {settings.rounds} rounds, ", end="")
    print(f"{settings.clock} time; matrix product {2 * rate / 1e9:,.0f} GFLOP/s, {2 * work / 1e9:,.0f} GFLOP a step")
    baseline = times.get("transformers", [math.nan] * settings.rounds)
    for side, values in times.items():
        middle = statistics.median(values)
        ratio = quartiles([b / v for b, v in zip(baseline, values, strict=True)])
        print(
            f"  {side:14s} {middle:8.3f} s/step {settings.batch / middle:8.1f} images/s   "
            f"{ratio[1]:5.2f}x transformers [{ratio[0]:.2f}, {ratio[2]:.2f}]   "
            f"{work / middle / rate:5.0%} of the matrix rate"
        )


def main(settings: Settings) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, sides {', '.join(settings.sides)}")
    for size in settings.sizes:
        for dtype in settings.dtypes:
            compare(size, dtype, settings)


if __name__ == "__main__":
    main(tyro.cli(Settings))
