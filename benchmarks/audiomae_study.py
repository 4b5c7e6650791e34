"""Tiny Audio-MAE at equal processor time: decoders, mask ratios and seeds, judged with few labels on held-out sounds.

    python benchmarks/sounds.py words runs/words
    python benchmarks/audiomae_study.py runs/words --out study.jsonl --ratios 0.6 0.8 0.9 --seeds 0 1 2
    python benchmarks/audiomae_study.py runs/words --out study.jsonl --decoders global --seeds 0 1 2
    python benchmarks/audiomae_study.py runs/words --out study.jsonl --baselines --seeds 0 1 2
    python benchmarks/audiomae_study.py runs/words --out study.jsonl --plot study.png

A run learns from train/ for `--seconds` of its process's own time on one thread, whatever the number of steps; the
learning rate follows that time. Spectrograms are computed once, before the clock starts. A line of the output holds one
run: its settings, its losses and its scores, accuracies on test/ from few labelled sounds of train/.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.loading import open_dataset
from mmssl.evaluation.baselines import raw_inputs
from mmssl.evaluation.features import Splits
from mmssl.evaluation.probe import parse_question
from mmssl.keys import sample_keys
from mmssl.methods.base import create_method
from mmssl.registry import EVALUATORS
from mmssl.tokenizers.audio import AudioTokenizer
from mmssl.training.optim import OptimConfig, parameter_groups

SHAPE = {"size": "custom", "dim": 128, "depth": 4, "heads": 4, "frames": 96, "mel_bins": 64, "patch_size": (8, 16)}
DECODER = {"decoder_dim": 64, "decoder_heads": 4}
QUESTIONS = ("ridge", "ridge:bands", "ridge:grid4")


class Spectrograms(Dataset):
    """A dataset of sound with its raw log-mel spectrograms in memory, (N, 1, T, M)."""

    modality = "audio"

    def __init__(self, sounds: Dataset, tokenizer: AudioTokenizer):
        batches = (sounds.fetch(index)["audio"] for index in torch.arange(len(sounds)).split(64))
        self.levels = torch.cat([tokenizer.spectrogram(batch) for batch in batches])
        super().__init__(sounds.name, Geometry(None))
        self.task, self.classes, self.target, self.targets = sounds.task, sounds.classes, sounds.target, sounds.targets
        self.held = sounds.labels()

    def __len__(self) -> int:
        return len(self.levels) if hasattr(self, "levels") else 0

    def _labels(self, target: str) -> Tensor:
        return self.held

    def fetch(self, index, keys=None, augmentation=None) -> dict[str, Tensor]:
        return {"audio": self.levels[index], "index": index.clone(), "label": self.held[index]}


def read(folder: Path) -> Splits:
    """Both parts of a folder of one-second sounds, as spectrograms."""
    tokenizer = create_method("audiomae", **SHAPE, **DECODER).encoder.tokenizers["audio"]
    sampling = AudioSampling(tokenizer.config.sample_rate, 1.0)
    return Splits(*(Spectrograms(open_dataset(folder, split=s, audio=sampling), tokenizer) for s in ("train", "test")))


def batches(count: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Places and keys of the samples of each batch, epoch after epoch, without end."""
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        for index in torch.randperm(count, generator=generator).split(size):
            yield index, sample_keys(seed, epoch, 0, index)
        epoch += 1


