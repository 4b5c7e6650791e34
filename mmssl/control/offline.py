"""Learning from recorded episodes alone: no step is taken in the environment but to judge the policy.

The replay holds the recorded transitions, each update counts as a step of the run, and everything else is the loop's.
"""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv

from mmssl.control.base import Spaces
from mmssl.control.loop import MakeWorld, Training, judge_seed
from mmssl.control.recorded_rows import fill, read_episodes, rows_of
from mmssl.control.rl_config import RLConfig
from mmssl.data.trajectory_files import Trajectory
from mmssl.errors import MmsslError
from mmssl.registry import ALGORITHMS


def read_offline(config: RLConfig, world: VectorEnv) -> tuple[RLConfig, Spaces, list[Trajectory]]:
    """The episodes of `config.offline`, and the config and the spaces of an algorithm whose replay holds them.

    Raises:
        MmsslError: an algorithm without a replay, a task of pictures, no episode, or one of another task.
    """
    if not hasattr(config.algorithm, "capacity"):
        able = [name for name in ALGORITHMS.names() if _learns_offline(name)]
        raise MmsslError(
            f"{config.algorithm.name} learns from what it does itself and not offline; take one of {', '.join(able)}."
        )
    spaces = replace(Spaces(**world.spaces()), n_envs=1)
    shown = Spaces(**getattr(world, "env", world).spaces()) if hasattr(world, "frozen") else spaces
    if shown.pictures:
        raise MmsslError("learning offline reads vectors, and this run is to see pictures; leave observe at state.")
    episodes = read_episodes(config.offline, shown.vectors, spaces.action_dim)
    if not episodes:
        raise MmsslError(f"{config.offline} holds no finished episode; record some.")
    return replace(config, algorithm=replace(config.algorithm, capacity=rows_of(episodes))), spaces, episodes


def _learns_offline(name: str) -> bool:
    """Whether an algorithm has a replay, and one of vectors."""
    kind = ALGORITHMS.get(name)
    return hasattr(kind.config_class, "capacity") and kind.wants.get("observe") != "pixels"


class OfflineTraining(Training):
    """A run whose steps are updates."""

    def _build(self, make: MakeWorld, stack: contextlib.ExitStack) -> None:
        config = self.config
        world = make(config, config.eval_episodes, judge_seed(config.seed), self.encoder)
        self.world = self.judge_world = stack.enter_context(contextlib.closing(world))
        own, self.spaces, episodes = read_offline(config, world)
        self.algorithm = self._make_algorithm(own)
        steps, ends = sum(map(len, episodes)), sum(episode.terminated for episode in episodes)
        self.progress.say(
            f"{config.offline}: {steps:,} transitions of {len(episodes):,} episodes, {ends:,} of which came to an end"
        )
        fill(self.algorithm.replay, episodes, world)

    def _check_worlds(self, state: dict[str, Any], path: Path) -> None:
        """Nothing: other episodes of evaluation are no other run."""

    def _begin(self) -> None:
        """Nothing: the replay is full."""

    def _go_on(self, state: dict[str, Any]) -> None:
        """Nothing: the replay is full."""

    def _advance(self) -> None:
        """One update."""
        before, self.step = self.step, self.step + 1
        self.anew = self._passed(self.config.checkpoint_every, before)
        self.means.add(self.algorithm.learn(self.algorithm.replay.sample(self.config.algorithm.batch_size)))
        if self.run is not None and self._passed(self.config.policies_every, before):
            self._keep()

    def _state(self) -> dict[str, Any]:
        """As of any run, without the replay's rows, which are those of the data, and without worlds."""
        state = super()._state()
        del state["rewinder"]
        algorithm = state["algorithm"]
        return {**state, "algorithm": {**algorithm, "replay": {**algorithm["replay"], "arrays": {}}}}
