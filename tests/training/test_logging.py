"""What a run writes down and shows."""

import json
import math

import pytest
import torch

from mmssl.training.checkpoint import RunFolder
from mmssl.training.logging import Meter, RunLog

METRICS = {"loss": 0.5, "lr": 1e-3, "images_per_second": 100.0}


def test_the_loss_is_weighed_by_its_count_and_the_rest_by_calls():
    meter = Meter(torch.device("cpu"))
    meter.add(loss=torch.tensor(6.0), count=torch.tensor(2.0), entropy=1.0)
    meter.add(loss=torch.tensor(6.0), count=torch.tensor(10.0), entropy=2.0)
    assert meter.read() == {"loss": 1.0, "entropy": 1.5}
    assert meter.read() == {}
    meter.add(loss=0.0, count=0.0)
    assert math.isnan(meter.read()["loss"])


def test_a_meter_goes_on_from_its_state():
    one, other = Meter(torch.device("cpu")), Meter(torch.device("cpu"))
    one.add(loss=6.0, count=2.0, entropy=1.0)
    other.restore(one.state())
    for meter in (one, other):
        meter.add(loss=1.0, count=5.0, entropy=4.0)
    assert one.read() == other.read() == {"loss": 1.0, "entropy": 2.5}


def test_records_of_lost_steps_and_a_cut_line_are_dropped(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 2}\n{"step": 6, "lo')
    with RunLog(run, start=2, total=10, quiet=True) as log:
        log.write(4, METRICS)
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [
        {"step": 2, "loss": 1},
        {"step": 4, **METRICS},
    ]
    assert list(run.tensorboard.iterdir())


def test_tensorboard_holds_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path)
    with RunLog(run, start=0, total=10, quiet=True) as log:
        log.write(3, METRICS)
    board = EventAccumulator(str(run.tensorboard)).Reload()
    assert sorted(board.Tags()["scalars"]) == sorted(METRICS)
    assert [(e.step, e.value) for e in board.Scalars("loss")] == [(3, 0.5)]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    with RunLog(None, start=0, total=10, label="pretrain") as log:
        for _ in range(4):
            log.step()
        log.write(4, METRICS)
    shown = capsys.readouterr().err
    assert "loss 0.5000, lr 1.00e-03, 100 images/s" in shown
    assert ("pretrain: step 4/10" in shown) != terminal
    assert ("pretrain:  40%" in shown) == terminal
    assert ("left" in shown) != terminal


@pytest.mark.parametrize(("rate", "shown"), [(2.53, "2.5 clips/s"), (123.4, "123 clips/s")])
def test_clips_are_called_clips(capsys, rate, shown):
    with RunLog(None, start=0, total=10, unit="clips") as log:
        log.write(4, {**METRICS, "images_per_second": rate})
    assert shown in capsys.readouterr().err


def test_quiet_says_nothing(capsys):
    with RunLog(None, start=0, total=10, quiet=True) as log:
        log.step()
        log.write(1, METRICS)
        log.say("nothing")
    assert capsys.readouterr().err == ""
