"""The doctor says what is true, survives what crashes, and names a command for each thing that is missing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmssl import cli, doctor_checks
from mmssl import doctor as module
from mmssl.data.skip_list import read_skip_list
from mmssl.doctor import Finding, doctor, look_at_decoding, look_at_disk, look_at_packages, look_at_rendering, run_check
from mmssl.doctor_data import list_beside
from mmssl.errors import MmsslError


def answers(monkeypatch: pytest.MonkeyPatch, **found: dict) -> None:
    """Let every check answer what is given, and the others that they work."""
    good = {"text": "works", "failed": {}, "backend": "egl", "renderer": "soft", "fps": 100.0}
    monkeypatch.setattr(module, "run_check", lambda name, seconds: found.get(name, good))


def in_a_check(monkeypatch: pytest.MonkeyPatch, tmp_path, body: str, seconds: float = 20) -> dict:
    """The answer of a check whose body is the given Python, run as the doctor runs it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import mmssl.doctor_checks as d\n" + f"def bad():\n    {body}\n" + "d.CHECKS['bad'] = bad\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return run_check("bad", seconds)


def test_a_crash_is_an_answer(monkeypatch, tmp_path):
    assert in_a_check(monkeypatch, tmp_path, "import os; os.abort()") == {"error": "the process crashed (SIGABRT)"}


def test_a_hang_is_an_answer(monkeypatch, tmp_path):
    began = time.monotonic()
    assert in_a_check(monkeypatch, tmp_path, "import time; time.sleep(60)", 2) == {"error": "no answer within 2 s"}
    assert time.monotonic() - began < 20


def test_an_exception_is_an_answer(monkeypatch, tmp_path):
    found = in_a_check(monkeypatch, tmp_path, "print('noise'); raise OSError('libEGL.so not found')")
    assert found == {"error": "OSError: libEGL.so not found"}


def test_an_answer_comes_back_whole(monkeypatch, tmp_path):
    found = in_a_check(monkeypatch, tmp_path, "print('noise'); return {'fps': 1.5, 'names': ['a']}")
    assert found == {"fps": 1.5, "names": ["a"]}


def test_no_rendering_names_what_to_install(monkeypatch):
    answers(monkeypatch, rendering={"error": "the process crashed (SIGSEGV)"})
    (finding,) = look_at_rendering()
    assert finding.state == "broken" and "SIGSEGV" in finding.text and "apt-get install libegl1" in finding.mend
    answers(monkeypatch, rendering={"error": "ModuleNotFoundError: No module named 'mujoco'"})
    (finding,) = look_at_rendering()
    assert finding.state == "missing" and finding.mend.startswith("pip install") and "[sim]" in finding.mend


def test_one_video_reader_is_enough(monkeypatch):
    answers(monkeypatch, torchcodec={"error": "gone"})
    found = {f.thing: f for f in look_at_decoding()}
    assert found["av"].state == "ok" and found["torchcodec"].state == "missing" and found["torchcodec"].mend == ""
    answers(monkeypatch, torchcodec={"error": "gone"}, av={"error": "gone"})
    assert all("[video]" in f.mend for f in look_at_decoding() if f.thing in ("torchcodec", "av"))


def test_packages_that_are_missing_or_too_old(monkeypatch):
    answers(monkeypatch)
    lines = (["numpy<1.0", "torch"], {"sim": ["no-such-package==1.0"], "hub": ["pyyaml"]})
    monkeypatch.setattr(module, "requirements", lambda: lines)
    found = {f.thing: f for f in look_at_packages()}
    assert found["required"].state == "broken" and "numpy is" in found["required"].text
    assert found["sim"].state == "missing" and "no-such-package is not installed" in found["sim"].text
    assert "[sim]" in found["sim"].mend and found["hub"].state == "ok"


def test_a_required_package_that_does_not_import_is_broken(monkeypatch):
    answers(monkeypatch, imports={"failed": {"torchvision": "RuntimeError: operator nms does not exist"}})
    required = look_at_packages()[0]
    assert required.state == "broken" and "nms" in required.text and required.mend


def test_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("MMSSL_RUNS", str(tmp_path / "not" / "yet" / "there"))
    found = {f.thing: f for f in look_at_disk()}
    assert found["runs"].state == "ok" and str(tmp_path) in found["runs"].text
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 1e9})
    )
    assert all("export " in f.mend for f in look_at_disk())


