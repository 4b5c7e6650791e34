"""Maps of class ids <-> patch tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.nn.gather import gather_tokens
from mmssl.nn.linear import Linear
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, TokenizerConfig
from mmssl.tokenizers.image import settle_size
from mmssl.tokenizers.patches import PatchTokenizer, PlanePatches

NO_CLASS = -1
"""What stands in a target where there is no class; no loss counts it."""


@dataclass(frozen=True)
class SegmentationTokenizerConfig(TokenizerConfig):
    """Maps of one size with a class id at each pixel, read at a lower resolution."""

    name: str = "segmentation"
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels; one number means a square."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels of the whole picture; must divide the image size."""
    classes: int = 133
    """Number of classes, with the ids 0, 1, ...; 133 are those of COCO panoptic."""
    embed: int = 64
    """Width of the learned vector of a class."""
    stride: int = 4
    """One id is read of every stride x stride pixels, the one at the middle; must divide the patch size."""
    ignore: tuple[int, ...] = (254, 255)
    """Ids that are no class, besides all below 0."""

    def __post_init__(self) -> None:
        settle_size(self)
        if self.classes < 1 or self.embed < 1:
            raise MmsslError(f"classes and embed must be 1 or more, got {self.classes} and {self.embed}.")
        p, q = self.patch_size
        if self.stride < 1 or p % self.stride or q % self.stride:
            raise MmsslError(f"stride {self.stride} does not divide patch_size {p}x{q}; take 1 or a divisor of both.")
        if both := [i for i in self.ignore if 0 <= i < self.classes]:
            raise MmsslError(
                f"ignore names {', '.join(map(str, both))}, which the {self.classes} classes have as ids; change one."
            )


@register_tokenizer("segmentation")
class SegmentationTokenizer(PlanePatches, PatchTokenizer):
    """Class ids (B, H, W), int64, <-> patches of ids (B, N, p * q / stride ** 2), in the order (row, column).

    An id becomes a learned vector, and the vectors of a patch a token: the authors' convolution over embedded ids, the
    channel fastest in our weight. Bachmann et al. 2022 (MultiMAE, arXiv 2204.01678). What is no class is the vector 0
    (the authors' fine-tuning has a fixed vector there, their pretraining no such ids), and -1 in a target.

    Attributes:
        embedding: vector of each class, weight (classes, embed).
        proj: Linear(ids of a patch * embed -> D).
    """

    config_class = SegmentationTokenizerConfig
    hidden_value = NO_CLASS
    position_mode = "bilinear"

    def __init__(
        self, config: SegmentationTokenizerConfig, modality: str, embed_dim: int, positions: Positions = "sincos"
    ):
        super().__init__(config, modality, embed_dim)
        self.lay_out()
        self.build(positions)

    def build(self, positions: Positions) -> None:
        super().build(positions)
        self.embedding = nn.Embedding(self.config.classes, self.config.embed)
        nn.init.trunc_normal_(self.embedding.weight, std=0.02)
        self.proj = Linear(self.patch_dim * self.config.embed, self.embed_dim)
        nn.init.xavier_uniform_(self.proj.weight)

    def lay_out(self) -> None:
        (height, width), (p, q) = self.config.image_size, self.config.patch_size
        self.grid = (height // p, width // q)
        self.patch_dim = p * q // self.config.stride**2

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.config.classes

    @property
    def cell(self) -> tuple[int, int]:
        p, q = self.config.patch_size
        return p // self.config.stride, q // self.config.stride

    def prepare(self, x: Tensor) -> Tensor:
        """Ids (B, H, W) -> (B, H / stride, W / stride), the nearest ones, with -1 for all that is no class."""
        self.check_shape(x)
        middle, stride = self.config.stride // 2, self.config.stride
        ids = x[:, middle::stride, middle::stride]
        none = ids < 0
        for value in self.config.ignore:
            none = none | (ids == value)
        return ids.masked_fill(none, NO_CLASS)

    def restore(self, prepared: Tensor) -> Tensor:
        """Ids (B, H / stride, W / stride) as they are; -1 is no class."""
        return prepared

    def patchify(self, prepared: Tensor) -> Tensor:
        """(B, H / stride, W / stride) -> (B, N, patch_dim)."""
        return self.cut(prepared[:, None])[:, :, 0]

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N, patch_dim) -> (B, H / stride, W / stride), exactly what `patchify` took."""
        return super().unpatchify(patches, grid)[:, 0]

    def enlarge(self, lattice: Tensor) -> Tensor:
        """(B, H / stride, W / stride) -> (B, H, W): each value repeated stride x stride times."""
        return lattice.repeat_interleave(self.config.stride, 1).repeat_interleave(self.config.stride, 2)

    def target(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Ids of every token (B, N, patch_dim), or of those at `index` (B, n); -1 is no class."""
        patches = self.patchify(self.prepare(x))
        return patches if index is None else gather_tokens(patches, index)

    def embed(self, patches: Tensor) -> Tensor:
        """Ids (B, N, patch_dim), -1 for no class -> tokens (B, N, D), without positions."""
        if patches.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_range(patches)
        vectors = self.embedding(patches.clamp(min=0)) * (patches >= 0)[..., None]  # (B, N, patch_dim, embed)
        return self.proj(vectors.flatten(2).to(self.proj.weight.dtype))

    def check_shape(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.dtype != torch.int64:
            raise MmsslError(f"{self.modality!r} must be int64 class ids, got {x.dtype}; convert it with .long().")
        self.check_tensor(x, self.config.image_size, "maps")

    def check(self, x: Tensor) -> None:
        self.check_shape(x)
        self._check_range(self.prepare(x))

    def _check_range(self, ids: Tensor) -> None:
        if ids.numel() and int(ids.max()) >= self.classes:
            wrong = ids[ids >= self.classes].unique()
            shown = ", ".join(map(str, wrong[:5].tolist())) + (", ..." if len(wrong) > 5 else "")
            raise MmsslError(
                f"{self.modality!r} holds the ids {shown}, and this model has {self.classes} classes (0 to "
                f"{self.classes - 1}); set classes of its tokenizer, or name ids that are no class in its ignore."
            )
