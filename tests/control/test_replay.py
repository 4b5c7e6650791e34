"""The replay against a slow one that keeps whole episodes in lists: windows, stacks, ends, wrap-around, memory."""

from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.control.base import Spaces, Transition
from mmssl.control.replay import Replay
from mmssl.errors import MmsslError
from mmssl.training.memory import keep_freed_memory

SIZE = (2, 1)
FLOAT, BYTE = np.dtype(np.float32), np.dtype(np.uint8)


def frame(number):
    """A picture that no other number has, (3, H, W)."""
    digits = np.array([number % 256, number // 256, 7], np.uint8)
    return np.broadcast_to(digits[:, None, None], (3, *SIZE)).copy()


class Life:
    """A world of n environments whose episodes end at random, and what happened in it as lists of whole episodes.

    An observation is (environment, number), a number counts the observations of its environment; the numbers of frames
    are those numbers too.

    Attributes:
        episodes: of each environment, dicts: `start` (number of the first observation), `rewards`, `terminated`.
    """

    def __init__(self, n, stacks, seed, end=0.3):
        self.n, self.stacks, self.end, self.rng = n, stacks, end, np.random.default_rng(seed)
        self.numbers, self.starting = np.zeros(n, int), np.zeros(n, bool)
        self.episodes = [[self.episode(0)] for _ in range(n)]
        self.actions, self.obs = [], self.look()

    @staticmethod
    def episode(start):
        return {"start": start, "rewards": [], "terminated": False, "over": False}

    @property
    def spaces(self):
        pictures = {name: ((3 * k, *SIZE), BYTE) for name, k in self.stacks.items()}
        return Spaces({"state": ((2,), FLOAT), **pictures, "proprio": ((1,), FLOAT)}, 2, n_envs=self.n)

    def stack(self, environment, k, number):
        """The frames seen with an observation: none before the first of its episode, which is repeated."""
        start = [e["start"] for e in self.episodes[environment] if e["start"] <= number][-1]
        return np.concatenate([frame(max(start, number - back)) for back in reversed(range(k))])

    def look(self):
        state = np.stack([np.arange(self.n), self.numbers], 1).astype(np.float32)
        pictures = {
            name: np.stack([self.stack(i, k, number) for i, number in enumerate(self.numbers)])
            for name, k in self.stacks.items()
        }
        return {"state": state, **pictures, "proprio": state[:, 1:] / 2}

    def step(self, cut=False):
        """One step of all; with `cut` every episode is stored as truncated."""
        valid, obs = ~self.starting, self.obs
        action = self.rng.uniform(-1, 1, (self.n, 2)).astype(np.float32)
        reward = np.where(valid, self.rng.normal(size=self.n), 0).astype(np.float32)
        drawn = self.rng.random(self.n)
        terminated, truncated = valid & (drawn < self.end / 2), valid & (self.end / 2 <= drawn) & (drawn < self.end)
        truncated |= cut & valid & ~terminated
        self.numbers += 1
        for i in range(self.n):
            episode = self.episodes[i][-1]
            if valid[i]:
                episode["rewards"].append(reward[i])
                episode["terminated"], episode["over"] = bool(terminated[i]), bool(terminated[i] | truncated[i])
            else:
                self.episodes[i].append(self.episode(self.numbers[i]))
        self.actions.append(action)
        self.obs, self.starting = self.look(), terminated | truncated
        return Transition(obs, action, reward, terminated, truncated, self.obs, valid)

    def begin_anew(self):
        """What the loop does at a checkpoint, after a step that was cut: no environment was asked for an action."""
        self.starting[:] = True
        return self.step()

    def steps(self):
        """(environment, number) -> episode, of all steps that were taken."""
        return {
            (i, episode["start"] + k): episode
            for i, episodes in enumerate(self.episodes)
            for episode in episodes
            for k in range(len(episode["rewards"]))
        }

    def window(self, episode, number, n_step, gamma):
        """Return, discount and number of the last observation of a window, as one writes them down."""
        place, reward, discount, length = number - episode["start"], 0.0, 1.0, len(episode["rewards"])
        for k in range(place, min(place + n_step, length)):
            reward += discount * episode["rewards"][k]
            discount *= gamma
        last = min(place + n_step, length)
        if last == length and episode["terminated"]:
            discount = 0.0
        return reward, discount, episode["start"] + last


def live(life, replay, count, cuts=()):
    for k in range(count):
        replay.add(life.step(cut=k in cuts))
        if k in cuts:
            replay.add(life.begin_anew())


def check(life, replay, gamma, draws=800):
    """Every sample is right in all its parts, and what can be sampled is what should be."""
    taken = len(life.actions)
    oldest = max(0, taken - (replay.rows - 1))  # number of the oldest observation that is kept
    longest = max(life.stacks.values(), default=1)
    steps = {key: e for key, e in life.steps().items() if key[1] >= oldest}
    whole = {key for key, e in steps.items() if max(e["start"], key[1] - longest + 1) >= oldest}
    assert len(replay) == len(steps)
    if not whole:
        return
    batch = replay.sample(draws)
    assert batch.obs.dtype == batch.reward.dtype == batch.discount.dtype == torch.float32
    keys, places = np.unique(batch.obs[:, :2].int().numpy(), axis=0, return_index=True)
    for (i, number), b in zip(keys.tolist(), places.tolist(), strict=True):
        reward, discount, last = life.window(steps[i, number], number, replay.n_step, gamma)
        assert abs(batch.reward[b].item() - reward) < 1e-5 and abs(batch.discount[b].item() - discount) < 1e-6
        assert batch.obs[b].tolist() == [i, number, number / 2] and batch.next_obs[b].tolist() == [i, last, last / 2]
        assert np.array_equal(batch.action[b], life.actions[number][i])
        for name, k in life.stacks.items():
            assert np.array_equal(batch.pictures[name][b], life.stack(i, k, number))
            assert np.array_equal(batch.next_pictures[name][b], life.stack(i, k, last))
    seen = set(map(tuple, keys.tolist()))
    assert seen <= whole and (seen == whole or draws < 12 * len(whole))


lives = {
    "n": st.integers(1, 3),
    "stacks": st.sampled_from([{}, {"image/a": 1}, {"image/a": 3}, {"image/a": 4, "image/b": 2}]),
    "capacity": st.integers(1, 40),
    "n_step": st.integers(1, 4),
    "count": st.integers(1, 50),
    "end": st.sampled_from([0.05, 0.3, 0.9]),
    "cuts": st.sets(st.integers(0, 49), max_size=3),
    "seed": st.integers(0, 2**16),
}


@settings(max_examples=120, deadline=None)
@given(**lives)
def test_samples_are_those_of_whole_episodes(n, stacks, capacity, n_step, count, end, cuts, seed):
    life = Life(n, stacks, seed, end)
    replay = Replay(life.spaces, capacity, 0.9, n_step, seed)
    live(life, replay, count, cuts)
    check(life, replay, 0.9)


def test_samples_go_on_being_right():
    """The same replay looked at after every step, several times around."""
    life = Life(2, {"image/a": 3}, 0, 0.2)
    replay = Replay(life.spaces, 24, 0.9, 3, 1)
    for _ in range(40):
        live(life, replay, 1)
        check(life, replay, 0.9, 30)


def test_every_transition_is_as_likely_as_another():
    life = Life(2, {"image/a": 2}, 3, 0.3)
    replay = Replay(life.spaces, 60)
    live(life, replay, 100)
    drawn = replay.sample(40_000).obs[:, :2]
    _, counts = drawn.unique(dim=0, return_counts=True)
    assert len(counts) in (len(replay), len(replay) - 1, len(replay) - 2)  # one of each may have lost its oldest frame
    expected = 40_000 / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) + 5 * (2 * len(counts)) ** 0.5


@pytest.mark.parametrize("count", [7, 60])
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_going_on_from_a_saved_state(count, kind, tmp_path):
    """The next draws are the same, bit by bit, before and after the ring is full; what is saved is what is in use."""
    folder = tmp_path / "replay" if kind == "disk" else None
    life = Life(2, {"image/a": 2}, 0)
    replay = Replay(life.spaces, 40, 0.9, 2, 5, on_disk=folder)
    live(life, replay, count)
    state = {**(s := replay.state_dict()), "arrays": {name: np.array(x) for name, x in s["arrays"].items()}}
    assert len(state["arrays"]["obs"]) == min(count + 1, replay.rows)
    again = Replay(life.spaces, 40, 0.9, 2, 99, on_disk=folder)
    again.load_state_dict(state)
    for _ in range(30):
        transition = life.step()
        replay.add(transition)
        again.add(transition)
        for mine, theirs in zip(replay.sample(8), again.sample(8), strict=True):
            if isinstance(mine, dict):
                mine, theirs = mine["image/a"], theirs["image/a"]
            assert torch.equal(mine, theirs)
    check(life, again, 0.9)


def test_on_disk_nothing_is_left_behind(tmp_path):
    life = Life(1, {"image/a": 2}, 0)
    replay = Replay(life.spaces, 30, on_disk=tmp_path / "replay")
    assert replay.summary == "replay: 30 transitions, 0.0 MB on disk" and not list(tmp_path.iterdir())
    live(life, replay, 50)
    assert isinstance(replay.arrays["image/a"], np.memmap) and not list((tmp_path / "replay").iterdir())
    check(life, replay, 0.99)


def test_memory_is_said_and_taken_as_it_is_used():
    spaces = Spaces({"image/a": ((9, 84, 84), BYTE)}, 6)
    replay = Replay(spaces, 30_000)
    assert replay.summary == "replay: 30,000 transitions, 0.6 GB of memory" and not replay.arrays
    keep_freed_memory()  # as the loop does, with which np.zeros would clear and keep what was freed before
    freed = [np.ones(2**20, np.uint8) for _ in range(300)]
    del freed
    before = psutil.Process().memory_info().rss
    picture = {"image/a": np.zeros((1, 9, 84, 84), np.uint8)}
    no = np.zeros(1, bool)
    replay.add(Transition(picture, np.zeros((1, 6)), np.zeros(1), no, no, picture, ~no))
    assert psutil.Process().memory_info().rss - before < 5e7
    assert sum(array.nbytes for array in replay.arrays.values()) == replay.nbytes


def test_pictures_take_a_sixth_of_stacks_stored_twice():
    """Beside the arrays of a replay that keeps observation and next observation as they come."""
    ours = Replay(Spaces({"image/a": ((9, 84, 84), BYTE)}, 6), 10_000)
    twice = 2 * 10_000 * 9 * 84 * 84
    rest = 10_000 * (4 * 6 + 4 + 4 + 4)  # action, reward, done and timeout, as Stable-Baselines3 has them
    assert 6 * np.zeros((), BYTE).itemsize * np.prod(ours.layout["image/a"][0]) <= twice
    assert ours.nbytes <= (twice + rest) / 6 * 1.002  # actions and rewards were never stored twice


def test_more_than_is_free_is_said(monkeypatch, tmp_path):
    life = Life(1, {}, 0)
    free = SimpleNamespace(available=10**9)
    monkeypatch.setattr("mmssl.control.replay.psutil.virtual_memory", lambda: free)
    with pytest.raises(
        MmsslError, match=r"100,000,000 transitions needs 2.6 GB, but only 1 GB of memory are free; lower"
    ):
        Replay(life.spaces, 100_000_000).add(life.step())
    monkeypatch.setattr("mmssl.control.replay.shutil.disk_usage", lambda _: SimpleNamespace(free=10**8))
    with pytest.raises(MmsslError, match=r"only 0.1 GB are free in .*; lower capacity, or make room"):
        Replay(life.spaces, 100_000_000, on_disk=tmp_path).add(life.step())


def test_wrong_use():
    life = Life(1, {"image/a": 2}, 0, end=1.0)
    for wrong in ({"n_step": 0}, {"capacity": 0}):
        with pytest.raises(MmsslError, match="n_step and capacity must be at least 1"):
            Replay(life.spaces, **{"capacity": 10} | wrong)
    replay = Replay(life.spaces, 10)
    with pytest.raises(MmsslError, match="holds no transition to learn from; collect more steps"):
        replay.sample(4)
    live(life, replay, 3)
    with pytest.raises(MmsslError, match=r"the saved replay has 10 rows .*, this one 20 of"):
        Replay(life.spaces, 20).load_state_dict(replay.state_dict())
    with pytest.raises(MmsslError, match="go on with the settings that it was made with"):
        Replay(Life(2, {"image/a": 2}, 0).spaces, 20).load_state_dict(replay.state_dict())
    empty = Replay(life.spaces, 10)
    empty.load_state_dict(Replay(life.spaces, 10).state_dict())
    assert len(empty) == 0 and not empty.arrays
