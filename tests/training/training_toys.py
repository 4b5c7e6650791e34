"""A dataset, a model and a run small enough to train in a moment; imported by the tests and by processes they start."""

import sys
import types
from pathlib import Path

import torch
from torch import nn

from mmssl.training.checkpoint import RunFolder
from mmssl.training.loop import FitResult, LoopConfig, fit
from mmssl.training.optim import OptimConfig


class ToyDataset:
    """`n` random inputs x (8,) with targets linear in them."""

    modality, name, balance, epoch_samples = "x", "toy", False, None

    def __init__(self, n: int = 24):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 8, generator=generator)
        self.label = self.x @ torch.randn(8, 2, generator=generator)
        self.bad = types.SimpleNamespace(found=[], count=0, names={}, add=lambda *_: None)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict:
        return {key: value[0] for key, value in self.fetch(torch.tensor([i])).items()}

    def fetch(self, index, keys=None, augmentation=None) -> dict:
        return {"x": self.x[index], "label": self.label[index], "index": index}


class ToyModel(nn.Module):
    """Dropout (which needs torch's random state), two layers, and a loss whose count differs between batches."""

    def __init__(self, width: int = 16, dropout: float = 0.5):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.progress: list[float] = []

    def forward(self, batch: dict, masks=None, keys=None) -> dict:
        counted = (batch["index"] % 3 > 0).float()[:, None]  # a third of the samples does not count
        error = (self.body(batch["x"]) - batch["label"]).square() * counted
        self.seen += len(counted)
        return {"loss": (error.sum(), counted.sum()), "keys_mean": keys.double().mean()}

    def after_step(self, progress: float) -> None:
        self.progress.append(progress)


OPTIM = OptimConfig(lr=1e-2, warmup_steps=2)


def train(run: Path | None, model: nn.Module | None = None, dataset: ToyDataset | None = None, **loop) -> FitResult:
    """A short run on the CPU, quiet; `loop` overrides fields of LoopConfig."""
    settings = {"steps": 10, "batch_size": 8, "log_every": 2, "checkpoint_every": 4, "device": "cpu"}
    settings = {**settings, "precision": "fp32", **loop}  # what is compared with a slow version is in fp32
    folder = RunFolder(run) if run is not None else None
    if folder is not None:
        folder.start()
    return fit(model or ToyModel(), dataset or ToyDataset(), LoopConfig(**settings), OPTIM, run=folder, quiet=True)


def weights(run: Path) -> tuple[int, dict, dict]:
    """(step, model tensors, state) of the newest checkpoint."""
    checkpoint = RunFolder(run).latest()
    return checkpoint.step, checkpoint.tensors(), checkpoint.state()


def assert_same(one, other) -> None:
    """Bit-equal trees of tensors and plain values; wall time is left out."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            if key not in ("seconds", "images_per_second"):
                assert_same(one[key], other[key])
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


if __name__ == "__main__":  # python training_toys.py RUN STEPS CHECKPOINT_EVERY SECONDS_A_STEP
    import time

    run, steps, every, pause = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    model = ToyModel()
    model.after_step = lambda progress: (print("step", flush=True), time.sleep(pause))
    with RunFolder(run).lock():
        train(run, model, steps=steps, checkpoint_every=every).leave()
