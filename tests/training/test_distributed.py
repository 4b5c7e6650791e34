"""Two gloo processes do what one process does on the joined batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_toys import ToyModel, train, weights

from mmssl.training.distributed import Processes

PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from training_toys import ToyModel, train
from mmssl.training.checkpoint import RunFolder
model = ToyModel(dropout=0)
if sys.argv[3] == "stop" and os.environ["RANK"] == "1":
    model.after_step = lambda progress, done=[]: (done.append(1), len(done) == 3 and os.kill(os.getpid(), signal.SIGTERM))
Path(sys.argv[2]).mkdir(exist_ok=True)
result = train(Path(sys.argv[2]), model, steps=6, batch_size=8, accumulate=2)
print("steps", result.steps, "signal", result.signal, flush=True)
"""


def launch(tmp_path: Path, run: Path, what: str) -> str:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program]
    command += [Path(__file__).parent, run, what]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_take_the_steps_of_one_and_stop_together(tmp_path):
    train(tmp_path / "one", ToyModel(dropout=0), steps=6, batch_size=8)
    stopped = launch(tmp_path, tmp_path / "two", "stop")
    assert stopped.count("steps 3 signal") == 2  # a signal to one process stops both at the same step
    assert launch(tmp_path, tmp_path / "two", "go").count("steps 6 signal 0") == 2
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one[0] == two[0] == 6
    for name, value in one[1].items():
        if value.is_floating_point():
            torch.testing.assert_close(two[1][name], value, rtol=1e-5, atol=1e-6)
    for name, memory in one[2]["optimizer"].items():
        torch.testing.assert_close(two[2]["optimizer"][name]["exp_avg"], memory["exp_avg"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_on_a_cpu(precision, dtype):
    team = Processes("cpu", precision)
    with team.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (team.rank, team.world, team.is_main) == (0, 1, True)
