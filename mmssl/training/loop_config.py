"""What the loop is told, and how it ended."""

import sys
from dataclasses import dataclass, field
from typing import Literal

from mmssl.errors import MmsslError
from mmssl.training.distributed import Precision


@dataclass(frozen=True)
class LoopConfig:
    """How long to train, with which batches, and what to write down on the way."""

    steps: int | None = None
    """optimizer steps of the whole run; give this or epochs"""
    epochs: int | None = None
    """passes over the data; give this or steps"""
    batch_size: int = 256
    """samples of one optimizer step, over all processes and accumulated micro-batches"""
    accumulate: int = 1
    """micro-batches that one step is cut into, to fit into memory; changes nothing else"""
    repeats: int = 1
    """rows that each sample gets in a batch, each with its own draws (repeated sampling); batch_size counts them all,
    and one epoch visits every sample so many times"""
    precision: Precision = "auto"
    """auto (bf16 on devices that multiply in it natively), fp32 or bf16"""
    compile: bool = False
    """torch.compile the model"""
    clip_grad: float | None = None
    """largest norm of the gradient; null for no clipping"""
    seed: int = 0
    """seed of the weights, the data order, augmentation, masks and dropout"""
    log_every: int = 20
    """steps between two records in metrics.jsonl"""
    checkpoint_every: int = 1000
    """steps between two checkpoints; 0 leaves it to checkpoint_minutes"""
    checkpoint_minutes: float = 15.0
    """minutes after which a checkpoint is written at the latest; 0 for never"""
    keep: int = 2
    """newest checkpoints that are kept"""
    workers: int = 0
    """processes that read data, for each training process; 0 reads in the training process"""
    worker_timeout: float = 60.0
    """seconds that such a process may take for one sample before it is killed and the file left out; 0 for any time"""
    max_minutes: float | None = None
    """end after so many minutes of training, with the learning rate annealed by then"""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """where to compute"""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise MmsslError("give exactly one of loop.steps and loop.epochs; set the other one to null (None).")
        for name in ("steps", "epochs", "batch_size", "accumulate", "repeats", "log_every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MmsslError(f"loop.{name} must be 1 or more, got {value}.")
        for name in ("checkpoint_every", "checkpoint_minutes", "workers", "worker_timeout"):
            if getattr(self, name) < 0:
                raise MmsslError(f"loop.{name} must be 0 or more, got {getattr(self, name)}.")
        for name in ("clip_grad", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise MmsslError(f"loop.{name} must be above 0 or null, got {value}.")

    def micro_batch(self, world: int) -> int:
        """Samples that one of `world` processes takes at once."""
        size, rest = divmod(self.batch_size, self.accumulate * world)
        if rest:
            raise MmsslError(
                f"loop.batch_size {self.batch_size} cannot be shared by {world} process(es) times "
                f"loop.accumulate {self.accumulate}; choose a multiple of {self.accumulate * world}."
            )
        return size

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.steps if self.steps is not None else self.epochs * steps_per_epoch


@dataclass(frozen=True)
class FitResult:
    """How a call of `fit` ended."""

    steps: int
    """steps done, those of earlier calls included"""
    total: int
    """steps that the configuration asks for"""
    finished: bool
    """True if the run is at its end: all steps, or all minutes"""
    signal: int
    """the signal that stopped it, or 0"""
    seconds: float
    """training time, that of earlier calls included"""
    metrics: dict[str, float] = field(default_factory=dict)
    """the last record of metrics.jsonl, {} if this call wrote none"""

    def leave(self) -> None:
        """End the process, as shells expect of one that was interrupted, if a signal stopped the run."""
        if self.signal:
            sys.exit(128 + self.signal)