def pretrain(method: nn.Module, data: Spectrograms, args: argparse.Namespace, seed: int) -> dict:
    """Train in place for `args.seconds` of processor time; returns the number of steps, and losses along the way."""
    optim = OptimConfig(lr=args.lr, betas=(0.9, 0.95), weight_decay=0.05)
    optimizer = torch.optim.AdamW(parameter_groups(method, optim), lr=args.lr, betas=optim.betas)
    start, recent, curve, steps = time.process_time(), 0.0, [], 0
    for index, keys in batches(len(data), args.batch, seed):
        spent = (time.process_time() - start) / args.seconds
        if spent >= 1:
            break
        rate = args.lr * min(spent / 0.05, (1 + math.cos(math.pi * spent)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total, number = method({"audio": data.levels[index]}, keys=keys)["loss"]
        loss = total / number
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
        recent = loss.item() if steps == 1 else 0.98 * recent + 0.02 * loss.item()
        if steps % 20 == 0:
            curve.append((round(spent * args.seconds, 1), round(recent, 5)))
    return {"steps": steps, "loss": recent, "curve": curve}


def judge(encoder: nn.Module, splits: Splits, args: argparse.Namespace) -> dict[str, float]:
    """Question -> accuracy on the held-out sounds, the mean over the draws of few labels."""
    shared = {"labels_per_class": args.labels, "draws": args.draws, "batch_size": 64}
    found = {}
    for text in QUESTIONS:
        question = parse_question(text, shared)
        found[text] = EVALUATORS.get(question.name)(encoder, splits, question.config)["accuracy"]
    splits.forget(encoder)
    return {name: round(value, 4) for name, value in found.items()}


def fresh(
    splits: Splits, args: argparse.Namespace, seed: int, decoder: str = "window", ratio: float = 0.8
) -> nn.Module:
    """The method with random weights, and the statistics of the training sounds in its tokenizer."""
    levels = splits.train.levels
    statistics = {"mean": round(levels.mean().item(), 4), "std": round(levels.std().item(), 4)}
    depth = args.window_depth if decoder == "window" else args.global_depth
    torch.manual_seed(seed)
    options = {"decoder": decoder, "mask_ratio": ratio, "decoder_depth": depth, "norm_pix": args.norm_pix}
    options["positions"] = args.positions
    return create_method("audiomae", **SHAPE, **DECODER, **statistics, **options)


def runs(splits: Splits, args: argparse.Namespace) -> Iterator[dict]:
    """One line a run."""
    for seed in args.seeds:
        for decoder in args.decoders:
            for ratio in args.ratios:
                method = fresh(splits, args, seed, decoder, ratio)
                depth = method.config.decoder_depth
                about = {"decoder": decoder, "depth": depth, "ratio": ratio, "seed": seed, "seconds": args.seconds}
                found = pretrain(method.train(), splits.train, args, seed)
                scores = judge(method.encoder.requires_grad_(False).eval(), splits, args)
                if args.save is not None:
                    method.encoder.save_pretrained(args.save / f"{args.folder.name}-{decoder}-{ratio:g}-{seed}")
                yield {
                    **about,
                    "positions": args.positions,
                    "norm_pix": args.norm_pix,
                    "labels": args.labels,
                    **found,
                    "scores": scores,
                }


def baselines(splits: Splits, args: argparse.Namespace) -> Iterator[dict]:
    """Random encoders, the statistics of the spectrogram, and the spectrogram itself."""
    for seed in args.seeds:
        yield {
            "decoder": "random",
            "seed": seed,
            "scores": judge(fresh(splits, args, seed).encoder.eval(), splits, args),
        }
    for name, model in raw_inputs(fresh(splits, args, 0).encoder, "audio").items():
        yield {"decoder": name, "scores": judge(model.eval(), splits, args)}


def plot(lines: Path, picture: Path) -> None:
    """Losses over processor time: on the left of both decoders at one mask ratio, on the right of the mask ratios."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [json.loads(line) for line in lines.read_text().splitlines()]
    found = [run for run in found if "curve" in run]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    ratios = sorted({run["ratio"] for run in found})
    panels = [
        [
            (name, [run for run in found if run["decoder"] == name and run["ratio"] == 0.8])
            for name in ("window", "global")
        ],
        [
            (f"{ratio:g}", [run for run in found if run["decoder"] == "window" and run["ratio"] == ratio])
            for ratio in ratios
        ],
    ]
    for axis, panel, title in zip(axes, panels, ("decoder", "share masked"), strict=True):
        for color, (name, members) in enumerate(panel):
            for seed, run in enumerate(members):
                axis.plot(*zip(*run["curve"], strict=True), color=f"C{color}", lw=1, label=None if seed else name)
        axis.set(xlabel="seconds of processor time", ylim=(0.5, 1.1))
        axis.legend(title=title)
    axes[0].set_ylabel("loss on masked patches (norm-pix)")
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--plot", type=Path, help="draw the losses of the runs in --out, and do nothing else")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--decoders", nargs="+", choices=("window", "global"), default=["window"])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.8])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--window-depth", type=int, default=2)
    parser.add_argument("--global-depth", type=int, default=1)
    parser.add_argument("--positions", choices=("sincos_swapped", "sincos", "learned"), default="sincos_swapped")
    parser.add_argument("--norm-pix", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--save", type=Path, help="a folder for the encoders, which `mmssl probe` reads")
    parser.add_argument("--labels", type=int, default=5, help="labelled sounds of each class")
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    if args.plot is not None:
        plot(args.out, args.plot)
        return
    torch.set_num_threads(1)
    splits = read(args.folder)
    for line in (baselines if args.baselines else runs)(splits, args):
        line = {"data": args.folder.name, **line}
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print({k: v for k, v in line.items() if k != "curve"}, flush=True)


if __name__ == "__main__":
    main()
