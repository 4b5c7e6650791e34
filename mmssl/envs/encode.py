"""A frozen encoder in front of a world: pictures in, features out, one forward pass a step for all environments.

Encoders of states are in `encode_states.py`; the wrappers here take both. Any module will do that obeys the contract of
encoders: `encoder(batch) -> Features`, `encoder.modalities` and, to find the size of its pictures, `encoder.config`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from mmssl.envs.encode_states import POOLINGS, FrozenStates, Pooling, reads_vectors
from mmssl.envs.make import unbounded
from mmssl.envs.single import make_single
from mmssl.envs.vector import WorldWrapper, make_vec
from mmssl.envs.window import Window
from mmssl.errors import MmsslError, unknown_name

__all__ = ["EncodeObservation", "EncodeSingle", "FrozenEncoder", "Pooling", "encode_single", "encode_vec"]

_PICTURE = "image/"
_OWN = ("pooling", "stack", "stride", "frames", "keep")  # settings of what is in front, not of the world


class FrozenEncoder:
    """An encoder that is only looked through: pictures of n environments in, one vector an environment out.

    An encoder with views gets its cameras as such. One without sees each camera as a picture of its own, all in the
    same pass, and the features stand side by side. A video encoder gets a rolling window of frames.

    Args:
        encoder: it is put into evaluation mode; its device is where it works.
        layout: name -> (shape, dtype) of what one environment shows.
        n: environments.
        pooling: of the tokens: their mean, maximum or cls; or `flat`, all of them side by side.
        stack: vectors of so many steps stand side by side, the oldest first.
        stride: steps between the frames of a clip.
        frames: of a clip, where the encoder's config does not say it.

    Attributes:
        width: F, numbers of one environment.
        memory: steps after which nothing of what was before is left in the windows.

    Raises:
        MmsslError: no pictures, no modality that they could be, cameras that the encoder does not know, pictures of a
            size that it refuses.
    """

    def __init__(
        self, encoder: Any, layout: dict[str, tuple[tuple[int, ...], Any]], n: int, pooling: Pooling = "mean",
        stack: int = 1, stride: int = 1, frames: int | None = None,
    ):  # fmt: skip
        if pooling not in POOLINGS:
            raise unknown_name("pooling", pooling, POOLINGS)
        if stack < 1 or stride < 1:
            raise MmsslError(f"stack and stride must be at least 1, got {stack} and {stride}.")
        self.encoder, self.pooling, self.n = encoder.eval(), pooling, n
        self.kind = picture_modality(encoder)
        self.cameras = _cameras(encoder, self.kind, layout)
        clip = frames or setting(encoder, self.kind, "frames") if self.kind == "video" else 1
        if clip is None:
            raise MmsslError("this video encoder's config does not say how many frames a clip has; give frames.")
        self.clips = {name: Window(n, clip, *layout[name], stride) for name in self.cameras}
        self._check_size(layout)
        probe = {name: np.zeros((1, clip * 3, *layout[name][0][1:]), np.uint8) for name in self.cameras}
        one = self._forward(probe).shape[1]
        self.vectors, self._now = Window(n, stack, (one,), np.dtype(np.float32)), np.zeros((n, one), np.float32)
        self.width, self.memory = one * stack, (clip - 1) * stride + stack

    def _check_size(self, layout: dict) -> None:
        wanted = picture_size(self.encoder)
        for name in self.cameras:
            size = layout[name][0][1:]
            if wanted is not None and tuple(size) != wanted:
                raise MmsslError(
                    f"the encoder takes pictures of {wanted[0]}x{wanted[1]} pixels and {name!r} has {size[0]}x{size[1]}"
                    f"; make the world with size={wanted}."
                )

    def __call__(self, obs: dict[str, np.ndarray], begins: np.ndarray, moved: np.ndarray | None = None) -> np.ndarray:
        """Features float32 (n, F) of what is seen now.

        Args:
            obs: name -> uint8 (n, 3, H, W) of each camera.
            begins: bool (n,), whose episode begins with it, so that nothing from before counts.
            moved: bool (n,), who is looked at at all; None for all.
        """
        clips = {name: window.push(obs[name], begins, moved) for name, window in self.clips.items()}
        if moved is None:
            self._now = self._forward(clips)
        elif moved.any():
            self._now[moved] = self._forward({name: clip[moved] for name, clip in clips.items()})
        return self.vectors.push(self._now, begins, moved).copy()

    def _forward(self, clips: dict[str, np.ndarray]) -> np.ndarray:
        """uint8 (n, T * 3, H, W) of each camera -> float32 (n, width of one step)."""
        import torch

        parameter = next(self.encoder.parameters(), None)
        device = "cpu" if parameter is None else parameter.device
        tensors = {name: torch.from_numpy(np.ascontiguousarray(clip)).to(device) for name, clip in clips.items()}
        if self.kind == "video":
            tensors = {name: x.unflatten(1, (-1, 3)) for name, x in tensors.items()}  # (n, T, 3, H, W)
        together = None not in self.cameras.values()
        batch = {key: tensors[name] for name, key in self.cameras.items()} if together else {}
        if not together:
            batch = {self.kind: torch.cat(list(tensors.values()))}  # (cameras * n, ...)
        with torch.inference_mode():
            features = self.encoder(batch)
            x = features.tokens.flatten(1) if self.pooling == "flat" else features.pooled(self.pooling)
            if not together:
                x = x.unflatten(0, (len(tensors), -1)).transpose(0, 1).flatten(1)  # (n, cameras * D)
            return x.float().cpu().numpy()


def picture_modality(encoder: Any) -> str:
    """`image` or `video`, whichever an encoder reads; an `MmsslError` where it reads neither."""
    kinds = [name.partition("/")[0] for name in encoder.modalities]
    for kind in ("image", "video"):
        if kind in kinds:
            return kind
    raise MmsslError(
        f"this encoder reads {', '.join(encoder.modalities)}, and an environment gives pictures and states; "
        "take an encoder of images, of video or of states."
    )


def views_of(encoder: Any) -> tuple[str, ...]:
    """Names of the cameras that an encoder tells apart, () where it does not."""
    start = picture_modality(encoder) + "/"
    return tuple(name.removeprefix(start) for name in encoder.modalities if name.startswith(start))


def setting(encoder: Any, kind: str, name: str) -> Any:
    """A setting of an encoder's tokenizer of pictures, or of the encoder itself; None where neither has it."""
    config = getattr(encoder, "config", None)
    tokenizers = getattr(config, "tokenizers", None) or {}
    own = [value for key, value in tokenizers.items() if key.partition("/")[0] == kind]
    return next((found for c in (*own, config) if (found := getattr(c, name, None)) is not None), None)


