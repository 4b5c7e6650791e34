"""Frozen dataclasses <-> strict YAML.

A recipe is a YAML file whose keys are exactly the fields of a dataclass. An unknown key, a wrong type or an impossible
value stops before any work, naming the dotted key, what was given, what is allowed and the nearest valid name. Value
ranges are the dataclass's own business: its `__post_init__` raises `MmsslError`.

A field whose class has a classmethod `config_class_for(mapping)` is polymorphic: the mapping's own keys (its `name`)
choose the dataclass to build.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from mmssl.errors import MmsslError, unknown_name


def from_dict(cls: type, mapping: Any, where: str = "") -> Any:
    """Build the dataclass `cls` from a mapping, strictly. `where` is the dotted name of the mapping in messages."""
    label = where or "the recipe"
    if not isinstance(mapping, dict):
        raise MmsslError(f"{label} must be a mapping of keys to values, got {mapping!r}.")
    if hasattr(cls, "config_class_for"):
        cls = cls.config_class_for(mapping)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in mapping:
        if key not in fields:
            raise unknown_name(f"key in {label}", str(key), fields)
    values = {k: _convert(hints[k], v, f"{where}.{k}" if where else k) for k, v in mapping.items()}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise MmsslError(f"{label} lacks the key {name!r}.")
    try:
        return cls(**values)
    except MmsslError as error:
        raise MmsslError(f"in {label}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint` wants it, or an `MmsslError` that names `where`."""
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise unknown_name(f"value of {where}", value, map(str, typing.get_args(hint)))
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    if origin in (tuple, list):
        return _convert_sequence(hint, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong_type(where, hint, value)
        return {k: _convert(typing.get_args(hint)[1], v, f"{where}.{k}") for k, v in value.items()}
    return _convert_plain(hint, value, where)


def _convert_union(options: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(option, value, where)
        except MmsslError as error:
            errors.append(error)
    raise errors[0] if len(errors) == 1 else _wrong_type(where, Union[options], value)  # noqa: UP007


def _convert_sequence(hint: Any, value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(where, hint, value)
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and Ellipsis not in args:
        if len(args) != len(value):
            raise MmsslError(f"{where} needs {len(args)} values, got {len(value)}: {value!r}.")
        return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    return typing.get_origin(hint)(_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            raise _wrong_type(where, hint, value) from None
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, bool):
        raise _wrong_type(where, hint, value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise _wrong_type(where, hint, value)


def _wrong_type(where: str, hint: Any, value: Any) -> MmsslError:
    wanted = getattr(hint, "__name__", None) if typing.get_origin(hint) is None else None
    return MmsslError(f"{where} must be {wanted or str(hint).replace('typing.', '')}, got {value!r}.")


def to_dict(config: Any) -> Any:
    """Plain dicts, lists and scalars that YAML can write and `from_dict` reads back."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, dict):
        return {k: to_dict(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    return str(config) if isinstance(config, Path) else config


def read_yaml(path: Path | str) -> dict:
    """The mapping in a YAML file; an `MmsslError` with the place where the file is not valid."""
    try:
        mapping = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MmsslError(f"{path} is not valid YAML: {str(error).replace(chr(10), ' ')}") from None
    if not isinstance(mapping, dict):
        raise MmsslError(f"{path} must hold a mapping of keys to values.")
    return mapping


def load_config(cls: type, path: Path | str) -> Any:
    """The dataclass `cls` from a YAML file; messages name the file."""
    try:
        return from_dict(cls, read_yaml(path))
    except MmsslError as error:
        raise MmsslError(f"{path}: {error}") from None


def save_config(config: Any, path: Path | str) -> None:
    """Write a dataclass so that `load_config` gives an equal one."""
    Path(path).write_text(yaml.safe_dump(to_dict(config), sort_keys=False, width=120))
