"""The training loop of reinforcement learning: act, learn, judge, save.

A run that was stopped anywhere and goes on gives the same weights and the same evaluations, bit for bit on a CPU, as
one that was not. At a checkpoint every environment begins anew, so that no simulator's state is needed; what was done
since then is kept as a list of actions, which are taken again before the run goes on.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from mmssl.control.base import Algorithm, Spaces, Transition
from mmssl.control.evaluate import evaluate
from mmssl.control.log import ControlLog, Ended, Means, Stopwatch, read_records
from mmssl.control.progress import Progress, Shown
from mmssl.control.rewind import Rewinder
from mmssl.control.rl_config import RLConfig
from mmssl.control.saving import pack, read_state, save_policy, stage_folder
from mmssl.control.worlds import load_encoder, make_algorithm, make_world, settled
from mmssl.errors import MmsslError
from mmssl.training.checkpoint import RunFolder, check_architecture
from mmssl.training.interrupt import StopSignal
from mmssl.training.memory import keep_freed_memory

MakeWorld = Callable[[RLConfig, int, int, nn.Module | None], VectorEnv]


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        steps, total: environment steps done and wanted.
        finished: whether it is at its end.
        signal: what stopped it, 0 for nothing.
        seconds: of training, over all its processes.
        evaluations: the records of evaluations.jsonl.
        policy: what was learned.
    """

    steps: int
    total: int
    finished: bool
    signal: int
    seconds: float
    policy: nn.Module
    evaluations: list[dict[str, Any]] = field(default_factory=list)


def train(
    config: RLConfig,
    run: RunFolder | None = None,
    quiet: bool = False,
    *,
    make: MakeWorld = make_world,
    progress: Progress | None = None,
) -> Result:
    """Train; with a run folder, go on from its newest checkpoint and write new ones.

    Args:
        config: the recipe; one seed of it, `config.seed`.
        run: the run folder, started and locked by the caller; None writes nothing.
        quiet: show no progress.
        make: makes a world from (config, n, seed, encoder); by default that of `config.task`.
        progress: whom to tell; a bar or lines on stderr by default.

    Raises:
        MmsslError: wrong settings, before anything is trained; a loss that is not finite; a simulator that breaks down
            too often; a full disk; a run folder of another run.
    """
    config = config.resolved()
    if config.device == "cpu":
        keep_freed_memory()
    shown = progress or Shown(
        config.steps, f"{config.algorithm.name} on {config.task}, seed {config.seed}", quiet=quiet
    )
    with contextlib.ExitStack() as stack:
        if progress is None:
            stack.callback(shown.close)
        return _kind_of(config)(config, run, make, shown, stack).go()


def _kind_of(config: RLConfig) -> "type[Training]":
    if config.offline is None:
        return Training
    from mmssl.control.offline import OfflineTraining  # which is a `Training` itself

    return OfflineTraining


