"""`mmssl rl` as it is typed: runs of one seed and of several, going on, and every mistake as one sentence."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import gymnasium as gym
import pytest

from mmssl import cli
from mmssl.config import load_config
from mmssl.control import run as running
from mmssl.control import seeds
from mmssl.control.loop import train
from mmssl.control.rl_config import RLConfig
from mmssl.control.saving import load_policy
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.envs.vector import wrap_vec
from mmssl.tokenizers.audio import AudioTokenizerConfig
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.training.checkpoint import RunFolder

pytest.importorskip("mujoco")
PENDULUM = ["--task", "gym/InvertedPendulum-v5"]
SMALL = ["--algorithm.hidden", "8", "8", "--algorithm.capacity", "500", "--algorithm.batch-size", "4"]
SHORT = ["--steps", "60", "--eval-every", "30", "--eval-episodes", "2", "--film", "False"]
HUGE = ["--algorithm.capacity", "10000000000000"]
TD3 = ["rl", "td3", *PENDULUM, *SMALL, *SHORT, "--algorithm.random-steps", "30"]


needs_pictures = pytest.mark.needs_pictures


def run(capsys, *args):
    """Exit code, stdout and stderr of one command."""
    try:
        cli.main([str(a) for a in args])
        code = 0
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr()
    return code, out.out, out.err


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_of_one_seed(capsys, tmp_path):
    home = tmp_path / "run"
    code, _, err = run(capsys, *TD3, "--seed", "3", "--run", home)
    assert code == 0 and "rl: 1 of 1 seeds done; see" in err and (home / "report.html").is_file(), err
    config = load_config(RLConfig, home / "config.yaml")
    assert (config.seeds, config.steps, config.n_envs, config.observe) == ((3,), 60, 1, "state")
    own = load_config(RLConfig, home / "seed-3" / "config.yaml")
    assert (own.seed, own.seeds) == (3, ()) and [e["step"] for e in lines(home / "seed-3/evaluations.jsonl")] == [
        0,
        30,
        60,
    ]
    assert load_policy(home).steps == 60 and not (home / "checkpoints").exists()
    assert not any("successes" in e for e in lines(home / "seed-3/evaluations.jsonl"))  # a pole is never done

    code, _, err = run(capsys, *TD3, "--seed", "3", "--steps", "90", "--run", home)
    assert code == 0 and "steps was 60 and is 90 from here on" in err and "going on from" in err
    assert [e["step"] for e in lines(home / "seed-3/evaluations.jsonl")] == [0, 30, 60, 90]

    code, _, err = run(capsys, "rl", "ppo", *PENDULUM, "--run", home)
    assert code == 2 and f"{home} holds a run with algorithm.name td3, not ppo; choose another" in err
    code, _, err = run(capsys, *TD3, "--n-envs", "2", "--run", home)
    assert code == 2 and f"{home} holds a run with n_envs 1, not 2; choose another folder with --run" in err

    code, _, err = run(capsys, *TD3, "--seed", "4", "--run", home, "--overwrite")
    assert code == 0 and not (home / "seed-3").exists() and (home / "seed-4").is_dir()


def test_the_table_of_a_run(tmp_path):
    returns = {0: (10, 30, 20), 1: (10, 20, 25), 2: (0, 5, 60), 3: (1, 2)}  # the last one is behind
    for seed, means in returns.items():
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        records = [{"step": 100 * k, "returns": [m - 1, m + 1], "lengths": [1, 1]} for k, m in enumerate(means)]
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    rows = [line.split() for line in running.table(tmp_path).splitlines()]
    assert rows[0] == ["seed", "return", "at", "100", "best"]
    assert rows[1:5] == [["0", "30.0", "30.0"], ["1", "20.0", "20.0"], ["2", "5.00", "5.00"], ["3", "2.00", "2.00"]]
    assert rows[5] == ["IQM", "12.5", "12.5"] and rows[6][0] == "95%"  # the mean of the middle two


def test_several_seeds_are_stopped_and_go_on_and_one_that_fails_leaves_the_others(tmp_path, capsys):
    """Ctrl-C reaches the parent alone here, as SIGTERM from outside would; a seed whose folder is a file fails."""
    home = tmp_path / "run"
    home.mkdir()
    (home / "config.yaml").write_text("{}")  # ours, so that the file below is not taken for somebody else's
    (home / "seed-1").write_text("not a folder")
    long = [*TD3, "--steps", "1000000", "--eval-every", "200", "--seeds", "0", "1", "--run", str(home)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "mmssl.cli", *long], stderr=subprocess.PIPE, env=environment)
    evaluations, until = home / "seed-0" / "evaluations.jsonl", time.monotonic() + 200
    while not (evaluations.is_file() and len(lines(evaluations)) > 1):
        assert process.poll() is None and time.monotonic() < until, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=100)[1].decode()
    assert process.returncode == 128 + signal.SIGINT, err
    assert "seed 1 failed: " in err and "Traceback" in err and "the same command goes on from there" in err
    done = RunFolder(home / "seed-0").latest().step
    assert done >= 200 and f"stopped at step {done:,}" in err and load_policy(home).steps == done

    (home / "seed-1").unlink()
    code, _, err = run(capsys, *TD3, "--steps", str(done), "--eval-every", "200", "--seeds", "0", "--run", home)
    assert code == 0 and f"going on from {home / 'seed-0'}" in err and "1 of 1 seeds done" in err
    assert load_config(RLConfig, home / "config.yaml").seeds == (0,)


def test_ctrl_c_saves_and_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    real = running.make_world

    def make(*args):
        world = real(*args)
        step, count = world.step, []

        def stop_at_20(action):
            count.append(1)
            if len(count) == 20 and world.num_envs == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return step(action)

        world.step = stop_at_20
        return world

    monkeypatch.setattr(seeds, "train", partial(train, make=make))
    code, _, err = run(capsys, *TD3, "--run", tmp_path / "run")
    assert code == 130 and "stopped at step" in err and "the same command goes on from there" in err
    monkeypatch.undo()
    code, _, err = run(capsys, *TD3, "--run", tmp_path / "run")
    assert code == 0 and "going on from" in err


def encoder(folder, name, **tokenizers):
    Encoder(EncoderConfig(tokenizers, dim=8, depth=1, heads=1)).save_pretrained(folder / name)
    return str(folder / name)


@needs_pictures
def test_a_policy_on_a_frozen_encoder_keeps_it(capsys, tmp_path):
    path = encoder(tmp_path, "image", image=ImageTokenizerConfig(image_size=16, patch_size=8))
    home = tmp_path / "run"
    args = ["--encoder", path, "--steps", "12", "--algorithm.random-steps", "6", "--run", home]
    code, _, err = run(capsys, *TD3, *args)
    assert code == 0, err
    loaded = load_policy(home)
    assert loaded.spaces.observations.keys() == {"features", "proprio"} and loaded.encoder.config.dim == 8
    world = loaded.make_world(2, seed=1)
    assert loaded.policy.act(world.reset()[0]).shape == (2, 1)
    world.close()
    os.rename(path, path + "-moved")  # a run that goes on has its own copy, but what was asked for must still be there
    code, _, err = run(capsys, *TD3, *args)
    assert code == 2 and path in err


@needs_pictures
@pytest.mark.parametrize(
    ("tokenizers", "args", "words"),
    [
        ({"audio": AudioTokenizerConfig()}, [], "reads audio, and an environment gives pictures and states"),
        (
            {"image": ImageTokenizerConfig(image_size=16, patch_size=8)},
            ["--size", "64", "64"],
            "the encoder takes pictures of 16x16 pixels, got size 64x64",
        ),
        (
            {"image": ImageTokenizerConfig(image_size=16, patch_size=8)},
            ["--frame-stack", "3"],
            "an encoder reads single frames; use frame_stack=1",
        ),
    ],
)
def test_an_encoder_that_does_not_fit_is_said(capsys, tmp_path, tokenizers, args, words):
    path = encoder(tmp_path, "encoder", **tokenizers)
    code, _, err = run(capsys, *TD3, "--encoder", path, *args, "--run", tmp_path / "run")
    assert code == 2 and words in err and err.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["td4", *PENDULUM], "unknown algorithm 'td4': did you mean 'td3'? Valid: "),
        (
            ["td3/rl_smal_halfcheetah"],
            "unknown recipe 'td3/rl_smal_halfcheetah': did you mean 'td3/rl_small_halfcheetah'",
        ),
        (["td3"], "say which task, --task SUITE/TASK"),
        (["td3", "--task", "gym/HalfCheeta-v5"], "unknown task of the suite 'gym' 'HalfCheeta-v5': did you mean"),
        (["td3", "--task", "gim/HalfCheetah-v5"], "did you mean 'gym'"),
        (["td3", *PENDULUM, "--observe", "pixels", "--cameras", "frie"], "did you mean 'free'"),
        (["td3", *PENDULUM, "--cameras", "free"], "need observe='pixels' or 'both', got 'state'"),
        (["td3", *PENDULUM, "--encoder", "runs/nothing"], "runs/nothing"),
        (["td3", *PENDULUM, *HUGE], "a replay of 10,000,000,000,000 transitions needs"),
        (["td3", *PENDULUM, *HUGE, "--seeds", "0", "1"], "each of 2 replays of 10,000,000,000,000 transitions needs"),
        (["td3", *PENDULUM, "--device", "cuda:9"], "device 'cuda:9' cannot be used"),
        (["td3", *PENDULUM, "--init", "x"], "mmssl rl takes no --init"),
        (["--task", "x"], "the recipe comes first; usage: mmssl rl ALGORITHM_OR_RECIPE --task SUITE/TASK"),
        (["mae/pretrain_tiny_demo"], "unknown key in the recipe 'method'"),
    ],
)
def test_mistakes_end_in_one_sentence_before_anything_is_written(capsys, tmp_path, args, words):
    code, _, err = run(capsys, "rl", *args, "--run", tmp_path / "run")
    assert code == 2 and words in err and "Traceback" not in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--algorithm.tau", "2"], "discount and tau must lie in (0, 1], got 0.99 and 2.0."),
        (["--seeds", "1", "1"], "seeds must be different numbers of 0 or more, got [1, 1]."),
        (["--algorithm.tua", "2"], "--algorithm.tau"),
    ],
)
def test_settings_that_cannot_be_are_said(capsys, tmp_path, args, words):
    code, out, err = run(capsys, "rl", "td3", *PENDULUM, *args, "--run", tmp_path / "run")
    assert code == 2 and words in " ".join((out + err).split()) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_discrete_actions_are_refused(capsys, tmp_path, name, monkeypatch):
    def make(config, n, seed, encoder):
        return wrap_vec(lambda: gym.make("CartPole-v1"), n, seed=seed)

    monkeypatch.setattr(running, "make_world", make)
    code, _, err = run(capsys, "rl", name, *PENDULUM, "--run", tmp_path / "run")
    assert code == 2 and f"{name} needs continuous actions" in err and not (tmp_path / "run").exists()


def test_cores_are_shared_and_a_process_that_vanished_is_said(monkeypatch):
    monkeypatch.setattr(seeds, "cores", lambda: 4)
    config = RLConfig.from_name("td3")
    asked = [(range(20), None), (range(20), 3), (range(2), None), ((), None)]
    assert [seeds.at_once(replace(config, seeds=tuple(s), jobs=j)) for s, j in asked] == [8, 3, 2, 1]
    teams = [seeds._Team([replace(config, seed=s) for s in range(k)], None, k) for k in (2, 3, 8)]
    assert [team.threads for team in teams] == [2, 1, 1]
    assert "was ended by signal 9; was there too little memory?" in seeds._vanished(3, -9).error
    assert "ended with exit code 7" in seeds._vanished(3, 7).error
    assert seeds._vanished(3, -signal.SIGTERM).signal == signal.SIGTERM


def test_names_are_listed(capsys):
    code, out, _ = run(capsys, "list", "algorithms")
    assert code == 0 and {"ppo", "sac", "td3"} <= set(out.split())
