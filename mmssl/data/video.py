"""Exact frames of any video file, several clips in one pass: the only place where videos are decoded.

Frame i is the i-th picture in the order in which a player shows them, turned upright, whatever the file says of rates
and durations. A reader lives as long as one call, so everything here may be forked, spawned and pickled.

Three backends give the same frames:
    pyav        where it imports: it brings its own FFmpeg. It decodes from the nearest key packet and leaves out
                pictures that no other one needs, and so is faster than both others
    torchcodec  else, or on demand (it needs FFmpeg's shared libraries, and 0.11 to turn pictures upright). What
                it cannot read, or not exactly (open groups of pictures, AVI, transport streams), PyAV reads if it can
    decord      on demand (MMSSL_VIDEO_BACKEND=decord). decord takes its key frames in the order of the file for places
                in the order of showing: with open groups of pictures, MPEG-4 in AVI and others it silently gives other
                frames than those asked for. It is used for the files of which PyAV's index shows that it cannot err
"""

import functools
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import interpolate

from mmssl.data.video_index import (
    WORTH,
    Index,
    IndexCache,
    Packets,
    VideoFacts,
    VideoUnreadable,
    groups,
    make_index,
    reasons,
    seekable,
)
from mmssl.errors import MmsslError, unknown_name

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["EXTENSIONS", "VideoFacts", "VideoUnreadable", "backend", "is_video", "probe", "read_clips"]

EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv"}
    | {".asf", ".3gp", ".ogv", ".vob", ".mjpeg"}
)
Choose = Callable[[VideoFacts], Sequence[Sequence[int]]]
Size = tuple[int, int] | Callable[[VideoFacts], tuple[int, int] | None] | None