class Training:
    """A run between its processes: worlds, algorithm, and what was done.

    Attributes:
        step: environment steps done; those that only begin an episode do not count.
        judged, recorded: steps of the last evaluation and of the last record of metrics.
        saved: step of the last checkpoint, and of the last evaluation before it.
    """

    def __init__(
        self, config: RLConfig, run: RunFolder | None, make: MakeWorld, progress: Progress, stack: contextlib.ExitStack
    ):
        self.run, self.progress = run, progress
        self.encoder = load_encoder(config, run)
        self.config = config = settled(config, self.encoder)
        self._build(make, stack)
        self.rewinder, self.means, self.ended = Rewinder(self.world, config.seed), Means(), self._no_episodes()
        self.step, self.judged, self.recorded, self.saved = 0, -1, 0, (-1, -1)
        self.recorded_at, self.rate, self.anew, self.evaluations = 0.0, 0.0, False, []

    def _build(self, make: MakeWorld, stack: contextlib.ExitStack) -> None:
        """Make the worlds and the algorithm."""
        config = self.config
        wanted = ((config.n_envs, config.seed), (config.eval_episodes, judge_seed(config.seed)))
        worlds = [stack.enter_context(contextlib.closing(make(config, n, s, self.encoder))) for n, s in wanted]
        self.world, self.judge_world = worlds
        self.spaces = Spaces(**self.world.spaces())
        self.algorithm = self._make_algorithm(config)

    def _make_algorithm(self, config: RLConfig) -> Algorithm:
        algorithm = make_algorithm(config, self.spaces, self.encoder, self.world)
        algorithm.total_steps = config.steps
        if (replay := getattr(algorithm, "replay", None)) is not None:  # its memory is taken at the first step
            replay.check_room()
            self.progress.say(replay.summary)
        return algorithm

    def go(self) -> Result:
        """Begin or go on, until the end or a signal."""
        with StopSignal() as stop:
            self._start()
            with ControlLog(self.run, self.step) as self.log:
                self._loop(stop)
                self._save()
        finished = self._done()
        signal, seconds = 0 if finished else stop.received, self.watch.read()
        policy = self.algorithm.policy()
        return Result(self.step, self.config.steps, finished, signal, seconds, policy, self.evaluations)

    def _loop(self, stop: StopSignal) -> None:
        config = self.config
        while not stop.received:
            if self._passed(config.eval_every, self.judged) or (self.step >= config.steps and self.judged < self.step):
                self._judge(stop)
            if self.anew:
                self._save()
            if self.step >= config.steps:
                break
            self._advance()
            if self._passed(config.log_every, self.recorded):
                self._record()
            if self.progress.due():
                self._show()

    def _done(self) -> bool:
        return self.step >= self.config.steps and self.judged == self.step

    def _passed(self, every: int, before: int) -> bool:
        """Whether a multiple of `every` steps lies after `before`, up to now; before is -1 at the beginning."""
        return every > 0 and self.step // every > before // every

    def _advance(self) -> None:
        """One step of all environments, and what is to be learned from it."""
        valid = ~self.world.starting
        action = self.algorithm.act(self.obs)
        next_obs, reward, terminated, truncated, infos = self._take(action)
        before, self.step = self.step, self.step + int(np.count_nonzero(valid))
        self.anew = self._passed(self.config.checkpoint_every, before)
        if self.anew:  # the episodes end here, cut
            truncated = truncated | (valid & ~terminated)
        self._learn(Transition(self.obs, action, reward.astype(np.float32), terminated, truncated, next_obs, valid))
        if "_episode" in infos:
            self.ended.add(infos)
        self.obs = next_obs
        if self.anew:
            self._begin_anew()
        if self.run is not None and self._passed(self.config.policies_every, before):
            self._keep()

    def _take(self, action: np.ndarray) -> tuple:
        try:
            taken = self.world.step(action)
        except MmsslError:
            self._check_finite()  # weights that are not finite give such actions: this says why
            raise
        self.rewinder.tape.add(action)
        return taken

    def _learn(self, transition: Transition) -> None:
        self.algorithm.observe(transition)
        scalars = self.algorithm.update()
        if scalars:
            self.means.add(scalars)

    def _begin_anew(self) -> None:
        """Begin an episode everywhere; for the algorithm it is a step that nobody took."""
        n, first = self.world.num_envs, self.rewinder.checkpoint()
        action = np.zeros(self.world.action_space.shape, self.world.action_space.dtype)
        no, zero = np.zeros(n, bool), np.zeros(n, np.float32)
        self._learn(Transition(self.obs, action, zero, no, no.copy(), first, no.copy()))
        self.obs = first

    def _judge(self, stop: StopSignal) -> None:
        """Evaluate the policy as it is; a signal breaks it off, and it is made up for."""
        self._check_finite()
        with self.watch.stopped():
            policy, seed = self.algorithm.policy(), judge_seed(self.config.seed)
            found = evaluate(policy, self.judge_world, self.config.eval_episodes, seed, lambda: bool(stop.received))
        if found is None:
            return
        self.judged = self.step
        record = {"step": self.step, "returns": found.returns, "lengths": found.lengths}
        record |= {"successes": found.successes} if self.judge_world.has_success else {}
        self.evaluations.append(record | {"seconds": round(self.watch.read(), 2)})
        self.log.evaluation(self.evaluations[-1])
        self._show()

    def _record(self) -> None:
        """A line of metrics.jsonl, of all that came since the last one."""
        self._check_finite()
        self._measure()
        self.log.metrics(
            self.step, {**self.ended.values(), "steps_per_second": self.rate, **self._broken(), **self.means.values()}
        )
        self.recorded, self.recorded_at = self.step, self.watch.read()
        self.means, self.ended = Means(), self._no_episodes()

    def _no_episodes(self) -> Ended:
        return Ended(self.world.has_success)

    def _broken(self) -> dict[str, int]:
        return {"broken": self.world.broken} if self.world.broken else {}

    def _measure(self) -> None:
        """Set `rate`, environment steps a second since the last record."""
        if self.step > self.recorded:
            self.rate = round((self.step - self.recorded) / max(self.watch.read() - self.recorded_at, 1e-9), 1)

    def _show(self) -> None:
        self._measure()
        judged = f"return {np.mean(self.evaluations[-1]['returns']):.1f}, " if self.evaluations else ""
        left = (self.config.steps - self.step) / self.rate if self.rate else None
        self.progress.show(self.step, f"{judged}{self.rate:.0f} steps/s", left)

    def _check_finite(self) -> None:
        if name := self.means.spoiled():
            good = self.run.all_checkpoints() if self.run is not None else []
            last = f"the last good checkpoint is {good[-1].path}" if good else "there is no good checkpoint yet"
            raise MmsslError(
                f"{name} of {self.config.algorithm.name} became NaN or infinite between steps {self.recorded} and "
                f"{self.step}; {last}. Lower algorithm.lr, or look at the rewards of {self.config.task}."
            )

    def _start(self) -> None:
        """Begin, or take over the newest checkpoint that is whole."""
        checkpoint = self.run.latest(self.progress.say) if self.run is not None else None
        if checkpoint is None:
            self.watch = Stopwatch()
            self._begin()
            return
        check_architecture(self.algorithm.policy(), checkpoint.shapes(), checkpoint.path)
        state = read_state(checkpoint)
        self._check_worlds(state, checkpoint.path)
        self.algorithm.load_state_dict(state["algorithm"])
        self.means.load_state_dict(state["means"], self.config.device)
        self.ended.rows = state["ended"]
        self.step, self.saved = checkpoint.step, (checkpoint.step, state["judged"])
        self.judged, self.recorded, self.recorded_at = state["judged"], state["recorded"], state["recorded_at"]
        if not self._done():
            self._go_on(state)
        torch.set_rng_state(state["torch"])
        self.watch = Stopwatch(state["seconds"])
        self.evaluations = read_records(self.run.evaluations, self.step)
        self.progress.say(f"going on from {checkpoint.path}")

    def _check_worlds(self, state: dict[str, Any], path: Path) -> None:
        if (before := len(state["rewinder"]["world"]["episodes"])) != (now := self.world.num_envs):
            raise MmsslError(f"{path} is of a run with {before} environments, not {now}; set n_envs to it.")

    def _begin(self) -> None:
        """Begin an episode everywhere."""
        self.obs = self.rewinder.begin()

    def _go_on(self, state: dict[str, Any]) -> None:
        """Bring the worlds to where they were."""
        self.obs = self.rewinder.load_state_dict(state["rewinder"])

    def _save(self) -> None:
        """Write a checkpoint of this step and the policy for users, unless they are there."""
        self.anew = False
        if self.run is None or self.saved == (self.step, self.judged):
            return
        self._check_finite()
        with self.watch.stopped():
            policy = self.algorithm.policy()
            self.run.save(self.step, policy, pack(self._state()), keep=1)
            save_policy(self.run.export, policy, self.config, self.spaces, self.encoder, self.step)
        self.saved = (self.step, self.judged)

    def _keep(self) -> None:
        """Keep the policy as it is now, beside the ones of other stages."""
        self._check_finite()
        with self.watch.stopped():
            folder = stage_folder(self.run.path, self.step)
            save_policy(folder, self.algorithm.policy(), self.config, self.spaces, self.encoder, self.step)

    def _state(self) -> dict[str, Any]:
        numbers = {"judged": self.judged, "recorded": self.recorded, "recorded_at": self.recorded_at}
        parts = {"algorithm": self.algorithm, "rewinder": self.rewinder, "means": self.means}
        states = {name: part.state_dict() for name, part in parts.items()}
        more = {"ended": self.ended.rows, "seconds": self.watch.read(), "torch": torch.get_rng_state()}
        return {**states, **numbers, **more}


def judge_seed(seed: int) -> int:
    """The seed of the worlds in which a run of `seed` is judged, in [0, 2**31)."""
    return int(np.random.SeedSequence([seed, 100]).generate_state(1)[0] >> 1)
