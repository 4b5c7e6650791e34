"""Shipped declarations are found by short name; runs and cache can be moved."""

import re
from pathlib import Path

import pytest

from mmssl import paths
from mmssl.errors import MmsslError


@pytest.mark.parametrize("kind", ["configs", "data", "envs"])
def test_every_shipped_file_is_found_by_its_short_name(kind):
    names = paths.list_resources(kind)
    assert names
    for name in names:
        assert paths.find_resource(kind, name).is_file()
        assert paths.find_resource(kind, f"{name}.yaml").is_file()


def test_unknown_recipe_gives_the_nearest():
    with pytest.raises(MmsslError, match=re.escape("unknown recipe 'mae/pretrain_tiny_dem': did you mean")):
        paths.find_resource("configs", "mae/pretrain_tiny_dem")


def test_a_path_wins(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("a: 1")
    assert paths.find_resource("configs", own) == own
    with pytest.raises(MmsslError):
        paths.find_resource("configs", tmp_path / "nothing.yaml")


def test_folders_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("MMSSL_RUNS", str(tmp_path / "r"))
    monkeypatch.setenv("MMSSL_CACHE", str(tmp_path / "c"))
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    assert paths.runs_dir() == tmp_path / "r"
    assert paths.datasets_dir() == tmp_path / "c" / "datasets"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "m"))
    assert paths.datasets_dir() == tmp_path / "m"
    monkeypatch.delenv("MMSSL_RUNS")
    assert paths.runs_dir() == Path("runs")
