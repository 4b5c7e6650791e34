"""Held-out tasks of recorded Meta-World data, and what `multimodal_study.py` asks of encoders on them."""

import argparse
import statistics
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.loading import open_dataset
from mmssl.evaluation.baselines import PixelEncoder
from mmssl.evaluation.dense import DepthConfig, SegmentationConfig
from mmssl.evaluation.features import FeatureSet, Splits
from mmssl.evaluation.metrics import r2_per_dim
from mmssl.evaluation.ridge import RidgeConfig, fit_predict
from mmssl.registry import EVALUATORS

HELD_OUT = ("door-open", "drawer-open", "faucet-open", "coffee-button")
VIEWS = ("image/corner4", "image/corner")
FARTHEST = 3.0  # metres: behind it is the sky
MOVES = 1e-3  # standard deviation, in metres or radians, from which on a dimension counts as moving
SHOWN = {
    "mvmae": {"corner4": VIEWS[:1], "corner4+corner": VIEWS},
    "multimae": {"image": ("image",), "image+depth": ("image", "depth")},
}
"""What a trained encoder is then shown."""

Frames = dict[str, Tensor]


def read(folder: Path, tasks: list[str], split: str, every: int = 1) -> Frames:
    """Every frame of some tasks in memory, or every so manieth.

    `state` (N, 39), `episode` and `task` (N,) are beside the pictures.
    """
    sources = [folder / "mmssl" / "metaworld" / f"{task}-v0" for task in tasks]
    options = {"extras": ("depth", "segmentation"), "segmentation": "coarse", "drop_constant": False}
    data = open_dataset(sources, split=split, cameras=("corner4", "corner"), target="state", **options)
    rows = torch.arange(0, len(data), every)
    parts = [data.fetch(index) for index in rows.split(256)]
    names = (*VIEWS, "depth/corner4", "segmentation/corner4")
    frames = {name: torch.cat([part[name] for part in parts]) for name in names}
    frames["depth"] = frames.pop("depth/corner4").clamp(max=FARTHEST)
    frames["segmentation"], frames["image"] = frames.pop("segmentation/corner4"), frames[VIEWS[0]]
    return frames | {
        "state": data.labels("state")[rows],
        "episode": data.groups[rows],
        "task": data.labels("task")[rows],
    }


def tasks_in(folder: Path) -> list[str]:
    found = sorted(path.name.removesuffix("-v0") for path in (folder / "mmssl" / "metaworld").glob("*-v0"))
    return [task for task in found if task not in HELD_OUT]


class Pictures(Dataset):
    """Some frames as a dataset of images with depth and segmentation."""

    modality = "image"

    def __init__(self, frames: Frames, rows: Tensor):
        self.frames = {name: frames[name][rows] for name in ("image", "depth", "segmentation")}
        super().__init__("frames", Geometry(None))
        self.segmentation_classes = ["background", "table", "robot arm", "gripper", "object"]

    def __len__(self) -> int:
        return len(self.frames["image"])

    def fetch(self, index, keys=None, augmentation=None) -> dict[str, Tensor]:
        return {**{name: x[index] for name, x in self.frames.items()}, "index": index.clone()}


class HeldOut:
    """Held-out tasks: frames to fit probes on, to test them on, and to test them on with moved cameras."""

    def __init__(self, args: argparse.Namespace):
        tasks = list(HELD_OUT)
        self.train, self.test = (read(args.folder, tasks, split, args.every) for split in ("train", "test"))
        self.moved = read(args.moved, tasks, "all", args.every)
        rows = [torch.randperm(len(part["image"]), generator=torch.Generator().manual_seed(0)) for part in self.parts]
        few = [Pictures(part, order[: args.pictures]) for part, order in zip(self.parts[:2], rows, strict=False)]
        self.pictures = Splits(*few, labelled=False)

    @property
    def parts(self) -> tuple[Frames, Frames, Frames]:
        return self.train, self.test, self.moved


@torch.no_grad()
def features(encoder: nn.Module, frames: Frames, shown: tuple[str, ...]) -> dict[str, Tensor]:
    """Pooling -> (N, D) of what an encoder is shown: of each picture the mean of its tokens, or of 4 x 4 cells.

    An encoder of one view reads several one after the other.
    """
    alone = any(name not in encoder.modalities for name in shown)
    rows = []
    for index in torch.arange(len(frames["image"])).split(128):
        batch = {name: frames[name][index] for name in shown}
        if alone:
            maps = [encoder({encoder.modalities[0]: x}).map() for x in batch.values()]
        else:
            found = encoder(batch)
            maps = [found.map(name) for name in shown]
        rows.append(torch.stack(maps, 1))  # (B, pictures, h, w, D)
    tokens = torch.cat(rows)
    cells = F.adaptive_avg_pool2d(tokens.flatten(0, 1).movedim(-1, 1), 4).unflatten(0, tokens.shape[:2])
    return {"mean": tokens.mean((2, 3)).flatten(1), "grid4": cells.flatten(1)}


