"""Frozen encoders in front of worlds: the same features as by hand, windows, cameras, and what is refused."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from mmssl.control.base import Spaces
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.envs.encode import EncodeObservation, EncodeSingle, encode_single, encode_vec
from mmssl.envs.vector import wrap_vec
from mmssl.errors import MmsslError
from mmssl.features import Features
from mmssl.tokenizers.audio import AudioTokenizerConfig
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.video import VideoTokenizerConfig

needs_pictures = pytest.mark.needs_pictures
IMAGE = ImageTokenizerConfig(image_size=16, patch_size=8)


def tiny(views=(), **tokenizers):
    torch.manual_seed(0)
    return Encoder(EncoderConfig(tokenizers or {"image": IMAGE}, dim=16, depth=1, heads=2, views=views, drop_path=0.5))


class Cameras(gym.Env):
    """Pictures that are functions of (seed, step, camera); an episode has `length` steps."""

    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, cameras=("front",), length=3, size=16):
        self.cameras, self.length, self.size = cameras, length, size
        pictures = {f"image/{c}": gym.spaces.Box(0, 255, (3, size, size), np.uint8) for c in cameras}
        proprio = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = gym.spaces.Dict({"proprio": proprio, **pictures})

    def _seen(self):
        draw = [np.random.default_rng([self.seed, self.steps, i]) for i in range(len(self.cameras))]
        pictures = [d.integers(0, 256, (3, self.size, self.size), np.uint8) for d in draw]
        named = {f"image/{c}": p for c, p in zip(self.cameras, pictures, strict=True)}
        return {"proprio": np.array([self.seed % 97, self.steps], np.float32), **named}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed or 0, 0
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        return self._seen(), 1.0, self.steps == self.length, False, {}


class Sum(nn.Module):
    """Obeys the contract and no more: a token a frame, the sum of its pixels and its first pixel."""

    modalities = ("video",)

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, batch):
        clip = batch["video"]  # (n, T, 3, H, W)
        self.calls.append((len(clip), torch.is_inference_mode_enabled()))
        assert clip.dtype == torch.uint8 and clip.ndim == 5
        tokens = torch.stack([clip.long().sum((2, 3, 4)), clip[:, :, 0, 0, 0].long()], -1).float()  # (n, T, 2)
        index = torch.arange(clip.shape[1]).expand(len(clip), -1)
        return Features(tokens, index, torch.ones_like(index, dtype=torch.bool), None, {"video": (clip.shape[1],)})


def by_hand(encoder, pooling="mean", **batch):
    with torch.no_grad():
        features = encoder({k.replace("_", "/"): torch.from_numpy(v) for k, v in batch.items()})
    return (features.tokens.flatten(1) if pooling == "flat" else features.pooled(pooling)).numpy()


@pytest.mark.parametrize(("pooling", "width"), [("mean", 16), ("cls", 16), ("max", 16), ("flat", 64)])
def test_features_are_the_encoders(pooling, width):
    encoder, plain = tiny(), wrap_vec(Cameras, 3)
    world = EncodeObservation(wrap_vec(Cameras, 3), encoder, pooling=pooling)
    assert not encoder.training  # drop path would make features random
    (obs, infos), seen = world.reset(seed=0), plain.reset(seed=0)[0]
    for _ in range(5):
        assert list(obs) == ["features", "proprio"] and obs in world.observation_space
        assert obs["features"].shape == (3, width) and obs["features"].dtype == np.float32
        np.testing.assert_array_equal(obs["features"], by_hand(encoder, pooling, image=seen["image/front"]))
        np.testing.assert_array_equal(obs["proprio"], seen["proprio"])
        actions = world.random_actions()
        (obs, *rest, infos), (seen, *expected, _) = world.step(actions), plain.step(actions)
        for mine, own in zip(rest, expected, strict=True):
            np.testing.assert_array_equal(mine, own)
        np.testing.assert_array_equal(world.starting, plain.starting)
        assert not torch.from_numpy(obs["features"]).requires_grad and "success" in infos
    assert Spaces(**world.spaces()).vectors == {"features": width, "proprio": 2}


def test_one_pass_for_all_environments():
    encoder = Sum()
    world = EncodeObservation(wrap_vec(lambda: Cameras(("a", "b")), 4), encoder, frames=2)
    encoder.calls.clear()
    world.reset()
    world.step(world.random_actions())
    assert encoder.calls == [(8, True)] * 2  # four environments with two cameras each
    world.reset_where(np.array([True, False, False, True]))
    assert encoder.calls[-1] == (4, True)  # the two that begin


@pytest.mark.parametrize("stride", [1, 2])
def test_window_of_a_video_encoder(stride):
    """The clip of an environment holds its own last frames, the first one repeated, and nothing from before an end."""
    lengths = iter([3, 5])  # so that environments end at different times
    settings = {"pooling": "flat", "frames": 3, "stride": stride}
    world = EncodeObservation(wrap_vec(lambda: Cameras(length=next(lengths)), 2), Sum(), **settings)
    obs, _ = world.reset(seed=1)
    pictures = [world.env._last["image/front"]]
    begun, starting = [0, 0], np.zeros(2, bool)
    for t in range(14):
        for i in range(2):
            begun[i] = t if starting[i] else begun[i]
            clip = [pictures[max(t - back * stride, begun[i])][i] for back in (2, 1, 0)]
            expected = np.array([[c.astype(np.int64).sum(), c[0, 0, 0]] for c in clip], np.float32)
            np.testing.assert_array_equal(obs["features"][i], expected.ravel())
        starting = world.starting
        obs = world.step(world.random_actions())[0]
        pictures.append(world.env._last["image/front"])
    assert begun == [12, 12]


def test_features_of_several_steps_side_by_side():
    one, two = (EncodeObservation(wrap_vec(Cameras, 2), Sum(), frames=1, stack=k) for k in (1, 2))
    before, stacked = one.reset(seed=0)[0]["features"], two.reset(seed=0)[0]["features"]
    np.testing.assert_array_equal(stacked, np.concatenate([before, before], 1))
    for t in range(1, 9):
        now, stacked = (w.step(np.zeros((2, 1), np.float32))[0]["features"] for w in (one, two))
        before = now if t % 4 == 0 else before  # the fourth step begins the next episode
        np.testing.assert_array_equal(stacked, np.concatenate([before, now], 1))
        before = now
    assert two.spaces()["observations"]["features"] == ((4,), np.dtype(np.float32))


def test_environments_that_are_not_reset_keep_their_features():
    world = EncodeObservation(wrap_vec(Cameras, 2), Sum(), frames=2, stack=2)
    world.reset()
    before = world.step(np.zeros((2, 1)))[0]["features"]
    after = world.reset_where(np.array([False, True]))[0]["features"]
    np.testing.assert_array_equal(after[0], before[0])
    assert not np.array_equal(after[1], before[1]) and np.array_equal(after[1][:2], after[1][2:])
    world.reset_all(lambda i: 5)
    np.testing.assert_array_equal(*world.step(np.zeros((2, 1)))[0]["features"])


def test_autoreset_in_the_same_step():
    """Gymnasium's other way: the first picture of the next episode comes with the end of the last."""
    made = SyncVectorEnv([Cameras], autoreset_mode=AutoresetMode.SAME_STEP)
    world = EncodeObservation(made, Sum(), frames=2, pooling="flat")
    world.reset(seed=0)
    seen = [world.step(np.zeros((1, 1)))[0]["features"][0] for _ in range(4)]
    assert [bool((f[:2] == f[2:]).all()) for f in seen] == [False, False, True, False]


