"""The last few things that each environment showed; the first of an episode stands for those before it."""

import numpy as np


class Window:
    """A rolling window per environment.

    Args:
        n: environments.
        length: how many things are shown.
        shape, dtype: of one thing.
        stride: steps from one to the next.
    """

    def __init__(self, n: int, length: int, shape: tuple[int, ...], dtype: np.dtype, stride: int = 1):
        self.length, self.stride = length, stride
        self._kept = np.zeros((n, (length - 1) * stride + 1, *shape), dtype)  # (n, steps, ...), oldest first

    def push(self, new: np.ndarray, begins: np.ndarray | None, moved: np.ndarray | None = None) -> np.ndarray:
        """Take what all show now (n, ...), and give what the windows hold.

        Args:
            new: (n, C, ...).
            begins: bool (n,), which environments began an episode: nothing from before it stays. None for none.
            moved: bool (n,), which environments are looked at at all; None for all.

        Returns:
            (n, length * C, ...), oldest first; it may be memory that the next push overwrites.
        """
        kept, rows = self._kept, slice(None) if moved is None else moved
        if kept.shape[1] > 1:
            kept[rows, :-1] = kept[rows, 1:]
        kept[rows, -1] = new[rows]
        if begins is not None:
            kept[begins] = new[begins][:, None]
        shown = kept[:, :: self.stride]  # (n, length, C, ...)
        return shown.reshape(len(kept), -1, *kept.shape[3:])
