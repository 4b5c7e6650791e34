"""JHMDB: its layout, the first official split, joints counted from 0."""

import numpy as np
import pytest
from labelled_toys import joints_of, write_jhmdb
from scipy.io import savemat

from mmssl import open_dataset
from mmssl.data.jhmdb import JOINTS, jhmdb_sequences
from mmssl.data.sequences import open_sequences
from mmssl.errors import MmsslError


def test_videos_of_a_split_and_their_joints(tmp_path):
    root = write_jhmdb(tmp_path)
    (root / "Rename_Images/golf/golf_video_(np2)/.AppleDouble.png").write_bytes(b"")  # lies in the real archive
    videos = jhmdb_sequences(root)
    assert [v.name for v in videos] == ["golf/golf_video_(np2)", "kick_ball/kick_ball_video_(np2)"]
    assert [v.name[-3] for v in jhmdb_sequences(root, "train")] == ["p", "p"] and len(jhmdb_sequences(root, "all")) == 4
    video = videos[0]
    assert video.kind == "keypoints" and video.classes == JOINTS and len(video) == 12
    assert video.frame(11).shape == (64, 96, 3)
    assert video.labels(3).shape == (15, 2) and np.allclose(video.labels(3), joints_of(12)[:, :, 3].T)
    assert np.allclose(video.every(4).labels(2), joints_of(12)[:, :, 8].T)


def test_frames_are_in_the_order_of_their_numbers_and_may_outlast_the_joints(tmp_path):
    root = write_jhmdb(tmp_path)
    folder = root / "Rename_Images/golf/golf_video_(np2)"
    (folder / "00012.png").rename(folder / "100.png")
    savemat(root / "joint_positions/golf/golf_video_(np2)/joint_positions.mat", {"pos_img": joints_of(9) + 1})
    video = jhmdb_sequences(root)[0]
    assert video.frames[-1].name == "100.png"
    assert video.labels(8) is not None and video.labels(9) is None


def test_it_is_recognised_and_has_a_card(tmp_path, monkeypatch):
    monkeypatch.setenv("JHMDB", str(write_jhmdb(tmp_path)))
    assert open_sequences(tmp_path).layout == open_sequences("jhmdb").layout == "jhmdb"
    assert len(open_dataset("jhmdb", split="test")) == 24


def test_what_is_wrong_is_said(tmp_path):
    root = write_jhmdb(tmp_path)
    with pytest.raises(MmsslError, match="split"):
        jhmdb_sequences(root, "dev")
    video, file = jhmdb_sequences(root)[0], root / "joint_positions/golf/golf_video_(np2)/joint_positions.mat"
    savemat(file, {"pos_img": np.zeros((2, 13, 4))})
    with pytest.raises(MmsslError, match=r"\(2, 13, 4\)"):
        video.labels(0)
    file.write_bytes(b"no mat")
    with pytest.raises(MmsslError, match="cannot be read"):
        video.labels(0)
    for split in (root / "splits").glob("*split1.txt"):
        split.unlink()
    with pytest.raises(MmsslError, match="no list"):
        jhmdb_sequences(root)
    assert len(jhmdb_sequences(root, "all")) == 4
    (root / "Rename_Images").rename(root / "Frames")
    with pytest.raises(MmsslError, match="Rename_Images"):
        jhmdb_sequences(root)
