"""Episodes of Minari datasets, ours and others': read, written, refused."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mmssl import open_dataset
from mmssl.data.trajectory_files import Trajectory, read_minari
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.data.trajectory_writing import write_trajectories
from mmssl.errors import MmsslError

sys.path.append(str(Path(__file__).parent))  # tests are imported from their files, not as a package

from trajectory_toys import episode, write_toys


def same(one: Trajectory, other: Trajectory) -> bool:
    pairs = [(one.arrays, other.arrays), (one.last, other.last)]
    equal = all(a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in pairs)
    return equal and (one.task, one.terminated, one.success) == (other.task, other.terminated, other.success)


def foreign(root: Path, observations, steps: int = 3, actions=None) -> Path:
    """A dataset as others write it: `observations` is an array or a (nested) dict of arrays of steps + 1 rows."""
    data = root / "mujoco" / "hopper" / "medium-v0" / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for e in range(2):
            group = file.create_group(f"episode_{e}")
            _put(group, "observations", observations)
            _put(group, "actions", np.full((steps, 2), e, np.float64) if actions is None else actions)
            group["rewards"] = np.arange(steps, dtype=np.float64)
            group["terminations"], group["truncations"] = np.zeros((2, steps), bool)
    (data / "metadata.json").write_text(json.dumps({"dataset_id": "mujoco/hopper/medium-v0"}))
    return data.parent


def _put(group, name, values):
    if isinstance(values, dict):
        for key, x in values.items():
            _put(group.require_group(name), key, x)
    else:
        group[name] = values


def test_what_is_written_is_read_again(tmp_path):
    episodes = [episode(0, 4, ended=True), episode(1, 2)]
    episodes[1] = Trajectory(**{**vars(episodes[1]), "success": True})
    folder = write_trajectories(tmp_path, episodes, "own/toy-v0", control_hz=25)
    found = read_minari(folder)
    assert found.control_hz == 25 and found.task == "own/toy" and found.cameras == ()
    assert all(same(one, other) for one, other in zip(episodes, found.episodes, strict=True))
    assert found.episodes[0].total == pytest.approx(episodes[0].arrays["reward"].sum(), rel=1e-5)


def test_minari_opens_what_is_written(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_toys(tmp_path, (4, 2))
    dataset = minari.load_dataset("own/toy-v0")
    assert dataset.total_episodes == 2 and dataset.total_steps == 6
    for ours, theirs in zip([episode(0, 4), episode(1, 2)], dataset.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(theirs.observations["state"][:-1], ours.arrays["state"])
        np.testing.assert_array_equal(theirs.observations["state"][-1], ours.last["state"])
        np.testing.assert_array_equal(theirs.actions, ours.arrays["action"])
        assert theirs.truncations.tolist() == [False] * (len(ours) - 1) + [True] and not theirs.terminations.any()
        assert dataset.observation_space["state"].contains(theirs.observations["state"][0])


@pytest.mark.filterwarnings("ignore")  # of a data set without an author
def test_we_read_what_minari_itself_writes(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    import gymnasium as gym
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    draw, buffers = np.random.default_rng(0), []
    for number in range(3):
        seen, done = draw.normal(size=(6, 3)), draw.normal(size=(5, 1))
        ends = {"terminations": [False] * 5, "truncations": [False] * 4 + [True]}
        buffers.append(EpisodeBuffer(number, observations=seen, actions=done, rewards=[1.0] * 5, infos={}, **ends))
    spaces = {name: gym.spaces.Box(-9, 9, (n,), np.float64) for name, n in (("observation", 3), ("action", 1))}
    minari.create_dataset_from_buffers(
        "classic/line/random-v0",
        buffers,
        observation_space=spaces["observation"],
        action_space=spaces["action"],
    )
    data = open_dataset(str(tmp_path / "classic/line/random-v0"), split="all", trajectory=TrajectorySampling(5))
    assert data.widths == {"state": 3, "action": 1, "return": 1} and data.tasks == ["classic/line/random-v0"]
    batch = data.fetch(torch.arange(3))
    for place, theirs in enumerate(minari.load_dataset("classic/line/random-v0").iterate_episodes()):
        np.testing.assert_allclose(batch["state"][place], theirs.observations[:-1], rtol=1e-6)
        np.testing.assert_allclose(batch["action"][place], theirs.actions, rtol=1e-6)


def test_observations_of_others(tmp_path):
    flat = np.arange(8, dtype=np.float64).reshape(4, 2)
    found = read_minari(foreign(tmp_path / "flat", flat))
    assert found.task == "mujoco/hopper/medium-v0" and found.control_hz is None
    assert found.episodes[0].arrays["state"].dtype == np.float32 and found.episodes[0].last["state"].tolist() == [6, 7]
    goal = {"observation": flat, "achieved_goal": flat[:, :1] + 100, "picture": np.zeros((4, 8, 8, 3), np.uint8)}
    nested = {**goal, "more": {"deep": flat}}
    found = read_minari(foreign(tmp_path / "dict", nested)).episodes[1]
    assert found.arrays["state"].tolist() == [[100, 0, 1], [102, 2, 3], [104, 4, 5]]  # by name; of the dict's vectors
    discrete = read_minari(foreign(tmp_path / "discrete", np.arange(4), actions=np.array([1, 0, 2]))).episodes[0]
    assert discrete.arrays["state"].tolist() == [[0], [1], [2]] and discrete.arrays["action"].tolist() == [
        [1],
        [0],
        [2],
    ]
    with pytest.raises(MmsslError, match="has no camera at all; record it with pictures, or set trajectory"):
        open_dataset(foreign(tmp_path / "blind", flat), split="all")


def test_clean_actions_and_several_to_a_step(tmp_path):
    folder = write_toys(tmp_path, (3,))
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
        file["episode_0/infos/policy_action"] = -np.arange(16, dtype=np.float32).reshape(4, 2, 2)
    assert read_minari(folder).episodes[0].arrays["action"].tolist() == np.arange(12).reshape(3, 4).tolist()
    assert read_minari(folder, clean_actions=True).episodes[0].arrays["action"][0].tolist() == [-4, -5, -6, -7]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(tmp_path, value):
    folder = write_toys(tmp_path, (3, 6))
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        file["episode_1/observations/state"][4, 1] = value
    with pytest.raises(MmsslError, match=r"state of .* episode 1 holds NaN or .* in 1 steps, first at step 4; mend"):
        read_minari(folder)
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        file["episode_1/observations/state"][4, 1] = 0
        file["episode_1/observations/state"][6, 1] = value
    with pytest.raises(MmsslError, match="first at step 6"):  # what was seen after the last step
        read_minari(folder)


def test_damaged_files(tmp_path):
    folder = write_toys(tmp_path, (3,))
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        state = file["episode_0/observations/state"][:2]
        del file["episode_0/observations/state"]
        file["episode_0/observations/state"] = state
    with pytest.raises(MmsslError, match="has 2 rows for 3 actions"):
        read_minari(folder)
    (folder / "data/main_data.hdf5").write_bytes(b"nothing")
    with pytest.raises(MmsslError, match="cannot be read"):
        read_minari(folder)
    (folder / "data/metadata.json").unlink()
    with pytest.raises(MmsslError, match=r"metadata.json cannot be read .* part of every Minari dataset"):
        read_minari(folder)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(MmsslError, match="no trajectory to write"):
        write_trajectories(tmp_path, [], "own/toy-v0")
    other = episode(1, 2)
    other.arrays["state"] = np.zeros((2, 7), np.float32)
    with pytest.raises(
        MmsslError, match=r"'state': 3.* of episode 0 and .*'state': 7.* of episode 1; write them apart"
    ):
        write_trajectories(tmp_path, [episode(0, 2), other], "own/toy-v0")
    bare = episode(0, 2)
    del bare.arrays["action"]
    with pytest.raises(MmsslError, match="a trajectory needs action and reward"):
        write_trajectories(tmp_path, [bare], "own/toy-v0")
    write_toys(tmp_path, (2,))
    with pytest.raises(MmsslError, match="is there already; delete it, or write to another id"):
        write_toys(tmp_path, (3,))
    assert len(read_minari(tmp_path / "own/toy-v0").episodes[0]) == 2
