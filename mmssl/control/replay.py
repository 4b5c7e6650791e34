"""What was lived through, to learn from again: every observation once, stacks and returns by index arithmetic.

A row holds one step of all environments. The observation after row t is that of row t + 1, the last one of an episode
too: where an episode ended, row t + 1 is the step that only began the next one, which is never sampled by itself. So a
window of steps goes on for as long as the next row is one that was taken.
"""

import contextlib
import math
import mmap
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from mmssl.control.base import Spaces, Transition
from mmssl.errors import MmsslError

_TRIES = 1000  # draws for a batch; each finds a part of it unless next to nothing can be sampled


class Batch(NamedTuple):
    """Sampled transitions; pictures are empty where there are none."""

    obs: Tensor
    """float32 (B, D), all vectors side by side."""
    action: Tensor
    """float32 (B, A)."""
    reward: Tensor
    """float32 (B,), of n steps: r_0 + gamma r_1 + ..."""
    discount: Tensor
    """float32 (B,), what the value of `next_obs` is multiplied with: gamma ** n, 0 after a true end."""
    next_obs: Tensor
    """float32 (B, D)."""
    pictures: dict[str, Tensor]
    """name -> uint8 (B, k * 3, H, W), oldest frame first."""
    next_pictures: dict[str, Tensor]


