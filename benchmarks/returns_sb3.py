"""The side of Stable-Baselines3 in `returns.py`: its own worlds and training, judged by our evaluation."""

import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from mmssl.envs.vector import make_vec


def run(experiment: Any, seed: int, folder: Path) -> float:
    """Train, writing `evaluations.jsonl`; the seconds that it took."""
    model = MAKERS[experiment.algorithm](experiment, seed)
    (folder / "evaluations.jsonl").unlink(missing_ok=True)
    begun = time.monotonic()
    model.learn(experiment.steps, callback=Judge(experiment, seed, folder / "evaluations.jsonl"))
    return time.monotonic() - begun


def td3(experiment: Any, seed: int) -> TD3:
    """TD3 with the experiment's settings."""
    settings, env = experiment.settings, gym.make(experiment.task.removeprefix("gym/"))
    noise = NormalActionNoise(np.zeros(env.action_space.shape), 0.1 * np.ones(env.action_space.shape))
    return TD3(
        "MlpPolicy", env, settings["lr"], buffer_size=experiment.steps, learning_starts=settings["random_steps"],
        batch_size=settings["batch_size"], action_noise=noise, train_freq=1, gradient_steps=1, seed=seed, device="cpu",
        policy_kwargs={"net_arch": list(settings["hidden"])},
    )  # fmt: skip


def ppo(experiment: Any, seed: int) -> PPO:
    """PPO with CleanRL's settings on 8 environments, observations and rewards normalised."""
    worlds = VecNormalize(make_vec_env(experiment.task.removeprefix("gym/"), 8, seed=seed), gamma=0.99)
    return PPO(
        "MlpPolicy", worlds, lambda left: 3e-4 * left, n_steps=256, batch_size=64, n_epochs=10, clip_range=0.2,
        ent_coef=0.0, vf_coef=0.25, max_grad_norm=0.5, seed=seed, device="cpu",
    )  # fmt: skip


MAKERS = {"td3": td3, "ppo": ppo}


class Judge(BaseCallback):
    """Ten episodes without noise every so many steps, and what the episodes of training gave since."""

    def __init__(self, experiment: Any, seed: int, file: Path):
        super().__init__()
        self.experiment, self.file, self.next = experiment, file, experiment.every
        self.world = make_vec(experiment.task, 10, seed=seed + 100, scale=experiment.algorithm == "td3")
        self.training: list[float] = []

    def _on_step(self) -> bool:
        self.training += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if self.num_timesteps >= self.next:
            self.next += self.experiment.every
            found = {"step": self.num_timesteps, "returns": self._evaluate(), "training": self.training}
            with open(self.file, "a") as file:
                file.write(json.dumps(found) + "\n")
            self.training = []
        return True

    def _evaluate(self) -> list[float]:
        """Returns of ten episodes."""
        obs, _ = self.world.reset()
        returns, going = np.zeros(10), np.ones(10, bool)
        while going.any():
            obs, reward, terminated, truncated, _ = self.world.step(self._act(obs["state"]))
            returns += reward * going
            going &= ~(terminated | truncated)
        return returns.tolist()

    def _act(self, state: np.ndarray) -> np.ndarray:
        """Actions in the units of the world: TD3's policy is asked for those in [-1, 1]."""
        if isinstance(self.training_env, VecNormalize):
            state = self.training_env.normalize_obs(state)
        actions, _ = self.model.predict(state, deterministic=True)  # in the environment's own units
        return self.model.policy.scale_action(actions) if self.world.scale else actions
