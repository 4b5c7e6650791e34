"""Pictures kept in memory as decoded uint8 arrays, which worker processes share without a copy."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
from PIL import Image

from mmssl.data.decode import UNREADABLE, to_rgb, upright_size
from mmssl.errors import MmsslError


def check_memory(needed: int, what: str) -> None:
    """An `MmsslError` where `needed` bytes are more than nine tenths of the free memory."""
    free = psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise MmsslError(
            f"cache: memory needs {needed / 1e9:.1f} GB for {what}, but only {free / 1e9:.1f} GB are free; use cache: "
            "none."
        )


class PictureCache:
    """All pictures of a dataset, decoded once, each at its own size.

    Args:
        name: of the dataset, for messages.
        n: how many pictures there are.
        open_one: place -> opened picture; raises one of `UNREADABLE` for a bad one.
    """

    def __init__(self, name: str, n: int, open_one: Callable[[int], Image.Image]):
        self._open = open_one
        check_memory(self._estimate(n), f"the {n} decoded images of {name!r}")
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without holding the interpreter lock
            self._arrays = list(pool.map(self._decode, range(n)))

    def _estimate(self, n: int) -> int:
        """Bytes of all pictures, from the sizes in the headers of at most 256 of them."""
        sizes = []
        for place in range(0, n, max(1, n // 256)):
            try:
                height, width = upright_size(self._open(place))
            except UNREADABLE:
                continue
            sizes.append(3 * height * width)
        return int(np.mean(sizes) * n) if sizes else 0

    def _decode(self, place: int) -> np.ndarray | str:
        try:
            return np.array(to_rgb(self._open(place)))
        except UNREADABLE as error:
            return f"{type(error).__name__}: {error}"

    def read(self, place: int) -> np.ndarray:
        """uint8 (H, W, 3); OSError where the picture could not be decoded."""
        if isinstance(self._arrays[place], str):
            raise OSError(self._arrays[place])
        return self._arrays[place]
