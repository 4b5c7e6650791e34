"""Spectrograms as pictures with axes of seconds and kilohertz, and sounds that play in the page.

Levels are decibels below the loudest value of the originals, on one scale for all pictures of a run.
"""

import base64
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from mmssl.errors import MmsslError
from mmssl.report.figures import color_table

FILE = "spectrograms.npz"
NAMES = ("original", "masked", "reconstructed")
SOUNDS = {
    "original": "the recording",
    "inverted": "its spectrogram, by Griffin-Lim",
    "reconstructed": "the reconstruction, by Griffin-Lim",
}
"""Files `sound/<clip>-<name>.<kind>` of a run's figures, and what a reader is told about them."""
MEDIA = {".mp3": "audio/mpeg", ".wav": "audio/wav"}
DECIBELS = 10 / math.log(10)
"""One neper of power in decibels: a log-mel is a natural logarithm of power."""

_RANGE = 80.0  # decibels that the colours cover, at most
_HIDDEN = 255  # palette entry of what was masked
_COLUMNS = 340  # frames side by side in a picture, at most: a page shows it no wider
_WIDTH, _HEIGHT, _LEFT, _TOP = 300, 128, 36, 8  # of a picture, in CSS pixels, and of the margins beside it


class Scale(NamedTuple):
    """Levels (natural log of power) of the darkest and the brightest colour."""

    low: float
    high: float

    @classmethod
    def of(cls, levels: np.ndarray) -> "Scale":
        """One that fits levels of any shape: without their deepest silence."""
        high = float(levels.max())
        low = max(float(np.percentile(levels, 2)), high - _RANGE / DECIBELS)
        return cls(low, max(high, low + 1e-3))

    @property
    def decibels(self) -> float:
        return (self.high - self.low) * DECIBELS


@dataclass(frozen=True)
class Spectrograms:
    """What `figures/spectrograms.npz` holds, and the sounds beside it.

    Attributes:
        original, masked, reconstructed: raw log-mel, float (n, T, M), time first; NaN in `masked` is hidden.
        hop: seconds from one frame to the next; mels: centre frequency of each bin in Hz (M,).
        frames: how many frames of each clip are sound and no padding, int (n,).
        sounds: place of the clip -> name of `SOUNDS` -> file.
    """

    original: np.ndarray
    masked: np.ndarray
    reconstructed: np.ndarray
    hop: float
    mels: np.ndarray
    frames: np.ndarray
    sounds: dict[int, dict[str, Path]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.original)

    def scale(self) -> Scale:
        """One scale for every picture: that of the originals without their padding."""
        return Scale.of(np.concatenate([x[:n].ravel() for x, n in zip(self.original, self.frames, strict=True)]))

    def picture(self, name: str, clip: int, scale: Scale) -> Markup:
        """The spectrogram `name` of a clip, without padding, as an `<svg>` with its axes."""
        levels = getattr(self, name)[clip, : self.frames[clip]]  # (T, M)
        return draw(levels, scale, self.hop, self.mels, f"{name} spectrogram")


def read_spectrograms(figures: Path) -> Spectrograms | None:
    """Read a run's `figures/`: None where it holds no spectrograms; a sound that is missing is left out.

    Raises an `MmsslError` that names a damaged file.
    """
    path = figures / FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file}
    except Exception as error:  # zipfile, zlib and numpy each raise their own on a cut file
        raise MmsslError(f"{path} cannot be read ({error}); delete it or make it again.") from None
    if not set(NAMES) <= set(arrays):
        return None
    _check(path, arrays)
    n, frames = arrays["original"].shape[:2]
    return Spectrograms(
        **{name: arrays[name].astype(np.float32) for name in NAMES},
        hop=float(arrays["hop"]),
        mels=arrays["mels"].astype(np.float64),
        frames=np.clip(arrays.get("frames", np.full(n, frames)), 1, frames).astype(int),
        sounds=_find_sounds(figures / "sound"),
    )


def _check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Say which array is none that can be drawn."""
    shape = arrays["original"].shape
    wanted = dict.fromkeys(NAMES, shape) | {"hop": (), "mels": shape[-1:]}
    wanted |= {"frames": shape[:1]} if "frames" in arrays else {}
    for name, expected in wanted.items():
        array = arrays.get(name)
        fits = array is not None and array.shape == expected and array.dtype.kind in "fiu" and len(shape) == 3
        if not fits or 0 in shape or (name != "masked" and not np.isfinite(array).all()):
            got = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise MmsslError(
                f"{path}: {name} must be finite numbers, spectrograms (n, T, M) with mels (M,), hop () and frames "
                f"(n,), got {got}; delete the file or make it again."
            )
    if not arrays["hop"] > 0 or not (np.diff(arrays["mels"]) > 0).all():
        raise MmsslError(f"{path}: hop must be above 0 and mels must rise; delete the file or make it again.")


def _find_sounds(folder: Path) -> dict[int, dict[str, Path]]:
    """Place of the clip -> what it is -> file."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.glob("[!.]*")):  # a name with a dot before it is half written
        place, _, name = path.stem.partition("-")
        if path.suffix in MEDIA and name in SOUNDS and place.isdigit() and path.stat().st_size:
            found.setdefault(int(place), {})[name] = path
    return found


