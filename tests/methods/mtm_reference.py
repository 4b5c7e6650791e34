"""MTM made of torch.nn's own layers, under the authors' names: what ours is compared with."""

import torch
from torch import nn

NAMES = {"state": "states", "action": "actions", "return": "returns", "reward": "rewards", "proprio": "proprios"}


def trunk(dim: int, heads: int, depth: int, drop: float = 0.0) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, drop, "gelu", norm_first=True, batch_first=True)
    return nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)


def time_table(length: int, dim: int) -> torch.Tensor:
    """Sines, then cosines, of the step, (length, dim), halved."""
    table = torch.zeros(length, dim)
    for t in range(length):
        for k in range(dim // 2):
            angle = torch.tensor(t * 10000.0 ** (-k / (dim / 2)), dtype=torch.float64)
            table[t, k], table[t, dim // 2 + k] = angle.sin() / 2, angle.cos() / 2
    return table


class Oracle(nn.Module):
    """Trajectories (B, T, F), standardised, and visible steps (T,) of each modality -> predictions (B, T, F)."""

    def __init__(self, widths: dict[str, int], length=4, dim=16, heads=2, depth=2, decoder_depth=1):
        super().__init__()
        names = [NAMES[name] for name in widths]
        self.encoder_embed_dict = nn.ModuleDict({NAMES[k]: nn.Linear(n, dim) for k, n in widths.items()})
        self.decoder_embed_dict = nn.ModuleDict({k: nn.Linear(dim, dim) for k in names})
        self.mask_token_dict = nn.ParameterDict({k: nn.Parameter(torch.zeros(1, 1, dim)) for k in names})
        self.encoder_per_dim_encoding, self.decoder_per_dim_encoding = (
            nn.ParameterDict({k: nn.Parameter(torch.zeros(1, 1, 1, dim)) for k in names}) for _ in range(2)
        )
        self.encoder, self.decoder = trunk(dim, heads, depth), trunk(dim, heads, decoder_depth)
        self.output_head_dict = nn.ModuleDict(
            {
                NAMES[k]: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, n))
                for k, n in widths.items()
            }
        )
        self.register_buffer("pos_embed", time_table(length, dim)[None, :, None])

    def scatter_all(self, seed: int = 0) -> "Oracle":
        """Vectors and norms away from their starts, where a mistake could hide."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return self.eval()

    def forward(self, trajectory, visible):
        names, length = list(trajectory), next(iter(trajectory.values())).shape[1]
        time, parts = self.pos_embed[0, :length, 0], []
        for name in names:
            key = NAMES[name]
            token = self.encoder_embed_dict[key](trajectory[name]) + self.encoder_per_dim_encoding[key][0, 0, 0] + time
            parts.append(token[:, visible[name]])
        counts = [part.shape[1] for part in parts]
        seen, whole = self.encoder(torch.cat(parts, 1)).split(counts, 1), []
        for name, tokens in zip(names, seen, strict=True):
            key = NAMES[name]
            full = self.mask_token_dict[key].repeat(len(tokens), length, 1)
            full[:, visible[name]] = tokens
            whole.append(self.decoder_embed_dict[key](full) + self.decoder_per_dim_encoding[key][0, 0, 0] + time)
        said = self.decoder(torch.cat(whole, 1)).split([length] * len(names), 1)
        return {name: self.output_head_dict[NAMES[name]](x) for name, x in zip(names, said, strict=True)}