def test_cameras_with_and_without_views():
    plain = wrap_vec(lambda: Cameras(("front", "side")), 2)
    front, side = (plain.reset(seed=0)[0][f"image/{c}"] for c in ("front", "side"))
    side = plain.reset(seed=0)[0]["image/side"]
    for encoder in (tiny(), tiny(views=("side", "front", "top"))):
        world = EncodeObservation(wrap_vec(lambda: Cameras(("front", "side")), 2), encoder)
        features = world.reset(seed=0)[0]["features"]
        if encoder.config.views:
            expected = by_hand(encoder, image_front=front, image_side=side)
        else:
            expected = np.concatenate([by_hand(encoder, image=x) for x in (front, side)], 1)
        np.testing.assert_allclose(features, expected, atol=1e-6)


def test_single_environment():
    encoder, plain = tiny(video=VideoTokenizerConfig(frames=4, image_size=16, patch_size=8)), Cameras(length=9)
    env = EncodeSingle(Cameras(length=9), encoder)
    vector = EncodeObservation(wrap_vec(lambda: Cameras(length=9), 1), encoder)
    vector.reset()
    (obs, _), (expected, _) = env.reset(seed=7), vector.reset_all(lambda _: 7)
    frames = [plain.reset(seed=7)[0]["image/front"]] * 4
    for _ in range(6):
        assert obs in env.observation_space and list(obs) == ["features", "proprio"]
        np.testing.assert_array_equal(obs["features"], by_hand(encoder, video=np.stack(frames[-4:])[None])[0])
        np.testing.assert_array_equal(obs["features"], expected["features"][0])
        obs, expected = env.step(np.zeros(1))[0], vector.step(np.zeros((1, 1)))[0]
        frames.append(plain.step(np.zeros(1))[0]["image/front"])
    np.testing.assert_array_equal(env.reset(seed=7)[0]["features"], vector.reset_all(lambda _: 7)[0]["features"][0])


