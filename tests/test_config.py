"""Strict YAML: what is right round-trips, what is wrong is named."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmssl.config import from_dict, load_config, save_config, to_dict
from mmssl.errors import MmsslError


@dataclass(frozen=True)
class Inner:
    ratio: float = 0.75
    kind: Literal["random", "block"] = "random"

    def __post_init__(self):
        if not 0 < self.ratio < 1:
            raise MmsslError(f"ratio must be inside (0, 1), got {self.ratio}.")


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    size: tuple[int, int] = (64, 64)
    sources: tuple[str, ...] = ()
    steps: int | None = None
    flags: dict[str, bool] = field(default_factory=dict)
    out: Path | None = None


@given(
    ratio=st.floats(0.01, 0.99),
    size=st.tuples(st.integers(1, 999), st.integers(1, 999)),
    sources=st.lists(st.text("abc/._-", max_size=9)),
    steps=st.none() | st.integers(),
    flags=st.dictionaries(st.text("xyz", min_size=1, max_size=3), st.booleans()),
    out=st.none() | st.just(Path("runs/x")),
)
def test_round_trip(tmp_path_factory, ratio, size, sources, steps, flags, out):
    config = Outer("n", Inner(ratio), size, tuple(sources), steps, flags, out)
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    save_config(config, path)
    assert load_config(Outer, path) == config
    assert from_dict(Outer, to_dict(config)) == config


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"name": "a", "inner": {"ratoi": 0.5}}, "unknown key in inner 'ratoi': did you mean 'ratio'"),
        ({"name": "a", "inner": {"ratio": "much"}}, "inner.ratio must be float, got 'much'"),
        ({"name": "a", "inner": {"ratio": 1.5}}, "in inner: ratio must be inside"),
        ({"name": "a", "inner": {"kind": "blok"}}, "did you mean 'block'"),
        ({"name": "a", "inner": 3}, "inner must be a mapping"),
        ({"name": "a", "size": [1, 2, 3]}, "size needs 2 values, got 3"),
        ({"name": "a", "steps": True}, "steps must be"),
        ({"name": "a", "flags": [1]}, "flags must be"),
        ({"name": 4}, "name must be str, got 4"),
        ({}, "lacks the key 'name'"),
        ([1], "must be a mapping"),
    ],
)
def test_wrong_values_are_named(mapping, message):
    with pytest.raises(MmsslError) as error:
        from_dict(Outer, mapping)
    assert message in str(error.value)


def test_numbers_as_yaml_writes_them():
    assert from_dict(Inner, {"ratio": "5e-1"}).ratio == 0.5  # YAML 1.1 gives "5e-1" as a string
    assert isinstance(from_dict(Outer, {"name": "a", "inner": {"ratio": 0.5}}).inner.ratio, float)


def test_file_errors_name_the_file(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: [1, 2")
    with pytest.raises(MmsslError, match=r"bad\.yaml is not valid YAML"):
        load_config(Outer, bad)
    bad.write_text("- 1")
    with pytest.raises(MmsslError, match="must hold a mapping"):
        load_config(Outer, bad)
    bad.write_text("nam: a")
    with pytest.raises(MmsslError, match=r"bad\.yaml: unknown key in the recipe 'nam'"):
        load_config(Outer, bad)


def test_polymorphic_field_is_chosen_by_its_own_keys():
    @dataclass(frozen=True)
    class Base:
        name: str = "base"

        @classmethod
        def config_class_for(cls, mapping):
            return {"sub": Sub}.get(mapping.get("name"), cls) if cls is Base else cls

    @dataclass(frozen=True)
    class Sub(Base):
        depth: int = 2

    assert from_dict(Base, {"name": "sub", "depth": 7}) == Sub("sub", 7)
    with pytest.raises(MmsslError, match="depth"):
        from_dict(Base, {"name": "base", "depth": 7})
