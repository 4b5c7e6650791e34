"""MultiMAE's settings, and what they say of its tasks (Bachmann et al. 2022, arXiv 2204.01678)."""

from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

from mmssl.encoder import EncoderConfig
from mmssl.errors import MmsslError, unknown_name
from mmssl.joint_masking import DirichletMask
from mmssl.methods.sizes import SizedConfig
from mmssl.nn.transformer import BlockConfig
from mmssl.registry import TOKENIZERS
from mmssl.tokenizers.base import TokenizerConfig
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD
from mmssl.tokenizers.vector import VECTORS, VectorTokenizerConfig

TASKS = ("image", "depth", "segmentation")
"""The paper's modalities."""


class Task(NamedTuple):
    """One thing that is predicted."""

    name: str
    modality: str
    """The batch key that holds what is true."""
    norm_pix: bool = False
    """Patches standardised each by itself, in place of normalised pixels."""


@dataclass(frozen=True)
class MultiMAEConfig(SizedConfig):
    """Settings of MultiMAE; the defaults are the paper's ViT-B/16 of images, depth and segmentation."""

    name: str = "multimae"
    in_tasks: tuple[str, ...] = TASKS
    """Modalities that the encoder reads, in token order: the name of any tokenizer of pictures, or `<name>/<camera>`;
    or vectors, such as proprio and state. A batch may lack some of them."""
    out_tasks: tuple[str, ...] = TASKS
    """Modalities that are predicted, each by a decoder of its own; they need not be read as well."""
    extra_norm_pix: bool = True
    """Images are predicted once more by another decoder, each patch standardised by its own mean and variance."""
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels, of all modalities."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels, of all modalities."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    standardise: Literal["truncated", "none"] = "truncated"
    """Depth: each map standardised without its lowest and highest tenth; or metres as they are."""
    farthest: float | None = None
    """Depth: metres beyond which all counts as this far (a simulator's sky); null for no limit."""
    classes: int = 133
    """Number of classes of a segmentation; 133 are COCO's."""
    class_dim: int = 64
    """Width of the learned vector of a class."""
    class_stride: int = 4
    """One class is read and predicted of every stride x stride pixels; must divide the patch size."""
    ignore: tuple[int, ...] = (254, 255)
    """Ids of a segmentation that are no class, besides all below 0."""
    widths: dict[str, int] = field(default_factory=dict)
    """How many numbers each vector has, e.g. `proprio: 4`. One is a token, which a drawn mask seldom hides where the
    encoder reads it; named in out_tasks alone, it is predicted from the pictures in every sample."""
    budget: int = 98
    """Tokens that stay visible, over all modalities."""
    alpha: float = 1.0
    """Concentration of the Dirichlet draw that splits the budget: 1 is uniform over all splits, below it one-sided."""
    uniform_subsets: bool = False
    """First draw a set of modalities, among which alone the budget is split."""
    decoder_dim: int = 256
    decoder_depth: int = 2
    """Self-attention blocks of each decoder, after its cross-attention."""
    decoder_heads: int = 8
    weighting: Literal["equal", "uncertainty"] = "equal"
    """Tasks weigh the same, or each by a learned variance (Kendall et al. 2018, arXiv 1705.07115)."""
    drop_path: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("in_tasks", "out_tasks"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise MmsslError(f"{name} must be one or more different modalities, got {list(given)}.")
        if self.decoder_depth < 0:
            raise MmsslError(f"decoder_depth must be 0 or more, got {self.decoder_depth}.")
        if self.decoder_dim % 4:
            raise MmsslError(f"decoder_dim must be a multiple of 4, got {self.decoder_dim}.")
        for name in self.widths:
            if name not in (*self.in_tasks, *self.out_tasks):
                raise unknown_name("vector of widths", name, (*self.in_tasks, *self.out_tasks))
        for modality in self.out_tasks:
            self.tokenizer_config(modality)
        self.encoder_config()
        self.decoder_block()
        self.mask_sampler()

    def tokenizer_config(self, modality: str) -> TokenizerConfig:
        """Settings of the tokenizer of a modality: of these settings those that its kind has."""
        kind = modality.split("/")[0]
        if kind in VECTORS:
            if modality not in self.widths:
                raise MmsslError(f"widths must say how many numbers {modality!r} has, got {dict(self.widths)}.")
            return VectorTokenizerConfig(width=self.widths[modality])
        config = TOKENIZERS.get(kind).config_class
        names = {field.name for field in fields(config)}
        if not {"image_size", "patch_size"} <= names or "frames" in names:
            raise MmsslError(f"multimae reads and predicts single pictures, and {modality!r} is none; leave it out.")
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given |= {"name": kind, "embed": self.class_dim, "stride": self.class_stride}
        return config(**{name: value for name, value in given.items() if name in names})

    def encoder_config(self) -> EncoderConfig:
        """The encoder: row-first positions, a global token in the place of cls, no norm after the last block."""
        return EncoderConfig(
            tokenizers={name: self.tokenizer_config(name) for name in self.in_tasks},
            **self.encoder_shape(),
            drop_path=self.drop_path,
            norm_eps=self.norm_eps,
            final_norm=False,
            positions="sincos_row",
        )

    def decoder_block(self) -> BlockConfig:
        """Shape of the decoders' blocks."""
        return BlockConfig(dim=self.decoder_dim, heads=self.decoder_heads, norm_eps=self.norm_eps)

    def mask_sampler(self) -> DirichletMask:
        """What draws the masks."""
        return DirichletMask(self.budget, self.alpha, self.uniform_subsets)

    def tasks(self) -> list[Task]:
        """What is predicted, in order: the modalities, then images once more with norm-pix (`norm_<modality>`)."""
        tasks = [Task(name, name) for name in self.out_tasks]
        images = [name for name in self.out_tasks if name.split("/")[0] == "image"]
        return tasks + [Task(f"norm_{name}", name, True) for name in images if self.extra_norm_pix]