def pixels(frames: Frames, shown: tuple[str, ...]) -> dict[str, Tensor]:
    """The pictures themselves, (N, values)."""
    scale = {"image": 255, "depth": FARTHEST}
    return {"flat": torch.cat([frames[name].flatten(1) / scale[name.split("/")[0]] for name in shown], 1)}


def probe(parts: list[Tensor], data: HeldOut, args: argparse.Namespace) -> dict:
    """Scores of `state` on the test and on the moved frames, from features (N, D) of the three parts.

    `test` and `moved` are R2, `test_r` and `moved_r` correlations, which an offset of a whole part leaves as they are;
    `few` is `test` from some training episodes alone, the mean over the draws of these.
    """
    rows: list[dict[str, float]] = []
    for task in data.train["task"].unique():
        there = [part["task"] == task for part in data.parts]
        states = [part["state"][row].float() for part, row in zip(data.parts, there, strict=True)]
        moving = states[0].std(0) > MOVES
        train = FeatureSet(
            parts[0][there[0]], states[0][:, moving], data.train["episode"][there[0]], there[0].nonzero()
        )
        tested = [part[row] for part, row in zip(parts[1:], there[1:], strict=True)]
        rows.append(scores_of(train, tested, [state[:, moving] for state in states[1:]], args))
    means = {name: round(statistics.mean(row[name] for row in rows), 4) for name in rows[0]}
    return {**means, "tasks": {name: [round(row[name], 4) for row in rows] for name in ("test", "moved")}}


def scores_of(train: FeatureSet, tested: list[Tensor], truths: list[Tensor], args: argparse.Namespace) -> dict:
    """The scores of one task, for features and states of its test frames and of those with moved cameras."""
    about = SimpleNamespace(task="regression", classes=None)
    options = (about, RidgeConfig(folds=2), 0, torch.device("cpu"))
    said = fit_predict(train, torch.cat(tested), *options).split([len(truth) for truth in truths])
    found = {}
    for name, guess, truth in zip(("test", "moved"), said, truths, strict=True):
        found[name] = r2_per_dim(guess, truth).nanmean().item()
        found[f"{name}_r"] = correlation(guess, truth)
    few = []
    for draw in range(args.draws):
        episodes = train.groups.unique()
        drawn = episodes[torch.randperm(len(episodes), generator=torch.Generator().manual_seed(draw))[: args.episodes]]
        part = train.subset(torch.isin(train.groups, drawn).nonzero()[:, 0])
        few.append(r2_per_dim(fit_predict(part, tested[0], *options), truths[0]).nanmean().item())
    return {**found, "few": statistics.mean(few)}


def correlation(guess: Tensor, truth: Tensor) -> float:
    """Mean over the dimensions that vary in the truth (N, K)."""
    guess, truth = guess - guess.mean(0), truth - truth.mean(0)
    norms = (guess.norm(dim=0) * truth.norm(dim=0)).clamp(min=1e-12)
    return ((guess * truth).sum(0) / norms)[truth.std(0) > MOVES / 10].mean().item()


def judge_state(encoder: nn.Module | None, method: str, data: HeldOut, args: argparse.Namespace) -> dict[str, dict]:
    """`shown, pooling` -> scores; of pixels where no encoder is given."""
    found = {}
    for shown, names in SHOWN[method].items():
        if encoder is not None and "depth" in names and "depth" not in encoder.modalities:
            continue
        parts = [pixels(part, names) if encoder is None else features(encoder, part, names) for part in data.parts]
        for pooling in parts[0]:
            found[f"{shown}, {pooling}"] = probe([part[pooling] for part in parts], data, args)
    return found


def judge_dense(encoder: nn.Module, data: HeldOut, args: argparse.Namespace, constant: bool = False) -> dict:
    """Scores of depth and segmentation from the image alone, and of the best constant map."""
    shared = {"steps": args.head_steps, "batch_size": 128}
    found = {}
    for plane, config in (("depth", DepthConfig(**shared)), ("segmentation", SegmentationConfig(**shared))):
        evaluator = EVALUATORS.get(plane)
        scores = (
            evaluator.constant(encoder, data.pictures, config, plane)
            if constant
            else evaluator(encoder, data.pictures, config)
        )
        found[plane] = {name: round(value, 4) for name, value in scores.items()}
    return found


def judge(encoder: nn.Module, method: str, data: HeldOut, args: argparse.Namespace) -> dict:
    encoder = encoder.requires_grad_(False).eval()
    found = {"state": judge_state(encoder, method, data, args)}
    return found | ({"dense": judge_dense(encoder, data, args)} if method == "multimae" else {})


def judge_pixels(method: str, data: HeldOut, args: argparse.Namespace) -> dict:
    """The same of the pictures themselves, and of constant maps."""
    found = {"state": judge_state(None, method, data, args)}
    if method == "multimae":
        reader = PixelEncoder("image")
        found |= {"dense": judge_dense(reader, data, args), "constant": judge_dense(reader, data, args, constant=True)}
    return found
