"""Environment steps per second of training, ours beside Stable-Baselines3, and what pictures cost.

    python benchmarks/control_speed.py [--algorithms ppo td3 sac] [--rounds 5] [--seconds 20] [--threads 2]

Every side trains in a process of its own, with the same networks, batches and number of updates; they take turns in
each round, in an order that rotates, so that a slow minute of the machine hits all of them. A ratio is the median of
the rounds' own ratios, with the smallest and the largest. PPO: HalfCheetah-v5, 8 environments, 2048 steps a rollout,
minibatches of 64, 10 epochs, 64-64 tanh; `normalised` keeps running statistics of observations and rewards too
(`VecNormalize` there). TD3 and SAC: 1 environment, batch 256, 256-256, one update a step.
`--clock cpu` counts processor seconds of a side's process: with one thread, for a machine that others use too.
"""

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from mmssl.control.base import Spaces, Transition, create_algorithm
from mmssl.control.ppo import PPOConfig
from mmssl.control.replay import Replay
from mmssl.control.sac import SACConfig
from mmssl.control.td3 import TD3Config
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.envs.encode import FrozenEncoder
from mmssl.envs.sb3 import sb3_vec
from mmssl.envs.vector import make_vec
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.training.memory import keep_freed_memory

TASK, WARM_UP, CAPACITY = "HalfCheetah-v5", 1000, 200_000
BARS = {"ppo": 2.5, "ppo normalised": 2.5, "td3": 1.7, "sac": 1.8}
SIDES = ("sb3", "sb3 on our world")
Clock = Callable[[], float]
Train = Callable[[float, Clock], float]
"""(seconds, clock) -> environment steps per second, over whole updates."""


def ours(algorithm: str, threads: int) -> Train:
    """What the training loop does, without evaluation and files."""
    keep_freed_memory()
    ppo, plain = algorithm.startswith("ppo"), algorithm == "ppo"
    world = make_vec(f"gym/{TASK}", 8 if ppo else 1, workers=threads if ppo and threads > 1 else 0)
    off_policy = {"random_steps": WARM_UP, "capacity": CAPACITY}
    config = {
        "ppo": PPOConfig(value_coef=0.5, schedule="constant", normalize_obs=not plain, normalize_reward=not plain),
        "td3": TD3Config(lr=1e-3, **off_policy),
        "sac": SACConfig(**off_policy),
    }[algorithm.split()[0]]
    learner = create_algorithm(config, Spaces(**world.spaces()))
    obs = world.reset()[0]

    def step() -> bool:
        nonlocal obs
        valid, action = ~world.starting, learner.act(obs)
        after, reward, terminated, truncated, _ = world.step(action)
        learner.observe(Transition(obs, action, reward.astype(np.float32), terminated, truncated, after, valid))
        obs = after
        return bool(learner.update())

    def train(seconds: float, clock: Clock) -> float:
        steps, start = 0, clock()
        while True:
            steps += world.num_envs
            if step() and clock() - start > seconds:
                return steps / (clock() - start)

    return train


def theirs(algorithm: str, our_world: bool, threads: int) -> Train:
    """Stable-Baselines3 with the same settings; its vector environment is `DummyVecEnv`, its default."""
    try:
        import stable_baselines3 as sb3
    except ImportError:
        raise SystemExit("this benchmark compares with stable-baselines3; pip install stable-baselines3.") from None
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    ppo = algorithm.startswith("ppo")
    n = 8 if ppo else 1
    workers = threads if ppo and threads > 1 else 0
    world = sb3_vec(make_vec(f"gym/{TASK}", n, workers=workers)) if our_world else make_vec_env(TASK, n)
    net = {"net_arch": [64, 64] if ppo else [256, 256], **({"activation_fn": torch.nn.Tanh} if ppo else {})}
    common = {"policy_kwargs": net, "device": "cpu", "seed": 0}
    off_policy = {"batch_size": 256, "train_freq": 1, "gradient_steps": 1, "learning_starts": WARM_UP}
    off_policy |= {"buffer_size": CAPACITY}
    if algorithm == "ppo normalised":
        world = VecNormalize(world)
    if ppo:
        model = sb3.PPO("MlpPolicy", world, n_steps=256, batch_size=64, n_epochs=10, **common)
    else:
        model = (sb3.TD3 if algorithm == "td3" else sb3.SAC)("MlpPolicy", world, **off_policy, **common)
    return _train_theirs(model)


def _train_theirs(model: Any) -> Train:
    from stable_baselines3.common.callbacks import BaseCallback

    class Timed(BaseCallback):
        """Between the starts of rollouts, so that whole updates are counted."""

        def __init__(self, seconds: float, clock: Clock):
            super().__init__()
            self.seconds, self.clock, self.begun, self.rate = seconds, clock, None, 0.0

        def _on_rollout_start(self) -> None:
            now = self.num_timesteps, self.clock()
            self.begun = self.begun or now
            steps, spent = (b - a for a, b in zip(self.begun, now, strict=True))
            if spent > self.seconds:
                self.rate = steps / spent

        def _on_step(self) -> bool:
            return self.rate == 0.0

    def train(seconds: float, clock: Clock) -> float:
        timed = Timed(seconds, clock)
        model.learn(10**9, callback=timed, reset_num_timesteps=False)
        return timed.rate

    return train


_train: Train  # of this process


def _begin(make: Callable[[], Train], threads: int) -> None:
    """Make a side in this process, and take it past its random steps and first updates."""
    global _train
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    _train = make()
    _train(1.0, time.perf_counter)
    _train(1.0, time.perf_counter)


def _rate(seconds: float, clock: str) -> float:
    return _train(seconds, time.process_time if clock == "cpu" else time.perf_counter)


