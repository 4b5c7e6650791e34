"""The training loop: set up in `fit`, run in `_train`, for pretraining and fine-tuning alike.

Data order, augmentation, masks and dropout are functions of (seed, step, sample), so a run that was stopped and goes on
gives the same weights, bit for bit on a CPU, as one that was not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.data.loading import Loader
from mmssl.data.transforms import Augmentation, BatchAugment
from mmssl.errors import MmsslError
from mmssl.training.checkpoint import RunFolder
from mmssl.training.distributed import Processes, can_compile, seed_all
from mmssl.training.interrupt import StopSignal
from mmssl.training.logging import Meter, RunLog, say
from mmssl.training.loop_config import FitResult, LoopConfig
from mmssl.training.memory import keep_freed_memory
from mmssl.training.optim import OptimConfig, Schedule, build_optimizer, scale_gradients, set_lr
from mmssl.training.saving import Clock, NanWatch, Saver

__all__ = ["FitResult", "LoopConfig", "fit"]

Transform = Callable[[dict, Tensor], dict]


def fit(
    model: nn.Module,
    dataset: Any,
    loop: LoopConfig,
    optim: OptimConfig,
    augmentation: Augmentation | None = None,
    run: RunFolder | None = None,
    *,
    transform: Transform | None = None,
    quiet: bool = False,
    label: str = "train",
) -> FitResult:
    """Train `model` on `dataset`; with a run folder, go on from its newest checkpoint and write new ones.

    Args:
        model: `forward(batch, keys=keys)` gives a dict with "loss", a pair (sum, count), and scalars to log. It may
            have `check(batch)` or `encoder.check(batch)`, called on the first sample, `no_decay()` and
            `after_step(progress)`. It ends in eval mode.
        dataset: what `mmssl.open_dataset` gives.
        augmentation: how training images vary; None for not at all.
        run: the run folder, locked by the caller; None writes nothing.
        transform: (batch, keys) -> batch, on the device, after the augmentation (mixup).
        quiet: show no progress.
        label: what the progress is called.

    Raises:
        MmsslError: the loss or the gradient is not finite, the disk is full, the run folder holds another model.
    """
    team = Processes(loop.device, loop.precision)
    if team.device.type == "cpu":
        keep_freed_memory()
    loader = _loader(dataset, loop, team, augmentation)
    per_epoch = len(loader) // loop.accumulate
    total = loop.total_steps(per_epoch)
    schedule = optim.schedule(loop.batch_size, total, per_epoch)
    _check_first(model, loader)

    model.to(team.device).train()
    optimizer = build_optimizer(model, optim)
    tell = say if team.is_main and not quiet else _silence
    meter, clock, saver = Meter(team.device), Clock(loop.max_minutes), Saver(run, team, loop, model)
    saver.resume(optimizer, meter, clock, tell)
    forward = team.wrap(model, _compiles(loop, tell))
    job = _Job(model, forward, optimizer, loop, schedule, team, meter, clock, per_epoch, total)

    batches = _steps(loader, saver.step, total, per_epoch, loop.accumulate, _prepare(team, augmentation, transform))
    watch = NanWatch(team.device, run)
    files, unit = run if team.is_main else None, "images" if dataset.modality.startswith("image") else "clips"
    with StopSignal() as stop, RunLog(files, saver.step, total, label, quiet or not team.is_main, unit) as log:
        finished, metrics = _train(job, batches, saver, watch, stop, log)
    model.eval()
    return FitResult(saver.step, total, finished, 0 if finished else stop.received, job.clock.read(), metrics)


@dataclass
class _Job:
    """What the loop works with."""

    model: nn.Module
    forward: nn.Module  # the model, compiled and distributed
    optimizer: torch.optim.Optimizer
    loop: LoopConfig
    schedule: Schedule
    team: Processes
    meter: Meter
    clock: Clock
    steps_per_epoch: int
    total: int


def _train(
    job: _Job, batches: Iterator, saver: Saver, watch: NanWatch, stop: StopSignal, log: RunLog
) -> tuple[bool, dict[str, float]]:
    """The loop. Returns whether the run is at its end, and the last metrics written."""
    model, loop, team, clock, metrics = job.model, job.loop, job.team, job.clock, {}
    parameters = [p for group in job.optimizer.param_groups for p in group["params"]]
    done, first = saver.step, saver.step
    finished = done >= job.total or clock.used() >= 1

    while not finished:
        progress = max(done / job.total, clock.used())
        lr = job.schedule.lr_at(progress)
        set_lr(job.optimizer, lr)
        seed_all(loop.seed + 1_000_003 * (done * team.world + team.rank + 1))
        try:
            totals, scalars = _backward(job.forward, next(batches), team, loop.accumulate)
        except torch.OutOfMemoryError:
            raise _out_of_memory(loop, team) from None
        except (RuntimeError, MmsslError):  # a signal to the whole process group ends the loader's workers too
            if not stop.received:
                raise
            break
        # Where nothing counted, the gradient is zero and stays so.
        norm = scale_gradients(parameters, team.world / totals[1].clamp(min=1e-12), loop.clip_grad)
        job.optimizer.step()
        job.optimizer.zero_grad(set_to_none=True)
        if hasattr(model, "after_step"):
            model.after_step(progress)

        done = saver.step = done + 1
        watch.add(done, totals[0], norm)
        job.meter.add(loss=totals[0], count=totals[1], grad_norm=norm, **scalars)
        signal, save_now, clock.seconds = team.agree([stop.received, saver.due(), clock.read()])
        finished = done == job.total or clock.used() >= 1
        log.step()
        if done % loop.log_every == 0 or finished:
            watch.check()
            speed = {"images_per_second": clock.rate((done - first) * loop.batch_size), "seconds": clock.read()}
            metrics = {"epoch": done / job.steps_per_epoch, "lr": lr, **job.meter.read(), **speed}
            log.write(done, metrics)
        if save_now or finished:
            watch.check()
            saver.save()
        if signal:
            break
    try:
        batches.close()  # ends the loader's workers, whose deaths could otherwise disturb the last save
    except RuntimeError:
        if not stop.received:
            raise
    watch.check()
    saver.save()
    return finished, metrics


def _backward(forward: nn.Module, batches: Iterator, team: Processes, micro: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradient of the summed loss of each micro-batch.

    Returns (loss sum, count) over all of them and all processes, shape (2,), and the mean of the other scalars.
    """
    totals, scalars = torch.zeros(2, device=team.device), {}
    for place, (batch, keys) in enumerate(batches):
        with team.no_sync(forward, hold=place < micro - 1):
            with team.autocast():
                out = forward(batch, keys=keys)
            loss, count = out["loss"]
            loss.backward()
        totals += torch.stack([loss.detach().float(), torch.as_tensor(count, device=team.device).float()])
        for name, value in out.items():
            if name != "loss":
                scalars[name] = scalars.get(name, 0.0) + torch.as_tensor(value).detach() / micro
    return team.sum(totals), scalars


