"""Pictures to an .mp4 file by PyAV, as they come."""

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np

from mmssl.errors import MmsslError

CODECS = {"libx264": {"crf": "20", "preset": "veryfast"}, "mpeg4": {"qscale": "3"}}
"""In the order in which they are tried, with the quality that is asked of them."""


class Movie:
    """Context that writes frames as H.264, or as MPEG-4 where that is not at hand; the file is whole or not there.

    Odd sizes get a row or column more, which both codecs ask for.

    Raises:
        MmsslError: PyAV is not installed, or has neither codec.
    """

    def __init__(self, path: Path, fps: float):
        try:
            import av
        except ImportError:
            raise MmsslError("films need PyAV: pip install 'mmssl[video]'.") from None
        self._av, self.path, self.frames = av, path, 0
        self.codec = next((name for name in CODECS if _can_encode(name)), None)
        if self.codec is None:
            raise MmsslError("this PyAV writes neither H.264 nor MPEG-4; pip install --upgrade av.")
        self._rate = Fraction(fps).limit_denominator(1000)
        self._partial = path.parent / f".tmp-{path.name}"  # as all half-written files of ours are called

    def __enter__(self) -> "Movie":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._av.open(str(self._partial), "w", format="mp4")
        self._stream = self._file.add_stream(self.codec, rate=self._rate, options=CODECS[self.codec])
        self._stream.pix_fmt = "yuv420p"
        return self

    def add(self, frame: np.ndarray) -> None:
        """Write a frame, uint8 (H, W, 3)."""
        height, width = frame.shape[:2]
        if not self.frames:
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        self._file.mux(self._stream.encode(picture))
        self.frames += 1

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self.frames:
                self._file.mux(self._stream.encode())
            self._file.close()
            if error is None and self.frames:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)


def _can_encode(name: str) -> bool:
    import av

    try:
        av.codec.Codec(name, "w")
    except ValueError:  # UnknownCodecError is one
        return False
    return True


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".tmp-{path.name}"
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
