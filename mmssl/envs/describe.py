"""The metadata of a recording: Minari's own keys and ours beside them."""

import importlib.metadata
import json
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np

from mmssl.config import to_dict
from mmssl.envs.rendering import geom_names
from mmssl.envs.rollout import Recorder, RolloutConfig
from mmssl.envs.suites import Task
from mmssl.envs.wrappers import picture_space


def recipe(task: Task, config: RolloutConfig) -> dict[str, Any]:
    """All that decides the content of an episode; a folder is only ever extended by the same recipe."""
    world = {k: getattr(task, k) for k in ("id", "horizon", "action_repeat", "proprio", "kwargs")}
    cameras = config.cameras or ((task.camera,) if task.camera else ())
    views = {name: to_dict(task.cameras[name]) for name in cameras if name in task.cameras}
    told = to_dict(config)
    if told.pop("pictures"):  # recordings that were made before it could be False do not have it
        told |= {"cameras": cameras, "views": views}
    else:
        look = ("size", "cameras", "depth", "segmentation", "randomize", "faithful")
        told = {"pictures": False, **{k: v for k, v in told.items() if k not in look}}
    return json.loads(json.dumps({**world, **told}))


def dataset_id(task: Task, version: int, tag: str = "") -> str:
    """Minari's name of a recording; `tag` is a word in it."""
    return f"mmssl/{task.suite}/{task.name}{tag and '-' + tag}-v{version}"


def action_space(recorder: Recorder) -> gym.spaces.Box:
    """The environment's, or `every` of them, (every, A), where observations are that far apart."""
    space, every = recorder.env.action_space, recorder.config.every
    if every == 1:
        return space
    return gym.spaces.Box(np.stack([space.low] * every), np.stack([space.high] * every), dtype=np.float32)


def policy_names(recorder: Recorder) -> list[str]:
    """Names of the policies, "auto" as what it stands for."""
    auto = "expert" if recorder.env.expert() is not None else "smooth"
    return [auto if name == "auto" else name for name in recorder.config.policies]


def minari_metadata(recorder: Recorder, version: int, tag: str = "") -> dict[str, Any]:
    """The content of metadata.json, without the counts."""
    from minari.serialization import serialize_space

    task, config = recorder.task, recorder.config
    names = policy_names(recorder)
    policy = names[0] if len(names) == 1 else names
    return {
        "dataset_id": dataset_id(task, version, tag),
        "minari_version": importlib.metadata.version("minari"),
        "data_format": "hdf5",
        "jpeg_encoding": False,  # pictures are stored as they are
        "observation_space": serialize_space(picture_space(recorder.env, recorder.renderer)),
        "action_space": serialize_space(action_space(recorder)),
        "env_spec": env_spec(recorder).to_json(),
        "algorithm_name": ", ".join(names) + (f" with action noise {config.noise}" if config.noise else ""),
        "description": f"{task.full_name}: {task.instruction}. Recorded by mmssl.",
        "requirements": [],
        **_own_metadata(recorder, policy),
    }


def env_spec(recorder: Recorder) -> gym.envs.registration.EnvSpec:
    """So that Minari's `recover_environment` gives the same observations."""
    task, config = recorder.task, recorder.config
    kwargs: dict[str, Any] = {"task": task.full_name, "cameras": None}
    if config.pictures:
        kwargs = {
            "task": task.full_name, "cameras": list(recorder.renderer.cameras), "size": list(config.size),
            "depth": config.depth, "segmentation": config.segmentation,
        }  # fmt: skip
    return gym.envs.registration.EnvSpec(
        id=f"mmssl/{task.suite}-{task.name}",
        entry_point="mmssl.envs.wrappers:make_env",
        disable_env_checker=True,
        kwargs=kwargs,
    )


def _own_metadata(recorder: Recorder, policy: str | list[str]) -> dict[str, Any]:
    task, config, renderer, env = recorder.task, recorder.config, recorder.renderer, recorder.env
    packages = ("mmssl", "mujoco", "gymnasium", "dm_control", "metaworld", "gymnasium-robotics")
    return {
        "format": 1,
        "suite": task.suite,
        "task": task.name,
        "instruction": task.instruction,
        "cameras": {n: {"fovy": renderer.fovy(n), **asdict(renderer.view(n))} for n in renderer.cameras},
        "size": list(recorder.renderer.size),
        "geoms": [] if env.model is None else geom_names(env.model),
        "control_dt": env.control_dt,
        "fps": 1 / (env.control_dt * config.every),
        "action_repeat": task.action_repeat,
        "every": config.every,
        "horizon": task.horizon,
        "policy": policy,
        "noise": config.noise,
        "has_success": env.has_success,
        "proprio": [list(s) for s in task.proprio] if task.proprio else "position and velocity of the actuated joints",
        "randomize": config.randomize.describe(),
        "seed": config.seed,
        "versions": {p: _version(p) for p in packages},
        "recipe": recipe(task, config),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
