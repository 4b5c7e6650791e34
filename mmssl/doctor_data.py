"""`mmssl doctor --data PATH`: decode every file of a dataset, name those that cannot be used, and list them."""

import os
import statistics
import sys
from pathlib import Path

from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.clips import ClipSampling
from mmssl.data.loading import Dataset, open_dataset
from mmssl.data.skip_list import write_skip_list
from mmssl.data.vetting import LIMIT, Vetted, vet
from mmssl.errors import MmsslError

_SHOWN = 50  # names that are printed; the skip list has them all


def check_data(
    source: str, workers: int | None = None, limit: float = LIMIT, shortest: int = 1, skip_list: Path | None = None
) -> bool:
    """Decode everything, print what is wrong with which file, and write a skip list where anything is.

    Args:
        source: whatever `open_dataset` opens.
        workers: processes that decode; None takes one a core.
        limit: seconds that one file may take.
        shortest: videos with fewer frames, or sounds with fewer samples, are bad too.
        skip_list: where to write; None takes a place beside the data, see `list_beside`.

    Returns:
        True where any file is good.

    Raises:
        MmsslError: nothing there, or no list can be written.
    """
    dataset = open_dataset(source, split="all", max_bad=1.0)
    file = skip_list or list_beside(source)
    if not os.access(file.absolute().parent, os.W_OK):
        raise MmsslError(f"the skip list {file} cannot be written there; say where with --skip-list FILE.")
    found = vet(dataset, workers, limit, _say)
    count = _samples if dataset.audio is not None else _frames
    short = {name: f"too short: {count(n)}, {shortest} wanted" for name, n in found.good.items() if n < shortest}
    bad = {**found.bad, **short}
    good = {name: n for name, n in found.good.items() if name not in short}
    print(_summary(dataset, Vetted(good, bad)))
    if bad:
        write_skip_list(file, bad, f"mmssl doctor --data {source}: {len(bad)} of {len(good) + len(bad)} files")
        print(f"\nSkip list: {file}\nTo train without them, give data.skip_list: {file}")
    return bool(good)


def list_beside(source: str) -> Path:
    """`PATH.skip.txt` beside a folder or a file, `NAME.skip.txt` in the current folder for a name."""
    path = Path(source).expanduser()
    if path.exists():
        path = path.resolve()
        return path.with_name(f"{path.name}.skip.txt")
    return Path(source.strip("/").replace("/", "-") + ".skip.txt")


def _summary(dataset: Dataset, found: Vetted) -> str:
    """What is good, and each bad file with its reason."""
    total = len(found.good) + len(found.bad)
    lines = [f"{dataset.name}: {total} files decoded whole, {len(found.good)} good, {len(found.bad)} bad"]
    if dataset.clip is not None and found.good:
        lines += _lengths(found.good)
    if dataset.audio is not None and found.good:
        lines += _durations(found.good, dataset.audio)
    for name, reason in list(found.bad.items())[:_SHOWN]:
        lines.append(f"  !!  {name}: {reason}")
    if len(found.bad) > _SHOWN:
        lines.append(f"  !!  and {len(found.bad) - _SHOWN} more")
    return "\n".join(lines)


def _lengths(good: dict[str, int]) -> list[str]:
    """How long the good videos are, and which are too short for a clip of the default kind, which pads them."""
    frames, clip = good.values(), ClipSampling()
    lines = [f"      {min(frames)} to {max(frames)} frames, half of them {statistics.median(frames):g} or more"]
    short = [name for name, n in good.items() if n < clip.needed]
    if short:
        ones = "1 good one is" if len(short) == 1 else f"{len(short)} good ones are"
        lines.append(f"  --  {ones} too short ({clip.demand}), and padded unless clip.short is skip:")
        lines += [f"      {name}: {_frames(good[name])}" for name in short[:_SHOWN]]
    if len(short) > _SHOWN:
        lines.append(f"      and {len(short) - _SHOWN} more")
    return lines


def _durations(good: dict[str, int], audio: AudioSampling) -> list[str]:
    """How long the good sounds are, and how many are shorter than a sample of the default kind, which pads them."""
    seconds = [n / audio.sample_rate for n in good.values()]
    lines = [
        f"      {min(seconds):.2f} to {max(seconds):.2f} s, half of them {statistics.median(seconds):.2f} s or more"
    ]
    if short := sum(n < audio.samples for n in good.values()):
        ones = "1 good one is" if short == 1 else f"{short} good ones are"
        lines.append(
            f"  --  {ones} shorter than a sample of {audio.seconds:g} s, and padded unless audio.short says else"
        )
    return lines


def _samples(n: int) -> str:
    return f"{n} sample" + "s" * (n != 1)


def _frames(n: int) -> str:
    return f"{n} frame" + "s" * (n != 1)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
