"""LeRobot v3 folders as windows of trajectories: numbers from parquet, frames from mp4, wrong input."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl import open_dataset
from mmssl.data.clips import ClipSampling
from mmssl.data.lerobot import is_lerobot, read_lerobot
from mmssl.data.loading import recognise
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.errors import MmsslError

pytest.importorskip("pyarrow")
sys.path.append(str(Path(__file__).parent))  # tests are imported from their files, not as a package

from lerobot_toys import TASKS, write_lerobot
from trajectory_toys import write_toys
from video_toys import frame_number


def test_numbers_are_those_of_the_files(tmp_path):
    folder = write_lerobot(tmp_path / "toy", cameras=False)
    assert recognise(folder) == ("lerobot", [folder], None)
    found = read_lerobot(folder)
    assert found.control_hz == 10 and found.cameras == () and [len(e) for e in found.episodes] == [7, 3, 5]
    assert [e.task for e in found.episodes] == [TASKS[0], TASKS[1], TASKS[0]]
    assert [e.success for e in found.episodes] == [False, True, False]
    for number, e in enumerate(found.episodes):
        assert e.arrays["state"].tolist() == e.arrays["proprio"].tolist() == [[number, t] for t in range(len(e))]
        np.testing.assert_array_equal(e.arrays["action"], e.arrays["state"] + 0.5)
        assert e.arrays["reward"][:, 0].tolist() == list(range(len(e))) and not e.last and not e.terminated


def test_windows_and_frames(tmp_path):
    """The last episode lies in files of its own, and the others one after the other in one."""
    folder = write_lerobot(tmp_path / "toy")
    sampling = TrajectorySampling(3, ("state", "action", "return", "video"), returns="sum")
    for cache in ("none", "memory"):
        data = open_dataset(folder, split="all", trajectory=sampling, cache=cache)
        assert len(data) == 5 + 1 + 3 and data.image_size == (48, 64) and data.tasks == list(TASKS)
        batch = data.fetch(torch.arange(len(data)))
        first = [0, 1, 2, 3, 4, 7, 10, 11, 12]
        spelt = [[frame_number(x) for x in window] for window in batch["video"].permute(0, 1, 3, 4, 2).numpy()]
        assert spelt == [[n, n + 1, n + 2] for n in first]
        assert batch["state"][6, :, 1].tolist() == [0, 1, 2] and batch["return"][5, :, 0].tolist() == [3, 3, 2]
    named = open_dataset(folder, split="test", trajectory=TrajectorySampling(9, ("video/top",)), image_size=24)
    batch = named.fetch(torch.tensor([0]))  # the last episode, shorter than the window
    assert batch["video/top"].shape == (1, 9, 3, 24, 24) and batch["valid"].sum() == 5
    assert not batch["video/top"][0, 5:].any()
    with pytest.raises(MmsslError, match="unknown camera 'tip': did you mean 'top'"):
        open_dataset(folder, trajectory=TrajectorySampling(2, ("video/tip",)))


def test_without_settings_it_gives_states_and_actions(tmp_path):
    data = open_dataset(write_lerobot(tmp_path / "toy", cameras=False), split="all")
    assert data.widths == {"state": 2, "action": 2} and data.sampling.length == 4


def test_the_environment_is_part_of_the_state_and_not_of_the_robots_own(tmp_path):
    extra = np.arange(15, dtype=np.float32).reshape(15, 1)
    folder = write_lerobot(tmp_path / "toy", cameras=False, **{"observation.environment_state": list(extra)})
    e = read_lerobot(folder).episodes[1]
    assert e.arrays["state"].tolist() == [[1, 0, 7], [1, 1, 8], [1, 2, 9]] and e.arrays["proprio"].shape == (3, 2)


def test_lerobot_and_minari_are_joined(tmp_path):
    other = write_toys(tmp_path, (4, 4), control_hz=10)
    folder = write_lerobot(tmp_path / "toy", cameras=False)
    data = open_dataset([folder, other], split="all", trajectory=TrajectorySampling(2, ("action",)))
    assert data.tasks == [*TASKS, "own/toy"] and len(data.episodes) == 5


def test_wrong_folders(tmp_path, caplog):
    with pytest.raises(MmsslError, match=r"version v2.1, and v3.0 is read; convert it"):
        read_lerobot(write_lerobot(tmp_path / "old", cameras=False, version="v2.1"))
    state = np.zeros((15, 2), np.float32)
    state[8, 1] = np.nan
    bad = write_lerobot(tmp_path / "nan", cameras=False, **{"observation.state": list(state)})
    with pytest.raises(MmsslError, match=r"state of .* episode 1 holds NaN .* first at step 1; mend the data"):
        read_lerobot(bad)
    part = write_lerobot(tmp_path / "part", cameras=False)
    with caplog.at_level(logging.WARNING, "mmssl.data"):
        read_lerobot(part)
    assert not caplog.records
    (part / "data/chunk-000/file-001.parquet").unlink()
    with pytest.raises(MmsslError, match=r"episode 2 has 0 of its 5 steps below .*; load it again"):
        read_lerobot(part)
    (part / "data/chunk-000/file-001.parquet").write_bytes(b"cut off")
    with pytest.raises(MmsslError, match=r"file-001.parquet cannot be read"):
        read_lerobot(part)
    with pytest.raises(MmsslError, match="windows of trajectories are no clips: set clip to null"):
        open_dataset(part, clip=ClipSampling())
    (part / "meta/info.json").write_text("{}")
    assert not is_lerobot(part)
    with pytest.raises(MmsslError, match=r"info.json cannot be read .*part of every LeRobot"):
        read_lerobot(part)


def test_statistics_of_other_data_are_told(tmp_path, caplog):
    folder = write_lerobot(tmp_path / "toy", cameras=False)
    (folder / "meta/stats.json").write_text(json.dumps({"action": {"mean": [9.0, 9.0]}}))
    with caplog.at_level(logging.WARNING, "mmssl.data"):
        read_lerobot(folder)
    assert "is not of its data (the mean action is [9.0, 9.0] there" in caplog.text


def test_a_missing_video_costs_its_windows(tmp_path):
    folder = write_lerobot(tmp_path / "toy")
    (folder / "videos/observation.images.top/chunk-000/file-001.mp4").unlink()
    data = open_dataset(folder, split="all", trajectory=TrajectorySampling(3, ("video",)), max_bad=0.5)
    batch = data.fetch(torch.tensor([8]))
    assert batch["index"].tolist() == [0] and "episode 2 step 2" in next(iter(data.bad.names))