@needs_pictures
def test_pictures_are_drawn_as_the_encoder_wants_them():
    encoder = tiny(image=ImageTokenizerConfig(image_size=(16, 24), patch_size=8))
    world = encode_vec(encoder, "gym/InvertedPendulum-v5", 2, workers=0)
    obs, _ = world.reset()
    (name,) = world.frozen.cameras
    assert world.env.layout[name][0] == (3, 16, 24) and obs["proprio"].shape == (2, 2)
    np.testing.assert_array_equal(obs["features"], by_hand(encoder, image=world.env._last[name]))
    world.close()
    views = encode_vec(tiny(views=("corner4", "topview")), "metaworld/drawer-open", 1, proprio=False)
    assert list(views.env.layout) == ["image/corner4", "image/topview"] and list(views.reset()[0]) == ["features"]
    views.close()


@needs_pictures
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped")
def test_gymnasiums_checker_passes():
    env = encode_single(tiny(), "gym/InvertedPendulum-v5")
    check_env(env, skip_render_check=True)
    env.close()


def of(space):
    return type("World", (Cameras,), {"__init__": lambda self: setattr(self, "observation_space", space)})


@pytest.mark.parametrize(
    ("make", "encoder", "settings", "words"),
    [
        (Cameras, lambda: tiny(audio=AudioTokenizerConfig()), {}, "reads audio, and an environment gives pictures"),
        (lambda: Cameras(size=24), tiny, {}, r"16x16 pixels and 'image/front' has 24x24; .*size=\(16, 16\)"),
        (Cameras, lambda: tiny(views=("fron", "side")), {}, "camera of the encoder 'front': did you mean 'fron'"),
        (Cameras, tiny, {"pooling": "men"}, "did you mean 'mean'"),
        (Cameras, tiny, {"stack": 0}, "stack and stride must be at least 1"),
        (Cameras, Sum, {}, "does not say how many frames a clip has; give frames"),
        (lambda: of(gym.spaces.Dict({"state": gym.spaces.Box(0, 1, (2,))}))(), tiny, {}, "needs pictures"),
    ],
)
def test_what_is_refused(make, encoder, settings, words):
    with pytest.raises(MmsslError, match=words):
        EncodeObservation(wrap_vec(make, 1), encoder(), **settings)


def test_more_that_is_refused():
    with pytest.raises(MmsslError, match="use frame_stack=1, and stack="):
        EncodeObservation(wrap_vec(Cameras, 1, frame_stack=2), tiny())
    with pytest.raises(MmsslError, match="needs a Dict with image/<camera>"):
        EncodeSingle(gym.make("CartPole-v1"), tiny())
    with pytest.raises(MmsslError, match="no cls token"):
        EncodeObservation(wrap_vec(Cameras, 1), Sum(), frames=1, pooling="cls")
    with pytest.raises(MmsslError, match="16x16 pixels, got size 84x84; leave size out"):
        encode_vec(tiny(), "gym/Hopper-v5", 1, size=(84, 84))
    with pytest.raises(MmsslError, match="did you mean 'Hopper-v5'"):
        encode_vec(tiny(), "gym/Hoper-v5", 1)


def test_the_world_is_closed_where_its_encoder_is_refused(monkeypatch):
    closed = []
    monkeypatch.setattr("mmssl.envs.encode.make_vec", lambda *_, **__: wrap_vec(Cameras, 1, frame_stack=2))
    monkeypatch.setattr("mmssl.envs.vector_bodies.Here.close", lambda self: closed.append(self))
    with pytest.raises(MmsslError, match="frame_stack=1"):
        encode_vec(tiny(), "gym/Hopper-v5", 1)
    assert len(closed) == 1
