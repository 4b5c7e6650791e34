"""Real processes that are interrupted, killed and started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
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


def test_kill_9_loses_at_most_the_steps_since_the_last_checkpoint(tmp_path):
    steps, every = 60, 4
    done = 0
    for wait in (0.2, 0.331):
        process = start(tmp_path / "killed", steps, every, pause=0.01)
        time.sleep(wait)
        process.kill()
        begun = 1 + process.communicate()[0].count("step")
        assert process.returncode == -signal.SIGKILL
        newest = RunFolder(tmp_path / "killed").latest()
        kept = newest.step if newest else 0
        assert kept >= done + begun - 1 - every, "more than the steps since the last checkpoint are lost"
        done = kept
    assert 0 < done < steps
    run = RunFolder(tmp_path / "killed")
    with run.lock():  # the dead process holds nothing
        assert train(run.path, steps=steps, checkpoint_every=every).finished
    train(tmp_path / "whole", steps=steps, checkpoint_every=every)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_saves_and_says_so_in_its_exit_code(tmp_path, number):
    process = start(tmp_path, 10_000, 10_000, pause=0.01)
    process.send_signal(number)
    steps = 1 + process.communicate(timeout=60)[0].count("step")
    assert process.returncode == 128 + number
    assert RunFolder(tmp_path).latest().step == steps


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