def picture_size(encoder: Any) -> tuple[int, int] | None:
    """(height, width) of the pictures that an encoder takes; None where its config does not say."""
    size = setting(encoder, picture_modality(encoder), "image_size")
    return None if size is None else (size, size) if isinstance(size, int) else tuple(size)


def _cameras(encoder: Any, kind: str, layout: dict) -> dict[str, str | None]:
    """Each camera of a world -> the encoder's name for it, None for an encoder that does not tell cameras apart."""
    pictures = {name: shape for name, (shape, _) in layout.items() if name.startswith(_PICTURE)}
    if not pictures:
        raise MmsslError(f"an encoder needs pictures, and this world shows {list(layout)}; use observe='pixels'.")
    if any(shape[0] != 3 for shape in pictures.values()):
        raise MmsslError("an encoder reads single frames; use frame_stack=1, and stack= for features of several steps.")
    views = views_of(encoder)
    cameras = {name: name.removeprefix(_PICTURE) for name in pictures}
    for camera in cameras.values() if views else ():
        if camera not in views:
            raise unknown_name("camera of the encoder", camera, views)
    return {name: f"{kind}/{camera}" if views else None for name, camera in cameras.items()}


def _layout(space: gym.Space) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    if not isinstance(space, gym.spaces.Dict):
        raise MmsslError(f"an encoder needs a Dict with image/<camera>, uint8 (3, H, W), got {space}.")
    return {name: (part.shape, part.dtype) for name, part in space.spaces.items()}


def _look_through(
    encoder: Any, layout: dict, n: int, keep: bool = False, **settings: Any
) -> tuple[FrozenEncoder | FrozenStates, tuple[str, ...]]:
    """What encodes, and which vectors of the world stay beside its features."""
    vectors = tuple(name for name in layout if not name.startswith(_PICTURE))
    states = len(vectors) == len(layout) and any(name in vectors for name in encoder.modalities)
    if not states and not reads_vectors(encoder):
        return FrozenEncoder(encoder, layout, n, **settings), vectors
    if clip := [name for name in ("stride", "frames") if name in settings]:
        raise MmsslError(f"{clip[0]} is for encoders of video, and this one reads states; leave it out.")
    frozen = FrozenStates(encoder, layout, n, **settings)
    gone = () if keep else ("state", *frozen.names)
    return frozen, tuple(name for name in vectors if name not in gone)


def _seen_space(layout: dict, width: int, beside: tuple[str, ...]) -> gym.spaces.Dict:
    """The space behind an encoder: `features`, then the vectors that stay as they were."""
    return gym.spaces.Dict({"features": unbounded((width,)), **{name: unbounded(layout[name][0]) for name in beside}})