def _fresh_pages(size: int) -> mmap.mmap:
    """Zeros that take memory page by page as they are written; `np.zeros` may write to pages that were used before."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, size, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)  # rows are read at random: half the time of small pages
    return pages


class Replay:
    """A ring of rows, whose memory is taken when the first one is stored.

    Args:
        spaces: what is seen; of pictures the newest frame alone is stored, uint8.
        capacity: rows of all environments together, at least a few; one holds the newest observation alone, and each
            episode takes one for its end.
        discount: gamma.
        n_step: steps of a return; a window ends early where its episode or what is stored does.
        seed: of the draws.
        device: where batches go.
        on_disk: a folder for memory-mapped files without a name, which the system removes with the process; memory
            where it is None.

    Attributes:
        nbytes: what it takes when it is full.
    """

    def __init__(
        self,
        spaces: Spaces,
        capacity: int,
        discount: float = 0.99,
        n_step: int = 1,
        seed: int = 0,
        device: str = "cpu",
        on_disk: Path | str | None = None,
    ):
        if n_step < 1 or capacity < 1:
            raise MmsslError(f"n_step and capacity must be at least 1, got {n_step} and {capacity}.")
        self.spaces, self.capacity, self.discount, self.n_step = spaces, capacity, discount, n_step
        self.device, self.on_disk = torch.device(device), None if on_disk is None else Path(on_disk)
        self.n, self.stack = spaces.n_envs, {name: shape[0] // 3 for name, shape in spaces.pictures.items()}
        self.back = max(self.stack.values(), default=1) - 1  # frames that a stack looks back
        self.rows = max(-(-capacity // self.n), self.back + 4)
        self.layout = self._layout()
        self.nbytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.layout.values())
        self.arrays: dict[str, np.ndarray] = {}
        self.flat: dict[str, np.ndarray] = {}  # the same memory, (rows * n, ...)
        self.rng = np.random.default_rng(seed)
        self.head, self.full, self.count = 0, False, 0

    def _layout(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Array -> (shape, dtype). `age` counts the frames of its episode before a row, up to a stack's."""
        lead, spaces = (self.rows, self.n), self.spaces
        found = {
            "obs": ((*lead, spaces.vector_width), np.float32),
            "action": ((*lead, spaces.action_dim), np.float32),
            "reward": (lead, np.float32),
            "terminated": (lead, np.bool_),
            "valid": (lead, np.bool_),
        }
        if self.back:
            found["age"] = (lead, np.uint8 if self.back < 256 else np.int32)
        return found | {name: ((*lead, 3, *shape[1:]), np.uint8) for name, shape in spaces.pictures.items()}

    @property
    def summary(self) -> str:
        """What it takes, in words."""
        size = f"{self.nbytes / 1e9:.1f} GB" if self.nbytes >= 1e8 else f"{self.nbytes / 1e6:.1f} MB"
        return f"replay: {self.rows * self.n:,} transitions, {size} {'on disk' if self.on_disk else 'of memory'}"

    def __len__(self) -> int:
        """Transitions that are stored."""
        return self.count

    def _allocate(self) -> None:
        """Take the memory; the system gives it page by page, as rows are written.

        Raises:
            MmsslError: less than that is free.
        """
        self.check_room()
        self.arrays = {name: self._array(*layout) for name, layout in self.layout.items()}
        self.flat = {name: array.reshape(self.rows * self.n, *array.shape[2:]) for name, array in self.arrays.items()}

    def check_room(self, copies: int = 1) -> None:
        """Raise an `MmsslError` where less is free than so many replays take."""
        if self.on_disk is None:
            free, where, advice = psutil.virtual_memory().available, "of memory are free", "or keep it on disk"
        else:
            self.on_disk.mkdir(parents=True, exist_ok=True)
            free, where, advice = shutil.disk_usage(self.on_disk).free, f"are free in {self.on_disk}", "or make room"
        if copies * self.nbytes > 0.9 * free:
            some, needed = "a replay" if copies == 1 else f"each of {copies} replays", self.nbytes / 1e9
            raise MmsslError(
                f"{some} of {self.rows * self.n:,} transitions needs {needed:.3g} GB, but only {free / 1e9:.3g} GB "
                f"{where}; lower capacity, {advice}."
            )

    def _array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)
        if self.on_disk is None:
            return np.ndarray(shape, dtype, _fresh_pages(math.prod(shape) * np.dtype(dtype).itemsize))
        with tempfile.TemporaryFile(dir=self.on_disk) as file:
            file.truncate(math.prod(shape) * np.dtype(dtype).itemsize)
            return np.memmap(file, dtype, mode="r+", shape=shape)

    def add(self, transition: Transition) -> None:
        """Store one step of all environments, whose `obs` is the `next_obs` of the step before."""
        if not self.arrays:
            self._allocate()
            self._look(0, transition.obs)
        a, head, after = self.arrays, self.head, (self.head + 1) % self.rows
        a["action"][head], a["reward"][head] = transition.action, transition.reward
        a["terminated"][head], a["valid"][head] = transition.terminated, transition.valid
        self.count += int(np.count_nonzero(transition.valid)) - int(np.count_nonzero(a["valid"][after]))
        a["valid"][after] = False
        if self.back:  # an episode begins after a row that is not valid
            a["age"][after] = np.where(transition.valid, np.minimum(a["age"][head], self.back - 1) + 1, 0)
        self._look(after, transition.next_obs)
        self.full |= after == 0
        self.head = after

    def extend(
        self, obs: dict[str, np.ndarray], action: np.ndarray, reward: np.ndarray, terminated: np.ndarray
    ) -> None:
        """Store a whole episode of one environment, as `add` does step by step; it must fit behind what is stored.

        Args:
            obs: vectors, float32 (T + 1, D): what was seen before each step, and after the last one.
            action, reward, terminated: float32 (T, A), float32 (T,), bool (T,).
        """
        steps = len(reward)
        if self.n != 1 or self.stack or self.head + steps + 1 >= self.rows:
            raise MmsslError(f"an episode of {steps} steps of vectors does not fit; the replay has {self.rows} rows.")
        if not self.arrays:
            self._allocate()
        a, rows = self.arrays, slice(self.head, self.head + steps)
        a["obs"][self.head : self.head + steps + 1, 0] = np.concatenate([obs[k] for k in self.spaces.vectors], axis=1)
        a["action"][rows, 0], a["reward"][rows, 0], a["terminated"][rows, 0] = action, reward, terminated
        a["valid"][rows, 0] = True  # and not so of the row of the last observation, which nobody acted on
        self.count, self.head = self.count + steps, self.head + steps + 1

    def _look(self, row: int, obs: dict[str, np.ndarray]) -> None:
        vectors = [obs[name] for name in self.spaces.vectors]
        if vectors:
            np.concatenate(vectors, axis=1, out=self.arrays["obs"][row])
        for name in self.stack:
            self.arrays[name][row] = obs[name][:, -3:]

    def sample(self, batch_size: int) -> Batch:
        """Transitions drawn uniformly, with replacement, as tensors on the device.

        Raises:
            MmsslError: there is none.
        """
        at = self._draw(batch_size)
        reward, discount, later = self._returns(at)
        take = self.flat
        host = take["obs"].take(at, 0), take["action"].take(at, 0), reward, discount, take["obs"].take(later, 0)
        pictures, next_pictures = ({name: self._frames(name, i) for name in self.stack} for i in (at, later))
        return Batch(*map(self._tensor, host), pictures, next_pictures)

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _draw(self, count: int) -> np.ndarray:
        """Places in the flat arrays, int64 (count,), of valid transitions whose whole stack is still stored."""
        first = (self.head + 1) % self.rows if self.full else 0
        total, found, missing = (self.head - first) % self.rows * self.n, [], count
        for _ in range(_TRIES if self.count else 0):
            drawn = self.rng.integers(total, size=missing + missing // 16 + 8)  # from the oldest on
            at = (drawn + first * self.n) % (self.rows * self.n) if first else drawn
            good = self.flat["valid"].take(at)
            if self.back:
                good &= drawn // self.n >= self.flat["age"].take(at)
            found.append(at[good][:missing])
            missing -= len(found[-1])
            if not missing:
                return np.concatenate(found)
        raise MmsslError("the replay holds no transition to learn from; collect more steps first.")

    def _after(self, at: np.ndarray) -> np.ndarray:
        return (at + self.n) % (self.rows * self.n)

    def _returns(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """n-step rewards, what the value behind them is multiplied with, and the place of its observation."""
        rewards, terminated, valid = (self.flat[name] for name in ("reward", "terminated", "valid"))
        gamma = np.float32(self.discount)
        reward, discount, later = rewards.take(at), gamma * ~terminated.take(at), self._after(at)
        for _ in range(self.n_step - 1):
            going = valid.take(later)  # not so of the newest row, nor of one that only begins an episode
            reward = np.where(going, reward + discount * rewards.take(later), reward)
            discount = np.where(going, discount * (gamma * ~terminated.take(later)), discount)
            later = np.where(going, self._after(later), later)
        return reward, discount, later

    def _frames(self, name: str, at: np.ndarray) -> Tensor:
        """The stack of frames that was seen at each place: uint8 (B, k * 3, H, W); the first of an episode repeated."""
        frames, places = self.flat[name], at[:, None]  # (B, 1)
        if self.stack[name] > 1:
            back = np.minimum(np.arange(self.stack[name])[::-1], self.flat["age"].take(at)[:, None])  # (B, k)
            places = (places - back * self.n) % len(frames)
        return self._tensor(frames.take(places, 0).reshape(len(at), -1, *frames.shape[2:]))

    def state_dict(self) -> dict[str, Any]:
        """Everything, for going on: the rows that are in use, which are the replay's own memory and no copies."""
        used = self.rows if self.full else self.head + 1
        arrays = {name: array[:used] for name, array in self.arrays.items()}
        counters = {"head": self.head, "full": self.full, "count": self.count, "rows": self.rows}
        return {"arrays": arrays, **counters, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave, of a replay of the same shape."""
        shapes = {name: tuple(array.shape[1:]) for name, array in state["arrays"].items()}
        own = {name: shape[1:] for name, (shape, _) in self.layout.items()}
        if state["rows"] != self.rows or (shapes and shapes != own):
            raise MmsslError(
                f"the saved replay has {state['rows']} rows of {shapes or own}, this one {self.rows} of {own}; "
                "go on with the settings that it was made with."
            )
        if shapes and not self.arrays:
            self._allocate()
        for name, array in state["arrays"].items():
            self.arrays[name][: len(array)] = array
        self.head, self.full, self.count = int(state["head"]), bool(state["full"]), int(state["count"])
        self.rng.bit_generator.state = state["rng"]
