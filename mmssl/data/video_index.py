"""Where the frames of a video file are: the packets that decoding can start from, and how many frames come before each.

No frame is decoded here and no decoder imported; the files are PyAV's, opened by `video.py`. With an index, frame i is
found without reading the file from its start, and without trusting what its header says of rates and durations.
"""

import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmssl.errors import MmsslError

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

# How many packets after its own turn a frame can still come: the picture buffer of H.264 and HEVC holds 16.
REORDER = 16
# Frames between two wanted ones for which going on decoding costs less than beginning anew at a key packet.
WORTH = 3
# Codecs of which every packet holds one frame that is shown. VP8's hidden frames, say, have packets of their own.
ONE_FRAME_A_PACKET = {"h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg"}
SEEKABLE = ("mov", "matroska")  # containers (FFmpeg's names) that seek to the very packet, with its time kept
FILES_KEPT, KEYS_KEPT = 4096, 1_000_000  # indices in memory: files, and key packets (24 bytes each) of all together


class VideoUnreadable(ValueError):
    """A file, or a frame of it, that cannot be read. The text is the reason, without the file's name."""


@contextmanager
def reasons(path: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Whatever a decoder raises, as a `VideoUnreadable` that a person understands."""
    if not os.path.exists(path):
        raise VideoUnreadable("there is no such file")
    if os.path.isdir(path):
        raise VideoUnreadable("it is a folder, not a video file")
    if not os.access(path, os.R_OK):
        raise VideoUnreadable("reading it is not permitted")
    if os.path.getsize(path) == 0:
        raise VideoUnreadable("the file is empty (0 bytes)")
    try:
        yield
    except (VideoUnreadable, MmsslError):
        raise
    except errors as error:
        said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise VideoUnreadable(f"damaged, cut off or not a video ({said.splitlines()[0][:120]})") from error


class VideoFacts(NamedTuple):
    """What is known of a video before any frame is chosen; height and width as a player shows it, upright."""

    frames: int
    height: int
    width: int
    fps: float


class Index(NamedTuple):
    """Facts of a file and its K key packets, in the order of the file.

    Where K is 0, its packets say too little, and frame i is only found by decoding from the start and counting; then
    `frames` is what the file says, or 0, until somebody counted.
    """

    facts: VideoFacts
    ranks: np.ndarray  # int64 (K,) frames shown before the key packet's own, but for those that are read after it
    places: np.ndarray  # int64 (K,) its byte in the file, which also serves as its name
    times: np.ndarray  # int64 (K,) the time to seek to
    closed: bool | None = None  # no frame needs what lies on both sides of a key packet; None: not known
    turns: int | None = None  # quarter turns counter-clockwise that make a decoded frame upright; None: not seen yet
    counted: bool = False  # `frames` was found by decoding everything


class Packets:
    """The packets of one video stream in the order of the file, read as far as was asked for.

    Args:
        open_stream: opens the file anew and gives its video stream.
    """

    def __init__(self, open_stream: Callable[[], "VideoStream"]):
        self._open_stream = open_stream
        self.stream: VideoStream | None = None
        self.restart()

    def restart(self) -> None:
        """Back to the first packet."""
        self.close()
        self.stream = self._open_stream()
        self.file = self.stream.container
        self.ahead: deque[Packet] = deque()  # read and not yet passed
        self._coming = _read(self.stream)

    def close(self) -> None:
        if self.stream is not None:
            self.stream.container.close()

    def fill(self, shown: int) -> None:
        """Read until `shown` packets that will be shown lie ahead, or the file ends."""
        shown -= sum(not packet.is_discard for packet in self.ahead)
        while shown > 0 and (packet := next(self._coming, None)) is not None:
            self.ahead.append(packet)
            shown -= not packet.is_discard

    def step(self) -> "Packet | None":
        """Pass the next packet; None at the end of the file."""
        return self.ahead.popleft() if self.ahead else next(self._coming, None)

    def go_to(self, place: int, time: int) -> None:
        """Make the packet at byte `place` the next one; `time` is where to seek it."""
        if any(packet.pos == place for packet in self.ahead):
            while self.ahead[0].pos != place:
                self.ahead.popleft()
            return
        if seekable(self):
            self.file.seek(time, stream=self.stream, backward=True)
            self.ahead.clear()
            self._coming = _read(self.stream)
        if not self._find(place):  # behind us, or the container's own table is wrong: pass everything from the start
            self.restart()
            if not self._find(place):
                raise VideoUnreadable("its packets are not where they were at first, did the file change?")

    def window(self, index: Index, key: int, number: int) -> tuple[list["Packet"], list[int]]:
        """The packets from a key packet on until frame `number` must be among them, and the sorted times of the frames
        that they show: frame `index.ranks[key]` first."""
        self.go_to(int(index.places[key]), int(index.times[key]))
        self.fill(number - int(index.ranks[key]) + 1 + REORDER)
        return list(self.ahead), sorted(packet.pts for packet in self.ahead if not packet.is_discard)

    def _find(self, place: int) -> bool:
        while (packet := self.step()) is not None:
            if packet.pos == place:
                self.ahead.appendleft(packet)
                return True
        return False


def _read(stream: "VideoStream") -> Iterator["Packet"]:
    """Not a method: a cycle of references would keep files open until the collector comes round, and memory grow."""
    exact = stream.container.format.name.startswith(SEEKABLE)  # a transport stream goes on after lost packets
    for packet in stream.container.demux(stream):
        if packet.is_corrupt and exact:  # half a packet: the file was cut off here
            return
        if packet.size:  # the last one is empty and only flushes
            yield packet


def seekable(packets: Packets) -> bool:
    return packets.file.format.name.startswith(SEEKABLE)


def make_index(packets: Packets, whole: bool = False) -> Index:
    """The index of a file whose packets are at their start.

    Args:
        whole: read all packets, so that `closed` is known.
    """
    packets.fill(REORDER + 1)
    stream, keys, frames, closed = packets.stream, [], 0, None
    rate = stream.average_rate or stream.guessed_rate or 0
    height, width = stream.codec_context.height, stream.codec_context.width
    if packets.file.format.name == "avi" and stream.codec_context.has_b_frames:
        frames = stream.frames  # AVI has no times of showing, and those that FFmpeg makes up are wrong for H.264
    elif _can_be_trusted(packets):
        table = getattr(stream, "index_entries", ())  # PyAV 17 and later
        if not whole and seekable(packets) and len(table) == stream.frames > 0:
            keys, frames = _from_table(packets)
        else:
            keys, frames, closed = _from_packets(packets)
    facts = VideoFacts(frames, height, width, float(rate))
    return Index(facts, *np.array(keys, np.int64).reshape(-1, 3).T, closed=closed)


def _can_be_trusted(packets: Packets) -> bool:
    """True where each packet is one frame with a time of its own and the first packet is the first frame."""
    codec, head = packets.stream.codec_context, packets.ahead
    if codec.codec.canonical_name not in ONE_FRAME_A_PACKET or not head or not head[0].is_keyframe:
        return False
    if codec.field_order > 1 and not seekable(packets):  # interlaced: a transport stream may give each field a packet
        return False
    if any(packet.pts is None or packet.pos is None for packet in head) or (head[0].dts is None and _is_mov(packets)):
        return False
    return all(packet.pts >= head[0].pts for packet in head if not packet.is_discard)


def _is_mov(packets: Packets) -> bool:
    return packets.file.format.name.startswith("mov")


def _seek_time(packets: Packets, first: "Packet", dts: int | None, pts: int | None) -> int:
    """MOV and MP4 count from the time at which the first packet is decoded, all others know when a packet is shown."""
    return dts + first.pts - first.dts if _is_mov(packets) else pts


def _from_table(packets: Packets) -> tuple[list, int]:
    """(rank, place, time) of each key packet, and the number of frames, from the table that MOV and MP4 files carry."""
    keys, shown, end, first = [], 0, packets.file.size, packets.ahead[0]
    for entry in packets.stream.index_entries:
        if entry.pos + entry.size > end:  # the table of a file that was cut off speaks of more than there is
            break
        if entry.is_keyframe:
            keys.append((shown, entry.pos, _seek_time(packets, first, entry.timestamp, None)))
        shown += not entry.is_discard
    return keys, shown


def _from_packets(packets: Packets) -> tuple[list, int, bool]:
    """As `_from_table`, by reading all packets; and whether the pictures between two key packets need no others."""
    keys, first, times, shown_times = [], packets.ahead[0], [], []
    while (packet := packets.step()) is not None:
        if packet.pts is None or packet.pos is None or (packet.dts is None and _is_mov(packets)):
            return [], 0, False
        if packet.is_keyframe:
            time = _seek_time(packets, first, packet.dts, packet.pts)
            keys.append((len(shown_times), packet.pos, time))
            times.append(packet.pts)
        if not packet.is_discard:
            shown_times.append(packet.pts)
    if not seekable(packets):
        packets.restart()
    if len(set(shown_times)) < len(shown_times):
        return [], 0, False
    earliest = np.minimum.accumulate(shown_times[::-1])[::-1]  # of all packets from here on
    closed = all(earliest[rank] == time for (rank, _, _), time in zip(keys, times, strict=True) if rank < len(earliest))
    return keys, len(shown_times), closed


def groups(index: Index, wanted: list[int], worth: int) -> Iterator[tuple[int, list[int]]]:
    """(key packet to begin with, frames to decode in one go) of increasing frame numbers.

    Args:
        worth: go on decoding across a key packet where at most so many frames lie between two wanted ones. It also
            spares frames that lean on both sides of the key packet a second start.
    """
    keys = (np.searchsorted(index.ranks, wanted, "right") - 1).tolist()
    begin, group = keys[0], [wanted[0]]
    for number, key, before in zip(wanted[1:], keys[1:], keys, strict=False):
        if key != before and index.ranks[key] - group[-1] > worth:
            yield begin, group
            begin, group = key, []
        group.append(number)
    yield begin, group


class IndexCache:
    """The indices of the files that were read last, so that only the first visit makes one."""

    def __init__(self):
        self._indices: OrderedDict[tuple, Index] = OrderedDict()
        self._keys = 0

    @staticmethod
    def key(path: str) -> tuple[str, int, int]:
        status = os.stat(path)
        return path, status.st_mtime_ns, status.st_size

    def get(self, key: tuple) -> Index | None:
        with suppress(KeyError):
            self._indices.move_to_end(key)
        return self._indices.get(key)

    def put(self, key: tuple, index: Index) -> None:
        before = self._indices.get(key)
        self._keys += len(index.ranks) - (len(before.ranks) if before else 0)
        self._indices[key] = index
        while len(self._indices) > FILES_KEPT or self._keys > KEYS_KEPT:
            _, oldest = self._indices.popitem(last=False)
            self._keys -= len(oldest.ranks)

    def clear(self) -> None:
        self._indices.clear()
        self._keys = 0