@pytest.mark.parametrize(("thing", "code"), [("required", 1), ("torch", 1), ("sim", 0)])
def test_exit_code_speaks_of_the_required_list_alone(monkeypatch, capsys, thing: str, code: int):
    finding = Finding(thing, "broken", "it is broken", "mend --it")
    monkeypatch.setattr(module, "SECTIONS", {"Only": lambda: [finding]})
    try:
        doctor()
        left = 0
    except SystemExit as error:
        left = error.code
    printed = capsys.readouterr().out
    assert left == code and "!!" in printed and "mend --it" in printed


def test_requirements_come_from_the_package():
    required, extras = doctor_checks.requirements()
    assert any(line.startswith("torch==") for line in required) and len(required) > 10
    assert any(line.startswith("mujoco") for line in extras["sim"]) and "all" not in extras
    assert not any("extra" in line for lines in (required, *extras.values()) for line in lines)


def test_the_real_thing_fits_a_screen():
    done = subprocess.run([sys.executable, "-m", "mmssl.cli", "doctor"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) <= 45
    for word in ("torch ", "GFLOP/s", "bf16", "frames/s", "decodes H.264", "soundfile", "GB free"):
        assert word in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_answers_survive_noise_on_stdout(capsys):
    doctor_checks.CHECKS["loud"] = lambda: print("noise") or {"x": 1}
    doctor_checks.answer("loud")
    del doctor_checks.CHECKS["loud"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last.removeprefix(doctor_checks.MARK)) == {"x": 1}


# With --data.


@pytest.fixture
def videos(tmp_path, monkeypatch) -> Path:
    """Two good files, a short one, and three that cannot be used."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "data"))
    import video_toys as toys

    folder = tmp_path / "videos"
    folder.mkdir()
    for name, n in (("a.mp4", 70), ("b.mp4", 64), ("short.mp4", 9)):
        toys.write_video(folder / name, n=n, size=(16, 24))
    toys.truncated(folder / "cut.mp4", n=70, size=(16, 24))
    toys.audio_only(folder / "sound.mp4")
    toys.empty(folder / "zero.mp4")
    return folder


def test_every_file_is_decoded_and_the_bad_ones_are_listed(videos, capsys):
    cli.main(["doctor", "--data", str(videos), "--workers", "2", "--limit", "30"])
    printed, listed = capsys.readouterr().out, videos.parent / "videos.skip.txt"
    assert "videos: 6 files decoded whole, 3 good, 3 bad" in printed and "9 to 70 frames" in printed
    for words in ("cut.mp4: damaged, cut off", "sound.mp4: it has no video stream", "zero.mp4: the file is empty"):
        assert f"{videos}/{words}" in printed
    assert "1 good one" in printed and f"{videos / 'short.mp4'}: 9 frames" in printed  # named, and not listed
    assert str(listed) in printed
    assert {Path(name).name for name in read_skip_list(listed)} == {"cut.mp4", "sound.mp4", "zero.mp4"}


def test_videos_that_are_too_short_are_listed_where_asked(videos, tmp_path, capsys):
    cli.main(["doctor", "--data", str(videos), "--shortest", "65", "--skip-list", str(tmp_path / "mine.txt")])
    assert "1 good, 5 bad" in capsys.readouterr().out
    reasons = {Path(name).name: reason for name, reason in read_skip_list(tmp_path / "mine.txt").items()}
    assert reasons["short.mp4"] == "too short: 9 frames, 65 wanted" and "b.mp4" in reasons


def test_exit_code_where_nothing_can_be_used(videos, capsys):
    for name in ("a.mp4", "b.mp4", "short.mp4"):
        (videos / name).unlink()
    with pytest.raises(SystemExit) as left:
        doctor(str(videos))
    assert left.value.code == 1 and "0 good, 3 bad" in capsys.readouterr().out


def test_data_that_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MmsslError, match="is empty"):
        doctor(str(tmp_path / "empty"))
    with pytest.raises(MmsslError, match="there is no folder and no dataset card"):
        doctor("nowhere")


def test_a_list_that_cannot_be_written(videos, tmp_path):
    with pytest.raises(MmsslError, match=r"cannot be written there; say where with --skip-list FILE"):
        doctor(str(videos), skip_list=tmp_path / "no" / "folder.txt")


def test_where_the_list_goes(tmp_path):
    assert list_beside(str(tmp_path)) == tmp_path.parent / f"{tmp_path.name}.skip.txt"
    assert list_beside("mmssl/metaworld/reach-v0") == Path("mmssl-metaworld-reach-v0.skip.txt")
