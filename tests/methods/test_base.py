"""What every registered method must do. A new method is tested here without an edit, if it takes these settings."""

import copy

import pytest
import torch

import mmssl
from mmssl.errors import MmsslError
from mmssl.methods.base import Method, MethodConfig, default_keys
from mmssl.registry import METHODS


class Bare(Method):
    config_class = MethodConfig


def test_a_bare_method_says_what_it_lacks():
    method = Bare(MethodConfig("bare"))
    with pytest.raises(MmsslError, match="'bare' does not reconstruct"):
        method.reconstruct({})
    assert method.no_decay() == set() and method.after_step(0.5) is None


def test_default_keys_follow_the_index():
    x = torch.zeros(3, 1)
    assert torch.equal(default_keys({"image": x}, ["image"]), default_keys({"image": x}, ["image"]))
    indexed = default_keys({"image": x, "index": torch.tensor([2, 1, 0])}, ["image"])
    assert torch.equal(indexed.flip(0), default_keys({"image": x}, ["image"]))


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_names_its_config(name):
    cls = METHODS.get(name)
    assert issubclass(cls, Method) and issubclass(cls.config_class, MethodConfig)
    assert cls.config_class().name == name and name in mmssl.list_methods()


def test_a_method_is_copied_with_its_weights():
    method = mmssl.create_method("mae", size="custom", dim=16, depth=1, heads=2, image_size=8, patch_size=4)
    twin = copy.deepcopy(method)
    batch = {"image": torch.rand(2, 3, 8, 8)}
    assert torch.equal(twin(batch)["loss"][0], method(batch)["loss"][0])