# Codecs whose "non-reference" pictures are never needed by others. In HEVC the word only speaks of one temporal layer.
_SKIPPABLE = {"h264", "mpeg4"}
# Of AVI, transport and programme streams torchcodec 0.11 gives other frames than those asked for.
_EXACT_BY_TORCHCODEC = (".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".flv")
_indices = IndexCache()


class _FactsChanged(Exception):
    """Decoding showed that the facts were others than the file said; the clips must be chosen again."""


def is_video(name: str | os.PathLike) -> bool:
    """True where a file's name ends like a video's."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def backend() -> str:
    """The decoder that is used: "pyav", "torchcodec" or "decord"; the variable MMSSL_VIDEO_BACKEND overrides.

    Raises:
        MmsslError: the variable names none of the three or one that does not import, or neither of the first two does.
    """
    return _choose_backend(os.environ.get("MMSSL_VIDEO_BACKEND", ""))


def probe(path: str | os.PathLike) -> VideoFacts:
    """Number of frames, upright height and width, and mean frames a second. Decodes the first frame.

    Raises:
        VideoUnreadable: as `read_clips`.
    """
    return read_clips(path, lambda facts: [[0]])[1]


def read_clips(path: str | os.PathLike, choose: Choose, size: Size = None) -> tuple[list[np.ndarray], VideoFacts]:
    """Frames of one video for one or several clips: the file is opened once, and no frame is decoded twice.

    Args:
        choose: facts -> the frame numbers of each clip, in any order, repeats allowed. A pure function: it is called
            again where decoding shows other facts (a turned picture, a wrong count).
        size: (H, W) that frames are resized to (bilinear, antialiased) as they are decoded, or a function of the facts
            that gives it; None keeps the video's own.

    Returns:
        uint8 (T, H, W, 3) of each clip, and the facts.

    Raises:
        VideoUnreadable: no such file, an empty one, no video stream, damaged or cut off, or a frame was asked for that
            is not there.
    """
    path = os.fspath(path)
    reader_type = _READERS[backend()]
    with reasons(path, reader_type.errors()), reader_type(path) as reader:
        while True:
            facts = reader.facts
            clips = [np.asarray(clip, np.int64).reshape(-1) for clip in choose(facts)]
            wanted = np.unique(np.concatenate([np.empty(0, np.int64), *clips]))
            _check_numbers(wanted, facts)
            try:
                frames = reader.frames(wanted.tolist(), size(facts) if callable(size) else size)
            except _FactsChanged:
                continue
            return [_deal(frames, wanted, clip, len(clips)) for clip in clips], facts


def _check_numbers(wanted: np.ndarray, facts: VideoFacts) -> None:
    if facts.frames < 1:
        raise VideoUnreadable("no frame of it can be decoded")
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < facts.frames:
        wrong = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise VideoUnreadable(f"frame {wrong} was asked for, it has the frames 0 to {facts.frames - 1}")


def _deal(frames: np.ndarray, wanted: np.ndarray, clip: np.ndarray, clips: int) -> np.ndarray:
    """The frames of one clip out of the decoded ones; without a copy where it is the only one and has them in order."""
    return frames if clips == 1 and np.array_equal(clip, wanted) else frames[np.searchsorted(wanted, clip)]


def _resized(frame: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """uint8 (H, W, 3) at another size. torch's kernel takes half the time of FFmpeg's scaler, and one for all backends
    gives the same pixels."""
    if size is None or frame.shape[:2] == tuple(size):
        return frame
    planes = torch.from_numpy(np.ascontiguousarray(frame))[None].permute(0, 3, 1, 2)  # (1, 3, H, W), channels last
    return interpolate(planes, size=tuple(size), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


def _open_stream(path: str) -> "VideoStream":
    """The first video stream of a file, decoding on one thread."""
    av = _import_av()
    file = av.open(path, metadata_errors="ignore")
    cover = av.stream.Disposition.attached_pic  # the picture of a music file is not a video
    streams = [stream for stream in file.streams.video if not stream.disposition & cover]
    if not streams:
        sound = ", only sound" if file.streams.audio else ""
        file.close()
        raise VideoUnreadable("it has no video stream" + sound)
    if streams[0].codec_context is None:
        raise VideoUnreadable("there is no decoder for its video stream")
    streams[0].codec_context.thread_count = 1  # workers share the cores already
    return streams[0]


class _PyavReader:
    """One open file. `frames` decodes each group of wanted frames from the key packet before it."""

    needs_closed = False  # whether it must be known that no frame leans on both sides of a key packet

    @staticmethod
    def errors() -> tuple[type[Exception], ...]:
        return _import_av().error.FFmpegError, OSError

    def __init__(self, path: str):
        self._av = _import_av()
        self._path, self._key = path, IndexCache.key(path)
        self._to_rgb = self._av.video.reformatter.VideoReformatter()
        self._packets = Packets(functools.partial(_open_stream, path))
        index = _indices.get(self._key)
        if index is None or (self.needs_closed and index.closed is None):
            index = make_index(self._packets, whole=self.needs_closed)
            index = index if index.facts.frames else self._counted(index)
        self._remember(index)

    def __enter__(self) -> "_PyavReader":
        return self

    def __exit__(self, *_) -> None:
        self._packets.close()

    @property
    def facts(self) -> VideoFacts:
        return self._index.facts

    def _remember(self, index: Index) -> None:
        self._index = index
        _indices.put(self._key, index)

    def frames(self, wanted: list[int], size: tuple[int, int] | None) -> np.ndarray:
        """uint8 (len(wanted), H, W, 3) of the frames with these numbers, which increase."""
        if not wanted:
            return np.empty((0, *(size or self.facts[1:3]), 3), np.uint8)
        self._rows = {number: row for row, number in enumerate(wanted)}
        self._size, self._out = size, None
        self._decode_groups(wanted) if len(self._index.ranks) else self._decode_all()
        if self._rows and not self._index.counted:  # the file does not keep its promise: take the slow way from now on
            self._remember(self._counted(self._index))
            raise _FactsChanged
        if self._rows:
            raise VideoUnreadable(f"frame {next(iter(self._rows))} of {self.facts.frames} cannot be decoded")
        return self._out

    def _decode_groups(self, wanted: list[int]) -> None:
        with suppress(self._av.error.FFmpegError):  # counting will meet it again, or do without
            reordered = self._packets.stream.codec_context.has_b_frames
            for key, numbers in groups(self._index, wanted, worth=WORTH if reordered else 0):
                self._decode_from(key, numbers)

    def _decode_from(self, key: int, numbers: list[int]) -> None:
        """Decode these frames, beginning with a key packet."""
        packets, order = self._packets.window(self._index, key, numbers[-1])
        rank = self._index.ranks[key]
        times = {order[number - rank]: number for number in numbers if number - rank < len(order)}
        early = [number for time, number in times.items() if time < packets[0].pts]
        if early and key:  # read after the key packet but shown before it: these lean on what lies before it, too
            self._decode_from(key - 1, early)
            times = {time: number for time, number in times.items() if number not in early}
            packets, _ = self._packets.window(self._index, key, numbers[-1])
        last = max((place for place, packet in enumerate(packets) if packet.pts in times), default=-1)
        for frame in self._decoded(packets[: last + 1], times):
            if times.get(frame.pts) in self._rows:
                self._put(times[frame.pts], frame)

    def _decoded(self, packets: list["Packet"], wanted: dict) -> Iterator["VideoFrame"]:
        """Frames of the packets whose times are wanted, and of those that they need."""
        codec = self._packets.stream.codec_context
        unwanted = "NONREF" if codec.codec.canonical_name in _SKIPPABLE else "DEFAULT"
        for packet in packets:
            codec.skip_frame = "DEFAULT" if packet.pts in wanted else unwanted
            yield from codec.decode(packet)
        yield from codec.decode(None)  # what the decoder holds back, waiting for packets that nobody wants
        codec.flush_buffers()

    def _decode_all(self) -> None:
        for number, frame in enumerate(self._every_frame()):
            if number in self._rows:
                self._put(number, frame)
                if not self._rows:
                    return

    def _every_frame(self) -> Iterator["VideoFrame"]:
        self._packets.restart()
        codec = self._packets.stream.codec_context
        while (packet := self._packets.step()) is not None:
            yield from codec.decode(packet)
        yield from codec.decode(None)

    def _counted(self, index: Index) -> Index:
        """The index of a file whose frames can only be found by counting; decodes it once."""
        facts = index.facts._replace(frames=sum(1 for _ in self._every_frame()))
        none = np.empty(0, np.int64)
        return Index(facts, none, none, none, closed=False, turns=index.turns, counted=True)

    def _put(self, number: int, frame: "VideoFrame") -> None:
        """A decoded frame as RGB, upright and at the wanted size, in its row."""
        turns = round(frame.rotation / 90) % 4
        if self._index.turns is None:
            self._learn(turns, frame)
        if frame.is_corrupt:
            raise VideoUnreadable(f"damaged or cut off: frame {number} is not whole")
        height, width = self.facts[1:3] if turns % 2 == 0 else self.facts[2:0:-1]  # also where it changes on the way
        rgb = self._to_rgb.reformat(frame, width, height, "rgb24", threads=1)
        plane = rgb.planes[0]
        lines = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)  # padded
        picture = lines[:, : 3 * width].reshape(height, width, 3)
        picture = _resized(np.rot90(picture, turns) if turns else picture, self._size)
        row = self._rows.pop(number)
        if self._out is None:
            self._out = np.empty((len(self._rows) + 1, *picture.shape), np.uint8)
        self._out[row] = picture

    def _learn(self, turns: int, frame: "VideoFrame") -> None:
        """Only a decoded frame tells that it must be turned, and its true size."""
        height, width = (frame.height, frame.width) if turns % 2 == 0 else (frame.width, frame.height)
        before = self.facts
        self._remember(self._index._replace(facts=before._replace(height=height, width=width), turns=turns))
        if self.facts != before:
            self._packets.restart()
            raise _FactsChanged


class _DecordReader(_PyavReader):
    """decord where it gives the frames that were asked for, else PyAV."""

    needs_closed = True

    def frames(self, wanted: list[int], size: tuple[int, int] | None) -> np.ndarray:
        if wanted and self._index.turns is None:
            super().frames(wanted[:1], None)
        if not wanted or not self._is_exact():
            return super().frames(wanted, size)
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            reader = decord.VideoReader(self._path, num_threads=1)
            frames = reader.get_batch(wanted).asnumpy() if len(reader) == self.facts.frames else None
        except (decord.DECORDError, RuntimeError, AssertionError):  # a codec that it does not know, a very narrow video
            frames = None
        if frames is None:
            return super().frames(wanted, size)
        return frames if size is None else np.stack([_resized(frame, size) for frame in frames])

    def _is_exact(self) -> bool:
        """Closed groups, times that survive seeking, upright; even sizes, as it smooths the colours of odd ones."""
        odd = self.facts.height % 2 or self.facts.width % 2
        return bool(self._index.closed and seekable(self._packets) and not self._index.turns and not odd)


class _TorchcodecReader:
    """torchcodec as it is documented, in its exact mode."""

    @staticmethod
    def errors() -> tuple[type[Exception], ...]:
        return RuntimeError, ValueError, IndexError, OSError

    def __init__(self, path: str):
        from torchcodec.decoders import VideoDecoder

        self._path = path
        try:
            self._decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            if "video stream" in str(error) or "valid stream" in str(error):
                raise VideoUnreadable("it has no video stream") from error
            raise
        about = self._decoder.metadata
        self.facts = VideoFacts(about.num_frames, about.height, about.width, float(about.average_fps or 0))

    def __enter__(self) -> "_TorchcodecReader":
        return self

    def __exit__(self, *_) -> None:
        del self._decoder

    def frames(self, wanted: list[int], size: tuple[int, int] | None) -> np.ndarray:
        """As `_PyavReader.frames`."""
        if not wanted:
            return np.empty((0, *(size or self.facts[1:3]), 3), np.uint8)
        by_pyav = _imports("pyav")
        if by_pyav and not self._path.lower().endswith(_EXACT_BY_TORCHCODEC):
            return self._by_pyav(wanted, size)
        try:
            frames = self._decoder.get_frames_at(wanted).data.numpy()
        except RuntimeError:  # "no more frames left to decode", of open groups of pictures
            if not by_pyav:
                raise
            return self._by_pyav(wanted, size)
        return frames if size is None else np.stack([_resized(frame, size) for frame in frames])

    def _by_pyav(self, wanted: list[int], size: tuple[int, int] | None) -> np.ndarray:
        with _PyavReader(self._path) as reader:
            if reader.facts.frames != self.facts.frames:
                self.facts = reader.facts
                raise _FactsChanged
            return reader.frames(wanted, size)


_READERS = {"torchcodec": _TorchcodecReader, "pyav": _PyavReader, "decord": _DecordReader}


@functools.cache
def _choose_backend(asked: str) -> str:
    if asked and asked not in _READERS:
        raise unknown_name("video backend (MMSSL_VIDEO_BACKEND)", asked, _READERS)
    for name in [asked] if asked else ("pyav", "torchcodec"):
        if _imports(name):
            return name
    if asked:
        raise MmsslError(f"MMSSL_VIDEO_BACKEND asks for {asked}, which does not import here; install it or unset this.")
    raise MmsslError("no video decoder imports here; install PyAV: pip install 'mmssl[video]'.")


def _imports(name: str) -> bool:
    try:
        if name == "torchcodec":
            about = importlib.import_module("torchcodec.decoders").VideoStreamMetadata
            return "rotation" in about.__dataclass_fields__  # before 0.11 it left turned pictures lying
        _import_av()
        return name == "pyav" or bool(importlib.import_module("decord"))
    except (ImportError, OSError, RuntimeError):  # torchcodec raises the last where FFmpeg's libraries are missing
        return False


@functools.cache
def _import_av() -> ModuleType:
    import av
    import av.video.reformatter

    av.logging.set_level(av.logging.PANIC)  # a damaged file is told of once, by us
    return av
