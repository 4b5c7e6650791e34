"""Pickles of flax trees: arrays come out, objects of the libraries do nothing, anything else is refused unread."""

import builtins
import functools
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.weights.files import read_state

ARRAYS = {
    "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
    "column first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "half": np.ones((2, 2), np.float16),
    "big": np.arange(3, dtype=">f4"),
    "ids": np.arange(4),
    "every other": np.arange(12, dtype=np.float32).reshape(6, 2)[::2],
    "scalar": np.array(7, np.int32),
}

SOURCES = {
    "flax.core.frozen_dict": """
class FrozenDict(dict):
    def __reduce__(self):
        return FrozenDict, (dict(self),)
""",
    "flax.core.slots": """
class Holder:
    __slots__ = ('_dict', '_hash')
""",
    "optax._src.transform": """
class ScaleByAdamState(tuple):
    def __new__(cls, count, mu):
        return tuple.__new__(cls, (count, mu))
    def __getnewargs__(self):
        return tuple(self)
def scale_by_adam(b1):
    def update(grads):
        return b1 * grads
    return update
""",
    "m3ae.model": """
class M3AETrainState:
    pass
class Module:
    def apply(self):
        pass
""",
    "jax._src.array": """
def _reconstruct_array(fun, args, state, aval):
    raise RuntimeError("this is only named")
class Array:
    def __init__(self, value):
        self.value = value
    def __reduce__(self):
        fun, args, state = self.value.__reduce__()
        return _reconstruct_array, (fun, args, state, {'weak_type': False})
""",
}


@pytest.fixture
def libraries(monkeypatch):
    """Modules under the names of flax and its friends, with classes that pickle as theirs do."""
    made = {}
    for name, source in SOURCES.items():
        parts = name.split(".")
        for end in range(1, len(parts)):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        made[name] = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, made[name])
        exec(source, made[name].__dict__)
    return made


def train_state(libraries, params):
    """A checkpoint as M3AE's code saves it: a train state with its optimizer, which is full of functions."""
    optax, model = libraries["optax._src.transform"], libraries["m3ae.model"]
    state = model.M3AETrainState()
    moments = {"params": {"a": np.zeros(3, np.float32)}}
    state.__dict__.update(step=3, apply_fn=model.Module().apply, params=params, tx=optax.scale_by_adam(0.9))
    state.__dict__.update(opt_state=(optax.ScaleByAdamState(np.int32(1), moments),), tokenizer_params=None)
    variant = {"m3ae.model_type": "base", "text_loss_weight": 0.5, "seed": 42, "logging.online": False, "data": None}
    return {"step": 3, "epoch": 1, "variant": variant, "state": state}


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_come_out_as_they_were(tmp_path, protocol):
    path = write(tmp_path / "x.pkl", {"params": {"a": ARRAYS, "b": {"c": np.float32(1), "text": "none"}}}, protocol)
    state, said = read_state(path)
    assert said == {} and set(state) == {f"a.{name}" for name in ARRAYS}
    for name, array in ARRAYS.items():
        wanted = torch.tensor(array.tolist(), dtype=getattr(torch, array.dtype.name))
        assert state[f"a.{name}"].dtype == wanted.dtype and torch.equal(state[f"a.{name}"], wanted)


def test_a_whole_train_state(tmp_path, libraries, monkeypatch):
    cloudpickle = pytest.importorskip("cloudpickle")  # which is what the authors' code writes with
    frozen, jax = libraries["flax.core.frozen_dict"].FrozenDict, libraries["jax._src.array"].Array
    inner = frozen({"kernel": jax(ARRAYS["plain"]), "bias": np.ones(3, np.float32)})
    content = cloudpickle.dumps(train_state(libraries, frozen({"params": frozen({"dense": inner})})))
    (tmp_path / "x.pkl").write_bytes(content)
    for name in SOURCES:  # nothing of it needs to be there
        monkeypatch.delitem(sys.modules, name)
    state, said = read_state(tmp_path / "x.pkl")
    assert set(state) == {"dense.kernel", "dense.bias"}
    assert torch.equal(state["dense.kernel"], torch.from_numpy(ARRAYS["plain"]))
    assert said == {"m3ae.model_type": "base", "text_loss_weight": 0.5, "seed": 42, "logging.online": False}


