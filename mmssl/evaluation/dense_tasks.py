"""What is asked of every pixel: its class or its depth. Loss, answer, score, and the best constant picture of each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.evaluation.segmentation_scores import PartTally

VOID = -1  # no class


class SegmentationTask(nn.Module):
    """Class of every pixel: cross-entropy, scored by mIoU and pixel accuracy over all pixels of all pictures.

    As in `PartTally`, a class that neither truth nor answer holds is left out of the mean.

    Args:
        classes: ids lie in 0 .. classes - 1; below 0 is no class, and does not count.
    """

    at_once = 16  # pictures in one pass of the head: their scores are as large as the pictures, for each class

    def __init__(self, classes: int):
        super().__init__()
        self.outputs = classes

    @staticmethod
    def counted(target: Tensor) -> Tensor:
        """Pixels that have an answer, bool (B, H, W)."""
        return target >= 0

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy over the pixels of each picture (B,), for scores (B, K, H, W) and ids (B, H, W)."""
        losses = F.cross_entropy(output, target.long().clamp_min(VOID), ignore_index=VOID, reduction="none")
        return losses.sum((1, 2)) / self.counted(target).sum((1, 2)).clamp_min(1)

    def restore(self, output: Tensor) -> Tensor:
        """Scores (B, K, H, W) -> ids (B, H, W)."""
        return output.argmax(1).short()

    def score(self, answer: Tensor, target: Tensor) -> dict[str, float]:
        """miou and pixel_accuracy of ids (N, H, W)."""
        tally = PartTally(self.outputs)
        truth = torch.where(self.counted(target), target, self.outputs)  # what is no class lies beyond them
        found = tally.add(truth.numpy().astype("int64"), answer.numpy().astype("int64"))
        return {"miou": found["mIoU"], "pixel_accuracy": found["pixel accuracy"]}

    def constant(self, targets: Tensor) -> Tensor:
        """The most frequent class at each place over pictures (N, H, W): ids (H, W); where there is none, of all."""
        counts = torch.stack([(targets == k).sum(0) for k in range(self.outputs)])  # (K, H, W)
        return torch.where(counts.amax(0) > 0, counts.argmax(0), counts.sum((1, 2)).argmax()).short()


class DepthTask(nn.Module):
    """Depth of every pixel in metres: absolute error of its logarithm, scored by delta1, rmse and abs_rel.

    A head predicts the logarithm, standardised over the training pixels. Its absolute error is what delta1 and abs_rel
    measure, both being about ratios, and single far pixels do not rule it. Scores are over all pixels of all pictures
    that have a depth: finite and above 0.

    Args:
        mean, std: of the logarithm of the training pixels' depth.
    """

    at_once = 64
    outputs = 1

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std

    @classmethod
    def of(cls, targets: Tensor) -> "DepthTask":
        """With the statistics of training depths (N, H, W)."""
        logs = targets[cls.counted(targets)].double().log()
        return cls(logs.mean().item(), max(logs.std(unbiased=False).item(), 1e-3))

    @staticmethod
    def counted(target: Tensor) -> Tensor:
        """Pixels that have a depth, bool (B, H, W)."""
        return target.isfinite() & (target > 0)

    def losses(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean error over the pixels of each picture (B,), for outputs (B, 1, H, W) and metres (B, H, W)."""
        counted = self.counted(target)
        goal = (torch.where(counted, target, 1.0).log() - self.mean) / self.std
        errors = (output[:, 0] - goal).abs() * counted
        return errors.sum((1, 2)) / counted.sum((1, 2)).clamp_min(1)

    def restore(self, output: Tensor) -> Tensor:
        """Outputs (B, 1, H, W) -> metres (B, H, W)."""
        return (output[:, 0] * self.std + self.mean).exp()

    def score(self, answer: Tensor, target: Tensor) -> dict[str, float]:
        """delta1 (share with a ratio to the truth below 1.25), rmse in metres and abs_rel of depths (N, H, W)."""
        counted = self.counted(target)
        guess, truth = answer[counted].double(), target[counted].double()
        ratio = torch.maximum(guess / truth, truth / guess)
        return {
            "delta1": (ratio < 1.25).double().mean().item(),
            "rmse": (guess - truth).square().mean().sqrt().item(),
            "abs_rel": ((guess - truth).abs() / truth).mean().item(),
        }

    def constant(self, targets: Tensor) -> Tensor:
        """The median depth at each place over pictures (N, H, W): metres (H, W); where there is none, of all."""
        known = torch.where(self.counted(targets), targets.float(), torch.nan)
        medians = known.nanmedian(0).values
        return torch.where(medians.isnan(), known.flatten().nanmedian(), medians)


def segmentation_task(names: list[str] | None, *targets: Tensor) -> SegmentationTask:
    """The task for ids (N, H, W), with as many classes as there are names, or else as the largest id says.

    Raises an `MmsslError` for ids beyond the named classes.
    """
    largest = max(int(part.max()) for part in targets)
    if names is not None and largest >= len(names):
        raise MmsslError(
            f"the segmentation holds the id {largest} and names {len(names)} classes; ids must lie below that, or be "
            "among the ids to ignore (segmentation.ignore)."
        )
    return SegmentationTask(largest + 1 if names is None else len(names))
