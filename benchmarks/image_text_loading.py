"""How many image-text samples a second one process reads: our folder and our shards against webdataset's own reader.

    python benchmarks/image_text_loading.py
    python benchmarks/image_text_loading.py --questions read --samples 4000

The same samples lie in a folder (`<key>.jpg`, `<key>.txt`) and in tar files that webdataset's `ShardWriter` writes: the
package's photographs, 320 pixels on the longer side, each saved anew at its own quality. Two questions:

    read    the bytes of every sample and nothing else
    batch   decoded pictures, a random-resized crop of 224 pixels, captions as bytes, stacked into uint8 batches

Ours visits the samples in a random order that is new in each round, as training does; webdataset goes through its
shards as they lie, which is what it is quickest at, and crops by torchvision. Both make ids by the same function. All
files are in the system's cache, so that no disk is measured. How long it takes to find the samples in new shards, which
happens once, is printed too.

The sides take turns within each round, in an order that rotates; a ratio is webdataset's time by ours, the median of
the rounds' own ratios, with their quartiles.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
import webdataset
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import pil_to_tensor

from mmssl import open_dataset
from mmssl.data.dataset import Dataset
from mmssl.data.loader import Loader
from mmssl.data.shards_index import IMAGE, TEXT, make_index
from mmssl.data.text import TextEncoding, text_encoder
from mmssl.data.transforms import Augmentation
from mmssl.paths import resource_dir

SIZE, SHARD = 224, 250
ENCODING = TextEncoding(length=64)
Side = Callable[[], int]  # reads every sample once: how many there were


@dataclass
class Settings:
    """What to time."""

    questions: tuple[Literal["read", "batch"], ...] = ("read", "batch")
    rounds: int = 9
    samples: int = 1000
    """Samples of a round; 250 a shard."""
    batch: int = 50
    clock: Literal["wall", "cpu"] = "cpu"
    """`cpu` counts the processor time of this process: for a machine that others use too."""


def write(folder: Path, shards: Path, n: int) -> None:
    """The same n samples as files and as shards."""
    photographs = [
        Image.open(path).convert("RGB") for path in sorted((resource_dir("data") / "samples").rglob("*.jpg"))
    ]
    folder.mkdir()
    shards.mkdir()
    with webdataset.ShardWriter(str(shards / "%04d.tar"), maxcount=SHARD, verbose=0) as writer:
        for k in range(n):
            path, text = folder / f"{k:06d}.jpg", f"photograph {k % len(photographs)} of a few, saved as number {k}"
            photographs[k % len(photographs)].save(path, quality=80 + k % 16)
            path.with_suffix(".txt").write_text(text)
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "txt": text})


def ours(dataset: Dataset, settings: Settings) -> Side:
    epochs = iter(range(10**6))

    def read() -> int:
        loader = Loader(dataset, settings.batch, seed=1, augmentation=Augmentation(), drop_last=False)
        return sum(len(batch["text"]) for batch in loader.epoch(next(epochs)))

    return read


def our_bytes(dataset: Dataset) -> Side:
    epochs = iter(range(10**6))

    def read() -> int:
        order = Loader(dataset, 1, seed=1).order(next(epochs)).tolist()
        return sum(bool(dataset.content(k, IMAGE) and dataset.content(k, TEXT)) for k in order)

    return read


def file_bytes(dataset: Dataset) -> Side:
    epochs = iter(range(10**6))

    def read() -> int:
        paths = [dataset.files[k] for k in Loader(dataset, 1, seed=1).order(next(epochs)).tolist()]
        return sum(bool(Path(p).read_bytes() and Path(p[:-3] + "txt").read_bytes()) for p in paths)

    return read


def theirs(urls: list[str], settings: Settings) -> Side:
    encode, crop = text_encoder(ENCODING), RandomResizedCrop(SIZE, (0.2, 1.0), interpolation=InterpolationMode.BICUBIC)

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        samples = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "txt")
        for pictures, texts in samples.batched(settings.batch, collation_fn=lambda rows: zip(*rows, strict=True)):
            yield torch.stack([pil_to_tensor(crop(picture)) for picture in pictures]), *encode(texts)

    return lambda: sum(len(ids) for _, ids, _ in batches())


def their_bytes(urls: list[str]) -> Side:
    return lambda: sum(bool(s["jpg"] and s["txt"]) for s in webdataset.WebDataset(urls, shardshuffle=False))


def sides(question: str, folder: Path, shards: Path, settings: Settings) -> dict[str, Side]:
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    both = [open_dataset(str(where), split="all", image_size=SIZE, text=ENCODING) for where in (folder, shards)]
    if question == "read":
        return {"folder": file_bytes(both[0]), "shards": our_bytes(both[1]), "webdataset": their_bytes(urls)}
    return {"folder": ours(both[0], settings), "shards": ours(both[1], settings), "webdataset": theirs(urls, settings)}


def compare(question: str, folder: Path, shards: Path, settings: Settings) -> None:
    all_sides = sides(question, folder, shards, settings)
    clock = time.process_time if settings.clock == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in all_sides}
    for number in range(-1, settings.rounds):  # the first is not counted
        turn = number % len(all_sides)
        for name in [*all_sides][turn:] + [*all_sides][:turn]:
            start = clock()
            n = all_sides[name]()
            if n != settings.samples:
                raise SystemExit(f"{name} read {n} samples of {settings.samples}.")
            if number >= 0:
                times[name].append(clock() - start)
    print(question)
    for name, values in times.items():
        ratios = [w / own for own, w in zip(values, times["webdataset"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        rate = settings.samples / statistics.median(values)
        print(f"  {name:10s} {rate:9.0f} samples/s   {middle:5.2f}x [{low:.2f}, {high:.2f}]", flush=True)


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        os.environ["MMSSL_CACHE"] = f"{root}/cache"
        folder, shards = Path(root) / "folder", Path(root) / "shards"
        write(folder, shards, settings.samples)
        start = time.process_time()
        for path in shards.glob("*.tar"):
            with open(path, "rb") as file:
                make_index(file)
        rate = settings.samples / (time.process_time() - start)
        print(
            f"{settings.samples} samples, {settings.rounds} rounds, batches of {settings.batch}, one process, "
            f"{settings.clock} time, webdataset {webdataset.__version__}, torch {torch.__version__}\n"
            f"finding samples in new shards, once: {rate:.0f} samples/s"
        )
        for question in settings.questions:
            compare(question, folder, shards, settings)


if __name__ == "__main__":
    main(tyro.cli(Settings))
