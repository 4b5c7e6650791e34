"""Learning from recorded episodes alone: what the replay then holds, a task that is solved, going on, refusals."""

import json
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl.config import from_dict
from mmssl.control import offline
from mmssl.control.loop import train
from mmssl.control.recorded_rows import fill, read_episodes, rows_of
from mmssl.control.replay import Replay
from mmssl.control.rl_config import RLConfig
from mmssl.control.saving import load_policy
from mmssl.data.trajectory_files import Trajectory
from mmssl.data.trajectory_writing import write_trajectories
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.envs.encode import EncodeObservation
from mmssl.errors import MmsslError
from mmssl.tokenizers.vector import VectorTokenizerConfig
from mmssl.training.checkpoint import RunFolder

sys.path.append(str(Path(__file__).parent))  # tests are imported from their files, not as a package

from vector_toys import judge, spaces_of, world

SMALL = {"hidden": [32, 32], "lr": 3e-3, "batch_size": 64, "discount": 0.5}


def episode(number, steps=6, ended=True, seed=0):
    """Of the toy `Copy`: random actions in its own units, [-3, 1]."""
    draw = np.random.default_rng([seed, number])
    seen = draw.uniform(-0.7, 0.7, (steps + 1, 2)).astype(np.float32)
    action = draw.uniform(-3, 1, (steps, 2)).astype(np.float32)
    reward = -np.square((action + 1) / 2 - seen[:-1]).sum(1, keepdims=True).astype(np.float32)
    arrays = {"state": seen[:-1], "action": action, "reward": reward}
    return Trajectory(arrays, {"state": seen[-1]}, "own/copy", number, f"episode {number}", ended)


@pytest.fixture
def recording(tmp_path):
    """Fifty episodes, half of which come to an end and half of which are cut."""
    return str(write_trajectories(tmp_path, [episode(k, ended=k % 2 == 0) for k in range(50)], "own/copy-v0"))


def state_encoder():
    torch.manual_seed(0)
    of = {name: VectorTokenizerConfig(width=2, frames=3, mean=(0, 0), std=(0.4, 0.4)) for name in ("state", "action")}
    return Encoder(EncoderConfig(of, dim=16, depth=1, heads=2, cls_token=False)).eval()


def make(config, n, seed, encoder):
    if encoder is None or config.algorithm.own_encoder:
        return world(n, seed=seed)
    return EncodeObservation(world(n, seed=seed), encoder, keep=config.keep_obs)


def recipe(data, name="td3_mtm", algorithm=None, **changes):
    known = {"name": name, **SMALL, **({"tau": 0.05} if name == "td3_mtm" else {}), **(algorithm or {})}
    short = {"task": "own/copy", "steps": 200, "eval_every": 100, "eval_episodes": 2, "checkpoint_every": 80}
    return from_dict(RLConfig, {"algorithm": known, "offline": str(data), **short, **changes})


def filled(episodes, **settings):
    replay = Replay(spaces_of(1), rows_of(episodes), 0.9, **settings)
    fill(replay, episodes, world(1))
    return replay


def test_the_replay_holds_the_recorded_transitions(recording):
    """Each as it was, actions in [-1, 1]; after a true end there is no value, after a cut one there is."""
    episodes = read_episodes(recording, {"state": 2}, 2)
    replay = filled(episodes)
    assert len(replay) == 300 and len(episodes) == 50
    batch, known = replay.sample(4000), {}
    for e in episodes:
        later = np.concatenate([e.arrays["state"][1:], e.last["state"][None]])
        for t in range(6):
            discount = 0 if e.terminated and t == 5 else 0.9
            scaled, reward = (e.arrays["action"][t] + 1) / 2, e.arrays["reward"][t, 0]
            known[tuple(e.arrays["state"][t])] = np.array([*scaled, reward, discount, *later[t]])
    found = torch.cat([batch.action, batch.reward[:, None], batch.discount[:, None], batch.next_obs], 1).numpy()
    keys = [tuple(row) for row in batch.obs.numpy()]
    np.testing.assert_allclose(found, np.stack([known[key] for key in keys]), atol=1e-6)
    assert len(set(keys)) == 300 and {e.terminated for e in episodes} == {True, False}


def test_returns_of_several_steps_end_with_their_episode(recording):
    episodes = read_episodes(recording, {"state": 2}, 2)
    batch = filled(episodes, n_step=3).sample(2000)
    known = {}
    for e in episodes:
        states, rewards = np.concatenate([e.arrays["state"], e.last["state"][None]]), e.arrays["reward"][:, 0]
        for t in range(6):
            end = min(t + 3, 6)
            total = sum(0.9 ** (k - t) * rewards[k] for k in range(t, end))
            discount = 0 if e.terminated and end == 6 else 0.9 ** (end - t)
            known[tuple(states[t])] = np.array([total, discount, *states[end]])
    found = torch.cat([batch.reward[:, None], batch.discount[:, None], batch.next_obs], 1).numpy()
    np.testing.assert_allclose(found, np.stack([known[tuple(row)] for row in batch.obs.numpy()]), atol=1e-6)


