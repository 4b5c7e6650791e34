"""`make_env("suite/task")`: a Gymnasium world with one observation contract for every simulator family.

Observations are a dict of `state` (all that the task's own low-dimensional observation holds) and `proprio` (what the
robot's own sensors would say), both float32 (D,); `info["success"]` is always there. Pictures are made by
`mmssl.envs.rendering`, which needs `.model` and `.data`.
"""

import contextlib
import importlib
import os
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from mmssl.envs.suites import Task, find_task
from mmssl.errors import MmsslError
from mmssl.registry import ENVIRONMENTS

try:
    import gymnasium as gym
except ImportError:
    raise MmsslError(
        "simulated robots need gymnasium; pip install 'mmssl[sim]' brings it and the simulators."
    ) from None


def require(module: str) -> Any:
    """Import an optional simulator, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MmsslError(f"this task needs {module} ({error}); pip install 'mmssl[sim]' brings it.") from None


@contextlib.contextmanager
def without_opengl() -> Iterator[None]:
    """Simulators imported inside leave OpenGL alone, which worlds without pictures do not need and may not have.

    Pictures can still be drawn later: `mmssl.envs.rendering` loads the backend itself.
    """
    before = os.environ.get("MUJOCO_GL")
    if not sys.platform.startswith("linux") or before not in (None, "", "egl", "osmesa"):
        yield
        return
    os.environ["MUJOCO_GL"] = "disable"
    try:
        yield
    finally:
        os.environ.pop("MUJOCO_GL")
        os.environ.update({} if before is None else {"MUJOCO_GL": before})


class SimEnvironment(gym.Env, ABC):
    """A task of one family. A family sets the fields below and says how to start and to step."""

    metadata: ClassVar[dict] = {"render_modes": []}
    task: Task
    model: Any
    """MuJoCo's `MjModel`, and `data` its `MjData`; None for a task without a MuJoCo world, which has no pictures."""
    data: Any
    control_dt: float
    """Seconds of simulated time in one step of ours, action repeat included."""
    has_success: bool = False

    def __init__(self, task: Task):
        self.task = task

    @abstractmethod
    def start(self, seed: int) -> np.ndarray:
        """Begin an episode that depends on `seed` alone; returns the state (D,)."""

    @abstractmethod
    def advance(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """One control step of the simulator: state (D,), reward, terminated, success."""

    def expert(self) -> Any | None:
        """A scripted policy with a call `(state) -> action`, new for each episode, or None."""
        return None

    def set_spaces(self, action_space: gym.spaces.Box, state: np.ndarray) -> None:
        """Fill the Gymnasium spaces from the simulator's action space and one state."""
        low, high = (np.asarray(x, np.float32) for x in (action_space.low, action_space.high))
        self.action_space = gym.spaces.Box(low, high, dtype=np.float32)
        spaces = {k: unbounded(v.shape) for k, v in self.observation(state).items()}
        self.observation_space = gym.spaces.Dict(spaces)

    def observation(self, state: np.ndarray) -> dict[str, np.ndarray]:
        state = np.asarray(state, np.float32)
        return {"proprio": self.proprio(state), "state": state}

    def proprio(self, state: np.ndarray) -> np.ndarray:
        """The task's slices of the state, or position and velocity of the actuated joints."""
        if self.task.proprio is not None:
            return np.concatenate([state[a:b] for a, b in self.task.proprio])
        if not hasattr(self, "_joints"):
            self._joints = actuated_joints(self.model)
        qpos, qvel = self._joints
        return np.concatenate([self.data.qpos[qpos], self.data.qvel[qvel]]).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._steps = 0
        state = self.start(int(self.np_random.integers(2**31)) if seed is None else seed)
        return self.observation(state), {"success": False}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        total, terminated, success = 0.0, False, False
        for _ in range(self.task.action_repeat):
            state, reward, terminated, hit = self.advance(np.asarray(action, np.float32))
            total += float(reward)
            success |= bool(hit)
            if terminated:
                break
        self._steps += 1
        truncated = not terminated and self._steps * self.task.action_repeat >= self.task.horizon
        return self.observation(state), total, bool(terminated), truncated, {"success": success}


def has_success(task: Task) -> bool:
    """Whether a task can be done or not done: whether its family reports success."""
    return ENVIRONMENTS.get(task.family).has_success


def unbounded(shape: tuple[int, ...], dtype: Any = np.float32) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, shape, dtype)


def actuated_joints(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Places in qpos and in qvel of the hinge and slide joints that an actuator moves, directly or by a tendon."""
    joint_transmission, tendon_transmission, joint_wrap = 0, 3, 1  # mjTRN_JOINT, mjTRN_TENDON, mjWRAP_JOINT
    joints: set[int] = set()
    for kind, (target, _) in zip(model.actuator_trntype, model.actuator_trnid, strict=True):
        if kind == joint_transmission:
            joints.add(int(target))
        elif kind == tendon_transmission:
            wraps = range(model.tendon_adr[target], model.tendon_adr[target] + model.tendon_num[target])
            joints.update(int(model.wrap_objid[w]) for w in wraps if model.wrap_type[w] == joint_wrap)
    scalar = [j for j in sorted(joints) if model.jnt_type[j] in (2, 3)]  # mjJNT_SLIDE, mjJNT_HINGE
    return model.jnt_qposadr[scalar], model.jnt_dofadr[scalar]


def make_sim(task: Task | str) -> SimEnvironment:
    """The world of a task without pictures. `task` is "suite/task" or a `Task`."""
    task = find_task(task) if isinstance(task, str) else task
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="gymnasium")  # the suites' own spaces are in float64 and say so
        return ENVIRONMENTS.get(task.family)(task)