class EncodeObservation(WorldWrapper):
    """A vector world seen through a frozen encoder: `features` float32 (n, F) in place of what it reads.

    An encoder of pictures leaves the vectors of the world, `proprio` above all, beside its features; one of states
    takes the state away unless `keep` is set. The other settings are those of `FrozenEncoder` or `FrozenStates`.
    """

    def __init__(self, env: gym.vector.VectorEnv, encoder: Any, **settings: Any):
        super().__init__(env)
        layout = _layout(env.single_observation_space)
        self.frozen, self.beside = _look_through(encoder, layout, env.num_envs, **settings)
        self.single_observation_space = _seen_space(layout, self.frozen.width, self.beside)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._at_once = env.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP
        self._ended = np.ones(env.num_envs, bool)

    def _seen(self, obs: dict, begins: np.ndarray, moved: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {"features": self.frozen(obs, begins, moved), **{name: obs[name] for name in self.beside}}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        obs, infos = self.env.reset(seed=seed, options=options)
        self._ended = np.zeros(self.num_envs, bool)
        return self._seen(obs, np.ones(self.num_envs, bool)), infos

    def reset_all(self, seed_of: Callable[[int], int] | None = None) -> tuple[dict, dict]:
        """As `VectorWorld.reset_all`."""
        return self.reset_where(np.ones(self.num_envs, bool), seed_of)

    def reset_where(self, rows: np.ndarray, seed_of: Callable[[int], int] | None = None) -> tuple[dict, dict]:
        """As `VectorWorld.reset_where`; only these environments are encoded."""
        obs, infos = self.env.reset_where(rows, seed_of)
        self._ended = self._ended & ~rows
        return self._seen(obs, rows, rows), infos

    def step(self, actions: np.ndarray) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        ended = terminated | truncated
        seen = self._seen(obs, ended if self._at_once else self._ended)
        self._ended = ended
        return seen, rewards, terminated, truncated, infos

    def take_again(self, actions: Sequence[np.ndarray]) -> None:
        """Many steps, of which those alone are encoded that the windows still hold at the end."""
        skipped = max(0, len(actions) - self.frozen.memory)
        for action in actions[:skipped]:
            terminated, truncated = self.env.step(action)[2:4]
            self._ended = terminated | truncated
        for action in actions[skipped:]:
            self.step(action)

    def spaces(self) -> dict[str, Any]:
        """As `VectorWorld.spaces`."""
        observations = {name: (s.shape, s.dtype) for name, s in self.single_observation_space.spaces.items()}
        return {**self.env.spaces(), "observations": observations}


class EncodeSingle(gym.Wrapper):
    """The same for one `gymnasium.Env` with a Dict of `image/<camera>`, uint8 (3, H, W), or `state` (D,): `features`
    (F,)."""

    def __init__(self, env: gym.Env, encoder: Any, **settings: Any):
        super().__init__(env)
        layout = _layout(env.observation_space)
        self.frozen, self.beside = _look_through(encoder, layout, 1, **settings)
        self.observation_space = _seen_space(layout, self.frozen.width, self.beside)

    def _seen(self, obs: dict[str, np.ndarray], begins: bool) -> dict[str, np.ndarray]:
        features = self.frozen({name: value[None] for name, value in obs.items()}, np.array([begins]))[0]
        return {"features": features, **{name: obs[name] for name in self.beside}}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        obs, info = self.env.reset(seed=seed, options=options)
        return self._seen(obs, True), info

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        obs, *rest = self.env.step(action)
        return self._seen(obs, False), *rest


def encode_vec(encoder: Any, task: str, n: int, **settings: Any) -> EncodeObservation:
    """n environments of a task behind a frozen encoder.

    The pictures are drawn at the size that the encoder takes; its views are the cameras where none are given, and
    `proprio` is shown. An encoder of states, or any with observe="state", draws no pictures. The settings are those of
    `make_vec` and of `EncodeObservation`.

    Raises:
        MmsslError: as `make_vec` and `FrozenEncoder`; what the encoder alone decides is found before anything starts.
    """
    own, rest = _split(encoder, settings)
    world = make_vec(task, n, **rest)
    return _closing(world, lambda: EncodeObservation(world, encoder, **own))


def encode_single(encoder: Any, task: str, **settings: Any) -> EncodeSingle:
    """One environment of a task behind a frozen encoder; see `encode_vec`."""
    own, rest = _split(encoder, settings)
    env = make_single(task, **rest)
    return _closing(env, lambda: EncodeSingle(env, encoder, **own))


def _split(encoder: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of what is in front, and those of the world with what the encoder wants."""
    own = {name: settings[name] for name in _OWN if name in settings}
    rest = {name: value for name, value in settings.items() if name not in own}
    if reads_vectors(encoder) or rest.get("observe") == "state":
        return own, {"observe": "state", "proprio": "proprio" in encoder.modalities, **rest}
    wanted, size = picture_size(encoder), rest.get("size")
    if size is not None and wanted is not None and tuple(size) != wanted:
        raise MmsslError(
            f"the encoder takes pictures of {wanted[0]}x{wanted[1]} pixels, got size {size[0]}x{size[1]}; leave size "
            "out, or resize the encoder (`Encoder.resize`)."
        )
    rest |= {"cameras": tuple(rest.get("cameras", ())) or views_of(encoder), "size": wanted or size or (84, 84)}
    return own, {"observe": "pixels", "proprio": True, **rest}


def _closing(world: Any, make: Callable[[], Any]) -> Any:
    """What `make` gives; the world is closed where it fails."""
    try:
        return make()
    except BaseException:
        world.close()
        raise