def _steps(
    loader: Loader, first: int, total: int, per_epoch: int, micro: int, prepare: Callable[[dict], tuple]
) -> Iterator[Iterator]:
    """For each step from `first` on, its micro-batches as (batch, keys) on the device; a pure function of the step."""
    try:
        for epoch in range(first // per_epoch, -(-total // per_epoch)):
            begun = max(first - epoch * per_epoch, 0)
            stream = loader.epoch(epoch, start=begun * micro)
            for _ in range(begun, min(per_epoch, total - epoch * per_epoch)):
                yield map(prepare, islice(stream, micro))
    finally:
        loader.close()


def _prepare(
    team: Processes, augmentation: Augmentation | None, transform: Transform | None
) -> Callable[[dict], tuple[dict, Tensor]]:
    """The function that takes a batch from the loader to what the model sees."""
    augment = BatchAugment(augmentation) if augmentation is not None else None

    def prepare(batch: dict) -> tuple[dict, Tensor]:
        batch = team.to_device(batch)
        keys = batch.pop("keys")
        for change in (augment, transform):
            batch = change(batch, keys) if change is not None else batch
        return batch, keys

    return prepare


def _loader(dataset: Any, loop: LoopConfig, team: Processes, augmentation: Augmentation | None) -> Loader:
    size = loop.micro_batch(team.world)
    if len(dataset) * loop.repeats < loop.batch_size:
        raise MmsslError(
            f"{len(dataset)} samples times loop.repeats {loop.repeats} do not fill one batch of loop.batch_size "
            f"{loop.batch_size}; lower loop.batch_size, or raise loop.repeats."
        )
    places = {"rank": team.rank, "world": team.world, "repeats": loop.repeats, "timeout": loop.worker_timeout}
    return Loader(dataset, size, seed=loop.seed, augmentation=augmentation, workers=loop.workers, **places)


def _check_first(model: nn.Module, loader: Loader) -> None:
    """Let the model look at the values of one sample: ranges cannot be looked at inside a compiled step."""
    judge = model if hasattr(model, "check") else getattr(model, "encoder", None)
    if hasattr(judge, "check"):
        judge.check(loader.peek())


def _compiles(loop: LoopConfig, tell: Callable[[str], None]) -> bool:
    if loop.compile and not can_compile():
        tell("no C++ compiler is found, which torch.compile needs: going on without it.")
    return loop.compile and can_compile()


def _out_of_memory(loop: LoopConfig, team: Processes) -> MmsslError:
    return MmsslError(
        f"the device's memory does not hold {loop.micro_batch(team.world)} samples at once; raise loop.accumulate "
        f"(from {loop.accumulate}), which changes nothing else, or lower loop.batch_size."
    )


def _silence(sentence: str) -> None:
    """Where nothing is to be said."""
