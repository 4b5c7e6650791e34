"""The questions that a trajectory model is asked: what each shows, errors against slow ones, and specialists."""

from pathlib import Path

import numpy as np
import pytest
import torch

import mmssl
from mmssl.data.loading import DataConfig
from mmssl.data.trajectories import TrajectoryWindows
from mmssl.data.trajectory_files import Trajectory, TrajectoryFile
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.errors import MmsslError
from mmssl.evaluation.specialists import SpecialistConfig, train_specialist
from mmssl.evaluation.trajectory_filling import fill_in
from mmssl.evaluation.trajectory_questions import Scale, answer, held_out, judge, questions_of, scales_of

WIDTHS = {"state": 3, "action": 2, "return": 1}


def make(**settings):
    torch.manual_seed(0)
    return mmssl.create_method("mtm", **{"widths": WIDTHS, "dim": 16, "heads": 2, **settings}).eval()


def line(number: int, steps: int = 30) -> Trajectory:
    """A world in which the state moves by the action, which is a function of the state; its third number is 7."""
    draw, state = np.random.default_rng(number), np.zeros((steps + 1, 3), np.float32)
    action = np.zeros((steps, 2), np.float32)
    state[0] = [*draw.normal(size=2), 7]
    for t in range(steps):
        action[t] = 0.5 * np.sin(3 * state[t, :2]) + draw.normal(size=2) * 0.3
        state[t + 1] = [*(state[t, :2] + action[t]), 7]
    arrays = {"state": state[:-1], "action": action, "reward": np.ones((steps, 1), np.float32)}
    return Trajectory(arrays, {"state": state[-1]}, "own/line", number, f"episode {number}")


def parts(steps: int = 30, **sampling) -> tuple[TrajectoryWindows, TrajectoryWindows]:
    file = TrajectoryFile(Path("line"), "own/line", None, [line(k, steps) for k in range(10)])
    sampling = TrajectorySampling(modalities=("state", "action", "return"), **sampling)
    return tuple(
        TrajectoryWindows("line", [file], DataConfig(split=split, trajectory=sampling)) for split in ("train", "test")
    )


def wanted(data, question) -> tuple[Scale, torch.Tensor]:
    scale = scales_of(data)[question.target]
    return scale, scale.mean


def shown(question) -> dict[str, str]:
    return {name: "".join(".x"[int(k)] for k in steps) for name, steps in question.known.items()}


def test_what_each_question_shows_and_asks():
    found = {q.name: (shown(q), q.target, q.place) for q in questions_of(make())}
    assert found == {
        "bc": ({"state": "xxxx", "action": "....", "return": "...."}, "action", 3),
        "rcbc": ({"state": "xxxx", "action": "....", "return": "xxxx"}, "action", 3),
        "forward_dynamics": ({"state": "xxx.", "action": "xxxx", "return": "...."}, "state", 3),
        "inverse_dynamics": ({"state": "xxxx", "action": "....", "return": "...."}, "action", 2),
    }
    assert shown(questions_of(make(), past_actions=True)[0])["action"] == "xxx."


def test_what_a_model_lacks_is_not_asked():
    assert [q.name for q in questions_of(make(widths={"state": 3, "action": 2}, length=1))] == ["bc"]
    with pytest.raises(MmsslError, match="this model knows state, return"):
        questions_of(make(widths={"state": 3, "return": 1}))


def test_an_answer_does_not_look_at_what_is_asked():
    model, (_, test) = make(), parts()
    for question in questions_of(model):
        batch = held_out(test, question.needed(), 50)
        spoiled = {name: x.clone() for name, x in batch.items()}
        for name, steps in question.known.items():
            if name in spoiled:
                spoiled[name][:, ~steps] = 1e6
        assert torch.equal(answer(model, question, batch), answer(model, question, spoiled, rows=50))


