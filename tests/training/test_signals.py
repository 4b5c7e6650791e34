"""Real processes that are interrupted, killed and started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from training_toys import assert_same, train, weights

from mmssl.training.checkpoint import RunFolder
from mmssl.training.interrupt import StopSignal

TOYS = Path(__file__).parent / "training_toys.py"


def start(run: Path, steps: int, every: int, pause: float) -> subprocess.Popen:
    """A training process in `run` that prints a line a step; returns once it is at work."""
    command = [sys.executable, TOYS, run, str(steps), str(every), str(pause)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert process.stdout.readline() == "step\n", process.stderr.read()
    return process


def test_killed_and_stopped_runs_go_on_bit_for_bit(tmp_path):
    run, steps, every = RunFolder(tmp_path / "killed"), 400, 4
    process = start(run.path, steps, every, pause=0.01)
    for _ in range(9):
        assert process.stdout.readline() == "step\n"
    process.kill()
    begun = 10 + process.communicate()[0].count("step")
    assert process.returncode == -signal.SIGKILL
    killed = run.latest()
    assert killed.step > begun - 1 - every, "more than the steps since the last checkpoint are lost"

    process = start(run.path, steps, every, pause=0.01)  # the dead process holds no lock
    process.send_signal(signal.SIGTERM)
    begun = 1 + process.communicate()[0].count("step")
    assert process.returncode == 128 + signal.SIGTERM
    assert run.latest().step == killed.step + begun < steps

    train(run.path, steps=steps, checkpoint_every=0)
    train(tmp_path / "whole", steps=steps, checkpoint_every=0)
    assert_same(weights(tmp_path / "whole"), weights(run.path))


def test_a_second_ctrl_c_ends_a_process_that_is_stuck(tmp_path):
    process = start(tmp_path, 10, 10, pause=60)  # the first step sleeps for a minute
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT
    process.communicate()


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
