"""Our worlds in Stable-Baselines3: the same steps as through its own wrappers, and its PPO on frozen features."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.envs.encode import EncodeObservation, encode_vec
from mmssl.envs.rendering import opengl_context
from mmssl.envs.sb3 import sb3_vec
from mmssl.envs.vector import episode_seed, make_vec, wrap_vec
from mmssl.errors import MmsslError
from mmssl.tokenizers.image import ImageTokenizerConfig

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

IMAGE = {"image": ImageTokenizerConfig(image_size=16, patch_size=8)}


class Seeded(gym.Wrapper):
    def __init__(self, place):
        super().__init__(gym.make("InvertedPendulum-v5"))
        self.place, self.episode = place, 0

    def reset(self, **_):
        self.episode += 1
        return self.env.reset(seed=episode_seed(3, self.place, self.episode - 1))


def test_same_steps_as_its_own_wrappers():
    ours = sb3_vec(make_vec("gym/InvertedPendulum-v5", 2, seed=3))
    theirs = DummyVecEnv([lambda i=i: Monitor(Seeded(i)) for i in range(2)])
    np.testing.assert_array_equal(ours.reset(), theirs.reset().astype(np.float32))
    rng, ends = np.random.default_rng(0), 0
    for _ in range(60):
        actions = rng.uniform(-1, 1, (2, 1)).astype(np.float32)
        (obs, reward, done, infos), (seen, gain, over, notes) = ours.step(actions), theirs.step(3 * actions)
        np.testing.assert_array_equal(obs, seen.astype(np.float32))
        np.testing.assert_array_equal(reward, gain)
        np.testing.assert_array_equal(done, over)
        for i in np.flatnonzero(done):
            ends += 1
            last = notes[i]["terminal_observation"].astype(np.float32)
            np.testing.assert_array_equal(infos[i]["terminal_observation"], last)
            assert infos[i]["TimeLimit.truncated"] == notes[i]["TimeLimit.truncated"] is False
            assert [infos[i]["episode"][k] for k in "rl"] == [notes[i]["episode"][k] for k in "rl"]
    assert ends > 3
    ours.close()


class Lamp(gym.Env):
    """A picture that is bright on the left or on the right; the action should have its sign. Cut after 4 steps."""

    observation_space = gym.spaces.Dict(
        {
            "image/front": gym.spaces.Box(0, 255, (3, 16, 16), np.uint8),
            "proprio": gym.spaces.Box(-1, 1, (1,), np.float32),
        }
    )
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def _seen(self):
        self.side = int(self.np_random.integers(2)) * 2 - 1
        picture = np.zeros((3, 16, 16), np.uint8)
        picture[:, :, slice(8, 16) if self.side > 0 else slice(8)] = 255
        return {"image/front": picture, "proprio": np.zeros(1, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._seen(), {}

    def step(self, action):
        reward, self.steps = float(action[0] * self.side), self.steps + 1
        return self._seen(), reward, False, self.steps == 4, {"success": reward > 0}


def encoder():
    torch.manual_seed(0)
    return Encoder(EncoderConfig(tokenizers=IMAGE, dim=16, depth=1, heads=2))


def test_its_ppo_learns_from_frozen_features():
    """A few hundred steps: what a random encoder sees suffices to tell left from right."""
    frozen = encoder()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    vec = VecNormalize(sb3_vec(EncodeObservation(wrap_vec(Lamp, 4), frozen, pooling="flat")), norm_reward=False)
    assert vec.observation_space.shape == (65,)
    settings = {"n_steps": 32, "batch_size": 64, "n_epochs": 8, "learning_rate": 1e-2, "gamma": 0.0, "seed": 0}
    agent = PPO("MlpPolicy", vec, device="cpu", **settings)
    agent.learn(640)
    vec.training = False
    obs, rewards = vec.reset(), []
    for _ in range(40):
        obs, reward, done, infos = vec.step(agent.predict(obs, deterministic=True)[0])
        rewards.append(reward)
    assert np.mean(rewards) > 0.7 and len(agent.ep_info_buffer) > 10
    assert done.all() and all(info["TimeLimit.truncated"] for info in infos) and infos[0]["is_success"] is True
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_its_ppo_trains_on_a_simulated_task():
    try:
        opengl_context()
    except MmsslError as error:
        pytest.skip(str(error))
    vec = sb3_vec(encode_vec(encoder(), "gym/InvertedPendulum-v5", 4))
    agent = PPO("MlpPolicy", vec, n_steps=32, batch_size=64, n_epochs=2, device="cpu", seed=0)
    before = agent.policy.mlp_extractor.policy_net[0].weight.clone()
    agent.learn(256)
    assert agent.num_timesteps == 256 and len(agent.ep_info_buffer) > 3
    assert not torch.equal(agent.policy.mlp_extractor.policy_net[0].weight, before)
    vec.close()


class BigLamp(Lamp):
    """Its pictures are as small as NatureCNN takes them."""

    observation_space = gym.spaces.Dict({"image/front": gym.spaces.Box(0, 255, (3, 36, 36), np.uint8)})

    def _seen(self):
        return {"image/front": np.kron(super()._seen()["image/front"][:, :12, 2:14], np.ones((3, 3), np.uint8))}


def test_pictures_stay_a_dict():
    vec = sb3_vec(wrap_vec(BigLamp, 2, frame_stack=2))
    obs = vec.reset()
    assert obs["image/front"].shape == (2, 6, 36, 36) and vec.observation_space["image/front"].dtype == np.uint8
    for _ in range(4):
        obs, _, done, infos = vec.step(np.zeros((2, 1), np.float32))
    assert done.all() and infos[1]["terminal_observation"]["image/front"].shape == (6, 36, 36)
    np.testing.assert_array_equal(obs["image/front"][:, :3], obs["image/front"][:, 3:])  # the next episode has begun
    agent = PPO("MultiInputPolicy", vec, n_steps=8, batch_size=16, n_epochs=1, device="cpu")
    assert agent.predict(obs)[0].shape == (2, 1)
    with pytest.raises(MmsslError, match="no methods of their own, got 'render'"):
        vec.env_method("render")


def test_seeds_and_attributes():
    vec = sb3_vec(wrap_vec(Lamp, 2))
    vec.seed(11)
    vec.reset()
    assert vec.get_attr("seed") == [11, 11] and vec.env_is_wrapped(Monitor) == [False, False]
