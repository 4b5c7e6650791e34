"""How many images a second one core reads: recorded frames, and JPEG files beside torchvision's own pipeline.

    python benchmarks/data_loading.py

Each pair is run in turn, several times, in one process; time is the process's own CPU time, so that other work on the
machine does not count. Beside them: batches that come from 2 worker processes, ours and torch's, by the clock.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mmssl import open_dataset
from mmssl.data.crops import Geometry
from mmssl.data.loading import Dataset, Loader
from mmssl.data.transforms import Augmentation
from mmssl.paths import resource_dir

ROUNDS = 5


def rate(epoch: Callable[[], int]) -> float:
    begun = time.process_time()
    return epoch() / (time.process_time() - begun)


def read(loader: Loader) -> int:
    return sum(len(batch["index"]) for batch in loader.epoch(0))


def recorded(root: Path) -> None:
    folder = root / "mmssl" / "bench" / "noise-v0"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "metadata.json").write_text('{"dataset_id": "mmssl/bench/noise-v0"}')
    small = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for episode in range(20):
            name, frames = f"episode_{episode}/observations/rgb/front", small.repeat(8, 1).repeat(8, 2)
            file.create_dataset(name, data=frames, chunks=(1, 64, 64, 3), compression=1)
    for cache in ("memory", "none"):
        dataset = open_dataset(folder, split="all", cache=cache)
        for name, augmentation in (("as recorded", None), ("random-resized crop", Augmentation())):
            loader = Loader(dataset, 64, augmentation=augmentation)
            rates = [rate(lambda loader=loader: read(loader)) for _ in range(ROUNDS)]
            print(f"64x64 frames, cache {cache}, {name}: {statistics.median(rates):,.0f} images/s", flush=True)


def jpeg(root: Path, size: tuple[int, int], n: int) -> None:
    folder = root / f"{size[0]}x{size[1]}" / "photos"
    folder.mkdir(parents=True)
    photos = [
        Image.open(p).resize(size, Image.Resampling.BICUBIC)
        for p in sorted(resource_dir("data").glob("samples/*/*.jpg"))
    ]
    for k in range(n):
        photos[k % len(photos)].save(folder / f"{k}.jpg", quality=92)
    loader = Loader(open_dataset(folder.parent, image_size=224, split="all"), n, augmentation=Augmentation())
    crop = v2.RandomResizedCrop(224, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    theirs = ImageFolder(str(folder.parent), v2.Compose([crop, v2.PILToTensor()]))
    pairs = [
        (rate(lambda: read(loader)), rate(lambda: len(torch.stack([theirs[k][0] for k in range(n)]))))
        for _ in range(ROUNDS)
    ]
    ratios = sorted(ours / other for ours, other in pairs)
    ours, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"JPEG {size[0]}x{size[1]}, crop to 224: ours {ours:.0f}, torchvision {other:.0f} images/s, ratio "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )


class Blank(Dataset):
    """Batches that cost nothing to read, so that what is timed is their way from the worker."""

    def __init__(self, n: int, shape: tuple[int, ...]):
        self.n, self.shape = n, shape
        super().__init__("blank", Geometry())

    def __len__(self) -> int:
        return self.n

    def fetch(self, index, keys=None, augmentation=None) -> dict:
        return {"video": torch.ones(len(index), *self.shape, dtype=torch.uint8), "index": index}


class Pieces:
    """The same work for torch's DataLoader."""

    def __init__(self, loader: Loader):
        self.dataset, self.work = loader.dataset, loader.plan(0)

    def __getitem__(self, place: int) -> dict:
        index, keys = self.work[place]
        return {**self.dataset.fetch(index, keys), "keys": keys}

    def __len__(self) -> int:
        return len(self.work)


def seconds(batches: Iterable[dict]) -> float:
    """Of an epoch whose every page is touched, from the first batch on: starting the processes does not count."""
    batches = iter(batches)
    next(batches)
    begun = time.perf_counter()
    for batch in batches:
        batch["video"].view(-1)[::4096].sum()
    return time.perf_counter() - begun


def from_workers(batch: int, shape: tuple[int, ...], n: int = 150) -> None:
    pairs = []
    for _ in range(ROUNDS):
        loader = Loader(Blank(batch * n, shape), batch, workers=2, pin_memory=False)
        theirs = DataLoader(Pieces(loader), batch_size=None, num_workers=2)
        pairs.append((seconds(loader.epoch(0)), seconds(theirs)))
        loader.close()
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    ours, theirs = (statistics.median(column) / n * 1000 for column in zip(*pairs, strict=True))
    print(
        f"a batch of {batch} x {shape} from 2 workers: ours {ours:.2f} ms, torch's DataLoader {theirs:.2f} ms, ratio "
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    from_workers(16, (3, 32, 32))
    from_workers(64, (3, 224, 224))
    from_workers(8, (16, 3, 224, 224))
    with tempfile.TemporaryDirectory() as temporary:
        recorded(Path(temporary))
        jpeg(Path(temporary), (500, 375), 100)
        jpeg(Path(temporary), (2000, 1500), 20)
