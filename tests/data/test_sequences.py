"""What a user points at: recognised, joined, or refused in one sentence."""

import pytest
from labelled_toys import write_davis, write_vip

from mmssl.data.sequences import open_sequences
from mmssl.errors import MmsslError


def test_sources_of_one_kind_are_joined(tmp_path):
    a, b = write_davis(tmp_path / "a"), write_davis(tmp_path / "b", ("dog",))
    found = open_sequences([a, b])
    assert [v.name for v in found.videos] == ["bear", "camel", "dog"] and found.name == "a+b"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "no data"),
        (["a", "v"], "different kinds"),
        (["empty"], "no labelled video data"),
        (["a/missing"], "no folder"),
        (["nothing"], "no folder and no dataset card 'nothing'"),
        (["samples"], "kind 'image_folder'"),
    ],
)
def test_wrong_sources_are_one_sentence(tmp_path, monkeypatch, given, words):
    write_davis(tmp_path / "a")
    write_vip(tmp_path / "v")
    (tmp_path / "empty").mkdir()
    here = [tmp_path / name if name not in ("nothing", "samples") else name for name in given]
    with pytest.raises(MmsslError, match=words):
        open_sequences(here)


def test_wrong_strides(tmp_path):
    write_davis(tmp_path)
    with pytest.raises(MmsslError, match="stride"):
        open_sequences(tmp_path, stride=0)
    with pytest.raises(MmsslError, match="2 frames or more"):
        open_sequences(tmp_path, stride=5)


def test_an_unknown_recording_says_how_to_make_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(MmsslError, match="mmssl record metaworld/reach"):
        open_sequences("metaworld/reach")
