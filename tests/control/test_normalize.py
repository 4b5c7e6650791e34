"""Running statistics against those of all data at once, Gymnasium's and Stable-Baselines3's."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers.utils import RunningMeanStd

from mmssl.control.normalize import ReturnScale, RunningMoments, Standardize


def batches(count=20, width=3):
    rng = np.random.default_rng(0)
    return [(100 + 5 * rng.normal(size=(rng.integers(0, 6), width))).astype(np.float32) for _ in range(count)]


def test_moments_are_those_of_everything():
    moments, theirs, given = RunningMoments(3), RunningMeanStd(shape=(3,)), batches()
    for batch in given:
        before = batch.copy()
        moments.update(batch)
        assert (batch == before).all()
        if len(batch):
            theirs.update(batch.astype(np.float64))
    everything = np.concatenate(given).astype(np.float64)
    np.testing.assert_allclose(moments.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments.mean, theirs.mean, rtol=1e-12)
    np.testing.assert_allclose(moments.var, theirs.var, rtol=1e-9)
    assert moments.count == theirs.count == pytest.approx(len(everything), abs=1e-3)


def test_normal_is_cut_and_the_policys_is_the_same():
    moments = RunningMoments(3, limit=2.0)
    for batch in batches():
        moments.update(batch)
    x = np.array([[100.0, 104.0, 1e6], [96.0, 100.0, -1e6]], np.float32)
    found = moments.normal(x)
    expected = ((x - moments.mean) / np.sqrt(moments.var + 1e-8)).clip(-2, 2)
    assert found.dtype == np.float32 and found[:, 2].tolist() == [2.0, -2.0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    layer = Standardize(3, limit=2.0)
    assert layer(torch.ones(1, 3)).equal(torch.ones(1, 3))  # nothing seen yet
    layer.take(moments)
    loaded = Standardize(3, limit=2.0)
    loaded.load_state_dict(layer.state_dict())
    output = loaded(torch.from_numpy(x))
    assert output.dtype == torch.float32
    np.testing.assert_allclose(output, found, rtol=1e-6)
    moments.update(np.zeros((50, 3), np.float32))
    np.testing.assert_allclose(layer(torch.from_numpy(x)), found, rtol=1e-6)  # a copy


def test_moments_go_on():
    given, one, two = batches(), RunningMoments(3), RunningMoments(3)
    for batch in given[:10]:
        one.update(batch)
    two.load_state_dict(one.state_dict())
    for batch in given[10:]:
        one.update(batch)
        two.update(batch)
    assert (one.mean == two.mean).all() and (one.var == two.var).all() and one.count == two.count


class Rewards(gym.Env):
    """Gives the rewards and the ends that it is told."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Box(-1, 1, (1,))

    def __init__(self, rewards, ends):
        self.given, self.at = list(zip(rewards, ends, strict=True)), 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward, end = self.given[self.at]
        self.at += 1
        return np.zeros(1, np.float32), float(reward), bool(end), False, {}


def test_rewards_are_stable_baselines():
    """The same scaled rewards, though between two episodes we have a row that does not count."""
    vec = pytest.importorskip("stable_baselines3.common.vec_env")
    rng = np.random.default_rng(0)
    reward, ended = (30 * rng.normal(size=(60, 2))).astype(np.float32), rng.random((60, 2)) < 0.1
    worlds = [lambda e=e: Rewards(reward[:, e], ended[:, e]) for e in range(2)]
    theirs = vec.VecNormalize(vec.DummyVecEnv(worlds), norm_obs=False, gamma=0.9, clip_reward=1.5)
    theirs.reset()
    own = ReturnScale(2, 0.9, limit=1.5)
    yes, no = np.ones(2, bool), np.zeros(2, bool)
    limited = 0
    for t in range(60):
        found = own(reward[t], ended[t], yes)
        expected = theirs.step(np.zeros((2, 1)))[1]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        limited += int((np.abs(found) == 1.5).sum())
        if ended[t].any():
            assert not own(np.zeros(2, np.float32), no, no).any()
    assert limited > 0
    again = ReturnScale(2, 0.9, limit=1.5)
    again.load_state_dict(own.state_dict())
    assert (again(reward[0], no, yes) == own(reward[0], no, yes)).all()
