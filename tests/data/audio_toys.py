"""Small sounds on disk, and broken ones of every kind."""

import struct
from pathlib import Path

import numpy as np
import soundfile


def chirp(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """float32: a tone that rises and swells, so that no two stretches are alike and every codec keeps it."""
    t = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 * t + (250 + 40 * seed) * t**2)) * (1 + 0.5 * np.sin(9 * t))
    return (0.3 * tone).astype(np.float32)


def write_sound(path: Path, seconds: float = 1.0, rate: int = 16000, seed: int = 0, **settings) -> np.ndarray:
    """A chirp in a file of the kind that its name says; returns what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = chirp(seconds, rate, seed)
    soundfile.write(path, sound, rate, **settings)
    return sound


def write_folder(root: Path, classes=("cat", "dog"), each: int = 5, seconds: float = 0.5) -> Path:
    """`each` sounds in every class folder, of two rates."""
    for k, name in enumerate(classes):
        for n in range(each):
            write_sound(root / name / f"{n}.wav", seconds, (16000, 22050)[n % 2], seed=10 * k + n)
    return root


def write_track(path: Path, sound: np.ndarray, rate: int, codec: str = "aac") -> None:
    """A stereo sound track, the right channel half as loud and upside down, in any container."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = "stereo"
        frame = av.AudioFrame.from_ndarray(np.stack([sound, -0.5 * sound]), format="fltp", layout="stereo")
        frame.rate, frame.pts = rate, 0
        pieces = av.AudioResampler(stream.format.name, "stereo", rate, stream.frame_size or 1024)
        for piece in (*pieces.resample(frame), *pieces.resample(None)):
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))


def break_files(folder: Path) -> dict[str, str]:
    """Unusable files; name -> words of the reason."""
    whole = folder / "whole"
    for ending in ("wav", "flac", "mp3"):
        write_sound(whole.with_suffix(f".{ending}"), 2.0)
    data = {ending: whole.with_suffix(f".{ending}").read_bytes() for ending in ("wav", "flac", "mp3")}
    for ending in data:
        whole.with_suffix(f".{ending}").unlink()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no sound at all")
    for ending, content in data.items():
        (folder / f"cut.{ending}").write_bytes(content[: len(content) // 2])
    (folder / "no_rate.wav").write_bytes(data["wav"][:24] + struct.pack("<I", 0) + data["wav"][28:])
    soundfile.write(folder / "nothing.wav", np.zeros(0, np.float32), 16000)
    for name, value in (("nan", np.nan), ("infinite", np.inf), ("loud", 20000.0)):
        sound = chirp(1.0, 16000)
        sound[8000] = value
        soundfile.write(folder / f"{name}.wav", sound, 16000, subtype="FLOAT")
    return {
        "empty.wav": "the file is empty",
        "text.wav": "damaged, or no sound file",
        "cut.wav": "cut off: its header says",
        "cut.flac": "damaged",
        "cut.mp3": "cut off",
        "no_rate.wav": "a rate of 0",
        "nothing.wav": "there is no sound in it",
        "nan.wav": "NaN or infinite",
        "infinite.wav": "NaN or infinite",
        "loud.wav": "samples up to 2e\\+04",
        "missing.wav": "there is no such file",
    }
