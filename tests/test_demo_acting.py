"""Episodes of the demo's last act in worlds of the test's own, and episodes that a small model fills in."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from mmssl.data.trajectory_files import Trajectory
from mmssl.demo_acting import Trial, play
from mmssl.demo_filling import MASKS, fill_episode
from mmssl.methods.base import create_method
from mmssl.methods.mtm_settings import MTMConfig


class Corridor:
    """A walk along a line: done at 3, over after 8 steps. The seed is where it begins."""

    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, seed: int):
        self.at, self.steps = float(seed), 0
        return {"state": np.array([self.at], np.float32)}, {}

    def step(self, action: np.ndarray):
        self.at, self.steps = self.at + float(action[0]), self.steps + 1
        return {"state": np.array([self.at], np.float32)}, 0.0, False, self.steps >= 8, {"success": self.at >= 3}


def test_episodes_end_where_the_task_is_done_or_the_time_is_over():
    looks = []
    rows = play(
        lambda envs: lambda states: np.full((len(states), 1), 5.0), [Corridor(), Corridor()], [0, -9], looks.append
    )
    assert rows == [(True, 3), (False, 8)]  # the action 5 is clipped to 1
    assert looks == [False] * 8 + [True]


def test_a_policy_sees_the_newest_states_of_all_worlds():
    seen = []

    def make(envs):
        return lambda states: seen.append(states.copy()) or np.ones((len(states), 1))

    play(make, [Corridor(), Corridor()], [0, 1])
    assert [row.ravel().tolist() for row in seen] == [[0, 1], [1, 2], [2, 3]]


def test_all_policies_get_the_same_new_starts(tmp_path):
    one, same, other = (Trial(tmp_path, "metaworld/reach", 5, 9, seed).starts() for seed in (0, 0, 1))
    assert one == same and len({*one, *other}) == 10


@pytest.mark.parametrize("length", [2, 4])
def test_every_mask_fills_in_what_it_should_and_knows_no_more(length: int):
    torch.manual_seed(0)
    model = create_method(MTMConfig(widths={"state": 3, "action": 2}, length=length, dim=16, depth=1, heads=2)).eval()
    rng = np.random.default_rng(0)
    arrays = {"state": rng.random((11, 3), np.float32), "action": rng.random((11, 2), np.float32)}
    filled = fill_episode(model, Trajectory(arrays, {}, "suite/task", 0, "it"))
    for name, truth in MASKS.items():
        assert filled[name].shape == filled[truth].shape
    assert np.isfinite(filled["policy"][length - 1 :]).all() and np.isnan(filled["policy"][: length - 1]).all()
    assert np.isfinite(filled["dream"]).all() and np.array_equal(filled["dream"][0], arrays["state"][0])
    assert np.isnan(filled["waypoints"][:: length - 1]).all()
    # A later state changes neither what the policy did before it, nor what was dreamt.
    arrays["state"][7:] += 1
    later = fill_episode(model, Trajectory(arrays, {}, "suite/task", 0, "it"))
    assert np.array_equal(later["policy"][length - 1 : 7], filled["policy"][length - 1 : 7])
    np.testing.assert_allclose(later["dream"], filled["dream"], atol=1e-6)
