"""The observation contract of all families, and that an episode depends on its seed alone."""

import numpy as np
import pytest

from mmssl.envs.make import actuated_joints, make_sim
from mmssl.envs.policies import POLICIES, NoisyAction, find_policy, smooth_policy
from mmssl.errors import MmsslError

pytest.importorskip("mujoco")
WORLDS = ["metaworld/window-open", "dmc/finger-spin", "gym/Ant-v5", "robotics/FetchPush-v4"]


def roll(env, seed, steps=12):
    observation, info = env.reset(seed=seed)
    assert info["success"] is False
    act, rows = find_policy("auto")(env, np.random.default_rng(seed)), [observation["state"]]
    for _ in range(steps):
        observation, reward, _, _, info = env.step(
            np.clip(act(observation), env.action_space.low, env.action_space.high)
        )
        rows.append(np.append(observation["state"], reward))
        assert observation in env.observation_space and isinstance(info["success"], bool)
    return np.concatenate(rows)


@pytest.mark.parametrize("name", WORLDS)
def test_episode_is_a_function_of_its_seed(name):
    env = make_sim(name)
    roll(env, 1)
    again = roll(env, 2)
    np.testing.assert_array_equal(again, roll(make_sim(name), 2))
    assert not np.array_equal(again, roll(env, 3))


def test_first_metaworld_observation_is_not_stale():
    env = make_sim("metaworld/window-open")
    first, _ = env.reset(seed=5)
    second, *_ = env.step(np.zeros(4))
    assert np.abs(first["state"] - second["state"]).max() < 0.02  # its own reset is 0.15 m off


def test_proprio_definitions():
    env = make_sim("metaworld/window-open")
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation["proprio"], observation["state"][:4])
    env = make_sim("dmc/cheetah-run")
    observation, _ = env.reset(seed=0)
    expected = np.concatenate([env.data.qpos[3:], env.data.qvel[3:]])  # six driven joints behind the free planar root
    np.testing.assert_allclose(observation["proprio"], expected, rtol=1e-6)


def test_actuated_joints_through_tendons():
    env = make_sim("dmc/point_mass-easy")  # its two motors pull fixed tendons
    qpos, qvel = actuated_joints(env.model)
    assert qpos.tolist() == [0, 1] and qvel.tolist() == [0, 1]


def test_action_repeat_and_horizon():
    env = make_sim("dmc/cheetah-run")
    env.reset(seed=0)
    before = env.data.time
    ends = [env.step(np.zeros(6))[3] for _ in range(500)]
    assert ends == [False] * 499 + [True]
    assert env.data.time - before == pytest.approx(500 * env.control_dt, rel=1e-6) and env.control_dt == 0.02


def test_expert_solves():
    env = make_sim("metaworld/drawer-open")
    observation, _ = env.reset(seed=0)
    act = find_policy("expert")(env, np.random.default_rng(0))
    assert any(
        (step := env.step(np.clip(act(observation), -1, 1)), observation := step[0])[0][4]["success"]
        for _ in range(200)
    )


def test_policies_stay_inside_and_are_seeded():
    env = make_sim("gym/HalfCheetah-v5")
    for name in ("random", "smooth"):
        a, b = (POLICIES[name](env, np.random.default_rng(3)) for _ in range(2))
        rows = np.stack([a({}) for _ in range(50)])
        np.testing.assert_array_equal(rows, np.stack([b({}) for _ in range(50)]))
        assert (np.abs(rows) <= 1).all() and rows.std() > 0.3


def test_smooth_is_smoother_than_random():
    env = make_sim("gym/HalfCheetah-v5")
    act = smooth_policy(env, np.random.default_rng(0))
    rows = np.stack([act({}) for _ in range(400)])
    assert np.corrcoef(rows[:-1].ravel(), rows[1:].ravel())[0, 1] > 0.8


def test_policy_errors(tmp_path, monkeypatch):
    env = make_sim("gym/HalfCheetah-v5")
    with pytest.raises(MmsslError, match=r"no scripted expert.*random"):
        find_policy("expert")(env, None)
    with pytest.raises(MmsslError, match="did you mean 'smooth'"):
        find_policy("smoth")
    with pytest.raises(MmsslError, match="cannot be imported"):
        find_policy("nowhere:policy")
    with pytest.raises(MmsslError, match="wants 6 finite numbers"):
        NoisyAction(env, np.random.default_rng(0), 0.1)(np.zeros(5))


def test_action_noise_scale():
    env = make_sim("gym/Humanoid-v5")  # actions within 0.4
    noisy = NoisyAction(env, np.random.default_rng(0), 0.1)
    assert np.std([noisy(np.zeros(17)) for _ in range(300)]) == pytest.approx(0.04, rel=0.05)
