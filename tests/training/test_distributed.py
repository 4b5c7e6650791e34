"""Two gloo processes do what one process does on the joined batch."""

import os
import socket
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
from mmssl.training.checkpoint import RunFolder
from training_toys import ToyModel, train

def stop(progress, done=[]):
    done.append(1)
    if len(done) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)

model = ToyModel(dropout=0)
model.after_step = stop
for model in (model, ToyModel(dropout=0)):
    with RunFolder(sys.argv[2]).lock():  # one of the two holds it for both
        result = train(Path(sys.argv[2]), model, steps=6, batch_size=8, accumulate=2)
    print("steps", result.steps, "of", result.total, flush=True)
"""


def launch(program: Path, run: Path) -> list[str]:
    """What two processes of one run print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, program, Path(__file__).parent, run]
    team = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}
        pipe = subprocess.PIPE
        team.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **shared, **own}))
    said = [process.communicate(timeout=200) for process in team]
    assert [process.returncode for process in team] == [0, 0], said
    return [out for out, _ in said]


def test_two_processes_take_the_steps_of_one_and_stop_together(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    said = launch(tmp_path / "program.py", tmp_path / "two")
    # A signal to one process stops both after the same step; then they go on together.
    assert said == ["steps 3 of 6\nsteps 6 of 6\n"] * 2
    train(tmp_path / "one", ToyModel(dropout=0), steps=6, batch_size=8)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one[0] == two[0] == 6
    for name, value in one[1].items():
        if value.is_floating_point():
            torch.testing.assert_close(two[1][name], value, rtol=1e-5, atol=1e-6)
    for name, memory in one[2]["optimizer"].items():
        torch.testing.assert_close(two[2]["optimizer"][name]["exp_avg"], memory["exp_avg"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_on_a_cpu(precision, dtype):
    team = Processes("cpu", precision)
    with team.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (team.rank, team.world, team.is_main) == (0, 1, True)


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_is_bf16_only_where_the_cpu_multiplies_in_it(native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with Processes("cpu", "auto").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if native else torch.float32)
