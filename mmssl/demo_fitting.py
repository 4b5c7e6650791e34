"""A recipe cut to the seconds that a demo has for it, and an interrupted demo's own."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from mmssl.config import load_config, to_dict
from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from mmssl.training.pretrain import PretrainConfig


def fitted(config: "PretrainConfig", seconds: float) -> "PretrainConfig":
    """The recipe with as many steps as fit into so many seconds, from a short training that is thrown away."""
    steps = int(0.95 * seconds * _samples_per_second(config) / config.loop.batch_size)
    return with_steps(config, max(10, steps // 10 * 10))


def with_steps(config: "PretrainConfig", steps: int) -> "PretrainConfig":
    """The recipe cut to so many steps, with a warm-up of at most a tenth of them."""
    loop = dataclasses.replace(config.loop, steps=steps, epochs=None, log_every=max(1, min(20, steps // 50)))
    warmup = min(config.optim.warmup_steps or steps, max(1, steps // 10))
    optim = dataclasses.replace(config.optim, warmup_steps=warmup, warmup_epochs=None)
    return dataclasses.replace(config, loop=loop, optim=optim)


def planned(config: "PretrainConfig", run: Path) -> "PretrainConfig":
    """The configuration in a run folder where an interrupted demo left one, else the recipe as it is.

    Raises:
        MmsslError: the folder holds a run with other settings, its number of steps aside.
    """
    from mmssl.training.pretrain import PretrainConfig

    if not (run / "config.yaml").is_file():
        return config
    before = load_config(PretrainConfig, run / "config.yaml")
    if to_dict(with_steps(config, before.loop.steps or 1)) != to_dict(before):
        raise MmsslError(
            f"{run} holds a run with other settings (another budget, seed or version): "
            "give --overwrite to start again, or another folder with --run."
        )
    return before


def _samples_per_second(config: "PretrainConfig") -> float:
    from mmssl.methods.base import create_method
    from mmssl.training.asked import as_asked
    from mmssl.training.loop import fit

    method, trial = create_method(config.method), with_steps(config, 10)
    dataset = as_asked(method, dataclasses.replace(config.data, target="none")).open()
    # The last record is of the second half, without the slow first steps.
    loop = dataclasses.replace(trial.loop, log_every=5, max_minutes=None)
    result = fit(method, dataset, loop, trial.optim, config.data.augmentation, quiet=True)
    result.leave()  # where Ctrl-C came meanwhile
    return result.metrics["images_per_second"]
