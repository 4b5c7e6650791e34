"""Which decoder is used, and torchcodec's documented interface, of which a stand-in is decoded by PyAV."""

import dataclasses
import importlib.util
import sys
import types

import av
import numpy as np
import pytest
import torch
import video_toys as toys

from mmssl.data import video
from mmssl.data.video import VideoFacts, VideoUnreadable, probe, read_clips
from mmssl.errors import MmsslError


class FakeDecoder:
    """torchcodec's VideoDecoder as its documentation has it, on top of PyAV."""

    def __init__(self, source, *, dimension_order="NCHW", num_ffmpeg_threads=1, seek_mode="exact"):
        assert dimension_order == "NHWC" and num_ffmpeg_threads == 1 and seek_mode == "exact"
        try:
            self._frames = torch.from_numpy(toys.every_frame(source))
        except av.error.InvalidDataError:
            raise RuntimeError(f"Failed to open the input file: {source} Invalid data found") from None
        except IndexError:
            raise ValueError("The best video stream is unknown and there is no specified stream. ") from None
        n, height, width, _ = self._frames.shape
        self.metadata = types.SimpleNamespace(num_frames=n, height=height, width=width, average_fps=30.0)

    def get_frames_at(self, indices):
        assert isinstance(indices, list) and indices == sorted(set(indices))
        return types.SimpleNamespace(data=self._frames[indices])


@dataclasses.dataclass
class FakeMetadata:
    rotation: float | None = None


@pytest.fixture
def torchcodec(monkeypatch):
    """Make a torchcodec importable that has these names; gives a function to change them."""

    def install(**names) -> None:
        module = types.ModuleType("torchcodec.decoders")
        module.__dict__.update({"VideoDecoder": FakeDecoder, "VideoStreamMetadata": FakeMetadata, **names})
        monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
        video._choose_backend.cache_clear()

    monkeypatch.delenv("MMSSL_VIDEO_BACKEND", raising=False)
    yield install
    video._choose_backend.cache_clear()


def test_torchcodec_reads_on_demand(tmp_path, torchcodec, monkeypatch):
    torchcodec()
    assert video.backend() == "pyav"
    monkeypatch.setenv("MMSSL_VIDEO_BACKEND", "torchcodec")
    assert video.backend() == "torchcodec"
    path = toys.write_video(tmp_path / "plain.mp4")
    (frames, resized), facts = read_clips(path, lambda facts: [[9, 2, 2], [2]], (24, 32))
    assert [toys.frame_number(f) for f in frames] == [9, 2, 2] and resized.shape == (1, 24, 32, 3)
    assert facts == probe(path) == VideoFacts(30, 48, 64, 30.0)
    assert np.array_equal(read_clips(path, lambda facts: [[4]])[0][0], toys.every_frame(path)[[4]])
    for make, name, reason in (
        (toys.audio_only, "sound.mp4", "^it has no video stream"),
        (toys.not_a_video, "text.mp4", "^damaged, cut off or not a video"),
        (toys.empty, "empty.mp4", "^the file is empty"),
    ):
        with pytest.raises(VideoUnreadable, match=reason):
            probe(make(tmp_path / name))
    with pytest.raises(VideoUnreadable, match=r"^frame 30 was asked for"):
        read_clips(path, lambda facts: [[30]])


def test_what_torchcodec_cannot_read_pyav_reads(tmp_path, torchcodec, monkeypatch):
    monkeypatch.setenv("MMSSL_VIDEO_BACKEND", "torchcodec")

    class GivesUp(FakeDecoder):
        def get_frames_at(self, indices):
            raise RuntimeError("Requested next frame while there are no more frames left to decode.")

    class Wrong(FakeDecoder):
        def get_frames_at(self, indices):
            return super().get_frames_at([0 for _ in indices])

    for decoder, name in ((GivesUp, "open_groups.mp4"), (Wrong, "plain.avi")):
        torchcodec(VideoDecoder=decoder)
        path = toys.write_video(tmp_path / name, codec="mpeg4")
        (frames,), _ = read_clips(path, lambda facts: [[3, 7]])
        assert [toys.frame_number(frame) for frame in frames] == [3, 7]


def test_torchcodec_that_does_not_work_is_left_alone(torchcodec, monkeypatch):
    def without_pyav():
        raise ImportError("No module named 'av'")

    torchcodec()
    monkeypatch.setattr(video, "_import_av", without_pyav)
    assert video.backend() == "torchcodec"
    torchcodec(
        VideoStreamMetadata=dataclasses.make_dataclass("Old", ["width"])
    )  # before 0.11: pictures lie on their side
    with pytest.raises(MmsslError, match="no video decoder imports here; install PyAV"):
        video.backend()

    class Missing(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("Could not load libtorchcodec")

    monkeypatch.setitem(sys.modules, "torchcodec.decoders", Missing("torchcodec.decoders"))
    monkeypatch.setenv("MMSSL_VIDEO_BACKEND", "torchcodec")
    video._choose_backend.cache_clear()
    with pytest.raises(MmsslError, match="asks for torchcodec, which does not import here"):
        video.backend()


def test_choice_of_the_backend(torchcodec, monkeypatch):
    if importlib.util.find_spec("decord"):  # there is no wheel for ARM
        monkeypatch.setenv("MMSSL_VIDEO_BACKEND", "decord")
        assert video.backend() == "decord"
    monkeypatch.setenv("MMSSL_VIDEO_BACKEND", "opencv")
    with pytest.raises(
        MmsslError, match=r"unknown video backend \(MMSSL_VIDEO_BACKEND\) 'opencv'.*decord, pyav, torchcodec"
    ):
        video.backend()
    monkeypatch.setitem(sys.modules, "decord", None)  # does not import
    monkeypatch.setenv("MMSSL_VIDEO_BACKEND", "decord")
    video._choose_backend.cache_clear()
    with pytest.raises(MmsslError, match="asks for decord, which does not import here; install it or unset this"):
        video.backend()
