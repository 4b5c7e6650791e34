"""Frozen encoders of states in front of worlds: the same features as by hand, and what stays beside."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from mmssl.control.base import Spaces
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.envs.encode import EncodeObservation, EncodeSingle, encode_single, encode_vec
from mmssl.envs.encode_states import FrozenStates, reads_vectors
from mmssl.envs.vector import wrap_vec
from mmssl.errors import MmsslError
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.vector import VectorTokenizerConfig


def trained(**widths):
    """An encoder of trajectories of four steps, with statistics."""
    torch.manual_seed(0)
    made = {n: VectorTokenizerConfig(width=w, frames=4, mean=(0.5,) * w, std=(2.0,) * w) for n, w in widths.items()}
    return Encoder(EncoderConfig(made, dim=16, depth=1, heads=2, cls_token=False, drop=0.2))


class Numbers(gym.Env):
    """Vectors that are functions of (seed, step); an episode has three steps."""

    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    observation_space = gym.spaces.Dict(
        {name: gym.spaces.Box(-np.inf, np.inf, (w,), np.float32) for name, w in {"state": 3, "proprio": 2}.items()}
    )

    def _seen(self):
        draw = np.random.default_rng([self.seed, self.steps])
        return {name: draw.normal(size=w).astype(np.float32) for name, w in {"state": 3, "proprio": 2}.items()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed or 0, 0
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        return self._seen(), 1.0, self.steps == 3, False, {}


def by_hand(encoder, **vectors):
    with torch.no_grad():
        return encoder({name: torch.from_numpy(x)[:, None] for name, x in vectors.items()}).pooled().numpy()


@pytest.mark.parametrize(
    ("reads", "keep", "shown"),
    [
        (("state",), False, ["features", "proprio"]),
        (("state",), True, ["features", "state", "proprio"]),
        (("state", "proprio"), False, ["features"]),
        (("state", "action", "return"), False, ["features", "proprio"]),
    ],
)
def test_features_are_the_encoders(reads, keep, shown):
    widths = {"state": 3, "proprio": 2, "action": 1, "return": 1}
    encoder = trained(**{name: widths[name] for name in reads})
    world, plain = EncodeObservation(wrap_vec(Numbers, 3), encoder, keep=keep), wrap_vec(Numbers, 3)
    assert not encoder.training  # dropout would make features random
    obs, seen = world.reset(seed=0)[0], plain.reset(seed=0)[0]
    for _ in range(5):
        assert sorted(obs) == sorted(shown) and obs in world.observation_space
        vectors = {name: seen[name] for name in reads if name in seen}
        np.testing.assert_allclose(obs["features"], by_hand(encoder, **vectors), atol=1e-6)
        for name in set(shown) - {"features"}:
            np.testing.assert_array_equal(obs[name], seen[name])
        actions = world.random_actions()
        obs, seen = world.step(actions)[0], plain.step(actions)[0]
    assert Spaces(**world.spaces()).vectors["features"] == 16


def test_statistics_are_the_encoders_own_and_come_with_it(tmp_path):
    encoder = trained(state=3)
    encoder.save_pretrained(tmp_path)
    obs = [
        EncodeObservation(wrap_vec(Numbers, 2), e).reset(seed=1)[0]["features"]
        for e in (encoder, Encoder.from_pretrained(tmp_path))
    ]
    np.testing.assert_array_equal(*obs)
    with torch.no_grad():
        encoder.tokenizer("state").std.fill_(9)
    assert not np.allclose(EncodeObservation(wrap_vec(Numbers, 2), encoder).reset(seed=1)[0]["features"], obs[0])


def test_features_of_several_steps_side_by_side():
    """The oldest first; the first of an episode stands for those before it, as in a whole recorded episode."""
    encoder = trained(state=3)
    world, one = (EncodeObservation(wrap_vec(Numbers, 1), encoder, stack=k) for k in (2, 1))
    seen, plain = [world.reset(seed=0)[0]["features"]], [one.reset(seed=0)[0]["features"]]
    states = [one.env._last["state"][0]]
    for _ in range(3):
        seen.append(world.step(np.zeros((1, 1)))[0]["features"])
        plain.append(one.step(np.zeros((1, 1)))[0]["features"])
        states.append(one.env._last["state"][0])
    for t in range(4):
        np.testing.assert_allclose(seen[t], np.concatenate([plain[max(t - 1, 0)], plain[t]], 1), atol=1e-6)
    recorded = world.frozen.sequence({"state": np.stack(states)})
    np.testing.assert_allclose(recorded, np.concatenate(seen), atol=1e-6)


def test_some_environments_alone_are_encoded():
    encoder = trained(state=3)
    frozen = FrozenStates(encoder, {"state": ((3,), np.float32)}, 3)
    first = np.arange(9, dtype=np.float32).reshape(3, 3)
    before = frozen({"state": first}, np.ones(3, bool))
    after = frozen({"state": first + 1}, np.zeros(3, bool), np.array([True, False, False]))
    np.testing.assert_array_equal(after[1:], before[1:])
    np.testing.assert_allclose(after[0], by_hand(encoder, state=first + 1)[0], atol=1e-6)


def test_one_environment():
    encoder = trained(state=3)
    env = EncodeSingle(Numbers(), encoder, keep=True)
    obs, _ = env.reset(seed=3)
    assert sorted(obs) == ["features", "proprio", "state"]
    np.testing.assert_allclose(obs["features"][None], by_hand(encoder, state=obs["state"][None]), atol=1e-6)


def test_of_a_task():
    pytest.importorskip("mujoco")
    world = encode_vec(trained(state=4, action=1), "gym/InvertedPendulum-v5", 2)
    assert Spaces(**world.spaces()).vectors == {"features": 16}
    world.close()
    with pytest.raises(MmsslError, match="reads a 'state' of 3 numbers and this world shows one of 4"):
        encode_single(trained(state=3), "gym/InvertedPendulum-v5")


def test_what_is_refused():
    assert reads_vectors(trained(state=3)) and not reads_vectors(trained(action=3))
    pictures = Encoder(EncoderConfig({"image": ImageTokenizerConfig(image_size=16, patch_size=8)}, dim=16, heads=2))
    for encoder, settings, words in (
        (trained(state=4), {}, "trained on data of this task"),
        (trained(action=3), {}, "reads action, and an environment gives pictures and states"),
        (pictures, {}, "an encoder needs pictures"),
        (trained(state=3), {"pooling": "men"}, "did you mean 'mean'"),
        (trained(state=3), {"stack": 0}, "stack must be at least 1"),
        (trained(state=3), {"frames": 2}, "frames is for encoders of video"),
    ):
        with pytest.raises(MmsslError, match=words):
            EncodeObservation(wrap_vec(Numbers, 1), encoder, **settings)
