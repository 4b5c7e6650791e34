"""What a model of several modalities fills in: pictures of each, each predicted from one other, and words of a text."""

import colorsys
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmssl.errors import MmsslError
from mmssl.report.figures import NOTHING, color_table, shrink

FILE, TEXTS = "modalities.npz", "texts.json"
SHOWN = ("original", "masked", "reconstructed")
_GOLDEN = 0.61803398875  # of a turn: hues that follow one another differ, however many there are


class Word(NamedTuple):
    """A piece of a text, and whether it was given to the model, or filled in right or wrong."""

    text: str
    state: str  # given | right | wrong
    truth: str


@dataclass(frozen=True)
class Modalities:
    """What `figures/modalities.npz` and `figures/texts.json` hold.

    Attributes:
        names: the modalities of pictures, in the model's order.
        drawn: "<original, masked or reconstructed>/<modality>" -> uint8 (n, [T,] H, W, 3).
        crossed: (from, to) -> uint8 (n, [T,] H, W, 3), predicted from the one alone.
        texts: the words of each sample, as far as there are.
    """

    names: tuple[str, ...] = ()
    drawn: dict[str, np.ndarray] = field(default_factory=dict)
    crossed: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    texts: tuple[tuple[Word, ...], ...] = ()

    @property
    def samples(self) -> int:
        """Number of samples with pictures."""
        return len(self.drawn[f"original/{self.names[0]}"]) if self.names else 0

    def strips(self, most: int = 6) -> list[list[list[tuple[str, np.ndarray]]]]:
        """For each sample, for each modality: named pictures of what there was, was seen, and was made of it."""
        return [
            [[(f"{name}, {kind}", self.drawn[f"{kind}/{name}"][i]) for kind in SHOWN] for name in self.names]
            for i in range(min(most, self.samples))
        ]

    def squares(self, most: int = 3) -> list[list[tuple[str, list[tuple[str, np.ndarray]]]]]:
        """For each sample, a row for each modality that is given alone: its name, and pictures of all modalities."""
        if not self.crossed:
            return []
        found = []
        for i in range(min(most, *map(len, self.crossed.values()))):
            truth = [(name, self.drawn[f"original/{name}"][i]) for name in self.names]
            rows = [("original", truth)]
            read = [a for a in self.names if any(a == given for given, _ in self.crossed)]  # not all are
            rows += [(f"given {a}", [(b, self._square(a, b)[i]) for b in self.names]) for a in read]
            found.append(rows)
        return found

    def _square(self, given: str, wanted: str) -> np.ndarray:
        return self.crossed.get((given, wanted), self.drawn[f"original/{wanted}"])

    def captioned(self, most: int = 8) -> list[tuple[np.ndarray | None, tuple[Word, ...]]]:
        """Texts, each with the picture that it came with, as the model saw it, where there is one."""
        images = next((self.drawn[f"masked/{name}"] for name in self.names), None)
        return [(None if images is None else images[i], words) for i, words in enumerate(self.texts[:most])]


def read_modalities(figures: Path) -> Modalities | None:
    """Read a run's `figures/`: None where it holds nothing of several modalities. An `MmsslError` names a bad file."""
    path, texts = figures / FILE, figures / TEXTS
    if not path.is_file() and not texts.is_file():
        return None
    try:
        arrays: dict[str, np.ndarray] = {}
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file}
        rows = json.loads(texts.read_text()) if texts.is_file() else []
        names = tuple(str(name) for name in arrays.pop("names", ()))
        words = tuple(tuple(Word(*map(str, word)) for word in row) for row in rows)
        return _coloured(names, arrays, words)
    except Exception as error:  # zipfile, zlib, json and numpy each raise their own on a cut file
        raise MmsslError(f"{figures} holds damaged pictures ({error!r}); delete {FILE} and {TEXTS} in it.") from None


def _coloured(names: tuple[str, ...], arrays: dict[str, np.ndarray], words: Any) -> Modalities:
    drawn = {
        f"{kind}/{name}": colours(name, arrays[f"{kind}/{name}"], arrays[f"original/{name}"])
        for name in names
        for kind in SHOWN
    }
    crossed = {}
    for key in arrays:
        if ">" in key:
            given, wanted = key.split(">")
            truth = arrays[f"original/{wanted}"][: len(arrays[key])]  # few samples are crossed
            crossed[given, wanted] = colours(wanted, arrays[key], truth)
    return Modalities(names, drawn, crossed, words)


def colours(name: str, values: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Pictures uint8 (n, [T,] H, W, 3) of one modality's values.

    Args:
        name: pixels (`image`, `video`) are shown as they are, depth (n, H, W) in the colours of a fire, near dark, on
            the scale of each sample's original; ids (n, H, W) of a segmentation each in a colour of its own. NaN, and
            ids below 0, are grey.
    """
    kind = name.split("/")[0]
    if kind == "depth":
        return np.stack([_heat(x, y) for x, y in zip(values, original, strict=True)])
    if kind == "segmentation":
        return _palette()[np.clip(values, -1, 255).astype(int)]
    return shrink(values) if values.ndim == 5 else values


def _heat(values: np.ndarray, original: np.ndarray) -> np.ndarray:
    finite = original[np.isfinite(original)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    place = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    picture = color_table(256)[np.round(np.nan_to_num(place) * 255).astype(int)]
    return np.where(np.isnan(values)[..., None], np.uint8(NOTHING), picture)


def _palette() -> np.ndarray:
    """uint8 (257, 3): a colour for each id 0..255, and grey for -1, at the end."""
    rows = [colorsys.hsv_to_rgb(i * _GOLDEN % 1, 0.45 + 0.4 * (i % 3) / 2, 0.95 - 0.3 * (i % 2)) for i in range(256)]
    return np.concatenate([np.round(255 * np.array(rows)), np.full((1, 3), NOTHING)]).astype(np.uint8)
