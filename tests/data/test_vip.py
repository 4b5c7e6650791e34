"""VIP: its layout, frames without annotation, and its list of paths."""

import numpy as np
import pytest
from labelled_toys import sliding, write_vip

from mmssl import open_dataset
from mmssl.data.sequences import open_sequences
from mmssl.data.vip import CLASSES, vip_sequences
from mmssl.errors import MmsslError


def test_sequences_and_parts(tmp_path):
    videos = vip_sequences(write_vip(tmp_path))
    assert [v.name for v in videos] == ["videos7", "videos12"] and len(videos[0]) == 4
    assert videos[0].kind == "parts" and videos[0].classes == CLASSES and CLASSES[13] == "face" and len(CLASSES) == 20
    _, ids = sliding(4, seed=1)
    assert np.array_equal(videos[1].labels(1), ids[1] * 13) and videos[1].labels(2) is None


def test_it_is_recognised_and_has_a_card(tmp_path, monkeypatch):
    monkeypatch.setenv("VIP", str(write_vip(tmp_path)))
    assert open_sequences(tmp_path).layout == open_sequences("vip").layout == "vip"
    assert len(open_dataset("vip", split="test")) == 8


def test_what_is_missing_is_said(tmp_path):
    root = write_vip(tmp_path)
    with pytest.raises(MmsslError, match=r"train_videos\.txt"):
        vip_sequences(root, "train")
    (root / "Images").rename(root / "Pictures")
    with pytest.raises(MmsslError, match=r"no folder .*Images"):
        vip_sequences(root)
