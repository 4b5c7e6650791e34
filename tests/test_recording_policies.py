"""`mmssl record` from the state alone and with policies of runs: the episodes are those of the policies' own worlds."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mmssl.control.base import Spaces, create_algorithm
from mmssl.control.loop import train
from mmssl.control.rl_config import RLConfig
from mmssl.control.saving import load_policy, save_policy
from mmssl.control.td3 import TD3Config
from mmssl.control.worlds import make_world
from mmssl.envs.vector import make_vec
from mmssl.errors import MmsslError
from mmssl.recording import record
from mmssl.training.checkpoint import RunFolder

h5py = pytest.importorskip("h5py")
minari = pytest.importorskip("minari")
pytest.importorskip("mujoco")

CHEETAH, PENDULUM, DRAWER = "gym/HalfCheetah-v5", "gym/Pendulum-v1", "metaworld/drawer-open"
QUIET = {"pictures": False, "quiet": True}


def save_one(folder, task, seed=1):
    """A run whose policy has learned nothing."""
    config = RLConfig(TD3Config(hidden=(8,), capacity=10), task=task).resolved()
    world = make_world(config, 1, 0)
    spaces = Spaces(**world.spaces())
    world.close()
    save_policy(folder / "export", create_algorithm(config.algorithm, spaces, seed).policy(), config, spaces, None, 123)
    return folder


def read(folder):
    """Arrays and attributes of each episode, and the metadata."""
    with h5py.File(folder / "data/main_data.hdf5") as file:
        episodes = [_episode(file[name]) for name in file]
    return episodes, json.loads((folder / "data/metadata.json").read_text())


def _episode(group):
    arrays = {}
    group.visititems(lambda name, item: arrays.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return arrays, dict(group.attrs)


def assert_same(one, other):
    """The same episodes, all arrays of the first one."""
    for (arrays, _), (others, _) in zip(read(one)[0], read(other)[0], strict=True):
        for name, value in arrays.items():
            np.testing.assert_array_equal(value, others[name], err_msg=name)


@pytest.mark.needs_pictures
def test_pictures_change_nothing_else(tmp_path):
    both = {"episodes": 2, "steps": 25, "noise": 0.1, "quiet": True}
    (blind,) = record((DRAWER,), pictures=False, out=tmp_path / "blind", **both)
    (seeing,) = record((DRAWER,), size=(16, 16), out=tmp_path / "seeing", **both)
    assert_same(blind, seeing)
    assert not any(name.startswith(("observations/rgb", "infos/camera")) for name in read(blind)[0][0][0])


def test_no_opengl_is_imported(tmp_path):
    lines = (
        "import sys; from mmssl.recording import record",
        f"tasks, where = {(DRAWER, 'dmc/cartpole-swingup')}, {str(tmp_path)!r}",
        "record(tasks, episodes=1, steps=4, pictures=False, quiet=True, out=where)",
        "assert not [name for name in sys.modules if name.startswith('OpenGL')], 'OpenGL is there'",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_minari_loads_states(tmp_path, monkeypatch):
    record((DRAWER,), episodes=2, steps=5, tag="short", out=tmp_path, **QUIET)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    dataset = minari.load_dataset("mmssl/metaworld/drawer-open-short-v0")
    env = dataset.recover_environment()
    seen, _ = env.reset(seed=0)
    assert len(list(dataset.iterate_episodes())) == 2
    assert env.observation_space == dataset.observation_space and seen in env.observation_space


@pytest.mark.parametrize(("task", "most"), [(CHEETAH, 1.0), (PENDULUM, 2.0)])
def test_a_policy_acts_as_in_its_own_world(task, most, tmp_path):
    run = save_one(tmp_path / "run", task)
    (folder,) = record((task,), policy=(str(run),), episodes=1, steps=30, out=tmp_path, **QUIET)
    ((episode, about),), _ = read(folder)
    policy, world = load_policy(run).policy, make_vec(task, 1)
    obs, _ = world.reset_all(lambda _: int(about["seed"]))
    for t in range(30):
        np.testing.assert_array_equal(episode["observations/state"][t], obs["state"][0])
        action = policy.act(obs)
        np.testing.assert_array_equal(episode["actions"][t], np.float32(most) * action[0])
        obs, reward, *_ = world.step(action)
        assert episode["rewards"][t] == np.float32(reward[0])


def test_policies_take_turns(tmp_path):
    run = save_one(tmp_path / "run", CHEETAH)
    mixed = {"policy": ("random", str(run), "smooth"), "steps": 6, "noise": 0.1}
    (one,) = record((CHEETAH,), episodes=4, out=tmp_path / "one", **mixed, **QUIET)
    (two,) = record((CHEETAH,), episodes=4, workers=2, out=tmp_path / "two", **mixed, **QUIET)
    assert_same(one, two)
    episodes, metadata = read(one)
    names = [about["policy"] for _, about in episodes]
    assert names[::2] == ["random", "smooth"] and names[3] == "random" and names[1].startswith("td3 on gym/Half")
    assert metadata["policy"] == names[:3]
    (alone,) = record((CHEETAH,), episodes=1, policy="random", steps=6, noise=0.1, out=tmp_path / "alone", **QUIET)
    np.testing.assert_array_equal(read(alone)[0][0][0]["actions"], episodes[0][0]["actions"])


def test_other_weights_do_not_extend_a_recording(tmp_path):
    run = save_one(tmp_path / "run", CHEETAH)
    options = {"policy": (str(run),), "steps": 3, "out": tmp_path, **QUIET}
    record((CHEETAH,), episodes=1, **options)
    run.rename(tmp_path / "moved")
    options["policy"] = (str(tmp_path / "moved"),)
    (folder,) = record((CHEETAH,), episodes=2, **options)  # the same weights elsewhere
    assert len(read(folder)[0]) == 2
    save_one(tmp_path / "moved", CHEETAH, seed=2)
    with pytest.raises(MmsslError, match=r"other settings \(policy 'td3 on .*123 steps"):
        record((CHEETAH,), episodes=3, **options)


def test_a_run_keeps_its_stages(tmp_path):
    config = RLConfig(
        TD3Config(hidden=(8,), capacity=100, random_steps=4, batch_size=4), task=PENDULUM, steps=20, eval_episodes=1,
        policies_every=8, eval_every=20,
    )  # fmt: skip
    run = RunFolder(tmp_path / "run")
    run.start()
    train(config, run, quiet=True)
    assert [p.name for p in sorted((run.path / "policies").iterdir())] == ["00000008", "00000016"]
    assert load_policy(f"{run.path}@8").steps == 8 and load_policy(run.path).steps == 20
    with pytest.raises(MmsslError, match="no policy of 9 steps: it has those of 8, 16"):
        record((PENDULUM,), policy=(f"{run.path}@9",), out=tmp_path, **QUIET)
    (folder,) = record((PENDULUM,), policy=(f"{run.path}@16",), episodes=1, out=tmp_path, **QUIET)
    (((episode, _),), metadata) = read(folder)
    assert episode["actions"].shape == (200, 1) and ", 16 steps, " in metadata["policy"]
    assert episode["truncations"][-1] and not episode["terminations"].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": True}, "--no-pictures leaves nothing"),
        ({"randomize": 0.5}, "--no-pictures leaves nothing"),
        ({"policy": ("smoth",)}, "did you mean 'smooth'.*RUN@STEPS"),
        ({"policy": ("tests",)}, "tests holds no policy"),
    ],
)
def test_wrong_input(options, words, tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MmsslError, match=words):
        record((CHEETAH,), out=tmp_path, **options, **QUIET)


def test_a_policy_of_another_world_says_so(tmp_path):
    run = save_one(tmp_path / "run", PENDULUM)
    with pytest.raises(MmsslError, match="3 numbers as its state, and gym/HalfCheetah-v5 has 17"):
        record((CHEETAH,), policy=(str(run),), out=tmp_path, **QUIET)


@pytest.mark.needs_pictures
def test_a_task_without_a_world_has_no_pictures(tmp_path):
    with pytest.raises(MmsslError, match=r"no MuJoCo world to draw.*--no-pictures"):
        record((PENDULUM,), out=tmp_path, quiet=True)
