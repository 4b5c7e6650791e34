"""Sequences of vectors (proprioception, state, action, reward) <-> tokens, one a time step."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.nn.positions import sincos_1d
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, Tokenizer, TokenizerConfig

VECTORS = ("proprio", "state", "features", "action", "reward", "return")
"""Batch keys that hold vectors."""


@dataclass(frozen=True)
class VectorTokenizerConfig(TokenizerConfig):
    """Sequences of vectors, float (B, T, width), with `valid` bool (B, T), False = padding."""

    name: str = "vector"
    width: int = field(kw_only=True)
    """Numbers of a vector."""
    frames: int = 1
    """Time steps of a sequence, each of which is a token; shorter ones are read too."""
    mean: tuple[float, ...] | None = None
    """Subtracted from each dimension; null for what pretraining finds in its training data."""
    std: tuple[float, ...] | None = None
    """Each dimension is divided by it; null as for `mean`."""
    min_std: float = 0.1
    """A dimension of which the standard deviation is below this is not divided (MTM)."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.frames < 1:
            raise MmsslError(f"width {self.width} and frames {self.frames} of vectors must be 1 or more.")
        if self.min_std < 0:
            raise MmsslError(f"min_std must be 0 or more, got {self.min_std}.")
        if (self.mean is None) != (self.std is None):
            raise MmsslError("give both mean and std of the vectors, or neither: pretraining then finds them.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.width:
                raise MmsslError(f"{name} has {len(values)} numbers and vectors have {self.width} (width).")
        if self.std is not None and not min(self.std) >= 0:
            raise MmsslError(f"std must be 0 or more in each dimension, got {list(self.std)}.")


@register_tokenizer("vector")
class VectorTokenizer(Tokenizer):
    """Vectors (B, T, width), raw units, <-> patches (B, T, width), each dimension standardised.

    Wu et al. 2023 (MTM, arXiv 2305.02968): (x - mean) / std, with 1 in place of a small std; positions are of the time
    alone. What learns is a linear layer.

    Attributes:
        mean, std: float32 (width,), buffers: they are saved with the weights.
    """

    config_class = VectorTokenizerConfig

    def __init__(self, config: VectorTokenizerConfig, modality: str, embed_dim: int, positions: Positions = "sincos"):
        super().__init__(config, modality, embed_dim)
        self.grid, self.patch_dim = (config.frames,), config.width
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("std", torch.ones(config.width))
        if config.mean is not None:
            self.set_statistics(torch.tensor(config.mean), torch.tensor(config.std))
        self.build(positions)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Standardise by these from now on: (width,) each; 1 stands in place of an std below `min_std`."""
        for name, values in (("mean", mean), ("std", std)):
            if tuple(values.shape) != (self.config.width,):
                raise MmsslError(
                    f"{name} of {self.modality!r} must have the shape ({self.config.width},), got "
                    f"{tuple(values.shape)}; set width of its tokenizer, or take other data."
                )
        self.mean.copy_(mean)
        self.std.copy_(std.masked_fill(std < self.config.min_std, 1).masked_fill(std == 0, 1))

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """(T,) of an input: its tokens are the first ones of the lattice."""
        return (x.shape[1],)

    def padding(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The batch's `valid`; None without one: every time step is real."""
        valid, shape = batch.get("valid"), tuple(batch[self.modality].shape[:2])
        if valid is not None and (valid.dtype != torch.bool or tuple(valid.shape) != shape):
            raise MmsslError(
                f"'valid' must be bool with the shape {shape} of the time steps of {self.modality!r} (False = "
                f"padding), got {valid.dtype} {tuple(valid.shape)}."
            )
        return valid

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Tokens with their positions: all of them (B, T, D), or those at the places `index` (B, n) -> (B, n, D)."""
        if index is None:
            return self.embed(self.target(x)) + self.positions[:, : x.shape[1]]
        return super().forward(x, index)

    def prepare(self, x: Tensor) -> Tensor:
        """Raw units (B, T, width) -> float32, standardised."""
        self.check_shape(x)
        return (x.float() - self.mean) / self.std

    def restore(self, prepared: Tensor) -> Tensor:
        """Standardised vectors (B, T, width) -> raw units."""
        return prepared * self.std + self.mean

    def patchify(self, prepared: Tensor) -> Tensor:
        """(B, T, width) as they are."""
        return prepared

    def unpatchify(self, patches: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """(B, T, width) as they are."""
        return patches

    def resize(self, config: VectorTokenizerConfig) -> None:
        """Take sequences of another length from now on, in place: fixed tables are made anew, others interpolated."""
        old_grid, old_table, self.config, self.grid = self.grid, self.positions.detach(), config, (config.frames,)
        if self.scheme == "learned":
            self.resize_positions(old_grid, self.grid)
        else:
            table = self.position_table(self.embed_dim, self.scheme).to(old_table)
            self.set_positions(table, self.pos_embed.requires_grad)

    def position_table(self, dim: int, positions: Positions) -> Tensor:
        if positions == "separable":
            raise MmsslError("positions 'separable' are of times and places; vectors have 'sincos' or 'learned' ones.")
        if positions == "sincos_half":
            return sincos_1d(dim, self.config.frames)[None] / 2
        if positions in ("sincos", "sincos_row", "sincos_swapped"):  # there is but one axis
            return sincos_1d(dim, self.config.frames)[None]
        return super().position_table(dim, positions)

    def check_shape(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise MmsslError(f"{self.modality!r} must be a torch tensor, got {type(x).__name__}.")
        if not x.is_floating_point():
            raise MmsslError(f"{self.modality!r} must be float vectors, got {x.dtype}; convert it with .float().")
        frames, width = self.config.frames, self.config.width
        if x.ndim != 3 or not 1 <= x.shape[1] <= frames or x.shape[2] != width:
            raise MmsslError(
                f"{self.modality!r} must have the shape (batch, 1 to {frames} time steps, {width}), got "
                f"{tuple(x.shape)}; set frames and width of its tokenizer, or cut the sequences."
            )

    def check(self, x: Tensor) -> None:
        self.check_shape(x)
        if not bool(x.isfinite().all()):
            raise MmsslError(f"{self.modality!r} holds NaN or infinite values; mend them, or leave these samples out.")


def vector_tokenizers(model: nn.Module) -> list[VectorTokenizer]:
    """The tokenizers of vectors in an encoder or a method."""
    return [module for module in model.modules() if isinstance(module, VectorTokenizer)]


def copy_statistics(source: nn.Module, target: nn.Module) -> None:
    """Let the vectors of `target` be standardised as those of `source`, a model of the same shape, are."""
    for theirs, ours in zip(vector_tokenizers(source), vector_tokenizers(target), strict=True):
        ours.load_state_dict({"mean": theirs.mean, "std": theirs.std}, strict=False)