def test_an_episode_without_its_last_observation_ends_a_step_sooner(monkeypatch):
    """As of a LeRobot data set; one that truly ended needs no observation after it."""
    bare = [
        Trajectory(e.arrays, {}, e.task, e.episode, e.name, e.terminated) for e in (episode(0), episode(1, 6, False))
    ]
    monkeypatch.setattr("mmssl.control.recorded_rows.open_dataset", lambda *_, **__: type("D", (), {"episodes": bare}))
    found = read_episodes("x", {"state": 2}, 2)
    assert [len(e) for e in found] == [6, 5]
    batch = filled(found).sample(500)
    assert sorted({round(d, 3) for d in batch.discount.tolist()}) == [0, 0.9]
    assert (batch.discount == 0).float().mean().item() == pytest.approx(1 / 11, abs=0.05)


def test_what_a_world_behind_an_encoder_would_have_shown(recording):
    encoder, episodes = state_encoder(), read_episodes(recording, {"state": 2}, 2)
    seen = EncodeObservation(world(1), encoder, keep=True, stack=2)
    spaces = type(spaces_of(1))(**seen.spaces())
    assert spaces.vectors == {"features": 32, "state": 2}
    replay = Replay(spaces, rows_of(episodes))
    fill(replay, episodes, seen)
    states = np.concatenate([episodes[0].arrays["state"], episodes[0].last["state"][None]])
    with torch.no_grad():
        one = encoder({"state": torch.from_numpy(states)[:, None]}).tokens[:, 0].numpy()
    expected = np.concatenate([one[[0, 0, 1, 2, 3, 4, 5]], one, states], 1)
    np.testing.assert_allclose(replay.arrays["obs"][:7, 0], expected, atol=1e-6)


@pytest.mark.parametrize("case", ["raw", "frozen", "fine-tuned", "td3", "sac"])
def test_a_toy_is_solved_from_recordings(recording, tmp_path, case):
    """A policy that stays at 0 has -0.33 a step; the recorded one about -1."""
    changes, algorithm = {"steps": 300}, {}
    if case in ("frozen", "fine-tuned"):
        state_encoder().save_pretrained(tmp_path / "encoder")
        changes |= {"encoder": str(tmp_path / "encoder")}
        algorithm = {"end_to_end": case == "fine-tuned"}
    name = case if case in ("td3", "sac") else "td3_mtm"
    algorithm |= {"alpha": 0.01} if case == "sac" else {}
    run = RunFolder(tmp_path / "run")
    run.start()
    result = train(recipe(recording, name, algorithm, **changes), run, quiet=True, make=make)
    assert result.finished and [e["step"] for e in result.evaluations] == [0, 100, 200, 300]
    loaded = load_policy(tmp_path / "run")
    if case != "frozen":
        assert judge(type("Learned", (), {"policy": lambda self: loaded.policy})()) > -0.1
    assert loaded.config.observe == "state" and np.mean(result.evaluations[-1]["returns"]) > 6 * -0.1


@pytest.mark.parametrize("end_to_end", [False, True])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(recording, tmp_path, monkeypatch, end_to_end):
    """And its checkpoint holds no rows of the replay, which are those of the data."""
    state_encoder().save_pretrained(tmp_path / "encoder")
    short = {"steps": 60, "eval_every": 30, "checkpoint_every": 25, "encoder": str(tmp_path / "encoder")}
    config = recipe(recording, algorithm={"end_to_end": end_to_end}, **short)
    whole, cut = (RunFolder(tmp_path / name) for name in ("whole", "cut"))
    whole.start()
    train(config, whole, quiet=True, make=make)

    steps, advance = count(1), offline.OfflineTraining._advance

    def fails(self):
        if next(steps) == 40:
            raise RuntimeError("the power failed")
        advance(self)

    cut.start()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        patch.setattr(offline.OfflineTraining, "_advance", fails)
        train(config, cut, quiet=True, make=make)
    assert cut.latest().step == 25
    train(config, cut, quiet=True, make=make)
    one, other = (run.latest() for run in (whole, cut))
    assert one.step == other.step == 60
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert one.state()["algorithm"]["replay"]["arrays"] == {}
    records = [map(json.loads, run.evaluations.read_text().splitlines()) for run in (whole, cut)]
    first, second = ([{**record, "seconds": 0} for record in lines] for lines in records)
    assert first == second


def test_what_is_refused(recording, tmp_path):
    plain = world(1)
    with pytest.raises(MmsslError, match=r"ppo learns from what it does itself and not offline; take one of .*td3_mtm"):
        offline.read_offline(from_dict(RLConfig, {"algorithm": {"name": "ppo"}, "offline": recording}), plain)
    with pytest.raises(MmsslError, match=r"'state' of .* has 2 numbers and the task's has 3; take data of this task"):
        read_episodes(recording, {"state": 3}, 2)
    with pytest.raises(MmsslError, match="'proprio'"):
        read_episodes(recording, {"state": 2, "proprio": 4}, 2)
    with pytest.raises(MmsslError, match="does not fit; the replay has 5 rows"):
        fill(Replay(spaces_of(1), 5), [episode(0)], plain)
