"""ST-MAE written anew with torch's layers under the names of its authors' code (mae_st), as an oracle for the tests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Encoder(nn.Module):
    """Tokens of pixels (B, C, T, H, W) that are normalised; all of them, or one list of places for all rows."""

    def __init__(self, grid=(2, 4, 4), dim=64, heads=4, depth=2, patch=8):
        super().__init__()
        self.grid = grid
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, dim, (2, patch, patch), (2, patch, patch))})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.tables(dim, "")
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def tables(self, dim: int, prefix: str) -> None:
        for name, n in (("spatial", self.grid[1] * self.grid[2]), ("temporal", self.grid[0]), ("class", 1)):
            self.register_parameter(f"{prefix}pos_embed_{name}", nn.Parameter(torch.zeros(1, n, dim)))

    def positions(self, prefix: str = "") -> tuple[Tensor, Tensor]:
        """Positions of cls (1, 1, D) and of the patches (1, N, D), place by place."""
        spatial, temporal, of_cls = (getattr(self, f"{prefix}pos_embed_{n}") for n in ("spatial", "temporal", "class"))
        return of_cls, torch.stack([t + s for t in temporal[0] for s in spatial[0]])[None]

    def trunk(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 1 + n, D) before the final norm."""
        of_cls, positions = self.positions()
        x = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2) + positions
        x = x if keep is None else x[:, keep]
        x = torch.cat([(self.cls_token + of_cls).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x


class MaskedAutoencoder(Encoder):
    """mae_st's pretraining model. `forward(pixels, keep)` -> prediction of all tokens (B, N, P)."""

    def __init__(self, dim=64, decoder_dim=32, decoder_heads=2, patch=8, **settings):
        super().__init__(dim=dim, patch=patch, **settings)
        self.decoder_cls_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.tables(decoder_dim, "decoder_")
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.decoder_blocks = nn.ModuleList([Block(decoder_dim, decoder_heads)])
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_dim, patch * patch * 3)

    def forward(self, pixels: Tensor, keep: Tensor) -> Tensor:
        seen = self.decoder_embed(self.norm(self.trunk(pixels, keep))[:, 1:])
        of_cls, positions = self.positions("decoder_")
        x = self.mask_token.repeat(len(seen), positions.shape[1], 1)
        x[:, keep] = seen
        x = torch.cat([(self.decoder_cls_token + of_cls).expand(len(x), -1, -1), x + positions], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    @staticmethod
    def loss(pixels: Tensor, prediction: Tensor, masked: Tensor, patch: int = 8) -> Tensor:
        """Mean over the masked places of the squared error to every patch of the shown frames, each standardised."""
        shown = pixels[:, :, torch.linspace(0, pixels.shape[2] - 1, pixels.shape[2] // 2).long()]
        errors = []
        for b, place in ((b, int(i)) for b in range(len(pixels)) for i in masked):
            columns, rows = pixels.shape[4] // patch, pixels.shape[3] // patch
            t, r, c = place // (rows * columns), place // columns % rows, place % columns
            piece = shown[b, :, t, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            target = piece.permute(1, 2, 0).flatten()  # row, column, channel
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((prediction[b, place] - target).square().mean())
        return torch.stack(errors).mean()


class Classifier(Encoder):
    """mae_st's fine-tuned model: the mean of the patch tokens, then the norm, then the head."""

    def __init__(self, classes: int = 5, dim: int = 64, **settings):
        super().__init__(dim=dim, **settings)
        self.head = nn.Linear(dim, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.norm(self.trunk(pixels)[:, 1:].mean(1)))
