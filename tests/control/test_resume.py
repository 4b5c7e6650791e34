"""A run that was stopped anywhere and goes on is the run that was not stopped, bit for bit, whatever the algorithm."""

import json
import os
import signal
from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import torch

from mmssl.config import from_dict
from mmssl.control.loop import train
from mmssl.control.rewind import Rewinder, Tape
from mmssl.control.rl_config import RLConfig
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.envs.encode import EncodeObservation
from mmssl.envs.vector import wrap_vec
from mmssl.errors import MmsslError
from mmssl.registry import ALGORITHMS
from mmssl.tokenizers.video import VideoTokenizerConfig
from mmssl.training.checkpoint import RunFolder

# What makes any algorithm small, by the names that such settings have.
SMALL = {
    "hidden": (16, 16), "batch_size": 8, "random_steps": 20, "capacity": 64, "rollout": 16, "minibatches": 2,
    "epochs": 2, "layers": 1, "filters": 2, "features": 8, "crop": (20, 20), "updates_per_step": 0.5,
}  # fmt: skip
STEPS = 64


class Reach(gym.Env):
    """A point that is pushed about; the reward is minus its distance from 0. Ends truly when far out, else after 9."""

    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, pictures):
        look = {"state": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)}
        self.observation_space = gym.spaces.Dict(look)
        if pictures:
            self.observation_space = gym.spaces.Dict({"image/top": gym.spaces.Box(0, 255, (3, 24, 24), np.uint8)})

    def reset(self, *, seed=None, options=None):
        self.place, self.steps = np.random.default_rng(seed).uniform(-1, 1, 2), 0
        return self.seen(), {}

    def seen(self):
        if "state" in self.observation_space.spaces:
            return {"state": self.place.astype(np.float32)}
        picture = np.zeros((3, 24, 24), np.uint8)
        row, column = np.clip(12 + 6 * self.place, 0, 21).astype(int)
        picture[:, row : row + 3, column : column + 3] = 255
        return {"image/top": picture}

    def step(self, action):
        self.place, self.steps = self.place + 0.4 * action, self.steps + 1
        far = np.abs(self.place).max()
        return self.seen(), -float(far), bool(far > 1.5), self.steps == 9, {}


class Stopping:
    """Makes worlds of which the one for training does `what` at its k-th step."""

    def __init__(self, at=None, what=None):
        self.at, self.what, self.steps = at, what, 0

    def __call__(self, config, n, seed, encoder):
        pictures = config.observe != "state"
        world = wrap_vec(lambda: Reach(pictures), n, frame_stack=config.frame_stack, seed=seed)
        if n == config.n_envs:
            step = world.step
            world.step = lambda action: self._step(step, action)
        return world

    def _step(self, step, action):
        self.steps += 1
        if self.steps == self.at:
            self.what()
        return step(action)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def die():
    raise RuntimeError("the power failed")


def recipe(name, **changes):
    known = {f.name for f in fields(ALGORITHMS.get(name).config_class)}
    algorithm = {"name": name, **{k: v for k, v in SMALL.items() if k in known}}
    small = {"task": "own", "steps": STEPS, "n_envs": 2, "eval_every": 30, "eval_episodes": 3, "checkpoint_every": 25}
    return from_dict(RLConfig, {"algorithm": algorithm, **small, "log_every": 20, "size": (24, 24), **changes})


def go(config, run, make=None):
    run.start()
    return train(config, run, quiet=True, make=make or Stopping())


