"""The loop of reinforcement learning: what it hands over, how it judges, what it writes, and when it stops."""

import json
import time
from dataclasses import dataclass
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch

from mmssl.config import from_dict
from mmssl.control.base import Algorithm, AlgorithmConfig, Spaces
from mmssl.control.evaluate import evaluate
from mmssl.control.log import Ended, Means, Stopwatch
from mmssl.control.loop import judge_seed, train
from mmssl.control.policies import DeterministicPolicy
from mmssl.control.rl_config import RLConfig
from mmssl.control.saving import load_policy, pack, save_policy, unpack
from mmssl.envs.vector import checkpoint_seed, wrap_vec
from mmssl.errors import MmsslError
from mmssl.registry import ALGORITHMS
from mmssl.training.checkpoint import RunFolder

CALLS = 5  # of `World.step` at which `breaks` breaks


class World(gym.Env):
    """Shows (its number, steps done); the reward is the action; it ends truly after 2 to 6 steps, as its seed says."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)
    breaks = False

    def reset(self, *, seed=None, options=None):
        self.number, self.steps, self.last = seed, 0, 2 + seed % 5
        return self.seen(), {}

    def seen(self):
        return np.array([self.number % 1000, self.steps], np.float32)

    def step(self, action):
        self.steps += 1
        reward = np.nan if self.breaks and self.steps == 2 else float(action[0])
        return self.seen(), reward, self.steps >= self.last, False, {"success": self.last > 4}


class Broken(World):
    breaks = True


def make(config, n, seed, encoder):
    return wrap_vec(Broken if config.task == "broken" else World, n, seed=seed, limit=config.max_broken)


class Recorder(Algorithm):
    """Acts at random, keeps what it is told, and says what its config wants it to say."""

    @dataclass(frozen=True)
    class Config(AlgorithmConfig):
        name: str = "recorder"
        loss: float = 1.0
        nan_at: int = -1

    config_class = Config

    def __init__(self, config, spaces, seed, device="cpu"):
        super().__init__(config, spaces, seed, device)
        self.rng, self.told, self.net = np.random.default_rng(seed), [], torch.nn.Linear(2, 1)

    def act(self, obs, explore=True):
        assert explore
        return self.rng.uniform(-1, 1, (self.spaces.n_envs, 1)).astype(np.float32)

    def observe(self, transition):
        self.told.append(transition)

    def update(self):
        if len(self.told) % 2:
            return {}
        bad = len(self.told) == self.config.nan_at
        return {"loss": torch.tensor(float("nan") if bad else self.config.loss)}

    def policy(self):
        return DeterministicPolicy(self.net)

    def state_dict(self):
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state):
        self.rng.bit_generator.state = state["rng"]


@pytest.fixture
def recorder(monkeypatch):
    """The algorithms that were made, filled as runs go."""
    made = []

    class Kept(Recorder):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    ALGORITHMS.names()
    monkeypatch.setitem(ALGORITHMS._entries, "recorder", Kept)
    return made


def recipe(**changes):
    algorithm = {"name": "recorder", **changes.pop("algorithm", {})}
    small = {"task": "own", "steps": 60, "n_envs": 3, "eval_every": 25, "eval_episodes": 4, "checkpoint_every": 20}
    return from_dict(RLConfig, {"algorithm": algorithm, **small, "log_every": 15, **changes})


def test_every_step_is_handed_over_once_and_checkpoints_cut_episodes(recorder):
    result = train(recipe(), quiet=True, make=make)
    told = recorder[0].told
    assert recorder[0].total_steps == 60 and result.finished and result.steps == sum(t.valid.sum() for t in told) >= 60
    cuts = 0
    for now, then in pairwise(told):
        assert np.array_equal(now.next_obs["state"], then.obs["state"])
        ended = now.terminated | now.truncated
        assert np.array_equal(then.valid, ~ended if then.valid.any() else np.zeros(3, bool))
        assert not (now.terminated & now.truncated).any() and not (ended & ~now.valid).any()
        if then.valid.any():
            assert not now.truncated.any()  # these worlds end truly, or at a checkpoint
            continue
        assert np.array_equal(now.truncated, now.valid & ~now.terminated) and not then.reward.any()
        cuts += now.truncated.any()
        number = [checkpoint_seed(0, i, cuts) % 1000 for i in range(3)]
        assert then.next_obs["state"].tolist() == [[n, 0] for n in number]
    assert cuts >= 2
    rows = [(t, i) for t in told for i in np.flatnonzero(t.valid)]
    for t, i in rows:
        assert t.reward.dtype == np.float32 and t.reward[i] == pytest.approx(2 * t.action[i, 0])  # [-1, 1] -> [-2, 2]
        assert t.obs["state"][i, 1] + 1 == t.next_obs["state"][i, 1]


class Always:
    def __init__(self, action):
        self.action, self.seen = action, []

    def act(self, obs):
        self.seen.append(obs["state"].copy())
        return np.full((len(obs["state"]), 1), self.action, np.float32)


def test_evaluation_counts_the_first_episode_of_each_environment():
    world = wrap_vec(World, 5, seed=3)
    found = evaluate(Always(0.5), world, 5, seed=11)
    first = Always(0.5)
    again = evaluate(first, world, 5, seed=11)
    world.reset(seed=11)
    lengths = [2 + int(world._last["state"][i, 0]) % 5 for i in range(5)]  # 1000 is a multiple of 5
    assert found == again and found.lengths == lengths and len(set(lengths)) > 1
    assert found.returns == [float(n) for n in lengths] and found.successes == [n > 4 for n in lengths]
    assert found.mean == np.mean(lengths) and len(first.seen) == max(lengths)


def test_more_episodes_than_environments_begin_again_with_other_seeds():
    world = wrap_vec(World, 2, seed=3)
    policy = Always(1.0)
    found = evaluate(policy, world, 5, seed=4)
    assert len(found.returns) == 5 and len({tuple(s[:, 0]) for s in policy.seen if (s[:, 1] == 0).all()}) == 3
    assert evaluate(policy, world, 5, seed=4, stopped=lambda: True) is None


def test_a_run_is_judged_apart_from_training_in_the_same_episodes_each_time(recorder):
    result = train(recipe(), quiet=True, make=make)
    steps = [e["step"] for e in result.evaluations]
    told = np.cumsum([t.valid.sum() for t in recorder[0].told])
    assert steps == [0, *(int(told[np.argmax(told >= n)]) for n in (25, 50)), result.steps]
    assert all(e["lengths"] == result.evaluations[0]["lengths"] for e in result.evaluations)  # the policy never learns
    world = wrap_vec(World, 4, seed=judge_seed(0))
    assert evaluate(result.policy, world, 4).returns == result.evaluations[-1]["returns"]


def test_what_a_run_writes(recorder, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start()
    result = train(recipe(), run, quiet=True, make=make)
    records = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    assert records == result.evaluations
    assert all(record.keys() == {"step", "returns", "lengths", "successes", "seconds"} for record in records)
    metrics = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [m["step"] // 15 for m in metrics] == [1, 2, 3, 4]
    for m in metrics:
        assert {"return", "length", "success", "episodes", "steps_per_second", "loss"} <= m.keys()
        assert m["loss"] == 1.0 and 2 <= m["length"] <= 6
    ended = sum(int((t.terminated & t.valid).sum()) for t in recorder[0].told)
    assert sum(m["episodes"] for m in metrics) <= ended
    assert [c.step for c in run.all_checkpoints()] == [result.steps] and any(run.tensorboard.iterdir())
    loaded = load_policy(run.path)
    assert loaded.steps == result.steps and loaded.config.task == "own" and loaded.spaces.n_envs == 3
    assert torch.equal(loaded.policy.net.weight, result.policy.net.weight) and not loaded.policy.training


def test_a_loss_that_is_not_finite_stops_the_run(recorder, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start()
    words = r"loss of recorder became NaN or infinite between steps \d+ and \d+; the last good checkpoint is .*step_0"
    with pytest.raises(MmsslError, match=words):
        train(recipe(algorithm={"nan_at": 16}), run, quiet=True, make=make)
    before = [c.step for c in run.all_checkpoints()]
    assert before and before[0] < 60 and run.latest().damage() is None
    with pytest.raises(MmsslError, match="there is no good checkpoint yet"):
        train(recipe(algorithm={"loss": float("inf")}), quiet=True, make=make)


def test_breakdowns_are_counted_and_too_many_stop_the_run(recorder, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.start()
    train(recipe(task="broken", max_broken=1000), run, quiet=True, make=make)
    metrics = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert metrics[-1]["broken"] > metrics[0]["broken"] > 0
    assert any(t.truncated.any() for t in recorder[0].told)
    with pytest.raises(MmsslError, match="broke down 4 times"):
        train(recipe(task="broken", max_broken=3), quiet=True, make=make)


def test_worlds_are_closed_whatever_happens(recorder, monkeypatch):
    closed = []

    def watched(config, n, seed, encoder):
        world = make(config, n, seed, encoder)
        monkeypatch.setattr(world, "close", lambda: closed.append(n))
        if n == 4 and config.seed == 1:
            raise MmsslError("no second world")
        return world

    train(recipe(steps=3), quiet=True, make=watched)
    assert sorted(closed) == [3, 4]
    with pytest.raises(MmsslError, match="no second world"):
        train(recipe(steps=3, seed=1), quiet=True, make=watched)
    assert sorted(closed) == [3, 3, 4]


def test_means_and_ends_since_the_last_record():
    means, ended = Means(), Ended(True)
    value = torch.tensor(1.0)
    means.add({"a": value, "b": 4.0})
    value += 1  # as a captured graph writes its results over the old ones
    means.add({"a": value})
    assert means.values() == {"a": 1.5, "b": 4.0} and means.spoiled() is None
    means.add({"b": float("inf")})
    assert means.spoiled() == "b"
    other = Means()
    other.load_state_dict(means.state_dict(), "cpu")
    assert other.values() == means.values()
    assert ended.values() == {"episodes": 0}
    episode = {"r": np.array([3.0, 9.0]), "l": np.array([1, 2]), "success": np.array([True, False])}
    ended.add({"_episode": np.array([True, False]), "episode": episode})
    ended.add({"_episode": np.array([True, True]), "episode": episode})
    assert ended.values() == {"return": 5.0, "length": 4 / 3, "success": 2 / 3, "episodes": 3}


def test_the_stopwatch_stands_still():
    watch = Stopwatch(100.0)
    with watch.stopped():
        time.sleep(0.2)
    assert 100.0 <= watch.read() < 100.2


def test_a_state_survives_the_file(tmp_path):
    state = {"a": np.arange(6).reshape(2, 3), "b": [torch.ones(2), (1, 2.5)], "c": np.float64(2), "d": None, "e": "x"}
    state["rng"] = np.random.default_rng(5).bit_generator.state  # holds numbers of 128 bits
    state["f"] = {"deep": np.array([True, False]), "turned": np.arange(6.0).reshape(2, 3).T}
    torch.save(pack(state), tmp_path / "x.pt")
    back = unpack(torch.load(tmp_path / "x.pt", weights_only=True))
    assert isinstance(back["a"], np.ndarray) and np.array_equal(back["a"], state["a"]) and back["rng"] == state["rng"]
    assert torch.equal(back["b"][0], torch.ones(2)) and back["b"][1] == [1, 2.5]
    assert (back["c"], back["d"], back["e"]) == (2.0, None, "x")
    assert back["f"]["deep"].tolist() == [True, False] and np.array_equal(back["f"]["turned"], state["f"]["turned"])


def test_packing_copies_no_array():
    array = np.zeros(10)
    pack({"x": array})["x"]["numpy"][0] = 7
    assert array[0] == 7


def test_a_folder_without_policy_is_said(recorder, tmp_path):
    with pytest.raises(MmsslError, match="holds no policy; give a run of `mmssl rl`"):
        load_policy(tmp_path)
    config = recipe(seed=4)
    spaces = make(config, 3, 0, None).spaces()
    algorithm = Recorder(config.algorithm, Spaces(**spaces), 4)
    for number in (10, 9):
        folder = tmp_path / f"seed-{number}" / "export"
        save_policy(folder, algorithm.policy(), config, algorithm.spaces, None, number)
    assert load_policy(tmp_path).steps == 9  # the lowest number, not the first name
    assert load_policy(tmp_path / "seed-10").steps == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"n_envs": 0}, "n_envs must be at least 1, got 0"),
        ({"checkpoint_every": -1}, "checkpoint_every must be at least 0, got -1"),
        ({"seeds": [1, 1]}, r"seeds must be different numbers of 0 or more, got \[1, 1\]"),
        ({"keep_obs": True}, "keep_obs is for a run with an encoder of states"),
        ({"algorithm": {"name": "recoder"}}, "unknown algorithm 'recoder': did you mean 'recorder'"),
        ({"task": ""}, "say which task, --task SUITE/TASK"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
    ],
)
def test_wrong_settings_are_said(recorder, change, words):
    with pytest.raises(MmsslError, match=words):
        recipe(**change).resolved()


def test_what_a_recipe_leaves_open_the_algorithm_says(recorder, monkeypatch):
    monkeypatch.setattr(ALGORITHMS.get("recorder"), "wants", {"n_envs": 8, "observe": "pixels", "frame_stack": 3})
    plain = recipe(n_envs=None).resolved()
    assert (plain.n_envs, plain.observe, plain.frame_stack, plain.size) == (8, "pixels", 3, (84, 84))
    assert recipe(n_envs=2, observe="both").resolved().observe == "both"
    behind = recipe(n_envs=None, encoder="runs/x").resolved()
    assert (behind.n_envs, behind.observe, behind.proprio) == (8, None, None)  # which the encoder decides
    assert (behind.frame_stack, behind.size) == (1, None)
