"""Class folders of one-second sounds, made in seconds: words by many voices, or notes of 128 instruments.

    python benchmarks/sounds.py words FOLDER        # 40 words; test/ holds voices that train/ never has
    python benchmarks/sounds.py notes FOLDER        # 16 families of instruments; test/ holds an octave train/ never has

Words come from eSpeak NG (package espeakng-loader), notes from the soundfont of pretty_midi played by tinysoundfont
(`pip install --no-deps tinysoundfont`). Both are for tests and studies alone, and nothing they make is published:
eSpeak NG is GPL-3, the soundfont GPL-2. The same arguments give the same files, in a process that has said nothing yet.
"""

import argparse
import ctypes
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

RATE, SECONDS = 16000, 1.0
_WORDS = """
yes no up down left right on off stop go zero one two three four five six seven eight nine apple bird cat dog flower
happy house marvin sheila tree wow bed backward forward follow learn visual music window garden
"""
# Alicia, f2, f3, f5, sandro, victor and the whispers are left out: eSpeak NG says them otherwise each time
_TRAIN_VOICES = """
f1 aunty anika m1 m2 m3 m4 m5 klatt klatt3 Alex grandma Andrea Denis Diogo Gene Hugo Jacky Lee Marco Michael Reed Storm
adam belinda boris david edward iven linda
"""
_TEST_VOICES = "f4 travis m6 m7 m8 Annie Mike caleb steph quincy"
_FAMILIES = """
piano chromatic_percussion organ guitar bass strings ensemble brass reed pipe synth_lead synth_pad synth_effects ethnic
percussive sound_effects
"""
WORDS, TRAIN_VOICES, TEST_VOICES, FAMILIES = (
    tuple(text.split()) for text in (_WORDS, _TRAIN_VOICES, _TEST_VOICES, _FAMILIES)
)
TRAIN_PITCHES = (*range(43, 58, 3), *range(72, 87, 3))  # G2 to G3, and C5 to C6
TEST_PITCHES = (60, 63, 66, 69)  # C4 to A4


@dataclass(frozen=True)
class Sound:
    """One clip: `samples` float32 in [-1, 1] at `rate`, and where it goes, `<split>/<label>/<name>.wav`."""

    split: str
    label: str
    name: str
    samples: np.ndarray
    rate: int


class Speaker:
    """eSpeak NG in this process; it holds one voice at a time."""

    _RATE, _PITCH = 1, 3
    _CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.cdll.LoadLibrary(espeakng_loader.get_library_path())
        path = espeakng_loader.get_data_path().encode()
        self.rate = self.library.espeak_Initialize(2, 0, path, 0)  # 2: synchronous, sound by the callback alone
        if self.rate <= 0:
            raise RuntimeError(f"eSpeak NG does not start with the data in {path.decode()}.")
        self.heard: list[np.ndarray] = []
        self._hear = self._CALLBACK(self._keep)  # a callback that Python forgets is a crash
        self.library.espeak_SetSynthCallback(self._hear)

    def _keep(self, samples, count: int, events) -> int:
        if samples and count > 0:
            self.heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, word: str, voice: str, rate: int, pitch: int) -> np.ndarray:
        """float32 (S,) of a word, without the silence around it. `rate` in words a minute, `pitch` 0 to 99."""
        if self.library.espeak_SetVoiceByName(f"en-us+{voice}".encode()) != 0:
            raise RuntimeError(f"eSpeak NG has no voice {voice!r}.")
        self.library.espeak_SetParameter(self._RATE, rate, 0)
        self.library.espeak_SetParameter(self._PITCH, pitch, 0)
        self.heard.clear()
        text = word.encode() + b"\0"
        self.library.espeak_Synth(text, len(text), 0, 1, 0, 1, None, None)
        return trimmed(np.concatenate(self.heard).astype(np.float32) / 32768)


def words(
    chosen: Iterable[str] = WORDS,
    train_voices: Iterable[str] = TRAIN_VOICES,
    test_voices: Iterable[str] = TEST_VOICES,
    takes: int = 2,
    seed: int = 0,
) -> Iterator[Sound]:
    """Every word by every voice, `takes` times at a pitch and a rate drawn for each."""
    speaker, rng, chosen = Speaker(), np.random.default_rng(seed), tuple(chosen)
    for split, voices in (("train", train_voices), ("test", test_voices)):
        for voice in voices:
            for word in chosen:
                for take in range(takes):
                    rate, pitch = int(rng.integers(140, 220)), int(rng.integers(20, 80))
                    yield Sound(split, word, f"{voice}_{take}", speaker.say(word, voice, rate, pitch), speaker.rate)


