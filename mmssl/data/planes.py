"""Files of depth, of class ids and of masks -> arrays of the size of their picture."""

from pathlib import Path

import numpy as np
from PIL import Image

from mmssl.data.decode import open_picture, upright, upright_size


def read_depth(file: str, scale: float) -> np.ndarray:
    """float32 (H, W) in metres; 0, NaN and infinite are unknown and become 0.

    Whole numbers are steps of `scale` metres, floats are metres already. Raises one of `decode.UNREADABLE`.
    """
    stored = _values(file)
    depth = stored.astype(np.float32) * (1.0 if stored.dtype.kind == "f" else scale)
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32)


def read_ids(file: str) -> np.ndarray:
    """int32 (H, W) class ids; of a picture with a palette its places there. Raises one of `decode.UNREADABLE`."""
    stored = _values(file)
    if stored.dtype.kind not in "iub":
        raise ValueError(f"class ids must be whole numbers, and the file holds {stored.dtype}")
    return stored.astype(np.int32)


def read_mask(file: str) -> np.ndarray:
    """bool (H, W), True where the file is not 0. Raises one of `decode.UNREADABLE`."""
    return _values(file) != 0


def _values(file: str) -> np.ndarray:
    """The one plane (H, W) that a file holds, as it is stored."""
    if Path(file).suffix.lower() in (".npy", ".npz"):
        values = np.load(file, allow_pickle=False)
        if isinstance(values, np.lib.npyio.NpzFile):
            with values:
                values = values[values.files[0]]
        if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
            values = values[0] if values.shape[0] == 1 else values[..., 0]
    else:
        values = np.asarray(upright(open_picture(file)))
    if values.ndim != 2:
        raise ValueError(f"one plane is needed, and the file holds values of the shape {values.shape}")
    return values


def at_size(planes: dict[str, np.ndarray | Image.Image]) -> dict[str, np.ndarray | Image.Image]:
    """All planes at the size of the picture, or of the largest where there is none.

    Smaller ones by a whole factor are enlarged: depth between its values, ids and masks by the nearest one. Raises
    ValueError for any other size.
    """
    sizes = {key: upright_size(x) if isinstance(x, Image.Image) else x.shape for key, x in planes.items()}
    size = sizes.get("image") or max(sizes.values())
    return {key: x if sizes[key] == size else _enlarged(key, x, size) for key, x in planes.items()}


def _enlarged(key: str, plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    factors = [round(whole / part) for whole, part in zip(size, plane.shape, strict=True)]
    # Published maps of a quarter of the size are rounded up or down to whole pixels.
    fits = all(abs(f * part - whole) < f for f, part, whole in zip(factors, plane.shape, size, strict=True))
    if factors[0] != factors[1] or factors[0] < 2 or not fits:
        raise ValueError(
            f"{key} has {plane.shape[0]}x{plane.shape[1]} pixels, which is no whole part of {size[0]}x{size[1]}"
        )
    smooth = key == "depth" and bool(plane.all())  # next to an unknown value nothing lies between
    method = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    stored = plane.astype(np.uint8) if plane.dtype == bool else plane
    return np.asarray(Image.fromarray(stored).resize((size[1], size[0]), method)).astype(plane.dtype)
