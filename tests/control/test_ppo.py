"""PPO against slow loops and Stable-Baselines3, and what ends and rows that do not count do to it."""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.control.base import Transition
from mmssl.control.ppo import PPO, PPOConfig
from mmssl.control.ppo_gradient import Autograd, WrittenOut
from mmssl.control.rollout import gae
from mmssl.envs.vector import wrap_vec
from mmssl.errors import MmsslError

sys.path.append(str(Path(__file__).parent))  # tests are imported from their files, not as a package

from ppo_toys import PLAIN, Constant, make, spaces, train, weights

# advantages


def slow_gae(reward, values, terminated, ended, discount, decay):
    """From the definition: the sum over k of (discount * decay) ** k * delta_k, up to the end of the episode."""
    advantage = np.zeros_like(reward)
    for t, env in np.ndindex(*reward.shape):
        for k in range(t, len(reward)):
            after = 0.0 if terminated[k, env] else values[k + 1, env]
            delta = reward[k, env] + discount * after - values[k, env]
            advantage[t, env] += (discount * decay) ** (k - t) * delta
            if ended[k, env]:
                break
    return advantage


def test_gae_is_its_definition():
    rng = np.random.default_rng(0)
    reward, values = rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=(21, 3)).astype(np.float32)
    terminated, truncated = rng.random((2, 20, 3)) < 0.2
    found = gae(reward, values, terminated, terminated | truncated, 0.9, 0.8)
    assert found.dtype == np.float32
    expected = slow_gae(reward, values, terminated, terminated | truncated, 0.9, 0.8)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gae_is_stable_baselines():
    """Episodes that end truly; their buffer has no row between two episodes, so that the next one's follows at once."""
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    rng, box = np.random.default_rng(1), gym.spaces.Box(-1, 1, (2,))
    reward, values = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(31, 4)).astype(np.float32)
    ended = rng.random((30, 4)) < 0.15
    buffer = buffers.RolloutBuffer(30, box, box, "cpu", gae_lambda=0.9, gamma=0.97, n_envs=4)
    starts = np.concatenate([np.zeros((1, 4), bool), ended])
    for t in range(30):
        row = np.zeros((4, 2), np.float32)
        buffer.add(row, row, reward[t], starts[t], torch.from_numpy(values[t]), torch.zeros(4))
    buffer.compute_returns_and_advantage(torch.from_numpy(values[-1]), ended[-1])
    np.testing.assert_allclose(gae(reward, values, ended, ended, 0.97, 0.9), buffer.advantages, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bootstrap", [True, False])
def test_a_cut_goes_on_and_an_end_does_not(bootstrap):
    """Reward 1 for ever is worth 1 / (1 - 0.5) = 2; two steps of it 1.5 and 1, between which the critic cannot tell."""
    values = {}
    for cut in (True, False):
        ppo = PPO(
            PPOConfig(hidden=(4,), rollout=24, minibatches=2, lr=0.02, discount=0.5, gae_lambda=0.0,
                      bootstrap_truncated=bootstrap, schedule="constant", **PLAIN),
            spaces(1, 1, 1), 0,
        )  # fmt: skip
        train(wrap_vec(lambda cut=cut: Constant(cut), 1), ppo, 40)
        values[cut] = float(ppo._values(np.ones((1, 1), np.float32)).item())
    once = 1 / (1 - 0.25)  # the mean of 1 and 1 + 0.5 v is v
    assert values[False] == pytest.approx(once, abs=0.1)
    assert values[True] == pytest.approx(2.0 if bootstrap else once, abs=0.1)


# rows that are not valid


def fill(ppo, columns):
    """A full rollout of one environment from rows (seed of its contents or None, ending)."""
    rollout = ppo.rollout
    for t, (seed, ending) in enumerate(columns):
        rng = np.random.default_rng(seed)
        rollout.obs[t, 0], rollout.drawn[t, 0] = rng.normal(size=3), rng.normal(size=2)
        rollout.reward[t, 0], rollout.valid[t, 0] = rng.normal(), seed is not None and seed < 1000
        rollout.terminated[t, 0], rollout.ended[t, 0] = ending == "end", ending != ""
    rollout.obs[-1] = 0.3
    rollout.filled = len(columns)


@settings(max_examples=30, deadline=None)
@given(
    episodes=st.lists(
        st.tuples(st.integers(1, 4), st.sampled_from(["end", "cut"]), st.integers(0, 2)), min_size=1, max_size=5
    ),
    leading=st.integers(0, 3),
)
def test_rows_that_are_not_valid_change_nothing(episodes, leading):
    """More of them between episodes, or before the first: the same transitions, the same weights after an update."""
    found = []
    for extra in (False, True):
        columns, seed = [(5000 + k, "") for k in range(leading * extra)], 0
        for length, ending, more in episodes:
            columns += [(seed + k, ending if k == length - 1 else "") for k in range(length)]
            seed += length
            columns += [(1000 + seed, "")]  # shows the last observation, takes no action
            columns += [(2000 + seed + k, "cut" if k else "") for k in range(more * extra)]
        ppo = make(rollout=len(columns), minibatches=1, epochs=2)
        fill(ppo, columns)
        rows = ppo.rows()
        assert len(rows.obs) == seed
        found.append([*rows, ppo.update() and weights(ppo)])
    for a, b in zip(*found, strict=True):  # products of more rows round differently
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_nothing_valid():
    ppo = make(rollout=2, minibatches=1)
    before, row = weights(ppo), np.zeros(1, np.float32)
    obs, no = {"state": np.ones((1, 3), np.float32)}, np.zeros(1, bool)
    for _ in range(2):
        ppo.observe(Transition(obs, np.zeros((1, 2), np.float32), row, no, no, obs, no))
        assert ppo.update() == {}
    assert torch.equal(weights(ppo), before) and ppo.seen == 0 and ppo.rollout.filled == 0
    with pytest.raises(MmsslError, match="must act before each step"):
        ppo.observe(Transition(obs, np.zeros((1, 2), np.float32), row, no, no, obs, ~no))


# against Stable-Baselines3


def twin_of(ppo, **settings):
    """Stable-Baselines3's PPO with the same weights."""
    sb3 = pytest.importorskip("stable_baselines3")
    space = gym.spaces.Discrete(3) if ppo.spaces.discrete else gym.spaces.Box(-1, 1, (2,), np.float32)

    class World(gym.Env):
        observation_space, action_space = gym.spaces.Box(-9, 9, (3,), np.float32), space

    model = sb3.PPO("MlpPolicy", World(), device="cpu", policy_kwargs={"net_arch": [8, 8]}, **settings)
    model.set_logger(sb3.common.logger.configure(None, []))
    extractor, net, critic = model.policy.mlp_extractor, ppo.actor.net, ppo.critic
    pairs = list(zip((*extractor.policy_net[::2], model.policy.action_net), net[::2], strict=True))
    pairs += list(zip((*extractor.value_net[::2], model.policy.value_net), critic[::2], strict=True))
    for theirs, own in pairs:
        theirs.load_state_dict(own.state_dict())
    if not ppo.spaces.discrete:
        model.policy.log_std.data.copy_(ppo.actor.log_std)
    return model, pairs


@pytest.mark.parametrize("written_out", [True, False])
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize(("entropy", "kl"), [(0.0, None), (0.02, None), (0.0, 0.003)])
def test_an_update_is_stable_baselines(written_out, discrete, entropy, kl):
    """Four passes over one batch: the same weights after them, whose ratios leave the clip range on the way."""
    ppo = make(actions=3 if discrete else 2, discrete=discrete, rollout=24, minibatches=1, epochs=4, lr=0.02,
               value_coef=0.5, entropy_coef=entropy, target_kl=kl, written_out=written_out)  # fmt: skip
    assert isinstance(ppo.gradient, WrittenOut if written_out else Autograd)
    same = {"n_steps": 24, "batch_size": 24, "n_epochs": 4, "learning_rate": 0.02}
    model, pairs = twin_of(ppo, ent_coef=entropy, target_kl=kl, **same)
    rng, rollout, buffer = np.random.default_rng(0), ppo.rollout, model.rollout_buffer
    rollout.obs[:], rollout.reward[:], rollout.valid[:] = rng.normal(size=(25, 1, 3)), rng.normal(size=(24, 1)), True
    rollout.drawn[:] = rng.integers(3, size=(24, 1)) if discrete else rng.normal(size=(24, 1, 2))
    rollout.filled = 24
    rows = ppo.rows()
    for t in range(24):
        action = rollout.drawn[t]  # (1,) or (1, 2)
        value, log_prob, _ = model.policy.evaluate_actions(torch.from_numpy(rollout.obs[t]), torch.from_numpy(action))
        torch.testing.assert_close(log_prob.detach(), rows.log_prob[t : t + 1], rtol=1e-5, atol=1e-5)
        buffer.add(rollout.obs[t], action, rollout.reward[t], np.zeros(1), value.detach()[:, 0], log_prob.detach())
    buffer.compute_returns_and_advantage(
        model.policy.predict_values(torch.from_numpy(rollout.obs[-1])).detach()[:, 0], np.zeros(1)
    )
    np.testing.assert_allclose(buffer.returns[:, 0], rows.target, rtol=1e-5, atol=1e-5)
    before = weights(ppo)
    model.train()
    scalars = ppo.update()
    assert kl is not None or scalars["clipped"] > 0.1
    assert (weights(ppo) - before).abs().max() > 0.01
    for theirs, own in pairs:
        torch.testing.assert_close(theirs.weight, own.weight, rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(theirs.bias, own.bias, rtol=1e-3, atol=2e-4)
    if not discrete:
        torch.testing.assert_close(model.policy.log_std, ppo.actor.log_std, rtol=1e-3, atol=2e-4)
    steps = {float(state["step"]) for state in model.policy.optimizer.state.values()}
    assert steps == {float(ppo.optimizer.count)}  # also where the divergence stopped it
    assert ppo.optimizer.count == 4 if kl is None else 0 < ppo.optimizer.count < 4


# settings
