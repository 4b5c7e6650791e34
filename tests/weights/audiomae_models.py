"""Audio-MAE written anew with torch's layers under the names of its authors' code, as an oracle for the tests.

Everything is done the slow, obvious way: positions token by token, windows as a mask over full attention.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from stmae_models import Block as SplitBlock
from torch import Tensor, nn

MEAN, STD = -4.2677393, 4.5689974
STATISTICS = {"audioset": (MEAN, STD), "esc50": (-6.6268077, 5.358466), "speechcommands": (-6.845978, 5.5654526)}
MEL, PATCH = 128, 16
SHAPE = {"dim": 32, "heads": 4, "depth": 2, "frames": 192}


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each (B, heads, N, D / heads)."""
        return tuple(p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.qkv(x).chunk(3, dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Block(SplitBlock):
    """MAE's block: pre-norm, q, k and v in one layer."""

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        self.attn = Attention(dim, heads)


class WindowAttention(Attention):
    """Cosine attention of all tokens to all tokens that share their window, by a mask (N, N)."""

    def __init__(self, dim: int, heads: int, grid: tuple[int, int], window: tuple[int, int], shift: int):
        super().__init__(dim, heads)
        self.tau = nn.Parameter(torch.ones(heads))
        self.meta_mlp = nn.ModuleDict({"fc1": nn.Linear(2, 384), "fc2": nn.Linear(384, heads)})
        self.together, self.distance = self.plan(grid, window, shift)

    @staticmethod
    def plan(grid: tuple[int, int], window: tuple[int, int], shift: int) -> tuple[Tensor, Tensor]:
        """Which token sees which (N, N), and the logarithmic distance between them in time and mel (N, N, 2).

        The rows are rolled back by `shift`: those that wrap around the end fall into the last window, and neither see
        the others there nor are seen by them.
        """
        shift = 0 if grid[0] <= window[0] else shift
        place, home = [], []
        for t in range(grid[0]):
            rolled = (t - shift) % grid[0]
            for f in range(grid[1]):
                place.append((rolled, f))
                home.append((rolled // window[0], f // window[1], t < shift))
        together = torch.tensor([[a == b for b in home] for a in home])
        place = torch.tensor(place).float()
        distance = place[:, None] - place[None]  # of the one that looks, less the one that is looked at
        return together, distance.sign() * (1 + distance.abs()).log()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)  # (B, heads, N, N)
        bias = self.meta_mlp.fc2(F.relu(self.meta_mlp.fc1(self.distance))).permute(2, 0, 1)  # (heads, N, N)
        score = cosine / self.tau.clamp(min=0.01)[:, None, None] + bias
        weights = score.masked_fill(~self.together, -torch.inf).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class WindowBlock(SplitBlock):
    """Swin v2's block: the norm comes after attention and MLP, inside the residual branch."""

    def __init__(self, dim: int, heads: int, grid: tuple[int, int], window: tuple[int, int], shift: int):
        super().__init__(dim, heads)
        self.attn = WindowAttention(dim, heads, grid, window, shift)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp.fc2(F.gelu(self.mlp.fc1(x))))


def table(dim: int, grid: tuple[int, int], swapped: bool) -> Tensor:
    """Sine-cosine positions (1, 1 + N, dim), a row of zeros for cls in front.

    Token i = (time, mel) has the column `mel` and the row `time`; with the authors' mistake the column i mod T and the
    row i // T, of a table with as many columns as there are times.
    """
    omega = [10000 ** (-k / (dim // 4)) for k in range(dim // 4)]
    rows = [torch.zeros(dim)]
    for i in range(grid[0] * grid[1]):
        row, column = divmod(i, grid[0] if swapped else grid[1])
        waves = [wave(place * w) for place in (column, row) for wave in (math.sin, math.cos) for w in omega]
        rows.append(torch.tensor(waves))
    return torch.stack(rows)[None]


class Encoder(nn.Module):
    """Tokens of normalised log-mel (B, 1, T, 128): all of them, or one list of places for all rows."""

    def __init__(self, dim=32, heads=4, depth=2, frames=192, stride=PATCH):
        super().__init__()
        self.stride, self.grid = stride, tuple((n - PATCH) // stride + 1 for n in (frames, MEL))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, dim, PATCH, stride)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(table(dim, self.grid, stride == PATCH))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def trunk(self, mel: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 1 + n, D) before the final norm."""
        x = self.patch_embed.proj(mel).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        x = x if keep is None else x[:, keep]
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x

    def features(self, mel: Tensor) -> Tensor:
        return self.norm(self.trunk(mel))


class MaskedAutoencoder(Encoder):
    """The pretraining model. `forward(mel, keep)` -> prediction of all tokens (B, N, 256)."""

    def __init__(self, decoder="window", decoder_dim=16, decoder_heads=2, decoder_depth=2, shift=2, **settings):
        super().__init__(**settings)
        self.window = None if decoder == "global" else (4, 4) if self.stride == PATCH else (6, 6)
        self.decoder_embed = nn.Linear(self.norm.normalized_shape[0], decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(table(decoder_dim, self.grid, self.stride == PATCH))
        if decoder == "global":
            blocks = (Block(decoder_dim, decoder_heads) for _ in range(decoder_depth))
        else:
            grid = (self.grid[0] + self.missing_rows(), self.grid[1])
            window = (decoder_dim, decoder_heads, grid, self.window)
            blocks = (WindowBlock(*window, shift * (k % 2)) for k in range(decoder_depth))
        self.decoder_blocks = nn.ModuleList(blocks)
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, PATCH * PATCH)

    def missing_rows(self) -> int:
        """How many rows of tokens the windows lack at the end; the last row is repeated."""
        return -self.grid[0] % self.window[0]

    def forward(self, mel: Tensor, keep: Tensor) -> Tensor:
        encoded = self.decoder_embed(self.norm(self.trunk(mel, keep)))
        x = self.mask_token.repeat(len(mel), self.grid[0] * self.grid[1], 1)
        x[:, keep] = encoded[:, 1:]
        x = torch.cat([encoded[:, :1], x], dim=1) + self.decoder_pos_embed
        if self.window:
            x = torch.cat([x[:, 1:], *[x[:, -self.grid[1] :]] * self.missing_rows()], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        prediction = self.decoder_pred(self.decoder_norm(x))
        return prediction[:, : self.grid[0] * self.grid[1]] if self.window else prediction[:, 1:]

    def loss(self, mel: Tensor, prediction: Tensor, masked: Tensor, norm_pix: bool = True) -> Tensor:
        """Mean over the masked places of the squared error to every patch, each standardised."""
        errors = []
        for b, place in ((b, int(i)) for b in range(len(mel)) for i in masked):
            t, f = (self.stride * i for i in divmod(place, self.grid[1]))
            target = mel[b, 0, t : t + PATCH, f : f + PATCH].flatten()
            if norm_pix:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((prediction[b, place] - target).square().mean())
        return torch.stack(errors).mean()


class Classifier(Encoder):
    """The fine-tuned model: the mean of the patch tokens, then the norm, then the head."""

    def __init__(self, classes=5, **settings):
        super().__init__(**settings)
        self.fc_norm, self.norm = self.norm, nn.Identity()
        self.head = nn.Linear(self.fc_norm.normalized_shape[0], classes)

    def forward(self, mel: Tensor) -> Tensor:
        return self.head(self.fc_norm(self.trunk(mel)[:, 1:].mean(1)))


def make(kind: type[Encoder], **settings) -> Encoder:
    """A tiny model with random weights, none of them zero or one; its position tables stay as they are."""
    model, generator = kind(**settings), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if not name.endswith("pos_embed"):
                start = 1.0 if "tau" in name else 0.5 if "norm" in name else 0.0
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + start)
    return model.eval()


def save(model: nn.Module | dict, path, **arguments):
    """A file as the authors' code writes it: `model`, and `args` where there are any."""
    state = model if isinstance(model, dict) else model.state_dict()
    beside = {"args": argparse.Namespace(**arguments)} if arguments else {}
    torch.save({"model": state} | beside, path)
    return path


def normalised(mel: Tensor, mean: float = MEAN, std: float = STD) -> Tensor:
    return (mel - mean) / (2 * std)


@torch.no_grad()
def assert_same_features(encoder, theirs, spectrogram):
    """`theirs` is (B, 1 + N, D)."""
    ours = encoder({"audio": spectrogram})
    scale = theirs.abs().max().clamp(min=1)
    assert (ours.tokens - theirs[:, 1:]).abs().max() < 1e-5 * scale
    assert (ours.cls - theirs[:, 0]).abs().max() < 1e-5 * scale
