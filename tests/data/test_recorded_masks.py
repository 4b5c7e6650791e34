"""Recorded episodes as labelled videos: which objects are tracked, and their ids."""

import json

import numpy as np
import pytest

from mmssl.data.recorded_masks import ObjectRule, recorded_sequences
from mmssl.data.sequences import open_sequences
from mmssl.errors import MmsslError

NAMES = ["floor", "arm#0", "arm#1", "cup", "lamp", "speck", "big wall"]


def scene(times: int = 7) -> np.ndarray:
    """Geom ids (T, 20, 20): an arm of two geoms moves, so does a cup and, far off, a speck; a lamp stands still."""
    ids = np.full((times, 20, 20), -1, np.int16)
    for t in range(times):
        ids[t, 14:], ids[t, :, 18:] = 0, 6  # the floor covers 30 % of the frame
        ids[t, 2 + t : 5 + t, 2:6], ids[t, 5 + t : 7 + t, 2:6] = 1, 2
        ids[t, 3, 7 + t : 10 + t] = 3
        ids[t, 8:10, 14:17] = 4
        ids[t, t, 0] = 5
    return ids


@pytest.fixture
def folder(record):
    """A recording of 5 episodes whose segmentation is `scene`."""
    import h5py

    where = record(episodes=5, size=20)
    with h5py.File(where / "data/main_data.hdf5", "a") as file:
        for episode in range(5):
            path = f"episode_{episode}/observations/segmentation/front"
            del file[path]
            file[path] = scene()
    return name_geoms(where, NAMES)


def name_geoms(where, names):
    file = where / "data/metadata.json"
    metadata = json.loads(file.read_text())
    metadata["mmssl"]["geoms"] = names
    file.write_text(json.dumps(metadata))
    return where


def test_moving_objects_are_bodies_in_the_order_of_their_size(folder):
    (video,) = recorded_sequences(folder, rule=ObjectRule(min_share=0.005))
    assert video.name == "metaworld/reach/4" and len(video) == 7  # the held-out one
    assert video.classes == ("background", "arm", "cup")
    found, geoms = video.labels(3), scene()[3]
    assert found.dtype == np.uint8 and np.array_equal(found == 1, (geoms == 1) | (geoms == 2))
    assert np.array_equal(found == 2, geoms == 3) and set(np.unique(found)) == {0, 1, 2}
    assert np.array_equal(video.frame(3), np.asarray(video.file.column(4, "rgb/front")[3]))


def test_the_rule_is_what_it_says(folder):
    def objects(**rule):
        return recorded_sequences(folder, rule=ObjectRule(**{"min_share": 0.005, **rule}))[0].classes[1:]

    assert objects(min_share=0) == ("arm", "cup", "speck")
    assert objects(most=1) == ("arm",)
    assert objects(still=1.1) == ("arm", "lamp", "cup")  # what stands still is kept; floor and wall never are
    assert objects(max_share=0.02) == ("cup",)
    name_geoms(folder, ["ground", "a", "b", "c", "d", "e", "sky"])
    assert objects() == ("a", "b", "c")  # geoms with names of their own stand alone
    name_geoms(folder, [])
    assert objects() == ("geom 1", "geom 2", "geom 3")


def test_splits_and_cameras(folder):
    assert [v.episode for v in recorded_sequences(folder, "train")] == [0, 1, 2, 3]
    assert len(recorded_sequences(folder, "all")) == 5 and len(recorded_sequences(folder, "val")) == 1
    assert open_sequences("metaworld/reach").name == "metaworld/reach-v0"
    assert open_sequences(folder.parent.parent).layout == "recorded"  # recordings lie somewhere below
    with pytest.raises(MmsslError, match=r"camera with a segmentation 'side'.*front"):
        recorded_sequences(folder, camera="side")


def test_a_recording_without_segmentation_or_motion_says_so(folder):
    import h5py

    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        for episode in range(5):
            file[f"episode_{episode}/observations/segmentation/front"][:] = scene()[0]
    with pytest.raises(MmsslError, match="an object that moves"):
        open_sequences(folder)
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        for episode in range(5):
            del file[f"episode_{episode}/observations/segmentation"]
    with pytest.raises(MmsslError, match=r"no segmentation.*mmssl record metaworld/reach --segmentation"):
        open_sequences(folder)


@pytest.mark.parametrize("wrong", [{"most": 0}, {"min_share": 0.3}, {"max_share": 1.5}])
def test_wrong_rules(wrong):
    with pytest.raises(MmsslError):
        ObjectRule(**wrong)
