"""Windows of trajectories: they return what was stored, padding, statistics, shares of the episodes, wrong input."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmssl import open_dataset
from mmssl.data.loader import Loader
from mmssl.data.loading import DataConfig
from mmssl.data.returns import returns_to_go
from mmssl.data.trajectories import TrajectoryWindows
from mmssl.data.trajectory_files import TrajectoryFile
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError

sys.path.append(str(Path(__file__).parent))  # tests are imported from their files, not as a package

from trajectory_toys import episode, slow_windows, write_toys

ALL = ("state", "proprio", "action", "reward", "return")


def windows(episodes, split="all", task="own/toy", hz=None, **sampling) -> TrajectoryWindows:
    file = TrajectoryFile(Path("toy"), task, hz, episodes)
    return TrajectoryWindows("toy", [file], DataConfig(split=split, trajectory=TrajectorySampling(**sampling)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from(["pad", "skip"]),
)
def test_windows_return_what_was_stored(lengths, length, stride, short):
    episodes = [episode(k, n) for k, n in enumerate(lengths)]
    expected = slow_windows(episodes, length, stride, short)
    if not expected:
        return
    data = windows(episodes, length=length, stride=stride, short=short, modalities=ALL, returns="sum")
    assert len(data) == len(expected)
    batch = data.fetch(torch.arange(len(data)))
    assert batch["index"].tolist() == list(range(len(data)))
    for row, (place, first, steps) in enumerate(expected):
        arrays = dict(episodes[place].arrays)
        arrays["return"] = returns_to_go(arrays["reward"], "sum")
        assert batch["valid"][row].tolist() == [True] * steps + [False] * (length - steps)
        assert data.sample_name(row) == f"episode {place} step {first}" and data.groups[row] == place
        for name in ALL:
            found = batch[name][row]
            assert found.dtype == torch.float32 and found.shape == (length, data.widths[name])
            np.testing.assert_array_equal(found[:steps], arrays[name][first : first + steps])
            assert not found[steps:].any()


def test_any_order_gives_the_same_rows_and_workers_too():
    data = windows([episode(k, n) for k, n in enumerate((3, 9, 5, 2))], length=4)
    whole = data.fetch(torch.arange(len(data)))
    order = torch.tensor([4, 0, 4, 7])
    some = pickle.loads(pickle.dumps(data)).fetch(order)
    assert all(torch.equal(some[key], whole[key][order]) for key in whole)
    assert torch.equal(data[3]["state"], whole["state"][3])
    pool = Loader(data, 3, workers=2, augmentation=Augmentation())
    for one, other in zip(Loader(data, 3).epoch(1), pool.epoch(1), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    pool.close()


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 40), st.floats(0.05, 1), st.floats(0.05, 1))
def test_a_smaller_share_is_a_part_of_every_larger_one(n, one, other):
    episodes = [episode(k, 3) for k in range(n)]
    small, large = (windows(episodes, "train", fraction=share) for share in sorted((one, other)))
    assert set(small.numbers) <= set(large.numbers)
    held = windows(episodes, "train").numbers
    assert len(large.numbers) == max(1, round(max(one, other) * len(held))) and set(large.numbers) <= set(held)
    test = windows(episodes, "test", fraction=min(one, other))
    assert set(test.numbers) == set(range(n)) - set(held)  # what is judged is always the same


def test_statistics_are_of_the_steps_of_training_alone():
    episodes = [episode(k, n) for k, n in enumerate((1, 7, 3, 2, 9))]  # the last is held out
    expected = np.concatenate([e.arrays["state"] for e in episodes[:4]]).astype(np.float64)
    for split in ("train", "test"):  # padding counts nothing
        mean, std = windows(episodes, split, length=5).statistics("state")
        assert mean.dtype == torch.float64
        np.testing.assert_allclose(mean, expected.mean(0))
        np.testing.assert_allclose(std, expected.std(0))
    least, most = windows(episodes, "train").range_of("action")
    assert least.tolist() == [1, 1] and most.tolist() == [31, 61]
    data = windows(episodes, "train")
    assert [t.episode for t in data.episodes_of("test")] == [4] and len(data.episodes_of("all")) == 5


def test_half_of_the_episodes_without_their_actions():
    episodes = [episode(k, 4) for k in range(20)]
    data = windows(episodes, "train", without_action=0.5)
    batch = data.fetch(torch.arange(len(data)))
    lost = ~batch["present/action"]
    assert lost.sum() == 8 and not batch["action"][lost].any() and batch["action"][~lost].all()
    assert batch["state"][lost][:, 1:].any(-1).all() and "present/state" not in batch
    np.testing.assert_allclose(data.statistics("action")[0], batch["action"][~lost].flatten(0, 1).mean(0))
    assert data.lacks == ("action",)
    assert "present/action" not in windows(episodes, "test", without_action=0.5).fetch(torch.tensor([0]))
    again = windows(episodes, "train", without_action=0.5).fetch(torch.arange(len(data)))
    assert torch.equal(again["present/action"], batch["present/action"])


def test_recordings_without_a_modality_are_told_apart():
    bare = episode(1, 4)
    del bare.arrays["action"]
    batch = windows([episode(0, 4), bare]).fetch(torch.arange(2))
    assert batch["present/action"].tolist() == [True, False] and not batch["action"][1].any()


def test_tasks_are_labels(tmp_path):
    folders = [write_toys(tmp_path, (4, 4), f"own/{task}-v0", f"own/{task}") for task in ("reach", "push")]
    data = open_dataset(folders, split="all", trajectory=TrajectorySampling(), target="task")
    assert data.classes == data.tasks == ["own/reach", "own/push"] and data.labels().tolist() == [0, 0, 1, 1]
    assert data.fetch(torch.tensor([2]))["label"].tolist() == [1] and data.name == "own/reach+own/push"
    assert data.groups.tolist() == [0, 1, 2, 3]


def test_short_episodes():
    episodes = [episode(0, 2), episode(1, 3)]
    with pytest.raises(MmsslError, match=r"episode 0 has 2 steps, fewer than a window's 3; lower trajectory.length"):
        windows(episodes, length=3, short="error")
    with pytest.raises(MmsslError, match=r"every episode of 'toy' is shorter than a window of 4 .* the longest has 3"):
        windows(episodes, length=4, short="skip")
    assert len(windows(episodes, length=3, short="skip")) == 1 and len(windows(episodes, length=4)) == 2


def test_what_does_not_fit_together(tmp_path):
    plain = [episode(0, 4), episode(1, 4)]
    wide = [episode(0, 4, "own/wide")]
    wide[0].arrays["state"] = np.zeros((4, 5), np.float32)
    files = [TrajectoryFile(Path("a"), "own/toy", 20.0, plain), TrajectoryFile(Path("b"), "own/wide", 20.0, wide)]
    config = DataConfig(split="all", trajectory=TrajectorySampling())
    with pytest.raises(MmsslError, match=r"'state' must have the same dimensions .* {'own/toy': 3, 'own/wide': 5}"):
        TrajectoryWindows("both", files, config)
    folders = [write_toys(tmp_path, (4,), f"own/{n}-v0", f"own/{n}", control_hz=hz) for n, hz in (("a", 20), ("b", 50))]
    with pytest.raises(MmsslError, match=r"different control rates \(own/a 20, own/b 50 steps a second\)"):
        open_dataset(folders, split="all", trajectory=TrajectorySampling())
    with pytest.raises(MmsslError, match=r"no recording of 'toy' has 'reward', there are action, state"):
        windows([_without(episode(0, 4), "reward", "proprio")], modalities=("state", "return"))
    with pytest.raises(MmsslError, match="give one of these, or set trajectory to null"):
        (tmp_path / "pictures").mkdir()
        open_dataset(tmp_path / "pictures", trajectory=TrajectorySampling())


def _without(e, *names):
    for name in names:
        del e.arrays[name]
    return e


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"length": 0}, "length, stride and horizon of trajectories must be 1 or more, got 0"),
        ({"modalities": ("state", "acton")}, "unknown modality of a trajectory 'acton': did you mean 'action'"),
        ({"modalities": ()}, "a trajectory needs at least one modality"),
        ({"modalities": ("state", "state")}, "each modality of a trajectory is named once"),
        ({"modalities": ("features",)}, "write it with `mmssl embed`, and set trajectory.features"),
        ({"fraction": 0.0}, r"fraction must lie in \(0, 1\]"),
        ({"discount": 1.5}, r"discount must lie in \(0, 1\], got 1.5"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(MmsslError, match=message):
        TrajectorySampling(**wrong)
