"""Several views and depth at equal processor time: tiny encoders, judged on tasks and cameras that they never saw.

    mmssl record metaworld/button-press-topdown metaworld/door-open ... --episodes 40    # as data/metaworld-views.yaml
    mmssl record metaworld/door-open metaworld/drawer-open metaworld/faucet-open metaworld/coffee-button \\
      --cameras corner4 corner gripperPOV --depth --segmentation --size 64 64 --every 4 --noise 0.1 \\
      --episodes 20 --randomize-camera 0.7 --seed 1 --out moved
    python benchmarks/multimodal_study.py recorded --moved moved --out study.jsonl --seeds 0 1 2
    python benchmarks/multimodal_study.py recorded --moved moved --out study.jsonl --seeds 0 1 2 --baselines
    python benchmarks/multimodal_study.py recorded --moved moved --out study.jsonl --table
    python benchmarks/multimodal_study.py recorded --moved moved --out study.jsonl --plot study.png

A run learns from all tasks but the four held out, for `--seconds` of its process's own time on one thread, whatever the
number of steps; the learning rate follows that time. It is judged on the held-out tasks by a ridge probe of `state` for
each task (R2, the mean over the dimensions that move, then over tasks; penalties chosen on held-out episodes), learned
from their training episodes and tested on their test episodes, and on episodes whose cameras were moved. `dense` asks
for every pixel's depth and class with a linear head on the frozen tokens of the image alone. A line of the output is
one run; those that are there already are left out, so that the same command goes on where it was stopped.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from multimodal_probes import VIEWS, Frames, HeldOut, judge, judge_pixels, read, tasks_in
from multimodal_tables import plot, table
from torch import Tensor

from mmssl.keys import sample_keys
from mmssl.methods.base import Method, create_method
from mmssl.training.optim import OptimConfig, parameter_groups

SHAPE = {"size": "custom", "dim": 128, "depth": 4, "heads": 4, "image_size": 64, "patch_size": 8}
DECODER = {"decoder_dim": 64, "decoder_depth": 1, "decoder_heads": 4}
MVMAE = {**SHAPE, **DECODER, "modality": "image", "frames": 1, "mask_ratio": 0.75}
MULTIMAE = {**SHAPE, **DECODER}
KINDS = {
    "corner4+corner": ("mvmae", {**MVMAE, "views": ("corner4", "corner")}),
    "corner4": ("mvmae", {**MVMAE, "views": ("corner4",)}),
    "corner4 or corner": ("mvmae", {**MVMAE, "views": ("corner4",)}),
    "image+depth": ("multimae", {**MULTIMAE, "in_tasks": ("image", "depth"), "budget": 32}),
    "image": ("multimae", {**MULTIMAE, "in_tasks": ("image",), "budget": 16}),
}
"""What a run learns from: both views with one of them hidden, one, either in turn; RGB with depth, RGB. A quarter of
the tokens of what is not hidden wholly is visible in each."""


def fresh(kind: str, seed: int) -> Method:
    """A method with random weights."""
    name, settings = KINDS[kind]
    torch.manual_seed(seed)
    out = {"out_tasks": settings["in_tasks"]} if name == "multimae" else {}
    return create_method(name, **settings, **out)


def batch_of(kind: str, frames: Frames, index: Tensor, keys: Tensor) -> Frames:
    """What a method of a kind learns from in one step."""
    if kind == "corner4 or corner":
        other = (keys % 2 == 1)[:, None, None, None]
        return {VIEWS[0]: torch.where(other, frames[VIEWS[1]][index], frames[VIEWS[0]][index])}
    names = {"corner4+corner": VIEWS, "corner4": VIEWS[:1]}.get(kind) or kind.split("+")
    return {name: frames[name][index] for name in names}


def batches(count: int, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Places and keys of the samples of each batch, epoch after epoch, without end."""
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        for index in torch.randperm(count, generator=generator).split(size):
            yield index, sample_keys(seed, epoch, 0, index)
        epoch += 1


def pretrain(method: Method, kind: str, frames: Frames, args: argparse.Namespace, seed: int) -> dict:
    """Train in place for `args.seconds` of processor time; returns the number of steps, and losses along the way."""
    optim = OptimConfig(lr=args.lr, betas=(0.9, 0.95), weight_decay=0.05)
    optimizer = torch.optim.AdamW(parameter_groups(method, optim), lr=args.lr, betas=optim.betas)
    start, recent, curve, steps = time.process_time(), 0.0, [], 0
    for index, keys in batches(len(frames["image"]), args.batch, seed):
        spent = (time.process_time() - start) / args.seconds
        if spent >= 1:
            break
        rate = args.lr * min(spent / 0.05, (1 + math.cos(math.pi * spent)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total, number = method(batch_of(kind, frames, index, keys), keys=keys)["loss"]
        loss = total / number
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
        recent = loss.item() if steps == 1 else 0.98 * recent + 0.02 * loss.item()
        if steps % 20 == 0:
            curve.append((round(spent * args.seconds, 1), round(recent, 5)))
    return {"steps": steps, "loss": round(recent, 5), "curve": curve}


def wanted(args: argparse.Namespace) -> list[dict]:
    """What the command asks for, as the beginning of each line."""
    judged = {"every": args.every, "episodes": args.episodes, "draws": args.draws}
    if args.baselines:
        kinds = [kind for kind in args.kinds if kind in ("corner4+corner", "image+depth")]
        random = [{"run": "random", **judged, "kind": kind, "seed": seed} for seed in args.seeds for kind in kinds]
        return [{"run": "pixels", **judged, "kind": kind} for kind in kinds] + random
    names = {"run": "trained", "seconds": args.seconds, "batch": args.batch, "lr": args.lr, **judged}
    return [{**names, "kind": kind, "seed": seed} for seed in args.seeds for kind in args.kinds]


def do(about: dict, frames: Frames, data: HeldOut, args: argparse.Namespace) -> dict:
    """One run."""
    method = KINDS[about["kind"]][0]
    if about["run"] == "pixels":
        return judge_pixels(method, data, args)
    model = fresh(about["kind"], about["seed"])
    if about["run"] == "random":
        return judge(model.encoder, method, data, args)
    learned = pretrain(model.train(), about["kind"], frames, args, about["seed"])
    return {**learned, **judge(model.encoder, method, data, args)}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="recordings, as `mmssl record --out` names it")
    parser.add_argument("--moved", type=Path, required=True, help="recordings of the held-out tasks, cameras moved")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--baselines", action="store_true", help="random encoders and raw pixels")
    parser.add_argument("--table", action="store_true", help="print what is in --out, and do nothing else")
    parser.add_argument("--plot", type=Path, help="draw what is in --out, and do nothing else")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--every", type=int, default=2, help="probes see every so manieth frame, as neighbours are alike"
    )
    parser.add_argument("--episodes", type=int, default=4, help="training episodes of each task for `few`")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=400, help="pictures of each part for `dense`, at most")
    parser.add_argument("--head-steps", type=int, default=300)
    args = parser.parse_args()
    if args.table or args.plot is not None:
        return table(lines(args.out)) if args.table else plot(lines(args.out), args.plot)
    torch.set_num_threads(1)
    data = HeldOut(args)
    frames = {} if args.baselines else read(args.folder, tasks_in(args.folder), "all")
    for about in wanted(args):
        if any(about.items() <= line.items() for line in lines(args.out)):
            continue
        line = {**about, **do(about, frames, data, args)}
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print({k: v for k, v in line.items() if k != "curve"}, flush=True)


if __name__ == "__main__":
    main()
