"""Frames of windows of trajectories: of one camera or of several, from the disk or from memory."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mmssl.data.clip_crops import ClipGeometry, Cut
from mmssl.data.decode import UNREADABLE
from mmssl.data.memory import check_memory
from mmssl.data.trajectory_files import Trajectory, TrajectoryFile
from mmssl.errors import MmsslError, unknown_name


class WindowFrames:
    """The frames of the episodes of a dataset.

    Args:
        files: its recordings.
        episodes: those that are used.
        of_file: int (E,) the recording of each.
        names: `video`, or `video/<camera>` of several.
        camera: which one `video` is; None takes the first that all recordings have.

    Attributes:
        has: batch key -> bool (E,), which episodes have it.
        size: (H, W) of all frames; None where they differ.

    Raises:
        MmsslError: an unknown camera, or a recording without any.
    """

    def __init__(
        self,
        files: Sequence[TrajectoryFile],
        episodes: Sequence[Trajectory],
        of_file: np.ndarray,
        names: Sequence[str],
        camera: str | None,
    ):
        self.files, self.episodes, self.of_file = files, episodes, of_file
        if blind := [file.task for file in files if not file.cameras]:
            raise MmsslError(f"{', '.join(blind)} has no camera at all; leave video out, or record with pictures.")
        self._cameras = {name: self._having(name.partition("/")[2] or self._default(camera)) for name in names}
        self.has = {name: np.array([c is not None for c in found])[of_file] for name, found in self._cameras.items()}
        self.size = self._size()
        self._memory: dict[str, Tensor] | None = None

    def _default(self, camera: str | None) -> str:
        shared = [c for c in self.files[0].cameras if all(c in file.cameras for file in self.files)]
        if camera is None and not shared:
            listed = "; ".join(f"{file.task}: {', '.join(file.cameras)}" for file in self.files)
            raise MmsslError(f"these recordings share no camera ({listed}); name several as video/<camera>.")
        return camera or shared[0]

    def _having(self, camera: str) -> list[str | None]:
        """The camera's name for each recording that has it."""
        known = sorted({name for file in self.files for name in file.cameras})
        if camera not in known:
            raise unknown_name("camera", camera, known)
        return [camera if camera in file.cameras else None for file in self.files]

    def _size(self) -> tuple[int, int] | None:
        """As the first frames of all recordings and cameras have it."""
        firsts = {int(file): number for number, file in reversed(list(enumerate(self.of_file)))}
        shapes = {x.shape[1:3] for number in firsts.values() for x in self.read(number, [0]).values()}
        return shapes.pop() if len(shapes) == 1 else None

    def read(self, number: int, steps: list[int]) -> dict[str, np.ndarray]:
        """uint8 (n, H, W, 3) of each batch key that an episode has, of increasing steps; from the disk."""
        file, episode = self.files[self.of_file[number]], self.episodes[number].episode
        cameras = {key: found[self.of_file[number]] for key, found in self._cameras.items()}
        return {key: file.read_frames(episode, camera, steps) for key, camera in cameras.items() if camera is not None}

    def load(self, first: np.ndarray, note: Callable[[int, Exception], None]) -> None:
        """Keep all frames in memory, those of a damaged episode as zeros.

        Args:
            first: row of each episode's first step, of all episodes end to end.
            note: called with the number of each damaged episode.
        """
        if self.size is None:
            raise MmsslError("the frames of these recordings differ in size; use cache: none, and give image_size.")
        rows = sum(map(len, self.episodes))
        check_memory(len(self.has) * rows * 3 * self.size[0] * self.size[1], f"the frames of {rows} steps")
        memory = {key: torch.zeros(rows, *self.size, 3, dtype=torch.uint8) for key in self.has}
        for number, episode in enumerate(self.episodes):
            try:
                for key, frames in self.read(number, list(range(len(episode)))).items():
                    memory[key][first[number] : first[number] + len(frames)] = torch.from_numpy(frames)
            except UNREADABLE as error:
                note(number, error)
        self._memory = memory

    def gather(self, rows: Tensor, geometry: ClipGeometry) -> dict[str, Tensor] | None:
        """uint8 (B, T, 3, H, W) of rows (B, T) at once; None where they must be read or resized one by one."""
        if self._memory is None or not geometry.keeps(self.size):
            return None
        return {key: frames[rows].movedim(-1, -3).contiguous() for key, frames in self._memory.items()}

    def window(
        self, number: int, first: int, row: int, length: int, cut: Cut, geometry: ClipGeometry
    ) -> dict[str, Tensor]:
        """uint8 (length, 3, h, w) of each batch key that an episode has; zeros after its end.

        Args:
            number: of the episode.
            first: its step at which the window begins.
            row: that step's row among all.
            length: steps of the window.
            cut: the crop, the same for all frames.
            geometry: of the frames that come out.
        """
        steps = list(range(first, min(first + length, len(self.episodes[number]))))
        if self._memory is None:
            frames = self.read(number, steps)
        else:
            frames = {key: x[row : row + len(steps)] for key, x in self._memory.items() if self.has[key][number]}
        found = {}
        for key, x in frames.items():
            cropped = geometry.cut({key: x}, tuple(x.shape[1:3]), cut)[key]  # (t, 3, h, w)
            found[key] = torch.cat([cropped, cropped.new_zeros(length - len(steps), *cropped.shape[1:])])
        return found


def stack_windows(rows: list[dict[str, Tensor]], keys: Sequence[str], name: str) -> dict[str, Tensor]:
    """uint8 (B, T, 3, h, w) of each key, zeros where a row lacks it; an `MmsslError` where sizes differ."""
    sizes = {tuple(x.shape) for row in rows for x in row.values()}
    if len(sizes) > 1:
        shown = " and ".join(f"{h}x{w}" for h, w in sorted({size[-2:] for size in sizes})[:2])
        raise MmsslError(f"the frames of dataset {name!r} differ in size, e.g. {shown}; give image_size.")
    empty = torch.zeros(sizes.pop(), dtype=torch.uint8)
    return {key: torch.stack([row.get(key, empty) for row in rows]) for key in keys}
