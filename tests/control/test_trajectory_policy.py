"""A trajectory model as a policy: its rolling window against one that is made anew each time, and wrong input."""

import numpy as np
import pytest
import torch

import mmssl
from mmssl.control.evaluate import evaluate
from mmssl.control.trajectory_policy import TrajectoryPolicy
from mmssl.control.trajectory_worlds import Acting, open_world, run_episodes
from mmssl.errors import MmsslError

WIDTHS = {"state": 4, "action": 1, "return": 1}


def make(**settings):
    torch.manual_seed(0)
    model = mmssl.create_method("mtm", **{"widths": WIDTHS, "dim": 16, "heads": 2, **settings}).eval()
    for name, weight in model.named_parameters():
        if "slot_embed" in name or "mask_token" in name:
            torch.nn.init.normal_(weight)
    return model


def slow_action(model, states, actions, history, target=None, past=False):
    """The action of one environment from all that it has seen: (A,)."""
    states, actions = states[-history:], actions[-history:]
    n, length = len(states), model.config.length
    trajectory = {name: torch.zeros(1, length, width) for name, width in WIDTHS.items()}
    trajectory["state"][0, :n] = torch.tensor(np.array(states))
    done = actions[len(actions) - (n - 1) :] if n > 1 else []
    for k, action in enumerate(done):
        trajectory["action"][0, k] = torch.tensor(action)
    known = {"state": torch.arange(length) < n, "action": (torch.arange(length) < n - 1) & past}
    if target is not None:
        trajectory["return"][:] = target
        known["return"] = torch.ones(length, dtype=torch.bool)
    return model.predict(trajectory, known)["action"][0, n - 1].numpy()


@pytest.mark.parametrize(("how", "target", "history", "past"), [
    ("bc", None, None, False), ("bc", None, 2, True), ("rcbc", 1.5, None, True),
])  # fmt: skip
def test_the_window_rolls_and_begins_anew_in_each_environment(how, target, history, past):
    model, draw = make(), np.random.default_rng(0)
    policy = TrajectoryPolicy(model, 3, how, target, history=history, past_actions=past)
    seen, done = [[] for _ in range(3)], [[] for _ in range(3)]
    for step in range(8):
        rows = np.array([step == 0, step in (0, 3), step in (0, 6)])
        policy.begin(rows)
        for i in np.flatnonzero(rows):
            seen[i], done[i] = [], []
        states = draw.normal(size=(3, 4)).astype(np.float32)
        actions = policy.act({"state": states})
        for i in range(3):
            seen[i].append(states[i])
            expected = slow_action(model, seen[i], done[i], history or 4, target, past)
            np.testing.assert_allclose(actions[i], expected, atol=2e-5, err_msg=f"step {step}, environment {i}")
            done[i].append(actions[i])


def test_a_policy_is_told_when_episodes_begin():
    class Counting:
        begun = 0

        def begin(self, rows):
            self.begun += rows.all()

        def act(self, obs):
            return np.zeros((2, 1), np.float32)

    world, policy = open_world(make(), "gym/InvertedPendulum-v5", 2), Counting()
    assert len(evaluate(policy, world, 4, 0).returns) == 4 and policy.begun == 2
    world.close()


def test_a_model_acts_beside_random_actions():
    found, can_succeed = run_episodes(
        make(), "gym/InvertedPendulum-v5", {"bc": Acting(), "r": Acting("rcbc", 3.0, history=1)}, 3
    )
    assert list(found) == ["random", "bc", "r"] and not can_succeed
    assert all(len(rows.returns) == 3 and min(rows.lengths) > 0 for rows in found.values())
    again, _ = run_episodes(make(), "gym/InvertedPendulum-v5", {"bc": Acting()}, 3)
    assert again["bc"].returns == found["bc"].returns and again["random"].returns == found["random"].returns


@pytest.mark.parametrize(("settings", "task", "said"), [
    ({}, "gym/Hopper-v5", r"'state' of 4 numbers, and gym/Hopper-v5 shows 11; give a --task"),
    ({"widths": {"state": 4, "action": 2}}, "gym/InvertedPendulum-v5", "actions of 2 numbers, .* takes 1 numbers"),
    ({"widths": {"features": 4, "action": 1}}, "gym/InvertedPendulum-v5", "sees 'features', and .* shows state"),
    ({}, "gym/InvertedPendulum-v9", "InvertedPendulum-v5"),
])  # fmt: skip
def test_worlds_that_do_not_fit(settings, task, said):
    with pytest.raises(MmsslError, match=said):
        open_world(make(**settings), task, 1)


@pytest.mark.parametrize(("given", "said"), [
    ({"how": "bq"}, "bc"), ({"how": "rcbc"}, "target_return"), ({"how": "goal"}, "goal, a mapping"),
    ({"history": 5}, "from 1 to 4"),
])  # fmt: skip
def test_impossible_policies(given, said):
    with pytest.raises(MmsslError, match=said):
        TrajectoryPolicy(make(), 1, **given)


def test_other_observations_than_in_training():
    policy = TrajectoryPolicy(make(), 2)
    with pytest.raises(MmsslError, match=r"\(2, 4\), as in training, got \(2, 5\)"):
        policy.act({"state": np.zeros((2, 5), np.float32)})
