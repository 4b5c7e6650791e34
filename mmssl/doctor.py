"""`mmssl doctor`: what works on this machine, in one screen, and the one command that mends each thing that does not;
with `--data`, which files of a dataset can be used.

Every check that touches a driver or a compiled package runs in a process of its own, with a time limit: an OpenGL
driver that crashes, or a package that was built for another torch, is a line in the answer and not the end of it.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmssl import __version__, paths
from mmssl.doctor_checks import MARK, requirement_name, requirements, version

_GL_HELP = "apt-get install libegl1 libgl1-mesa-dri"


@dataclass(frozen=True)
class Finding:
    """One line of the answer: a thing, whether it works ("ok", "missing" or "broken"), what is known, what mends it."""

    thing: str
    state: str
    text: str
    mend: str = ""


def doctor(
    data: str | None = None,
    workers: int | None = None,
    limit: float = 300.0,
    shortest: int = 1,
    skip_list: Path | None = None,
) -> None:
    """Print what works here, and the command that mends each thing that does not; or, with --data, which files do.

    The exit code is 1 only where something that mmssl cannot do without is missing or broken, or where every file is.

    Args:
        data: decode every file of this dataset, whole, and write a skip list of those that cannot be used: a folder of
            videos or images, a list of videos, a dataset card, a recording. Nothing else is looked at.
        workers: with --data: processes that decode; None takes one a core.
        limit: with --data: seconds that one file may take; then its process is killed, and the file is bad.
        shortest: with --data: videos with fewer frames are bad too.
        skip_list: with --data: where to write the list; None writes PATH.skip.txt beside the data.
    """
    if data is None:
        _check_machine()
        return
    from mmssl.doctor_data import check_data

    if not check_data(data, workers, limit, shortest, skip_list):
        raise SystemExit(1)


def _check_machine() -> None:
    began = time.monotonic()
    print(_machine())
    findings: list[Finding] = []
    for title, look in SECTIONS.items():
        print(f"\n{title}")
        for finding in look():
            findings.append(finding)
            print(_line(finding), flush=True)
    mends = list(dict.fromkeys(f.mend for f in findings if f.mend))
    print("\nTo mend it:\n  " + "\n  ".join(mends) if mends else "\nEverything works.")
    print(f"(checked in {time.monotonic() - began:.0f} s)")
    if any(f.state == "broken" and f.thing in ("torch", "required") for f in findings):
        raise SystemExit(1)


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    system = f"{platform.system()} {platform.machine()}, {cores} cores, {memory:.0f} GB of memory"
    return f"mmssl {__version__}, Python {platform.python_version()}, {system}"


def _line(finding: Finding) -> str:
    signs = {"ok": ("ok", 32), "missing": ("--", 33), "broken": ("!!", 31)}
    sign, colour = signs[finding.state]
    if sys.stdout.isatty():
        sign = f"\033[{colour}m{sign}\033[0m"
    return f"  {sign}  {finding.thing:<10} {finding.text}"


# Sections: each returns its findings.


def look_at_compute() -> list[Finding]:
    """torch, its devices, and the rate of matrix products in float32 and bfloat16."""
    found = run_check("compute", 120)
    if "error" in found:
        return [Finding("torch", "broken", found["error"], _reinstall())]
    findings = [Finding("torch", "ok", f"{found['torch']}, torchvision {found['torchvision']}")]
    for device in found["devices"]:
        findings.append(Finding(device["kind"], "ok", device["text"]))
    if found["cuda_problem"]:
        findings.append(Finding("GPU", "missing", found["cuda_problem"]))
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if compiler:
        findings.append(Finding("compile", "ok", f"torch.compile can use {compiler}"))
    else:
        findings.append(Finding("compile", "missing", "no C++ compiler for torch.compile", "apt-get install g++"))
    return findings


def look_at_rendering() -> list[Finding]:
    """The OpenGL backend, and frames per second of a small scene."""
    found = run_check("rendering", 60)
    if "error" not in found:
        text = f"{found['backend']} ({found['renderer']}): {found['fps']:.0f} frames/s of a small scene at 84x84"
        return [Finding("MuJoCo", "ok", text)]
    if "No module named" in found["error"]:
        return [Finding("MuJoCo", "missing", found["error"], _install("sim"))]
    return [Finding("MuJoCo", "broken", found["error"], _GL_HELP)]


def look_at_decoding() -> list[Finding]:
    """Each reader of video and sound; for video one of two is enough."""
    names = ("torchcodec", "av", "soundfile", "torchaudio")
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(names, pool.map(lambda name: run_check(name, 60), names), strict=True))
    has_video = any("error" not in found[name] for name in ("torchcodec", "av"))
    findings = []
    for name in names:
        extra = "" if name in ("soundfile", "torchaudio") else "video"  # sound needs what is required anyway
        if "error" not in found[name]:
            findings.append(Finding(name, "ok", found[name]["text"]))
        elif extra == "video" and has_video:
            findings.append(Finding(name, "missing", "not here, and not needed: another video reader works"))
        else:
            findings.append(Finding(name, "missing", found[name]["error"], _install(extra)))
    return findings


def look_at_packages() -> list[Finding]:
    """The required list (versions, and that each imports) and what each extra brings."""
    required, extras = requirements()
    wrong = [problem for line in required if (problem := _problem(line))]
    found = run_check("imports", 120)
    wrong += [f"{name} does not import ({why})" for name, why in found.get("failed", {}).items()]
    wrong += [found["error"]] if "error" in found else []
    text = "; ".join(wrong) or f"all {len(required)} packages import"
    findings = [Finding("required", "broken" if wrong else "ok", text, _reinstall() if wrong else "")]
    for extra, lines in extras.items():
        lacking = [problem for line in lines if (problem := _problem(line))]
        have = ", ".join(
            f"{requirement_name(line)} {version(requirement_name(line))}" for line in lines if not _problem(line)
        )
        text = "; ".join(lacking) if lacking else have
        findings.append(Finding(extra, "missing" if lacking else "ok", text, _install(extra) if lacking else ""))
    return findings


def look_at_disk() -> list[Finding]:
    """Free space where runs, the cache and recorded datasets go."""
    places = {"runs": paths.runs_dir(), "cache": paths.cache_dir(), "datasets": paths.datasets_dir()}
    moves = {"runs": "MMSSL_RUNS", "cache": "MMSSL_CACHE", "datasets": "MINARI_DATASETS_PATH"}
    findings = []
    for name, folder in places.items():
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free / 1e9
        text = f"{free:,.0f} GB free at {folder}"
        mend = f"export {moves[name]}=/a/folder/with/space"
        if not os.access(there, os.W_OK):
            findings.append(Finding(name, "broken", f"{there} cannot be written to", mend))
        elif free < 2:
            findings.append(Finding(name, "missing", f"only {free:.1f} GB free at {folder}", mend))
        else:
            findings.append(Finding(name, "ok", text))
    return findings


SECTIONS: dict[str, Callable[[], list[Finding]]] = {
    "Compute": look_at_compute,
    "Rendering": look_at_rendering,
    "Video and audio": look_at_decoding,
    "Packages": look_at_packages,
    "Disk": look_at_disk,
}


# What the package metadata asks for.


def _problem(requirement: str) -> str:
    """What is wrong with an installed package, "" if nothing is."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    found = version(wanted.name)
    if found is None:
        return f"{wanted.name} is not installed"
    fits = wanted.specifier.contains(found, prereleases=True)
    return "" if fits else f"{wanted.name} is {found}, {wanted.specifier} is needed"


def _install(extra: str) -> str:
    return f"pip install {_package(extra)}"


def _reinstall() -> str:
    return f"pip install --upgrade {_package()}"


def _package(extra: str = "") -> str:
    """What pip has to be given: the checkout that this module runs from, or the package's name."""
    checkout = Path(__file__).resolve().parents[1]
    extra = f"[{extra}]" if extra else ""
    return f'-e "{checkout}{extra}"' if (checkout / "pyproject.toml").is_file() else f'"mmssl{extra}"'


# Checks in a process of their own. Each returns plain values; an exception is its answer too.


def run_check(name: str, seconds: float) -> dict[str, Any]:
    """The answer of one check, run in a new process; {"error": one line} if it failed, crashed or took too long."""
    code = f"from mmssl.doctor_checks import answer; answer({name!r})"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {seconds:g} s"}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    if done.returncode < 0:
        return {"error": f"the process crashed ({signal.Signals(-done.returncode).name})"}
    return {"error": (done.stderr.strip().splitlines() or ["no answer"])[-1][:160]}