def test_frozen_dicts_that_pickle_by_their_slots(tmp_path, libraries, monkeypatch):
    holder = libraries["flax.core.slots"].Holder
    holder.__module__, holder.__qualname__ = "flax.core.frozen_dict", "FrozenDict"
    monkeypatch.setattr(libraries["flax.core.frozen_dict"], "FrozenDict", holder)
    tree = holder()
    tree._dict, tree._hash = {"a": ARRAYS["plain"]}, None
    assert set(read_state(write(tmp_path / "x.pkl", {"params": tree}))[0]) == {"a"}


def test_npz(tmp_path):
    arrays = {"params/a/kernel": ARRAYS["plain"], "params/b": ARRAYS["ids"]}
    np.savez(tmp_path / "x.npz", **arrays)
    state, _ = read_state(tmp_path / "x.npz")
    assert set(state) == {"a.kernel", "b"} and torch.equal(state["a.kernel"], torch.from_numpy(ARRAYS["plain"]))
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:100])
    for name in ("objects.npz", "cut.npz"):
        with pytest.raises(MmsslError, match=r"is no \.npz file of plain arrays"):
            read_state(tmp_path / name)


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Call(os.mkdir, "ran"), "mkdir"),
        (Call(builtins.eval, "__import__('os').mkdir('ran')"), "builtins.eval"),
        (Call(builtins.exec, "import os; os.mkdir('ran')"), "builtins.exec"),
        (Call(pickle.loads, pickle.dumps(Call(os.mkdir, "ran"))), "loads"),
        (np.array([Call(os.mkdir, "ran")], dtype=object), "type 'O8'"),
        (np.array(["a"]), "type 'U1'"),
        (np.ones((2, 3, 4)).transpose(1, 0, 2), "in the order 'K'"),
        (torch.ones(2), "torch._utils._rebuild_tensor_v2"),
    ],
    ids=["mkdir", "eval", "exec", "loads", "objects", "strings", "order", "tensor"],
)
def test_what_is_no_array_is_refused_and_not_run(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "x.pkl", {"state": {"params": {"a": np.ones(2), "b": content}}}, protocol=5)
    with pytest.raises(MmsslError, match=rf"holds pickled Python objects \(.*{words}"):
        read_state(path)
    assert not (tmp_path / "ran").exists()


def test_allowed_names_are_never_called(tmp_path, monkeypatch):
    """A call of an allowed name of a library does nothing, whatever that function would do."""
    monkeypatch.chdir(tmp_path)
    calls = [Call(np.save, "ran", np.ones(2)), Call(functools.partial, print, "ran"), Call(getattr, "a", "upper")]
    with pytest.raises(MmsslError, match=r"builtins\.print"):
        read_state(write(tmp_path / "x.pkl", {"params": {"a": np.ones(2), "b": calls}}))
    path = write(tmp_path / "x.pkl", {"params": {"a": np.ones(2), "b": [calls[0], calls[2]]}})
    assert set(read_state(path)[0]) == {"a"} and not list(tmp_path.glob("ran*"))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_cut_short(tmp_path, part):
    whole = pickle.dumps({"params": {"a": np.ones(2000)}}, 5)
    (tmp_path / "x.pkl").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(MmsslError, match="cut short or damaged"):
        read_state(tmp_path / "x.pkl")


@pytest.mark.parametrize("content", [{}, {"params": {}}, [1, 2], {"state": {"params": {"a": 3}}}])
def test_no_arrays_inside(tmp_path, content):
    with pytest.raises(MmsslError, match="holds no weights"):
        read_state(write(tmp_path / "x.pkl", content))
