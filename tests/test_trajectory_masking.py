"""Masks of trajectories: every pattern against its definition, spelled out; counts by the statistics of the paper's."""

import math
import random

import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.trajectory_masking import KEPT, TrajectoryMask

GRIDS = {"state": (4,), "action": (4,), "return": (4,)}
ALL = {**GRIDS, "reward": (4,), "video": (4, 2, 2)}


def draw(pattern, n=4000, grids=GRIDS, seed=0, **settings):
    """Visible tokens, bool (n, N), of so many draws."""
    keys = sample_keys(seed, 0, 0, torch.arange(n))
    masks = TrajectoryMask(pattern, scope="sample", **settings)(grids, keys)
    return {name: ~mask for name, mask in masks.items()}


def rows(visible, name):
    return [tuple(row) for row in visible[name].int().tolist()]


def test_the_published_settings_show_a_third_and_often_nothing():
    """Wu et al. 2023 for D4RL: the authors' sampler shows .345 on average, and nothing in 7.7 % of its draws."""
    visible = torch.cat(list(draw("autoregressive", 60_000).values()), 1).float()
    assert abs(visible.mean().item() - 0.345) < 0.004
    assert abs((visible.sum(1) == 0).float().mean().item() - 0.077) < 0.004


def slow_autoregressive(generator, kept, chance, length=4):
    """One draw, in the order in which the paper says it."""
    order = ["state", "return", "action"]
    shown = {}
    for name in GRIDS:
        count = int(length * generator.choice(kept))
        steps = [1] * count + [0] * (length - count)
        generator.shuffle(steps)
        shown[name] = steps
    mode, t = generator.choices(range(3), chance)[0], generator.randrange(length)
    for place, name in enumerate(order):
        for step in range(t if place >= mode else t + 1, length):
            shown[name][step] = 0
    return shown


@pytest.mark.parametrize("kept, chance", [(KEPT, (0.2, 0.1, 0.7)), ((0.3, 1.0), (0.5, 0.5, 0.0))])
def test_autoregressive_masks_have_the_slow_ones_statistics(kept, chance):
    """How often each token, and each pair of tokens, is visible."""
    generator, n = random.Random(0), 20_000
    slow = [slow_autoregressive(generator, kept, chance) for _ in range(n)]
    slow = torch.tensor([[*draw_["state"], *draw_["action"], *draw_["return"]] for draw_ in slow]).double()
    ours = torch.cat(list(draw("autoregressive", n, kept=kept, chance=chance).values()), 1).double()
    torch.testing.assert_close(ours.T @ ours / n, slow.T @ slow / n, atol=0.02, rtol=0)


def test_nothing_after_the_present_is_visible():
    visible = draw("autoregressive", grids=ALL, kept=(1.0,))
    last = {name: (x.view(len(x), 4, -1).any(2) * torch.arange(1, 5)).amax(1) for name, x in visible.items()}  # steps
    assert bool((last["state"] == last["video"]).all())
    assert set((last["state"] - last["action"]).tolist()) == {0, 1}
    assert bool((last["state"] >= last["return"]).all() and (last["return"] >= last["action"]).all())
    assert torch.equal(last["action"], last["reward"])
    assert set(last["action"].tolist()) == {0, 1, 2, 3}


def test_kinds_that_are_not_there_are_not_drawn():
    visible = draw("autoregressive", grids={"state": (4,), "action": (4,)}, kept=(1.0,), chance=(0.0, 1.0, 0.0))
    assert set((visible["state"].sum(1) - visible["action"].sum(1)).tolist()) == {0, 1}
    visible = draw("autoregressive", grids={"state": (4,), "action": (4,)}, kept=(1.0,), chance=(0.0, 1.0, 1.0))
    assert set((visible["state"].sum(1) - visible["action"].sum(1)).tolist()) == {1}


def test_random_ones_keep_their_fractions():
    counts = draw("random", grids=ALL, kept=(0.5, 1.0))["video"].view(-1, 4, 4)
    assert set(counts.any(2).sum(1).tolist()) == {2, 4} and torch.equal(counts.any(2), counts.all(2))  # whole steps
    counts = draw("full_random", grids={"video": (4, 2, 2)})["video"].sum(1)
    wanted = {int(16 * (math.cos(math.pi * (0.15 + 0.75 * i / 29)) / 2 + 0.5)) for i in range(30)}
    assert set(counts.tolist()) == wanted
    assert abs(draw("random", kept=(0.5,))["state"].float().mean().item() - 0.5) < 1e-6


