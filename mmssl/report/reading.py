"""What a run folder holds, read from its files alone: no model is built and no method is imported.

Every file is optional; a part whose file is missing stays empty. A file that is there but cannot be read is an
`MmsslError` that names it, except for a last line of `metrics.jsonl` that a kill cut short.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmssl.config import read_yaml
from mmssl.errors import MmsslError
from mmssl.report.modalities import Modalities, read_modalities
from mmssl.report.spectrograms import Spectrograms, read_spectrograms

ENCODER_ORDER = ("pretrained", "random", "pixels", "logmel", "spectrogram")


@dataclass(frozen=True)
class Score:
    """One cell of the probe table: the score of one encoder, with the spread over seeds where there were several."""

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Probe:
    """One question put to every encoder: the evaluator, what it had to predict, and the metric."""

    evaluator: str
    target: str
    metric: str
    higher_is_better: bool
    scores: dict[str, Score]

    @property
    def name(self) -> str:
        return f"{self.evaluator} → {self.target}" if self.target else self.evaluator

    @property
    def is_tracking(self) -> bool:
        return self.evaluator.replace(",", " ").split()[:1] == ["track"]

    def margin(self, over: str, of: str = "pretrained") -> float | None:
        """How much better `of` is than `over` (positive is better whatever the metric), None where one is missing."""
        if of not in self.scores or over not in self.scores:
            return None
        difference = self.scores[of].value - self.scores[over].value
        return difference if self.higher_is_better else -difference

    def is_tie(self, over: str, of: str = "pretrained") -> bool:
        """Whether the difference is no larger than the larger of the two spreads."""
        spreads = [self.scores[name].spread or 0.0 for name in (of, over) if name in self.scores]
        margin = self.margin(over, of)
        return margin is not None and abs(margin) <= max(spreads)


@dataclass(frozen=True)
class RunFiles:
    """Everything a report is made of.

    `metrics` holds one mapping a logged step, in step order, the last one where a resumed run logged a step twice.
    `reconstruction` maps "model" and each interpolation to its squared error on masked patches, in pixels of [0, 1], of
    sounds in squared decibels;
    `explained` the same names to the share of the variance of normalised patches (norm-pix) that they explain.
    `pictures` maps "reconstruction" and "features" to the arrays of `figures/<name>.npz`; reconstructions are images
    (n, H, W, 3) or clips (n, T, H, W, 3), of which those with T = 2 are a past and a future frame.
    `timing` maps a stage to seconds. `tracks` maps a sequence of `track/` to its overlays, ".webp" (moving) and ".png".
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    reconstruction: dict[str, float] = field(default_factory=dict)
    explained: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    command: str | None = None
    tracks: dict[str, dict[str, Path]] = field(default_factory=dict)
    spectrograms: Spectrograms | None = None
    modalities: Modalities | None = None

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def kind(self) -> str:
        """What the model learned from: "images", "clips", "pairs" of a past and a future frame, or "sounds"."""
        data, method = self.config.get("data"), self.config.get("method")
        if self.spectrograms is not None or (isinstance(method, dict) and _is_sound(method.get("modality"))):
            return "sounds"
        clip = data.get("clip") if isinstance(data, dict) else None
        if isinstance(clip, dict):
            return "pairs" if clip.get("how") == "pair" else "clips"
        original = self.pictures.get("reconstruction", {}).get("original")
        if original is None or original.ndim == 4:
            return "images"
        return "pairs" if original.shape[1] == 2 else "clips"

    @property
    def fitted(self) -> list[Probe]:
        """Questions for which something was fitted on frozen features."""
        return [probe for probe in self.probes if not probe.is_tracking]

    @property
    def tracking(self) -> list[Probe]:
        """Questions of label propagation, for which nothing was fitted."""
        return [probe for probe in self.probes if probe.is_tracking]

    @property
    def norm_pix(self) -> bool:
        """Whether the model predicts patches without their own mean and contrast, and was judged on such patches."""
        method = self.config.get("method")
        return bool(self.explained) and isinstance(method, dict) and method.get("norm_pix") is True

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one logged scalar; entries that are not finite numbers are left out."""
        points = [(m["step"], m[key]) for m in self.metrics if isinstance(m.get(key), (int, float))]
        points = [(step, float(value)) for step, value in points if np.isfinite(value)]
        return [p[0] for p in points], [p[1] for p in points]


def read_run(path: Path | str) -> RunFiles:
    """Read a run folder.

    Raises an `MmsslError` where the folder does not exist, holds nothing of a run, or holds an unreadable file.
    """
    path = Path(path)
    if not path.is_dir():
        raise MmsslError(f"{path} is not a run folder: give a folder made by `mmssl pretrain` or `mmssl demo`.")
    known = ("config.yaml", "metrics.jsonl", "scores.json")
    if not any((path / name).is_file() for name in known):
        raise MmsslError(f"{path} holds no run: none of {', '.join(known)} is in it.")
    scores = _read_json(path / "scores.json")
    command = path / "command.txt"
    return RunFiles(
        path=path,
        config=read_yaml(path / "config.yaml") if (path / "config.yaml").is_file() else {},
        metrics=read_lines(path / "metrics.jsonl"),
        probes=group_scores(scores.get("rows", []), path / "scores.json"),
        reconstruction=_numbers(scores.get("reconstruction") or {}),
        explained=_numbers(scores.get("reconstruction_explained") or {}),
        pictures=_read_pictures(path / "figures"),
        timing=_numbers(_read_json(path / "timing.json")),
        command=command.read_text().strip() if command.is_file() else None,
        tracks=_find_tracks(path / "track"),
        spectrograms=read_spectrograms(path / "figures"),
        modalities=read_modalities(path / "figures"),
    )


def group_scores(rows: Iterable[dict], where: Path | str = "scores.json") -> list[Probe]:
    """Join the rows of `scores.json` of one question: pretrained first, then random, raw inputs and others."""
    groups: dict[tuple, dict[str, Score]] = {}
    for row in rows:
        try:
            key = (row["evaluator"], row.get("target") or "", row["metric"], bool(row["higher_is_better"]))
            groups.setdefault(key, {})[row["encoder"]] = Score(float(row["value"]), row.get("spread"))
        except (KeyError, TypeError, ValueError) as error:
            raise MmsslError(f"{where} holds a row that is not a score ({error!r}): {row!r}.") from None
    return [Probe(*key, scores=_ordered(scores)) for key, scores in groups.items()]


def _ordered(scores: dict[str, Score]) -> dict[str, Score]:
    first = [name for name in ENCODER_ORDER if name in scores]
    return {name: scores[name] for name in [*first, *(n for n in scores if n not in first)]}


def _is_sound(modality: Any) -> bool:
    """Whether a run learned from `audio`, or from one microphone, `audio/<microphone>`."""
    return isinstance(modality, str) and modality.split("/")[0] == "audio"


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        mapping = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MmsslError(f"{path} is not valid JSON ({error}); delete it or make it again.") from None
    if not isinstance(mapping, dict):
        raise MmsslError(f"{path} must hold a JSON object, got a {type(mapping).__name__}.")
    return mapping


def read_lines(path: Path) -> list[dict]:
    """Mappings of a file of JSON lines by their `step`, the last ones where a resumed run wrote a step twice."""
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").splitlines()
    by_step: dict[int, dict] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise MmsslError(f"{path}: line {number} is not valid JSON.") from None
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            by_step[entry["step"]] = {**by_step.get(entry["step"], {}), **entry}
    return [by_step[step] for step in sorted(by_step)]


def _read_pictures(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    wanted = {
        "reconstruction": ("original", "masked", "reconstructed", "interpolated"),
        "features": ("image", "tokens", "random"),
    }
    pictures = {}
    for name, keys in wanted.items():
        path = folder / f"{name}.npz"
        if not path.is_file():
            continue
        try:
            with np.load(path, allow_pickle=False) as file:
                pictures[name] = {key: file[key] for key in keys if key in file}
        except Exception as error:  # zipfile, zlib and numpy each raise their own on a cut file
            raise MmsslError(f"{path} cannot be read ({error}); delete it or make it again.") from None
    pictures = {name: arrays for name, arrays in pictures.items() if set(wanted[name][:2]) <= set(arrays)}
    for key, images in pictures.get("reconstruction", {}).items():
        if images.dtype != np.uint8 or images.ndim not in (4, 5) or images.shape[-1] != 3:
            raise MmsslError(
                f"{folder / 'reconstruction.npz'}: {key} must be uint8 (n, H, W, 3) or (n, T, H, W, 3), got "
                f"{images.dtype} {images.shape}; delete the file or make it again."
            )
    return pictures


def _find_tracks(folder: Path) -> dict[str, dict[str, Path]]:
    """Sequence -> its overlays by suffix, in the order of the sequences' names."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.rglob("[!.]*")):  # a name with a dot before it is half written
        if path.suffix in (".webp", ".png"):
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), {})[path.suffix] = path
    return found


def _numbers(mapping: dict) -> dict[str, float]:
    return {k: float(v) for k, v in mapping.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