def notes(
    programs: Iterable[int] = range(128),
    train_pitches: Iterable[int] = TRAIN_PITCHES,
    test_pitches: Iterable[int] = TEST_PITCHES,
    takes: int = 2,
    seed: int = 0,
) -> Iterator[Sound]:
    """Every General MIDI instrument at every pitch, `takes` times at a loudness and a length drawn for each."""
    import tinysoundfont

    synth = tinysoundfont.Synth(samplerate=RATE)
    font, rng, programs = synth.sfload(str(soundfont())), np.random.default_rng(seed), tuple(programs)
    for split, pitches in (("train", train_pitches), ("test", test_pitches)):
        for program in programs:
            synth.program_select(0, font, 0, program)
            for pitch in pitches:
                for take in range(takes):
                    samples = played(synth, pitch, int(rng.integers(60, 127)), rng.uniform(0.3, 0.7))
                    if np.abs(samples).max() > 1e-4:  # a few instruments have no sound up there
                        yield Sound(split, FAMILIES[program // 8], f"{program:03d}_{pitch}_{take}", samples, RATE)


def played(synth, pitch: int, velocity: int, held: float) -> np.ndarray:
    """float32 (S,) of one note that is held for `held` seconds and rings to the end of a clip."""
    parts = [int(RATE * held), int(RATE * SECONDS) - int(RATE * held)]
    synth.noteon(0, pitch, velocity)
    begun = np.frombuffer(synth.generate(parts[0]), np.float32).reshape(-1, 2).mean(1)
    synth.noteoff(0, pitch)
    rung = np.frombuffer(synth.generate(parts[1]), np.float32).reshape(-1, 2).mean(1)
    synth.sounds_off()
    return np.concatenate([begun, rung])


def soundfont() -> Path:
    """The General MIDI soundfont that lies in pretty_midi's folder; the package itself is not imported."""
    found = importlib.util.find_spec("pretty_midi")
    if found is None:
        raise ModuleNotFoundError("the notes need pretty_midi's soundfont: pip install pretty_midi")
    return Path(found.origin).parent / "TimGM6mb.sf2"


def trimmed(samples: np.ndarray, floor: float = 0.01) -> np.ndarray:
    """Without what is quieter than `floor` of the peak at both ends."""
    loud = np.flatnonzero(np.abs(samples) > floor * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples


def clip(sound: Sound, rng: np.random.Generator) -> np.ndarray:
    """float32 (RATE * SECONDS,): the sound at a place and a loudness drawn for it, in noise 25 to 45 dB below it."""
    ratio = Fraction(RATE, sound.rate)
    samples = sound.samples if ratio == 1 else resample_poly(sound.samples, ratio.numerator, ratio.denominator)
    length = int(RATE * SECONDS)
    samples = samples[:length]
    gain = 10 ** (rng.uniform(-18, -2) / 20) / max(1e-3, float(np.abs(samples).max()))
    start = int(rng.integers(0, length - len(samples) + 1))
    level = float(np.sqrt(np.mean(np.square(samples)))) * gain * 10 ** (-rng.uniform(25, 45) / 20)
    noise = np.zeros(length, np.float32) + rng.normal(0, max(level, 1e-5), length).astype(np.float32)
    noise[start : start + len(samples)] += (samples * gain).astype(np.float32)
    return noise.clip(-1, 1)


def write(sounds: Iterable[Sound], folder: Path, seed: int = 0) -> int:
    """Write every sound as 16-bit wav to `folder/<split>/<label>/<name>.wav`; returns how many there are."""
    rng, count = np.random.default_rng(seed), 0
    for sound in sounds:
        place = Path(folder) / sound.split / sound.label
        place.mkdir(parents=True, exist_ok=True)
        soundfile.write(place / f"{sound.name}.wav", clip(sound, rng), RATE, subtype="PCM_16")
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("words", "notes"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-pitches", nargs="+", type=int, default=TEST_PITCHES, help="of notes: MIDI numbers")
    args = parser.parse_args()
    made = words(seed=args.seed) if args.what == "words" else notes(test_pitches=args.test_pitches, seed=args.seed)
    print(f"{write(made, args.folder, args.seed)} clips of {SECONDS:g} s at {RATE} Hz in {args.folder}")


if __name__ == "__main__":
    main()