def flat(tree, name=""):
    """Leaves of a state by their names."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return {name: tree}
    return {k: v for key, value in items for k, v in flat(value, f"{name}/{key}").items()}


def state_of(run):
    (checkpoint,) = run.all_checkpoints()
    state = flat(checkpoint.state()) | checkpoint.tensors()
    return {k: v for k, v in state.items() if "seconds" not in k and "recorded_at" not in k}


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def judged(result):
    return [{k: v for k, v in e.items() if k != "seconds"} for e in result.evaluations]


def recorded(run):
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in r.items() if k != "steps_per_second"} for r in records]


def differences(one, two):
    assert one.keys() == two.keys() and len(one) > 10
    return [name for name in one if not same(one[name], two[name])]


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(name, tmp_path):
    """Stopped by Ctrl-C between two checkpoints, then by a crash after another one, then by Ctrl-C at a checkpoint."""
    config = recipe(name)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    expected = go(config, whole)
    assert expected.finished and expected.signal == 0 and len(expected.evaluations) == 4
    stopped = go(config, parts, Stopping(19, interrupt))
    assert stopped.signal == signal.SIGINT and not stopped.finished and 25 < stopped.steps < 50
    with pytest.raises(RuntimeError, match="the power failed"):
        go(config, parts, Stopping(18, die))
    assert stopped.steps < parts.all_checkpoints()[-1].step < STEPS
    result = go(config, parts)
    assert result.finished and judged(result) == judged(expected)
    assert differences(state_of(parts), state_of(whole)) == []
    assert recorded(parts) == recorded(whole)


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(name, tmp_path):
    runs = [RunFolder(tmp_path / str(k)) for k in range(3)]
    results = [go(recipe(name, steps=40, seed=s), run) for s, run in zip((0, 0, 1), runs, strict=True)]
    assert judged(results[0]) == judged(results[1]) != judged(results[2])
    assert differences(state_of(runs[0]), state_of(runs[1])) == []
    learned = {k for k in results[0].policy.state_dict()}
    changed = set(differences(state_of(runs[0]), state_of(runs[2])))
    assert any(k in changed for k in learned)


def test_a_run_behind_an_encoder_with_windows_goes_on(tmp_path):
    """A video encoder, whose frames and features of several steps are part of what is seen."""
    torch.manual_seed(0)
    video = VideoTokenizerConfig(image_size=24, patch_size=12, frames=4, tubelet=2)
    encoder = Encoder(EncoderConfig({"video": video}, dim=8, depth=1, heads=1))

    class Encoded(Stopping):
        def __call__(self, config, n, seed, _):
            world = super().__call__(config, n, seed, None)
            return EncodeObservation(world, encoder, stride=2, stack=2)

    config = recipe("td3", observe="pixels", frame_stack=1, checkpoint_every=40)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    expected = go(config, whole, Encoded())
    stopped = go(config, parts, Encoded(19, interrupt))
    assert stopped.signal == signal.SIGINT and stopped.steps < 40
    assert judged(go(config, parts, Encoded())) == judged(expected)
    assert differences(state_of(parts), state_of(whole)) == []


def test_many_steps_behind_an_encoder_are_taken_again_without_encoding_all():
    video = VideoTokenizerConfig(image_size=24, patch_size=12, frames=4, tubelet=2)
    encoder = Encoder(EncoderConfig({"video": video}, dim=8, depth=1, heads=1))
    seen = []
    encoder.register_forward_hook(lambda *_: seen.append(1))
    worlds = [EncodeObservation(wrap_vec(lambda: Reach(True), 3, seed=5), encoder, stride=2, stack=2) for _ in "ab"]
    rewinders, rng = [Rewinder(world, 7) for world in worlds], np.random.default_rng(1)
    obs = rewinders[0].begin()
    for _ in range(60):
        action = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        obs = worlds[0].step(action)[0]
        rewinders[0].tape.add(action)
    seen.clear()
    again = rewinders[1].load_state_dict(rewinders[0].state_dict())
    assert np.array_equal(obs["features"], again["features"]) and len(seen) == 1 + worlds[1].frozen.memory + 1 == 10
    for _ in range(12):
        action = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        (a, *one), (b, *two) = (world.step(action) for world in worlds)
        assert np.array_equal(a["features"], b["features"]) and all(map(np.array_equal, one[:3], two[:3]))


def test_an_interrupted_evaluation_is_made_up_for(tmp_path):
    """Ctrl-C while the policy is judged leaves no half an evaluation behind, and none out."""
    config, run, whole = recipe("td3", steps=40), RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    expected = go(config, whole)

    class Judged(Stopping):
        def __call__(self, config, n, seed, encoder):
            world = super().__call__(config, n, seed, encoder)
            if n == config.eval_episodes:
                step = world.step
                world.step = lambda action: self._step(step, action)
            return world

    stopped = go(config, run, Judged(5 + 20, interrupt))
    assert stopped.signal and 30 <= stopped.steps < 40 and [e["step"] for e in stopped.evaluations] == [0]
    assert judged(go(config, run)) == judged(expected)
    assert differences(state_of(run), state_of(whole)) == []


def test_a_finished_run_does_nothing_and_more_steps_go_on(tmp_path):
    run, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    make = Stopping(1, die)
    first = go(recipe("td3", steps=40), run)
    again = go(recipe("td3", steps=40), run, make)
    assert again.finished and make.steps == 0 and judged(again) == judged(first) and again.seconds >= first.seconds
    go(recipe("td3"), run)
    go(recipe("td3"), whole)
    changed = differences(state_of(run), state_of(whole))
    assert changed == []


def test_another_architecture_is_refused(tmp_path):
    run = RunFolder(tmp_path / "run")
    go(recipe("td3", steps=30), run)
    other = recipe("td3")
    object.__setattr__(other.algorithm, "hidden", (4, 4))
    with pytest.raises(MmsslError, match="is a checkpoint of another architecture"):
        go(other, run)


def test_other_environments_are_refused(tmp_path):
    run = RunFolder(tmp_path / "run")
    go(recipe("td3", steps=30), run)
    with pytest.raises(MmsslError, match="is of a run with 2 environments, not 3"):
        go(recipe("td3", n_envs=3), run)


def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path):
    run = RunFolder(tmp_path / "run")
    go(recipe("td3", steps=30), run)
    state = run.all_checkpoints()[0].path / "state.pt"
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    with pytest.raises(MmsslError, match="checksum"):
        go(recipe("td3"), run)


def test_the_tape_grows_and_comes_back():
    tape, rng = Tape(), np.random.default_rng(0)
    actions = rng.normal(size=(2500, 2, 3)).astype(np.float32)
    for action in actions:
        tape.add(action)
    other = Tape()
    other.load_state_dict(tape.state_dict())
    other.add(actions[0])
    assert np.array_equal(other.actions, np.concatenate([actions, actions[:1]]))
    tape.clear()
    assert len(tape.actions) == 0


def test_a_world_comes_back_to_where_it_was():
    worlds = [wrap_vec(lambda: Reach(True), 3, frame_stack=2, seed=5) for _ in range(2)]
    rng = np.random.default_rng(1)
    rewinders = [Rewinder(world, 7) for world in worlds]
    rewinders[0].begin()
    for k in range(40):
        action = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        obs = worlds[0].step(action)[0]
        rewinders[0].tape.add(action)
        if k == 20:
            obs = rewinders[0].checkpoint()
    again = rewinders[1].load_state_dict(rewinders[0].state_dict())
    assert np.array_equal(obs["image/top"], again["image/top"]) and rewinders[1].tape.length == 19
    for _ in range(12):
        action = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        (a, *one), (b, *two) = (world.step(action) for world in worlds)
        assert np.array_equal(a["image/top"], b["image/top"]) and all(map(np.array_equal, one[:3], two[:3]))
        assert str(one[3]) == str(two[3])
