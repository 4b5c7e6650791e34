"""Trees of arrays that flax's users keep in pickles (or .npz files), read without running anything that they hold.

What a pickle names is looked up here and nowhere else: numpy's and jax's arrays become `_Array`, flax's frozen dicts
plain ones, and objects of the libraries that a train state is made of `Ignored`. Any other name is refused.
"""

import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import MmsslError

_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch's own format before 1.6 begins
_LIBRARIES = ("flax", "optax", "jax", "jaxlib", "chex", "m3ae", "ml_collections", "absl", "cloudpickle", "functools")
_LIBRARIES += ("numpy", "typing", "types", "copyreg", "weakref")
_BUILTINS = ("getattr", "object", "type", "slice", "set", "frozenset", "list", "tuple", "dict", "int", "float", "bool")
_BUILTINS += ("str", "bytes", "bytearray")
_KINDS = re.compile(r"[<>=|]?(f[248]|[iu][1248]|b1|\?)")


class _Refused(Exception):
    """A name that is of no array and of no library above."""


class Ignored:
    """Stands for any object or function that is not needed: called, built or filled, it does nothing.

    Attributes:
        state: what the pickle says are its attributes.
    """

    state: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Ignored":
        self = super().__new__(cls)
        self.state = {}
        return self

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):  # (attributes, those of __slots__)
            if isinstance(part, dict):
                self.state = {**self.state, **part}

    def __call__(self, *args: Any, **kwargs: Any) -> "Ignored":
        return Ignored()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Frozen(dict):
    """flax's FrozenDict, pickled as a call with a dict or by its slots."""

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict) and isinstance(part.get("_dict"), dict):
                self.update(part["_dict"])


class _Dtype:
    """numpy's dtype, of numbers alone."""

    def __init__(self, code: str, *options: Any):
        if not isinstance(code, str) or not _KINDS.fullmatch(code):
            raise _Refused(f"an array of type {code!r}")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """numpy's array, from the bytes in the pickle."""

    def __init__(self, *args: Any):
        self.values: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, column_first, raw = state[1:5]
        self.values = np.frombuffer(raw, dtype.numpy).reshape(shape, order="F" if column_first else "C")


def _from_buffer(raw: Any, dtype: _Dtype, shape: tuple, order: str, *axes: Any) -> _Array:
    if order not in ("C", "F"):
        raise _Refused(f"an array in the order {order!r}")
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", raw))
    return array


def _of_jax(make: Any, args: Any, state: tuple, aval: Any) -> _Array:
    array = _Array()
    array.__setstate__(state)
    return array


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.numpy)[0].item()


def _bytes(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 has them."""
    return text.encode("latin1")


_ARRAYS = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "jax._src.device_array.reconstruct_device_array": _of_jax,
    "jax._src.array._reconstruct_array": _of_jax,
    "flax.core.frozen_dict.FrozenDict": _Frozen,
    "collections.OrderedDict": dict,
    "_codecs.encode": _bytes,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; nothing is ever imported."""
        whole = f"{module}.{name}".replace("numpy._core.", "numpy.core.", 1)
        if whole in _ARRAYS:
            return _ARRAYS[whole]
        if module.partition(".")[0] in _LIBRARIES or (module == "builtins" and name in _BUILTINS):
            return Ignored
        raise _Refused(whole)


def is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle of Python 3 does, and not as torch's own formats."""
    with path.open("rb") as file:
        start = file.read(len(_TORCH))
    return start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start != _TORCH


def read_pickle(path: Path) -> dict[str, Any]:
    """Arrays and settings of a pickle.

    Args:
        path: what `pickle` or `cloudpickle` wrote: a tree of dicts with arrays at its leaves; or a dict with one in
            `state`, a flax train state, beside `variant`, the settings (JaxCQL's and M3AE's checkpoints).

    Returns:
        `model`: name -> tensor, the keys on the way to a leaf joined by dots; `args`: name -> setting.

    Raises:
        MmsslError: cut short or damaged; holds anything but arrays, numbers, texts and objects of flax's libraries.
    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file).load()
    except _Refused as error:
        raise MmsslError(
            f"{path} holds pickled Python objects ({error}), which loading would have to run; only arrays are read: "
            "save them again as safetensors or with numpy.savez, where you trust it."
        ) from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise MmsslError(f"{path} is cut short or damaged ({error}); copy or download it again.") from None
    if not isinstance(content, dict):
        return {}
    variant = content.get("variant")
    settings = variant.items() if isinstance(variant, dict) else ()
    said = {key: value for key, value in settings if isinstance(value, (str, int, float, bool))}
    return {"model": dict(_leaves(_parameters(content))), "args": said}


def read_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of a .npz file by name, where `/` is read as a dot; pickled objects in it are refused."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            state = {name.replace("/", "."): _tensor(arrays[name]) for name in arrays.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise MmsslError(f"{path} is no .npz file of plain arrays ({error}); save it with numpy.savez.") from None
    return {name.removeprefix("params."): value for name, value in state.items()}


def _parameters(content: Any) -> Any:
    """The tree of weights in a checkpoint: what is inside of `state` and `params`, as often as there is one."""
    while True:
        content = content.state if isinstance(content, Ignored) else content
        inner = next((key for key in ("state", "params") if isinstance(content, dict) and key in content), None)
        if inner is None:
            return content
        content = content[inner]


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, _Array) and tree.values is not None:
        yield name, _tensor(tree.values)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))
