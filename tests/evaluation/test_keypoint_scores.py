"""Joints as maps and back, and PCK by hand."""

import numpy as np
import pytest
import torch

from mmssl.evaluation.keypoint_scores import JointTally, joint_maps, joint_places


def slow_spot(x, y, grid, sigma=0.5):
    """The Gaussian of the released code, value by value, at a place in tokens."""
    out = np.zeros(grid)
    left, top = int(x - 3 * sigma), int(y - 3 * sigma)
    for i in range(int(6 * sigma + 1)):
        for j in range(int(6 * sigma + 1)):
            if 0 <= top + i < grid[0] and 0 <= left + j < grid[1]:
                out[top + i, left + j] = np.exp(-((i - 2) ** 2 + (j - 2) ** 2) / (2 * sigma**2))
    return out


def test_maps_as_the_released_code_draws_them():
    joints = np.array([[40.0, 20.0], [3.0, 70.0], [87.0, 9.0], [400.0, 10.0], [np.nan, 5.0]])
    maps = joint_maps(joints, (80, 100), (8, 20))  # tokens of 10 x 5 pixels
    assert maps.shape == (6, 8, 20)
    for k in range(3):
        assert np.allclose(maps[1 + k], slow_spot(joints[k, 0] / 5, joints[k, 1] / 10, (8, 20)))
    assert maps[1, 2, 8] == 1  # x 40 is token 8, y 20 token 2
    assert maps[4:].sum() == 0  # outside of the frame, unknown
    assert torch.equal(maps[0] == 1, maps[1:].sum(0) == 0)


def test_places_are_the_mean_of_the_strongest_responses():
    maps = torch.zeros(3, 4, 5)
    maps[1, 1, 2], maps[1, 1, 3], maps[1, 3, 0], maps[1, 0, 0] = 4.0, 2.0, 2.0, 1.0
    places = joint_places(maps, (40, 100))
    x, y = (4 * 2 + 2 * 3 + 2 * 0) / 8, (4 * 1 + 2 * 1 + 2 * 3) / 8  # the fourth is not among the three
    assert places[0] == pytest.approx([x * 20, y * 10]) and np.isnan(places[1]).all()


def test_a_joint_comes_back_where_it_was():
    joints = np.array([[40.0, 20.0], [80.0, 64.0]])
    places = joint_places(joint_maps(joints, (80, 100), (10, 25)), (80, 100))
    assert np.abs(places - joints).max() < 8  # tokens are 4 x 8 pixels


def test_pck_by_hand():
    """A person whose box is 30 x 40, so 0.6 * 50 = 30 pixels long: 0.1 is 3 pixels, 0.2 is 6."""
    truth = np.array([[10.0, 10.0], [40.0, 50.0], [20.0, 20.0]])
    near, middle, far = truth.copy(), truth.copy(), truth.copy()
    near[:, 0] += 3
    middle[:, 0] += 5
    far[0, 1] += 7
    tally = JointTally()
    first = tally.add([truth] * 4, [far, near, middle, far])  # the first is not judged
    # at 0.1: joint 0 in one frame of three, joints 1 and 2 in two; at 0.2: joint 0 in two, the others always
    assert first == pytest.approx({"PCK@.1": (1 + 2 + 2) / 9, "PCK@.2": (2 + 3 + 3) / 9, "lost": 0})
    tally.add([truth, truth, None], [truth, truth, far])
    assert tally.total()["PCK@.1"] == pytest.approx((2 + 3 + 3) / 12)


def test_lost_joints_are_left_out_and_counted():
    truth = np.array([[10.0, 10.0], [40.0, 50.0], [20.0, 20.0]])
    guess = truth + np.array([2, 0])
    guess[1] = np.nan  # now the box is 10 x 10 around the other two, 8.5 pixels long
    found = JointTally().add([truth] * 2, [truth, guess])
    assert found == pytest.approx({"PCK@.1": 0, "PCK@.2": 0, "lost": 1 / 3})
    hidden = truth.copy()
    hidden[1] = np.nan  # not in the first frame: not lost
    assert JointTally().add([truth] * 2, [hidden, guess])["lost"] == 0
    everything = np.full_like(truth, np.nan)
    assert JointTally().add([truth] * 2, [truth, everything]) == {"PCK@.1": 0, "PCK@.2": 0, "lost": 1}
