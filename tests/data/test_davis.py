"""DAVIS 2017: its layout, its lists, and what is said where something is missing."""

import numpy as np
import pytest
from labelled_toys import sliding, write_davis
from PIL import Image

from mmssl import open_dataset
from mmssl.data.davis import davis_sequences
from mmssl.data.sequences import open_sequences
from mmssl.errors import MmsslError


def test_sequences_of_a_split(tmp_path):
    root = write_davis(tmp_path)
    videos = davis_sequences(root)
    assert [v.name for v in videos] == ["bear", "camel"] and [len(v) for v in videos] == [5, 5]
    assert [v.name for v in davis_sequences(root, "train")] == ["bear"]
    assert [v.name for v in davis_sequences(root, "test")] == ["bear", "camel"]  # val is what figures are published on
    assert len(davis_sequences(root, "all")) == 3
    camel, (frames, ids) = videos[1], sliding(squares=2, seed=1)
    assert camel.kind == "masks" and camel.frame(3).shape == (32, 48, 3)
    assert np.abs(camel.frame(3).astype(int) - frames[3]).mean() < 10
    found = camel.labels(3)
    assert found.dtype == np.uint8 and found[-1, -1] == 255
    assert np.array_equal(found.ravel()[:-1], ids[3].ravel()[:-1])


def test_every_other_frame(tmp_path):
    found = open_sequences(write_davis(tmp_path), stride=2)
    video = found.videos[0]
    assert found.layout == "davis" and len(video) == 3 and list(video.times) == [0, 2, 4]
    assert np.array_equal(video.labels(1), davis_sequences(tmp_path)[0].labels(2))


def test_as_single_frames(tmp_path, monkeypatch):
    monkeypatch.setenv("DAVIS", str(write_davis(tmp_path)))
    dataset = open_dataset("davis-2017", split="test", image_size=16)
    assert len(dataset) == 10 and dataset.groups.tolist() == [0] * 5 + [1] * 5
    assert dataset[7]["image"].shape == (3, 16, 16) and dataset.sample_name(7) == "camel frame 2"
    with pytest.raises(MmsslError, match="single frames"):
        from mmssl.data.clips import ClipSampling

        open_dataset("davis-2017", split="test", clip=ClipSampling())


def remove(path):
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def test_what_is_missing_is_said(tmp_path):
    root = write_davis(tmp_path)
    with pytest.raises(MmsslError, match=r"no list .*test-dev.txt of sequences \(there: train, val\)"):
        davis_sequences(root, "test-dev")
    (root / "Annotations/480p/camel/00000.png").unlink()
    with pytest.raises(MmsslError, match=r"'camel' has no annotation of its first frame \(00000.jpg\)"):
        davis_sequences(root)
    remove(root / "JPEGImages/480p/camel")
    with pytest.raises(MmsslError, match="'camel' has no frames"):
        davis_sequences(root)
    (root / "Annotations").rename(root / "annotations-elsewhere")
    with pytest.raises(MmsslError, match=r"no folder .*Annotations/480p"):
        davis_sequences(root)


def test_damaged_files_are_named(tmp_path):
    video = davis_sequences(write_davis(tmp_path))[0]
    video.frames[1].write_bytes(video.frames[1].read_bytes()[:200])
    with pytest.raises(MmsslError, match=r"00001.jpg of the sequence 'bear' cannot be read"):
        video.frame(1)
    video.masks[1].write_bytes(b"no picture")
    with pytest.raises(MmsslError, match=r"00001.png of the sequence 'bear' cannot be read"):
        video.labels(1)
    Image.new("RGB", (48, 32)).save(video.masks[2])
    with pytest.raises(MmsslError, match="mode RGB"):
        video.labels(2)
