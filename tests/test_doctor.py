"""The doctor says what is true, survives what crashes, and names a command for each thing that is missing."""

import json
import os
import subprocess
import sys
import time

import pytest

from mmssl import doctor as module
from mmssl import doctor_checks
from mmssl.doctor import Finding, doctor, look_at_decoding, look_at_disk, look_at_packages, look_at_rendering, run_check


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
    answers(monkeypatch, decord={"error": "gone"}, torchcodec={"error": "gone"})
    found = {f.thing: f for f in look_at_decoding()}
    assert found["av"].state == "ok" and found["decord"].state == "missing" and found["decord"].mend == ""
    answers(monkeypatch, decord={"error": "gone"}, torchcodec={"error": "gone"}, av={"error": "gone"})
    assert all("[video]" in f.mend for f in look_at_decoding() if f.thing in ("decord", "torchcodec", "av"))


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
