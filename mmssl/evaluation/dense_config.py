"""Settings that the questions asked of every pixel share."""

import dataclasses
from typing import Literal

from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.evaluation.dense_tasks import DepthTask, SegmentationTask
from mmssl.evaluation.features import EvaluatorConfig, Splits

Task = SegmentationTask | DepthTask


@dataclasses.dataclass(frozen=True)
class DenseConfig(EvaluatorConfig):
    """Settings that segmentation and depth share. `pooling` is not used, and `labels` counts pictures."""

    head: Literal["linear", "conv"] = "linear"  # each token for its own patch, or a few convolutions
    inputs: tuple[str, ...] = ()  # modalities shown to the encoder; (): those of --modalities, else its images
    show_target: bool = False  # allow the plane that is predicted among the inputs
    train_encoder: bool = False  # fine-tune the encoder with the head
    steps: int = 1000  # optimizer steps
    train_batch: int = 32  # pictures in a step, cut to the training pictures
    lr: float | None = None  # AdamW's peak learning rate; None: 1e-3, and 5e-4 where the encoder is trained
    weight_decay: float = 0.05
    layer_decay: float = 0.75  # of the encoder's learning rates, from its last block down
    width: int = 128  # channels of the convolutional head
    max_gb: float = 8.0  # memory for the patch tokens of a dataset

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "train_batch", "max_gb", "width"):
            if getattr(self, name) <= 0:
                raise MmsslError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.width % 8:
            raise MmsslError(f"width must be a multiple of 8, got {self.width}.")

    @property
    def words(self) -> tuple[str, ...]:
        """What makes it another question than by default."""
        return (*(["conv"] if self.head == "conv" else []), *(["fine-tuned"] if self.train_encoder else []))

    def plane(self, target: Tensor) -> Tensor:
        """A batch's target as it is kept, (B, H, W)."""
        raise NotImplementedError

    def counted(self, target: Tensor) -> Tensor:
        """Pixels of a kept target that have an answer, bool (B, H, W)."""
        raise NotImplementedError

    def task(self, data: Splits, train: Tensor, test: Tensor) -> Task:
        """What is asked, for the kept targets (N, H, W) of both parts, each of which has an answer somewhere."""
        raise NotImplementedError
