"""Registries find the modules of their package and teach the right name."""

import sys

import pytest

from mmssl.config import from_dict
from mmssl.control.base import AlgorithmConfig
from mmssl.errors import MmsslError
from mmssl.methods.base import MethodConfig
from mmssl.registry import METHODS, Registry
from mmssl.tokenizers.base import TokenizerConfig


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "made_up_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("from mmssl.registry import Registry\nR = Registry('method', __name__)\n")
    (folder / "one.py").write_text("from made_up_methods import R\n@R.register('one')\nclass One: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [m for m in sys.modules if m.startswith("made_up_methods")]:
        del sys.modules[name]


def test_a_new_file_is_found_without_any_other_edit(package):
    (package / "two.py").write_text("from made_up_methods import R\n@R.register('two')\nclass Two: pass\n")
    import made_up_methods

    assert made_up_methods.R.names() == ["one", "two"]
    assert made_up_methods.R.get("two").__name__ == "Two"
    assert "three" not in made_up_methods.R


def test_unknown_name_gives_the_nearest(package):
    import made_up_methods

    with pytest.raises(MmsslError, match=r"unknown method 'onne': did you mean 'one'\? Valid: one"):
        made_up_methods.R.get("onne")


def test_two_things_of_one_name_are_refused():
    registry = Registry("thing", "mmssl.methods")
    registry.register("x")(int)
    with pytest.raises(MmsslError, match="registered twice"):
        registry.register("x")(float)


def test_mae_is_registered():
    assert "mae" in METHODS


@pytest.mark.parametrize(
    ("base", "kind", "name"),
    [(MethodConfig, "method", "mae"), (TokenizerConfig, "tokenizer", "image"), (AlgorithmConfig, "algorithm", "td3")],
)
def test_settings_are_of_the_class_that_their_name_chooses(base, kind, name):
    chosen = from_dict(base, {"name": name})
    assert isinstance(chosen, base) and type(chosen) is not base and type(from_dict(type(chosen), {})) is type(chosen)
    with pytest.raises(MmsslError, match=f"the {kind}'s settings need a 'name', one of: .*{name}"):
        from_dict(base, {})
    with pytest.raises(MmsslError, match=f"unknown {kind} '{name}x': did you mean '{name}'"):
        from_dict(base, {"name": f"{name}x"})