def player(path: Path) -> Markup:
    """An `<audio>` that holds the whole sound."""
    data = base64.b64encode(path.read_bytes()).decode()
    return Markup(f'<audio controls preload="metadata" src="data:{MEDIA[path.suffix]};base64,{data}"></audio>')


def pixels(levels: np.ndarray, scale: Scale) -> np.ndarray:
    """Levels (T, M) -> places in the colour table, uint8 (M, T), high frequencies on top; NaN is hidden."""
    share = np.clip((levels - scale.low) / (scale.high - scale.low), 0, 1)
    places = np.where(np.isnan(share), _HIDDEN, np.nan_to_num(share) * (_HIDDEN - 1))
    return places.round().astype(np.uint8).T[::-1]


def colours(levels: np.ndarray, scale: Scale) -> np.ndarray:
    """Levels (T, M) -> uint8 (M, T, 3), as the page shows them."""
    return color_table(_HIDDEN)[np.minimum(pixels(levels, scale), _HIDDEN - 1)]


def png(levels: np.ndarray, scale: Scale) -> bytes:
    """Levels (T, M) as a PNG of M rows, with nothing where they are NaN."""
    image = Image.fromarray(np.ascontiguousarray(pixels(shorter(levels), scale)))
    image.putpalette(np.append(color_table(_HIDDEN), np.zeros((1, 3), np.uint8), axis=0).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, transparency=_HIDDEN)
    return buffer.getvalue()


def shorter(levels: np.ndarray) -> np.ndarray:
    """Levels (T, M) with the mean of 2, 4, .. frames as one where there are more than a page can show.

    Hidden where one of them is; powers of 2, so that the edges of patches stay.
    """
    every = 1 << max(0, math.ceil(math.log2(len(levels) / _COLUMNS)))
    if every == 1:
        return levels
    padded = np.pad(levels, ((0, -len(levels) % every), (0, 0)), mode="edge")
    return padded.reshape(-1, every, levels.shape[1]).mean(1)


def draw(levels: np.ndarray, scale: Scale, hop: float, mels: np.ndarray, title: str) -> Markup:
    """A spectrogram (T, M) as an `<svg>` in the colours of the page, with time in s and mel frequency in kHz."""
    right, bottom = _LEFT + _WIDTH, _TOP + _HEIGHT
    box = f'x="{_LEFT}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}"'
    image = f"data:image/png;base64,{base64.b64encode(png(levels, scale)).decode()}"
    parts = [
        f'<rect class="hidden" {box}/>',
        f'<image {box} preserveAspectRatio="none" href="{image}"/>',
    ]
    seconds = len(levels) * hop
    for value in time_ticks(seconds):
        x = _LEFT + _WIDTH * value / seconds
        parts.append(f'<path d="M{x:.1f} {bottom}v4"/><text x="{x:.1f}" y="{bottom + 15}">{value:g}</text>')
    for value, place in mel_ticks(mels):
        y = bottom - _HEIGHT * place
        label = f'<text class="left" x="{_LEFT - 7}" y="{y + 3.5:.1f}">{value / 1000:g}</text>'
        parts.append(f'<path d="M{_LEFT} {y:.1f}h-4"/>{label}')
    middle = _TOP + _HEIGHT / 2
    parts.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{bottom + 29}">time (s)</text>')
    parts.append(f'<text x="9" y="{middle}" transform="rotate(-90 9 {middle})">mel (kHz)</text>')
    size = f"0 0 {right + 6} {bottom + 34}"
    return Markup(f'<svg class="spectrogram" viewBox="{size}" role="img" aria-label="{title}">{"".join(parts)}</svg>')


def time_ticks(seconds: float, most: int = 6) -> list[float]:
    """Round times from 0 on, at most `most` of them."""
    rough = seconds / (most - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= rough * (1 - 1e-9))
    return [round(step * k, 6) for k in range(int(seconds / step * (1 + 1e-9)) + 1)]


def mel_ticks(mels: np.ndarray) -> list[tuple[float, float]]:
    """Round frequencies in Hz and how far up the picture they are, in [0, 1]; none closer than its text is high."""
    edges = (np.arange(len(mels)) + 0.5) / len(mels)
    ticks: list[tuple[float, float]] = []
    for value in (16000, 8000, 4000, 2000, 1000, 500, 200, 100, 50):
        place = float(np.interp(value, mels, edges))
        if mels[0] <= value <= mels[-1] and all(abs(place - p) > 0.09 for _, p in ticks):
            ticks.append((float(value), place))
    return ticks


def legend(scale: Scale, steps: int = 9) -> dict[str, Any]:
    """The colour bar: its colours as a CSS gradient, and the decibels at its left end."""
    table = color_table(steps)
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in table.tolist())
    return {"gradient": f"linear-gradient(to right, {stops})", "lowest": round(scale.decibels)}
