"""How many clips a second come from files to prepared spectrograms: ours against the Audio-MAE authors' way.

    python benchmarks/audio_pipeline.py
    python benchmarks/audio_pipeline.py --threads 1 --clock cpu
    python benchmarks/audio_pipeline.py --device cuda

On wav and flac files of 10 s at 16 kHz, 16 bits, that it writes itself. "theirs" reads one clip after the other, takes
its mean off, computes `torchaudio.compliance.kaldi.fbank` on the CPU with their settings (128 mel bins, 25 / 10 ms,
Hann window), pads to 1024 frames, normalises and stacks. Both read by soundfile, as torchaudio decodes no longer.
"ours" reads a batch by `mmssl.data.audio.read_audio` and hands it to the tokenizer as one, on the device asked for.
Three questions: `wav` and `flac` from files, `fbank` from waveforms that lie in memory.

How far the values of both differ is printed too. The sides take turns within each round, in an order that rotates; a
ratio is the median of the rounds' own ratios, with their quartiles. With 1 thread and the processor's clock it is what
one worker process does, of which a machine runs one a core.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
import torch
import tyro
from torch import Tensor
from torchaudio.compliance import kaldi

from mmssl.data.audio import read_audio
from mmssl.tokenizers.audio import AUDIOSET_MEAN, AUDIOSET_STD, AudioTokenizer, AudioTokenizerConfig

RATE, SECONDS, FRAMES = 16000, 10, 1024
Side = Callable[[], Tensor]


@dataclass
class Settings:
    """What to time."""

    questions: tuple[Literal["wav", "flac", "fbank"], ...] = ("wav", "flac", "fbank")
    rounds: int = 15
    batch: int = 16
    """Clips of a round."""
    device: str = "cpu"
    """Where ours computes; theirs is on the CPU always."""
    threads: int = 2
    """CPU threads that torch may use, on both sides."""
    clock: Literal["wall", "cpu"] = "wall"
    """`cpu` counts the processor time of this process: for a machine that others use too, with one thread."""


def sound(seed: int) -> np.ndarray:
    """float32 (S,): overtones that glide and swell, as of a voice, over noise."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(RATE * SECONDS) / RATE
    phase = 2 * np.pi * (rng.uniform(90, 300) * time_s + rng.uniform(5, 20) * np.sin(time_s * rng.uniform(1, 4)))
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * (0.6 + 0.4 * np.sin(time_s * rng.uniform(2, 9)))
    return (0.1 * voice + 0.01 * rng.standard_normal(len(time_s))).astype(np.float32)


def write(folder: Path, kind: str, n: int) -> list[str]:
    paths = [str(folder / f"{k}.{kind}") for k in range(n)]
    for k, path in enumerate(paths):
        soundfile.write(path, sound(k), RATE, subtype="PCM_16")
    return paths


def their_clip(wave: Tensor) -> Tensor:
    """(1, S) -> (1, T, M)."""
    wave = wave - wave.mean()
    fbank = kaldi.fbank(
        wave,
        htk_compat=True,
        sample_frequency=RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    fbank = torch.nn.functional.pad(fbank, (0, 0, 0, FRAMES - len(fbank)))
    return (fbank[None] - AUDIOSET_MEAN) / (2 * AUDIOSET_STD)


def their_file(path: str) -> Tensor:
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return their_clip(torch.from_numpy(samples.T))


def sides(question: str, folder: Path, settings: Settings) -> dict[str, Side]:
    tokenizer = AudioTokenizer(AudioTokenizerConfig(frames=FRAMES), "audio", 768).to(settings.device)

    def ours(waves: list[np.ndarray]) -> Tensor:
        batch = torch.from_numpy(np.stack(waves))[:, None]  # (B, 1, S)
        return tokenizer.prepare(batch.to(settings.device))

    if question == "fbank":
        waves = [sound(k) for k in range(settings.batch)]
        return {
            "ours": lambda: ours(waves),
            "theirs": lambda: torch.stack([their_clip(torch.from_numpy(w)[None]) for w in waves]),
        }
    paths = write(folder, question, settings.batch)
    return {
        "ours": lambda: ours([read_audio(path, RATE) for path in paths]),
        "theirs": lambda: torch.stack([their_file(path) for path in paths]),
    }


def seconds(side: Side, settings: Settings) -> float:
    clock = time.process_time if settings.clock == "cpu" else time.perf_counter
    start = clock()
    side()
    if settings.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def compare(question: str, folder: Path, settings: Settings) -> None:
    both = sides(question, folder, settings)
    results = {name: side().cpu() for name, side in both.items()}
    largest = (results["ours"] - results["theirs"]).abs().max().item()
    times: dict[str, list[float]] = {name: [] for name in both}
    for number in range(settings.rounds):
        for name in list(both) if number % 2 else list(both)[::-1]:
            times[name].append(seconds(both[name], settings))
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["theirs"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    rates = {name: settings.batch / statistics.median(values) for name, values in times.items()}
    best = min(times["theirs"]) / min(times["ours"])
    print(
        f"{question:5s}  ours {rates['ours']:8.1f} clips/s   theirs {rates['theirs']:8.1f} clips/s   "
        f"{middle:5.2f}x [{low:.2f}, {high:.2f}], of the best rounds {best:.2f}x   "
        f"largest difference {largest:.1e}",
        flush=True,
    )


@torch.no_grad()
def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    name = torch.cuda.get_device_name() if settings.device == "cuda" else settings.device
    print(
        f"clips of {SECONDS} s, {settings.batch} a batch, {settings.rounds} rounds, {settings.threads} threads, "
        f"{settings.clock} time, ours on {name}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for question in settings.questions:
            compare(question, Path(folder), settings)


if __name__ == "__main__":
    main(tyro.cli(Settings))