SOME = {"0000", "1000", "1100", "1110", "1111"}
SPELLED = {  # pattern -> modality -> all that may be visible of four steps
    "bc": {"state": SOME - {"0000"}, "action": SOME - {"1111"}, "return": {"0000"}},
    "rcbc": {"state": SOME - {"0000"}, "action": SOME - {"1111"}, "return": {"1111"}},
    "future": {"state": SOME - {"0000"}, "action": SOME - {"0000"}, "return": SOME - {"0000"}},
    "forward_dynamics": {"state": {"0000", "1000", "1100"}, "action": {"1111"}, "return": {"0000"}},
    "inverse_dynamics": {"state": {"1111"}, "action": {"0000"}, "return": {"0000"}},
    "goal": {"state": {"1001", "1101", "1111"}, "action": {"0000", "1000", "1100"}, "return": {"0000"}},
    "waypoints": {"state": {"1001", "1101", "1011"}, "action": {"0000"}, "return": {"0000"}},
}


@pytest.mark.parametrize("pattern", SPELLED)
def test_patterns_spelled_out(pattern):
    visible = draw(pattern)
    for name, wanted in SPELLED[pattern].items():
        assert {"".join(map(str, row)) for row in rows(visible, name)} == wanted, name
    if pattern in ("bc", "rcbc", "goal"):  # the present action is the first that is hidden
        past = visible["state"] if pattern != "goal" else visible["state"][:, :3]
        unlike = (past.sum(1) - visible["action"].sum(1) != 1).float().mean().item()
        assert unlike == 0


def test_random_cloning_hides_half_of_what_cloning_shows():
    visible = draw("bc_random", 20_000)
    assert abs(visible["state"].float().mean().item() - 2.5 / 8) < 0.01
    assert abs(visible["action"].float().mean().item() - 1.5 / 8) < 0.01


@pytest.mark.parametrize("pattern", ["autoregressive", "random", "bc_random", *SPELLED])
def test_a_function_of_the_keys_alone(pattern):
    sampler, keys = TrajectoryMask(pattern, scope="sample"), sample_keys(3, 0, 0, torch.arange(64))
    order = torch.randperm(64)
    one, two = sampler(ALL, keys), sampler(ALL, keys[order])
    assert all(torch.equal(one[name][order], two[name]) for name in ALL)
    whole = TrajectoryMask(pattern)(ALL, keys)
    first = TrajectoryMask(pattern, scope="sample")(ALL, keys[:1])
    assert all(torch.equal(whole[name], first[name].expand(64, -1)) for name in ALL)


def test_the_goal_is_the_last_step_that_is_there():
    keys, valid = sample_keys(0, 0, 0, torch.arange(200)), torch.arange(4) < torch.tensor([[4], [2]]).repeat(100, 1)
    masks = TrajectoryMask("goal")(GRIDS, keys, {name: valid for name in GRIDS})
    assert bool((~masks["state"][0::2, 3]).all() and (~masks["state"][1::2, 1]).all())


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"pattern": "rcb"}, "rcbc"),
        ({"kept": (0.5, 1.5)}, "in \\[0, 1\\]"),
        ({"kept": ()}, "in \\[0, 1\\]"),
        ({"chance": (0.0, 0.0, 0.0)}, "chance must be"),
        ({"scope": "row"}, "mask_scope"),
    ],
)
def test_wrong_settings(settings, sentence):
    with pytest.raises(MmsslError, match=sentence):
        TrajectoryMask(**settings)


def test_wrong_input():
    with pytest.raises(MmsslError, match="sample_keys"):
        TrajectoryMask()(GRIDS, torch.zeros(3))
    with pytest.raises(MmsslError, match="same number of steps"):
        TrajectoryMask()({"state": (4,), "action": (3,)}, sample_keys(0, 0, 0, torch.arange(2)))