def take_turns(makes: dict[str, Callable[[], Train]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Rates of all sides, each in a process of its own, one a round."""
    pools = {name: ProcessPoolExecutor(1, mp_context=get_context("spawn")) for name in makes}
    for name, pool in pools.items():
        pool.submit(_begin, makes[name], args.threads).result()
    rates: dict[str, list[float]] = {name: [] for name in pools}
    for number in range(args.rounds):
        turn = number % len(pools)
        for name in [*pools][turn:] + [*pools][:turn]:
            rates[name].append(pools[name].submit(_rate, args.seconds, args.clock).result())
    for pool in pools.values():
        pool.shutdown()
    return rates


def show(title: str, rates: dict[str, list[float]]) -> None:
    """A table of sides, the first of which is ours."""
    print(f"\n{title}")
    first, *_ = rates.values()
    for name, values in rates.items():
        row = f"  {name:24s}{statistics.median(values):9,.0f} ({min(values):,.0f} to {max(values):,.0f})"
        print(row + ("" if values is first else f"   {ratio(first, values)} times as fast"), flush=True)


def compare(algorithm: str, args: argparse.Namespace) -> None:
    """A table of one algorithm."""
    make = {"ours": ours, "sb3": partial(theirs, our_world=False), "sb3 on our world": partial(theirs, our_world=True)}
    sides = ["ours", *args.sides]
    rates = take_turns({side: partial(make[side], algorithm, threads=args.threads) for side in sides}, args)
    title = f"{algorithm} on {TASK}, {args.rounds} rounds of {args.seconds:g} s, steps per {args.clock} second"
    show(f"{title}; the bar is {BARS[algorithm]} times sb3", rates)


def ratio(ours: list[float], others: list[float]) -> str:
    """Median of the rounds' own ratios, and the smallest and the largest."""
    found = [a / b for a, b in zip(ours, others, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def per_second(call: Callable[[], int]) -> Train:
    """Of what `call` counts."""

    def rate(seconds: float, clock: Clock) -> float:
        count, start = 0, clock()
        while (spent := clock() - start) < seconds or count == 0:
            count += call()
        return count / spent

    return rate


def our_frames() -> Train:
    """Steps of eight of our environments and their pictures."""
    world = make_vec(f"gym/{TASK}", 8, observe="pixels", size=(84, 84))
    world.reset()

    def frames() -> int:
        obs = world.step(world.random_actions())[0]
        assert next(iter(obs.values())).std() > 5
        return 8

    return per_second(frames)


def gymnasiums_frames(**size: int) -> Train:
    """Steps of Gymnasium's own environment and its pictures, resized to 84x84 where they are drawn larger."""
    import gymnasium as gym
    from torch.nn.functional import interpolate

    env = gym.make(TASK, render_mode="rgb_array", **size)
    env.reset(seed=0)

    def frame() -> int:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
        picture = torch.from_numpy(np.ascontiguousarray(env.render())).permute(2, 0, 1)[None]
        if not size:
            picture = interpolate(picture.float(), (84, 84), mode="area").to(torch.uint8)
        assert picture.shape == (1, 3, 84, 84) and picture.float().std() > 5
        return 1

    return per_second(frame)


def pixels(args: argparse.Namespace) -> None:
    """Frames per second of stepping and drawing, at 84x84; a process draws for one side alone."""
    sides = {"ours, 8 environments": our_frames, "gymnasium": partial(gymnasiums_frames, height=84, width=84)}
    rates = take_turns(sides | {"gymnasium, 480 resized": gymnasiums_frames}, args)
    show(
        f"pictures of {TASK}, 84x84, a step each, frames per {args.clock} second; the bar is 15 times gymnasium", rates
    )


def replay_memory() -> None:
    """Bytes of a transition with three stacked frames, beside those of both stacks."""
    shape, actions, rows = (9, 84, 84), 6, 10_000
    spaces = Spaces({"image/track": (shape, np.dtype(np.uint8))}, actions)
    own, stacks = Replay(spaces, rows).nbytes / rows, 2 * int(np.prod(shape)) + actions * 4 + 4 + 2
    print(
        f"\nreplay of three stacked 84x84 frames: {own:,.0f} bytes a transition, stored twice as stacks {stacks:,}",
        end="",
    )
    print(f", {stacks / own:.2f} times as much; the bar is 6")


def encoder_passes(at_once: int) -> Train:
    """Frames of eight environments through a frozen ViT-tiny, so many in one pass."""
    config = EncoderConfig({"image": ImageTokenizerConfig(image_size=96, patch_size=16)}, dim=192, depth=12, heads=3)
    frozen = FrozenEncoder(Encoder(config), {"image/track": ((3, 96, 96), np.dtype(np.uint8))}, at_once)
    seen = np.random.default_rng(0).integers(256, size=(at_once, 3, 96, 96), dtype=np.uint8)

    def encode() -> int:
        for _ in range(8 // at_once):
            frozen({"image/track": seen}, np.zeros(at_once, bool))
        return 8

    return per_second(encode)


def frozen_encoder(args: argparse.Namespace) -> None:
    """Eight environments' frames in one pass, or one by one."""
    rates = take_turns({"at once": partial(encoder_passes, 8), "one by one": partial(encoder_passes, 1)}, args)
    show(f"frozen ViT-tiny at 96x96, 8 environments, frames per {args.clock} second; the bar is 3 times", rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithms", nargs="*", choices=BARS, default=list(BARS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--no-pictures", action="store_true", help="leave out what pictures cost")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the sides' processes
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for algorithm in args.algorithms:
        compare(algorithm, args)
    if not args.no_pictures:
        args.seconds = min(args.seconds, 5.0)
        pixels(args)
        replay_memory()
        frozen_encoder(args)


if __name__ == "__main__":
    main()
