"""Sound tracks of videos, and formats that libsndfile does not know, through PyAV; sample 0 is the track's first."""

import math
from collections.abc import Iterator

import numpy as np

from mmssl.data.audio import AudioFacts, AudioUnreadable, Sound
from mmssl.errors import MmsslError

_COUNTED = 60.0  # seconds from the beginning that are decoded to count samples; later, times are taken at their word
_GAP = 0.05  # seconds between two pieces that are silence in between
_AHEAD = 0.5  # seconds that are decoded before what is wanted: a codec needs some packets to find its feet


class SoundTrack(Sound):
    """The first sound track of a file that FFmpeg reads."""

    def __init__(self, path: str):
        self._av, self._path = _pyav(), path
        self._open()
        try:
            self.facts = self._look()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        try:
            self._file, self._at_start = self._av.open(self._path), True
        except self._av.FFmpegError as error:
            raise AudioUnreadable(f"damaged, or no sound file: {error.strerror}") from None

    def _look(self) -> AudioFacts:
        if not self._file.streams.audio:
            raise AudioUnreadable("there is no sound track in it")
        track = self._file.streams.audio[0]
        if not track.rate:
            raise AudioUnreadable("its header says a rate of 0 samples a second")
        self._origin = max(track.start_time or 0, 0)  # before 0 lies what a codec needs to begin with
        seconds = 0.0
        if track.duration:
            seconds = float(track.duration * track.time_base)
        elif self._file.duration:
            seconds = self._file.duration / self._av.time_base - float(self._origin * track.time_base)
        frames = round(seconds * track.rate)
        if frames < 1:
            raise AudioUnreadable("there is no sound in it")
        return AudioFacts(frames, track.rate, track.channels)

    def samples(self, first: int, count: int) -> np.ndarray:
        found, end = np.zeros((count, self.facts.channels), np.float32), 0
        try:
            for place, samples in self._decoded(first):
                if place >= first + count:
                    break
                begin, stop = max(place, first), min(place + len(samples), first + count)
                if begin < stop:
                    found[begin - first : stop - first] = samples[begin - place : stop - place]
                    end = stop - first
        except self._av.FFmpegError as error:
            raise AudioUnreadable(f"damaged: {error.strerror}") from None
        if end < count - self.facts.rate / 4:  # a container's own idea of its length is rough
            raise AudioUnreadable(f"cut off: {count} samples were asked for and {end} are there")
        return found[:end]

    def _decoded(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """(place, float32 (n, channels)) of the track's pieces, from some time before sample `first` on."""
        rate, before = self.facts.rate, self._seek(first)
        track = self._file.streams.audio[0]
        if before:
            self._file.seek(self._origin + math.floor(before / track.time_base), stream=track, backward=True)
        resampler = self._av.AudioResampler(format="flt", rate=rate)  # other sample types only: the rate is the file's
        place = None if before else 0
        for frame in self._file.decode(track):
            if frame.pts is not None:  # counted, as it may be rounded to milliseconds; but not across a gap
                said = round(float((frame.pts - self._origin) * frame.time_base) * rate)
                place = said if place is None or abs(said - place) > _GAP * rate else place
            for piece in resampler.resample(frame):
                samples = piece.to_ndarray().reshape(-1, self.facts.channels)
                yield place or 0, samples
                place = (place or 0) + len(samples)

    def _seek(self, first: int) -> float:
        """Seconds from the beginning at which to start decoding; the file is opened anew where it has been read.

        A seek to the beginning of AAC loses part of its first packet, which only a fresh decoder gives. Where a file
        has its times in milliseconds (Matroska, WebM), places are exact if one counts from the beginning.
        """
        if not self._at_start:
            self._file.close()
            self._open()
        self._at_start = False
        begin, step = first / self.facts.rate, self._file.streams.audio[0].time_base
        if step * self.facts.rate > 1 and begin < _COUNTED:
            return 0.0
        return max(0.0, begin - _AHEAD)

    def close(self) -> None:
        self._file.close()


def _pyav():
    try:
        import av
    except ImportError:
        raise MmsslError(
            "reading the sound track of a video needs PyAV; install it: pip install 'mmssl[video]'."
        ) from None
    return av
