"""Small videos whose frames spell their own number, and broken files of every kind; written by PyAV."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

ROWS, COLUMNS = 3, 4  # blocks of a numbered frame: 12 bits
ONE, ZERO = (235, 190, 90), (15, 60, 120)  # warm and cold, so that swapped colour channels are seen too
UNEVEN = (1, 3, 1, 2, 5, 1, 1, 4)  # durations of a file with a variable frame rate, in ticks of a fifth of a frame
CODECS = {".webm": "libvpx-vp9", ".avi": "mpeg4"}  # else H.264
AUDIO_CODECS = {".webm": "libopus", ".avi": "mp2"}  # else AAC


def numbered_frames(n: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """uint8 (n, H, W, 3): 3 x 4 blocks that spell each frame's number in binary, robust to compression and resizing."""
    height, width = size
    bit = (np.arange(height) * ROWS // height)[:, None] * COLUMNS + np.arange(width) * COLUMNS // width  # (H, W)
    ones = (np.arange(n)[:, None, None] >> bit) & 1  # (n, H, W)
    return np.where(ones[..., None] == 1, np.uint8(ONE), np.uint8(ZERO))


def frame_number(frame: np.ndarray) -> int:
    """The number that a frame (H, W, 3) of `numbered_frames` spells, whatever it was resized to."""
    height, width = frame.shape[:2]
    number = 0
    for bit in range(ROWS * COLUMNS):
        row, column = divmod(bit, COLUMNS)
        y, x = int((row + 0.5) * height / ROWS), int((column + 0.5) * width / COLUMNS)  # the middle of the block
        red, _, blue = frame[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(0)
        number |= int(red > blue) << bit
    return number


def every_frame(path) -> np.ndarray:
    """Every frame in the order in which FFmpeg puts them out, up to the first that it cannot decode."""
    frames = []
    with av.open(str(path)) as file:
        try:
            for frame in file.decode(video=0):
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
        except av.error.InvalidDataError:
            pass
    return np.stack(frames)


def write_video(
    path: Path | str,
    frames: np.ndarray | None = None,
    *,
    n: int = 30,
    size: tuple[int, int] = (48, 64),
    fps: int = 30,
    codec: str | None = None,
    gop: int = 12,
    bframes: int = 2,
    vfr: bool = False,
    open_gop: bool = False,
    audio: bool = False,
    index_first: bool = False,
    fragments: bool = False,
    crf: int = 18,
) -> Path:
    """Write `frames`, or `n` numbered ones of `size`, to a file whose suffix gives the container.

    Args:
        codec: None takes VP9 for .webm, MPEG-4 for .avi and else H.264.
        gop: most frames from one key frame to the next.
        vfr: frames last unequally long.
        open_gop: B-frames may look across a key frame (H.264).
        audio: a tone beside the pictures.
        index_first: an .mp4 whose index comes before its pictures, so that cutting its end leaves the index whole.
        fragments: an .mp4 without an index for the whole file (as streaming services write it).
    """
    path = Path(path)
    frames = numbered_frames(n, size) if frames is None else frames
    codec = codec or CODECS.get(path.suffix, "libx264")
    flags = "faststart" if index_first else "frag_keyframe+empty_moov" if fragments else ""
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as file:
        video = file.add_stream(codec, rate=fps)
        video.height, video.width = frames.shape[1:3]
        odd = video.height % 2 or video.width % 2
        video.pix_fmt = "yuv444p" if odd and codec == "libx264" else "yuv420p"  # H.264 halves only even sizes
        video.codec_context.gop_size = gop
        if codec == "libx264":
            video.options = {"bf": str(bframes), "crf": str(crf), "preset": "veryfast"}
            video.options |= {"x264-params": f"open-gop={int(open_gop)}:scenecut=0:threads=1"}
        elif codec == "libsvtav1":
            video.options = {"crf": str(crf), "preset": "12", "svtav1-params": "lp=1"}
        elif codec.startswith("libvpx"):
            video.options = {"crf": str(crf), "b": "0", "deadline": "realtime", "cpu-used": "8"}
        else:
            video.codec_context.max_b_frames = bframes
            video.codec_context.qmin = video.codec_context.qmax = 2
        ticks = 5 if vfr else 1
        video.codec_context.time_base = Fraction(1, fps * ticks)
        sound = file.add_stream(AUDIO_CODECS.get(path.suffix, "aac"), rate=48000) if audio else None
        pts = 0
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, fps * ticks)
            pts += UNEVEN[k % len(UNEVEN)] if vfr else 1
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if sound is not None:
            _write_tone(file, sound, len(frames) / fps)
    return path


def _write_tone(file: "av.container.OutputContainer", stream: "av.AudioStream", seconds: float) -> None:
    wave = (8000 * np.sin(np.arange(int(48000 * seconds)) * 0.05)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(np.stack([wave, wave], 1).reshape(1, -1), format="s16", layout="stereo")
    frame.sample_rate, frame.pts = 48000, 0
    file.mux(stream.encode(frame))
    file.mux(stream.encode())


def rotated(path: Path | str, degrees: int = 90, **settings) -> Path:
    """An .mp4 that asks the player to turn its pictures clockwise by 90, 180 or 270 degrees; see `write_video`."""
    path = write_video(path, **settings)
    data = bytearray(path.read_bytes())
    box = data.index(b"tkhd")  # ISO/IEC 14496-12, 8.3.2: version 0 has its 3 x 3 matrix 40 bytes on
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    struct.pack_into(">9i", data, box + 4 + 40, *matrix)
    path.write_bytes(data)
    return path


def trimmed(path: Path | str, first: int, **settings) -> Path:
    """An .mp4 that holds frames before the `first` which a player decodes but does not show (cut without encoding)."""
    path = write_video(path, **settings)
    data = bytearray(path.read_bytes())
    box = data.index(b"elst")  # ISO/IEC 14496-12, 8.6.6: version 0, one entry: duration, media time
    duration, begin = struct.unpack_from(">Ii", data, box + 12)
    per_frame = 1000 // 25  # the file counts in milliseconds, its pictures in ticks of 1 / 12800 s
    struct.pack_into(">Ii", data, box + 12, duration - first * per_frame, begin + first * 512)
    path.write_bytes(data)
    return path


def truncated(path: Path | str, keep: float = 0.5, **settings) -> Path:
    """A file cut off after a share of its bytes. An .mp4 loses its index, unless `index_first`: then the index lies."""
    path = write_video(path, **settings)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def damaged(path: Path | str, **settings) -> Path:
    """A file whose second half is noise; with `index_first` its index is whole and the pictures are not."""
    path = write_video(path, **settings)
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half:] = np.random.default_rng(0).integers(0, 256, len(data) - half, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


def empty(path: Path | str) -> Path:
    """A file of 0 bytes."""
    path = Path(path)
    path.write_bytes(b"")
    return path


def audio_only(path: Path | str) -> Path:
    """A second of sound and no picture."""
    path = Path(path)
    with av.open(str(path), "w") as file:
        _write_tone(file, file.add_stream(AUDIO_CODECS.get(path.suffix, "aac"), rate=48000), 1.0)
    return path


def sound_with_cover(path: Path | str) -> Path:
    """Music (.mp4) whose file also holds the picture of its cover, which FFmpeg calls a video stream."""
    path = Path(path)
    with av.open(str(path), "w") as file:
        sound, cover = file.add_stream("aac", rate=48000), file.add_stream("png", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        file.mux(cover.encode(av.VideoFrame.from_ndarray(numbered_frames(1)[0], format="rgb24")) + cover.encode())
        _write_tone(file, sound, 0.2)
    return path


def not_a_video(path: Path | str) -> Path:
    """A text under a video's name."""
    path = Path(path)
    path.write_text("this is a text, not a video\n" * 20)
    return path
