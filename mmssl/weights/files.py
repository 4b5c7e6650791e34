"""Tensors from a file, without running anything that the file holds."""

import argparse
import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.weights.flax_trees import is_pickle, read_npz, read_pickle

State = dict[str, Tensor]

# Where a checkpoint keeps its weights beside other things, and what wrappers put before every name.
_INSIDE = ("model", "model_state", "state_dict", "module", "r3m")
_PREFIXES = ("module.", "_orig_mod.")


def read_state(path: Path | str) -> tuple[State, dict[str, Any]]:
    """Weights of one file, and the training arguments stored beside them.

    Args:
        path: a `.safetensors` file, or what `torch.save` wrote: a state dict, or a dict with one under `model`,
            `model_state` (PySlowFast), `state_dict`, `module` (DeepSpeed) or `r3m`; or a tree of arrays of flax's, in a
            pickle or a `.npz` file (`mmssl.weights.flax_trees`).

    Returns:
        names -> tensors on the CPU, and the file's `args` as a dict (empty where it has none; of PySlowFast its `cfg`).

    Raises:
        MmsslError: no such file; damaged or cut short; holds pickled code; holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise MmsslError(f"there is no file {str(path)!r}.")
    content = _read_any(path)
    state = _unwrap(content)
    if not state:
        raise MmsslError(f"{path} holds no weights; give a checkpoint: a mapping of names to tensors.")
    return state, _arguments(content)


def _read_any(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return read_npz(path)
    return read_pickle(path) if is_pickle(path) else _read_torch(path)


def _arguments(content: Any) -> dict[str, Any]:
    """The settings beside the weights: a Namespace or a dict under `args`, or YAML text under `cfg` (PySlowFast)."""
    arguments = content.get("args", content.get("cfg")) if isinstance(content, dict) else None
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    if isinstance(arguments, str):
        try:
            arguments = yaml.safe_load(arguments)
        except yaml.YAMLError:
            arguments = None
    return arguments if isinstance(arguments, dict) else {}


def _unwrap(content: Any) -> State:
    """The mapping of names to tensors inside a checkpoint, names without wrappers' prefixes."""
    for key in _INSIDE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        return {}
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    for prefix in _PREFIXES:
        if state and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _read_safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MmsslError(
            f"{path} is cut short or not a safetensors file ({error}); copy or download it again."
        ) from None


def _read_torch(path: Path) -> Any:
    """What `torch.save` wrote. Of the classes that a file may name only an argparse.Namespace is let in beside torch's
    own: the MAE authors' checkpoints keep their arguments in one, and it does nothing but hold them."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the pickle protocol, before the error that says more
            return torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, PermissionError) as error:
        raise MmsslError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    except Exception as error:  # torch raises nearly anything here: KeyError for a text file, OSError for half a one
        raise MmsslError(f"{path} {_what_is_wrong(path, error)}") from None


def _what_is_wrong(path: Path, error: Exception) -> str:
    damaged = "is cut short or damaged; copy or download it again."
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" and not zipfile.is_zipfile(path):
        return damaged
    if start == b"PK" and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
        return (
            "is a TorchScript archive, which holds code; where you trust it, save its tensors with "
            "torch.save(torch.jit.load(path).state_dict(), other_path), and give that file."
        )
    if isinstance(error, pickle.UnpicklingError) and start[:1] in (b"P", b"\x80"):
        return (
            "holds pickled Python objects, which loading would have to run; only tensors are read: save its state dict "
            "again with torch.save(model.state_dict(), path), or as safetensors, where you trust it."
        )
    if start == b"\x80\x02" and isinstance(error, (RuntimeError, EOFError)):  # torch's format before 1.6
        return damaged
    return "is not a checkpoint; give a .safetensors file, or a .pth file that torch.save wrote."


def read_folder(folder: Path) -> State:
    """Weights of a transformers or timm folder: `model.safetensors` (also in shards) or `pytorch_model.bin`."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
        return {k: v for shard in shards for k, v in read_state(folder / shard)[0].items()}
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_state(folder / name)[0]
    raise MmsslError(f"{folder} has a config.json but no weights (model.safetensors or pytorch_model.bin).")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON mapping; an `MmsslError` where it is not one."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MmsslError(f"{path} is missing or not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise MmsslError(f"{path} must hold a JSON mapping.")
    return content