def test_errors_are_those_that_are_counted_out_one_by_one():
    train, test = parts()
    question = questions_of(make())[2]
    batch, scale = held_out(test, question.needed(), 40), scales_of(test)["state"]
    known = scales_of(train)["state"].mean
    found = judge(
        question, batch, scale, known, {"truth": lambda b: b["state"][:, 3], "zero": lambda b: 0 * b["state"][:, 3]}
    )
    mean = np.concatenate([t.arrays["state"] for t in train.episodes]).astype(np.float64).mean(0)
    std = np.concatenate([t.arrays["state"] for t in test.episodes]).astype(np.float64).std(0)
    truth = batch["state"][:, 3].numpy()
    assert found["truth"] == [0, 0], "the number that never changes is not judged"
    for name, said in (("zero", 0), ("mean", mean), ("copy", batch["state"][:, 2].numpy())):
        expected = [float(np.mean(((said - truth) / np.where(std > 1e-6, std, 1))[:, i] ** 2)) for i in range(2)]
        assert found[name] == pytest.approx(expected, rel=1e-4), name


def test_specialists_learn_what_can_be_known():
    train, test = parts()
    scales, config = scales_of(train), SpecialistConfig(steps=400, batch_size=128, hidden=(64,), lr=3e-3)
    for question in questions_of(make())[2:]:
        specialist = train_specialist(question, train, scales, config)
        batch = held_out(test, question.needed(), 1000)
        found = judge(question, batch, *wanted(test, question), {"specialist": specialist.answer})
        assert np.mean(found["specialist"]) < 0.05 < np.mean(found["copy"]), question.name
        again = train_specialist(question, train, scales, config)
        assert torch.equal(again.answer(batch), specialist.answer(batch))


def test_specialists_leave_out_windows_without_actions():
    train, _ = parts(without_action=0.5)
    question, config = questions_of(make())[0], SpecialistConfig(steps=5, hidden=(8,))
    batch = train.fetch(torch.arange(len(train)))
    there = batch["present/action"]
    assert 0 < there.float().mean() < 1
    assert len(held_out(train, question.needed(), len(train))["action"]) == int(there.sum())
    scales = scales_of(train)
    before = train_specialist(question, train, scales, config).answer(batch)
    for number, episode in enumerate(train.episodes):
        if not there[train.groups == train.numbers[number]].any():
            episode.arrays["state"][:] = 1e6
    spoiled = TrajectoryWindows("line", train.files, DataConfig(trajectory=train.sampling))
    assert torch.equal(train_specialist(question, spoiled, scales, config).answer(batch), before)


def test_windows_too_short_are_said():
    _, test = parts(steps=3)
    with pytest.raises(MmsslError, match=r"no whole window with state, action; record longer episodes"):
        held_out(test, ["state", "action"], 10)


def test_impossible_specialists():
    with pytest.raises(MmsslError, match="must be positive, got 0"):
        SpecialistConfig(steps=0)


def test_what_never_changes_is_zero():
    scale = Scale(torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 0.0]).double())
    assert scale.standardised(torch.tensor([[3.0, 9.0]])).tolist() == [[1.0, 0.0]]


def test_filled_in_episodes_keep_their_places():
    model, episode = make(), line(0)
    found = fill_in(model, episode, questions_of(model), steps=20)
    assert found.keys() >= {"truth/state", "truth/action", "bc/action", "inverse_dynamics/action", "open_loop/state"}
    first = {"bc/action": 3, "inverse_dynamics/action": 2, "forward_dynamics/state": 3, "open_loop/state": 3}
    for name, place in first.items():
        assert len(found[name]) == 20
        assert np.isnan(found[name][:place]).all() and not np.isnan(found[name][place:][: 20 - 3]).any(), name
    between = ~np.isnan(found["waypoints/state"][:, 0])
    assert between[:8].tolist() == [False, True, True, False, True, True, False, True]
    one = {n: torch.from_numpy(episode.arrays[n][None, 5:9]) for n in ("state", "action")}
    question = questions_of(model)[0]
    np.testing.assert_allclose(found["bc/action"][8], answer(model, question, one)[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found["open_loop/state"][3], found["forward_dynamics/state"][3], atol=1e-5)


def test_an_episode_shorter_than_a_window_is_shown_as_it_is():
    assert set(fill_in(make(), line(0, 3), questions_of(make()))) == {"truth/state", "truth/action"}
