"""How many clips a second one core decodes: ours against plain decord, PyAV and (where it imports) torchcodec loaders.

    python benchmarks/video_decode.py
    python benchmarks/video_decode.py --rounds 3 --questions dense sparse --clock cpu

Three questions, on H.264 videos of 256 x 340 pixels at 30 frames a second that it writes itself, with the encoder's
default settings and content that moves:
    dense    16 frames at stride 4 of clips of 10 s, with key frames every 250 frames (the default; dense-12: every 12)
    sparse   16 frames over a whole minute, key frames every 250 frames
    several  4 overlapping clips of 16 frames of one video, as repeated sampling asks for them

Every side opens the file once a read, reads the same frames on one thread, as in a loader's worker, and hands them over
as uint8 (16, 224, 224, 3). That they are the same is checked first. "ours" forgets what it knows of a file before each
read, as in an epoch over more files than it remembers; "ours, known" does not. The sides take turns within each round,
in an order that rotates; a ratio is the median of the rounds' own ratios, with their quartiles.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
import tyro

from mmssl.data import video

FPS, HEIGHT, WIDTH = 30, 256, 340
Clips = list[list[int]]
Side = Callable[[str, Clips], list[np.ndarray]]


@dataclass
class Settings:
    """What to time."""

    questions: tuple[str, ...] = ("dense", "dense-12", "sparse", "several")
    sides: tuple[str, ...] = ("ours", "ours, known", "decord", "pyav", "torchcodec")
    rounds: int = 9
    reads: int = 8
    """Reads of a side in each round."""
    size: tuple[int, int] | None = (224, 224)
    """Height and width that frames are resized to."""
    clock: Literal["wall", "cpu"] = "wall"
    """`cpu` counts the processor time of this process: for a machine that others use too."""


def scene(frames: int, seed: int) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3) pictures: a camera that pans over textures, objects that cross it, and a sensor's noise."""
    rng = np.random.default_rng(seed)
    shape = (HEIGHT + 256, WIDTH + 512)
    world = sum(weight * _texture(rng, shape, cell) for cell, weight in ((64, 0.4), (16, 0.3), (4, 0.2), (1, 0.1)))
    world *= 255 / world.max()
    for t in range(frames):
        y, x = int(128 + 100 * np.sin(t / 40)), int(256 + 200 * np.sin(t / 71))
        picture = world[y : y + HEIGHT, x : x + WIDTH].copy()
        for k in range(4):
            top = int((HEIGHT - 48) * (0.5 + 0.5 * np.sin(t / 15 + k)))
            left = int((WIDTH - 48) * (0.5 + 0.5 * np.cos(t / 22 + 2 * k)))
            picture[top : top + 48, left : left + 48] = world[30 * k : 30 * k + 48, 40 * k : 40 * k + 48]
        picture += 3 * rng.standard_normal((HEIGHT, WIDTH, 1))
        yield np.clip(picture, 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, shape: tuple[int, int], cell: int) -> np.ndarray:
    coarse = rng.random((shape[0] // cell + 1, shape[1] // cell + 1, 3))
    return coarse.repeat(cell, 0).repeat(cell, 1)[: shape[0], : shape[1]]


def write(path: Path, seconds: int, gop: int, seed: int) -> str:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.gop_size = gop
        for number, picture in enumerate(scene(seconds * FPS, seed)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return str(path)


def resized(frames: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """(T, H, W, 3) by torchvision's own means, the fastest that a loader has."""
    if size is None:
        return frames
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1).numpy()


def ours(settings: Settings, known: bool) -> Side:
    def read(path: str, clips: Clips) -> list[np.ndarray]:
        if not known:
            video._indices.clear()
        return video.read_clips(path, lambda facts: clips, settings.size)[0]

    return read


def plain_decord(settings: Settings) -> Side:
    import decord

    def read(path: str, clips: Clips) -> list[np.ndarray]:
        reader = decord.VideoReader(path, num_threads=1)
        return [resized(reader.get_batch(clip).asnumpy(), settings.size) for clip in clips]

    return read


def plain_torchcodec(settings: Settings) -> Side:
    from torchcodec.decoders import VideoDecoder

    def read(path: str, clips: Clips) -> list[np.ndarray]:
        reader = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
        return [resized(reader.get_frames_at(clip).data.numpy(), settings.size) for clip in clips]

    return read


def plain_pyav(settings: Settings) -> Side:
    """Seek, then decode; frames that are less than a second apart without seeking anew."""

    def clip(stream: av.VideoStream, numbers: list[int]) -> np.ndarray:
        frames, last, ticks = [], -FPS, round(1 / (FPS * stream.time_base))
        for number in numbers:
            if number - last >= FPS:
                stream.container.seek(number * ticks, stream=stream)
                coming = stream.container.decode(stream)
            frame = next(frame for frame in coming if frame.pts >= number * ticks)
            frames.append(frame.to_ndarray(format="rgb24"))
            last = number
        return resized(np.stack(frames), settings.size)

    def read(path: str, clips: Clips) -> list[np.ndarray]:
        with av.open(path) as file:
            file.streams.video[0].codec_context.thread_count = 1
            return [clip(file.streams.video[0], numbers) for numbers in clips]

    return read


MAKERS: dict[str, Callable[[Settings], Side]] = {
    "ours": lambda settings: ours(settings, known=False),
    "ours, known": lambda settings: ours(settings, known=True),
    "decord": plain_decord,
    "pyav": plain_pyav,
    "torchcodec": plain_torchcodec,
}


def wanted(question: str, rng: np.random.Generator) -> Clips:
    """Frame numbers of the clips of one read."""
    if question == "sparse":
        part = 60 * FPS / 16
        return [[int(part * (k + rng.random())) for k in range(16)]]
    starts = (
        rng.integers(0, 10 * FPS - 61, 1) if question != "several" else rng.integers(0, 60, 4) + rng.integers(0, 180)
    )
    return [list(range(start, start + 64, 4)) for start in starts.tolist()]


def check_same(sides: dict[str, Side], path: str, clips: Clips) -> None:
    first, *others = (np.concatenate(side(path, clips)).astype(int) for side in sides.values())
    for name, frames in zip(list(sides)[1:], others, strict=True):
        difference = np.abs(frames - first).mean()
        if difference > 1:
            raise SystemExit(
                f"{name} read other frames than {next(iter(sides))}: they differ by {difference:.1f} of 255."
            )


def available_sides(settings: Settings) -> dict[str, Side]:
    sides = {}
    for name in settings.sides:
        try:
            sides[name] = MAKERS[name](settings)
        except (ImportError, OSError, RuntimeError) as error:
            print(f"  {name}: left out ({type(error).__name__}: {str(error).splitlines()[0][:80]})")
    return sides


def compare(question: str, paths: list[str], settings: Settings) -> None:
    sides, rng = available_sides(settings), np.random.default_rng(1)
    clock = time.process_time if settings.clock == "cpu" else time.perf_counter
    check_same(sides, paths[0], wanted(question, rng))
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(settings.rounds):
        reads = [(paths[k % len(paths)], wanted(question, rng)) for k in range(settings.reads)]
        order = list(sides)[number % len(sides) :] + list(sides)[: number % len(sides)]
        for name in order:
            begun = clock()
            for path, clips in reads:
                sides[name](path, clips)
            rates[name].append(sum(len(clips) for _, clips in reads) / (clock() - begun))
    print_table(question, rates, settings)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return low, middle, high


def print_table(question: str, rates: dict[str, list[float]], settings: Settings) -> None:
    print(f"\n{question}: {settings.rounds} rounds of {settings.reads} reads, {settings.clock} time")
    baseline = rates.get("decord", next(iter(rates.values())))
    for name, values in rates.items():
        low, middle, high = quartiles([v / b for v, b in zip(values, baseline, strict=True)])
        print(f"  {name:12s} {statistics.median(values):8.1f} clips/s  {middle:5.2f}x decord [{low:.2f}, {high:.2f}]")
    others = [values for name, values in rates.items() if not name.startswith("ours")]
    if others and "ours" in rates:
        best = max(others, key=statistics.median)
        low, middle, high = quartiles([v / b for v, b in zip(rates["ours"], best, strict=True)])
        print(f"  ours against the best of the others: {middle:.2f} [{low:.2f}, {high:.2f}]", flush=True)


def main(settings: Settings) -> None:
    torch.set_num_threads(1)
    print(f"PyAV {av.__version__}, torch {torch.__version__}; ours reads by {video.backend()}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made: dict[tuple[int, int], list[str]] = {}
        for question in settings.questions:
            length, gop = (60, 250) if question == "sparse" else (10, 12 if question == "dense-12" else 250)
            if (length, gop) not in made:
                names = [folder / f"{length}s_{gop}_{seed}.mp4" for seed in range(1 if length > 10 else 3)]
                made[length, gop] = [write(path, length, gop, seed) for seed, path in enumerate(names)]
            compare(question, made[length, gop], settings)


if __name__ == "__main__":
    main(tyro.cli(Settings))
