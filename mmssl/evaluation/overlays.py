"""Pictures of tracking: masks and joints drawn over frames, as a strip of some frames and as an animation of all."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmssl.evaluation.segmentation_scores import boundary

SMALLEST, LARGEST = 160, 360  # pixels that the shorter side of a drawn frame has at least, and at most
FPS = 10
_COLOURS = (
    "ffe119", "4363d8", "3cb44b", "f032e6", "42d4f4", "f58231", "911eb4", "bfef45", "e6194b", "469990",
    "dcbeff", "9a6324", "aaffc3", "808000", "000075", "fabed4", "800000", "ffd8b1", "a9a9a9", "fffac8",
)  # fmt: skip
_BAR = 18  # pixels of a line of text


def colour(number: int) -> np.ndarray:
    """uint8 (3,) of object or joint number 1, 2, ..."""
    return np.frombuffer(bytes.fromhex(_COLOURS[(number - 1) % len(_COLOURS)]), np.uint8)


def handy(picture: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) or ids (H, W): made a whole number of times larger where it is small, smaller where large."""
    height, width = picture.shape[:2]
    if min(height, width) > LARGEST:
        size = (round(width * LARGEST / min(height, width)), round(height * LARGEST / min(height, width)))
        method = Image.Resampling.BILINEAR if picture.ndim == 3 else Image.Resampling.NEAREST
        return np.asarray(Image.fromarray(picture).resize(size, method))
    times = max(1, -(-SMALLEST // min(height, width)))
    return picture.repeat(times, 0).repeat(times, 1)


def draw_masks(frame: np.ndarray, ids: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """uint8 (H', W', 3): the frame in a handy size, with every object (id above 0) coloured and outlined."""
    frame, ids = handy(frame), handy(ids)
    out = frame.astype(np.float32)
    for number in np.unique(ids[(ids > 0) & (ids < 255)]).tolist():
        mask = ids == number
        out[mask] = (1 - opacity) * out[mask] + opacity * colour(number)
        out[boundary(mask)] = colour(number)
    return out.round().astype(np.uint8)


def draw_joints(frame: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """uint8 (H', W', 3): the frame in a handy size, with a dot for every joint (K, 2) that has a place."""
    large = handy(frame)
    times = large.shape[0] / frame.shape[0]
    picture = Image.fromarray(large)
    pen, radius = ImageDraw.Draw(picture), max(3, min(large.shape[:2]) // 60)
    for number, (x, y) in enumerate(np.asarray(joints) * times, 1):
        if np.isfinite([x, y]).all():
            box = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(box, fill=tuple(colour(number).tolist()), outline=(255, 255, 255))
    return np.asarray(picture)


def draw(frame: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Masks for ids (H, W), joints for coordinates (K, 2)."""
    return draw_masks(frame, answer) if answer.dtype == np.uint8 else draw_joints(frame, answer)


def strip(rows: dict[str, Sequence[np.ndarray]], heads: Sequence[str]) -> Image.Image:
    """A table of pictures of one size: a named row for each key, a named column for each picture of a row."""
    height, width = next(iter(rows.values()))[0].shape[:2]
    left = 8 + max(int(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(name, _font())) for name in rows)
    size = (left + len(heads) * (width + 2), _BAR + len(rows) * (height + 2))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for column, head in enumerate(heads):
        pen.text((left + column * (width + 2) + 2, 2), head, "black", _font())
    for row, (name, pictures) in enumerate(rows.items()):
        top = _BAR + row * (height + 2)
        pen.text((4, top + height // 2 - _BAR // 2), name, "black", _font())
        for column, picture in enumerate(pictures):
            page.paste(Image.fromarray(picture), (left + column * (width + 2), top))
    return page


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)


def save_strip(path: Path, rows: dict[str, Sequence[np.ndarray]], heads: Sequence[str]) -> None:
    """Write `strip` as PNG."""
    with _whole(path) as partial:
        strip(rows, heads).save(partial, "PNG")


def save_webp(path: Path, frames: Sequence[np.ndarray], fps: float = FPS) -> None:
    """Write frames (H, W, 3) as an animated WebP, which every browser plays, again and again."""
    pictures = [Image.fromarray(frame) for frame in frames]
    with _whole(path) as partial:
        pictures[0].save(
            partial, "WEBP", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, quality=80
        )


def save_mp4(path: Path, frames: Sequence[np.ndarray], fps: int = FPS) -> bool:
    """Write frames (H, W, 3) as H.264; False, and nothing is written, where PyAV is not installed."""
    try:
        import av
    except ImportError:
        return False
    height, width = frames[0].shape[:2]
    with _whole(path) as partial, av.open(str(partial), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        for frame in frames:
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")))
        file.mux(stream.encode())
    return True


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write to, that becomes `path` when all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".tmp-{path.name}"  # as all half-written files of ours are called
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
