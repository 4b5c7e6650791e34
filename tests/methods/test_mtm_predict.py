"""MTM's prediction: what is known stays as it is, what is not known is never looked at, and patterns are masks."""

import re

import numpy as np
import pytest
import torch

import mmssl
from mmssl.errors import MmsslError

WIDTHS = {"state": 3, "action": 2, "return": 1}


def make(**settings):
    torch.manual_seed(0)
    plain = {"widths": WIDTHS, "dim": 16, "heads": 2, "mask_scope": "sample", "drop": 0.1}
    method = mmssl.create_method("mtm", **{**plain, **settings})
    for name in method.encoder.modalities:
        if name in WIDTHS:
            n = WIDTHS[name]
            method.encoder.tokenizer(name).set_statistics(torch.full((n,), 5.0), torch.full((n,), 2.0))
    return method


def some(rows=3, length=4):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(rows, length, n, generator=generator) for name, n in WIDTHS.items()}


def test_what_is_known_stays_and_the_rest_is_never_looked_at():
    method, trajectory = make(), some()
    known = {
        "state": torch.tensor([True, True, False, False]),
        "action": torch.arange(4) < torch.tensor([[1], [0], [3]]),
    }
    spoiled = {name: x.clone() for name, x in trajectory.items()}
    spoiled["state"][:, 2:], spoiled["return"][:] = 1e6, torch.nan
    one, two = (method.predict(t, known) for t in (trajectory, spoiled))
    assert one.keys() == WIDTHS.keys()
    for name in WIDTHS:
        assert torch.equal(one[name], two[name]) and one[name].shape == trajectory[name].shape
    assert torch.equal(one["state"][:, :2], trajectory["state"][:, :2])
    assert torch.equal(one["action"][2, :3], trajectory["action"][2, :3])
    assert not torch.equal(one["action"][1, 0], trajectory["action"][1, 0])
    assert method.training, "it goes on as it was"


def test_predictions_are_in_raw_units():
    method, trajectory = make(), some()
    found = method.predict(trajectory, {"state": [1, 0, 0, 0]})
    masks = {name: torch.ones(3, 4, dtype=torch.bool) for name in WIDTHS}
    masks["state"][:, 0] = False
    method.eval()
    said = method.fill(trajectory, method.see(trajectory, masks, None))
    torch.testing.assert_close(found["action"], said["action"] * 2 + 5)


@pytest.mark.parametrize("lacking", ["action", "return"])
def test_a_modality_that_is_not_given_is_wholly_unknown(lacking):
    method, trajectory = make(), some()
    del trajectory[lacking]
    found = method.predict(trajectory, "bc")
    known = method.known("bc", 4) | {lacking: torch.zeros(4, dtype=torch.bool)}
    wanted = method.predict(some(), known)
    assert all(torch.equal(found[name], wanted[name]) for name in WIDTHS)


def steps(method, *pattern, **where):
    return {name: "".join(str(int(step)) for step in row) for name, row in method.known(*pattern, **where).items()}


@pytest.mark.parametrize(
    "pattern, where, state, action, returns",
    [
        ("bc", {}, "1111", "1110", "0000"),
        ("bc", {"step": 1}, "1100", "1000", "0000"),
        ("rcbc", {"step": 0}, "1000", "0000", "1111"),
        ("future", {"step": 2}, "1110", "1110", "1110"),
        ("forward_dynamics", {}, "1110", "1111", "0000"),
        ("forward_dynamics", {"step": 0}, "1000", "1111", "0000"),
        ("inverse_dynamics", {}, "1111", "0000", "0000"),
        ("goal", {}, "1001", "0000", "0000"),
        ("goal", {"step": 1}, "1101", "1000", "0000"),
        ("waypoints", {"way": [2]}, "1011", "0000", "0000"),
    ],
)
def test_patterns_by_name(pattern, where, state, action, returns):
    method, trajectory = make(), some()
    assert steps(method, pattern, **where) == {"state": state, "action": action, "return": returns}
    one = method.predict(trajectory, pattern, **where)
    two = method.predict(trajectory, method.known(pattern, 4, **where))
    assert all(torch.equal(one[name], two[name]) for name in WIDTHS)


def test_steps_windows_and_arrays():
    method, trajectory = make(), some(length=3)
    one = method.predict(trajectory, [0, 2])
    two = method.predict(trajectory, dict.fromkeys(WIDTHS, np.array([True, False, True])))
    assert all(torch.equal(one[name], two[name]) and one[name].shape[1] == 3 for name in WIDTHS)


def test_padding_is_never_looked_at():
    method, trajectory = make(), some()
    valid = torch.arange(4) < torch.tensor([[2], [4], [2]])
    spoiled = {name: torch.where(valid[..., None], x, 1e5) for name, x in trajectory.items()}
    found = method.predict(spoiled | {"valid": valid}, "bc")
    short = method.predict({name: x[:, :2] for name, x in trajectory.items()}, {
        name: row[:2] for name, row in method.known("bc", 4).items()})  # fmt: skip
    torch.testing.assert_close(found["action"][0, 1], trajectory["action"][0, 1])
    torch.testing.assert_close(found["return"][0, :2], short["return"][0], atol=1e-5, rtol=1e-5)


def test_one_row_of_many_is_as_it_is_alone():
    method, trajectory = make(), some(rows=16)
    known = {"state": torch.arange(4) < torch.arange(16)[:, None] % 5}
    found = method.predict(trajectory, known)
    for row in (0, 3, 7):
        alone = method.predict({k: x[row : row + 1] for k, x in trajectory.items()}, {"state": known["state"][row]})
        torch.testing.assert_close(found["action"][row], alone["action"][0], atol=1e-5, rtol=1e-5)


def test_frames_are_filled_in():
    method = make(image_size=8, patch_size=4, cameras=("front",))
    frames = torch.randint(0, 256, (3, 4, 3, 8, 8), dtype=torch.uint8)
    found = method.predict(some() | {"video/front": frames}, "bc", step=1)["video/front"]
    assert found.shape == frames.shape and found.dtype == torch.float32
    torch.testing.assert_close(found[:, :2], frames[:, :2] / 255)
    assert not torch.equal(found[:, 2:], frames[:, 2:] / 255)


def test_bins_are_filled_in():
    method, trajectory = make(bins=8), some()
    found = method.predict(trajectory, "bc", step=1)
    assert torch.equal(found["state"][:, :2], trajectory["state"][:, :2])
    middles = 5 + 2 * (torch.arange(8) + 0.5 - 4)  # of -4 to 4 standard deviations
    assert bool(torch.isin(found["action"][:, 2].round(decimals=3), middles).all())


def test_the_state_encoder_of_one_state():
    method = make().eval()
    features = method.encoder({"state": some()["state"][:, :1]})
    assert features.tokens.shape == (3, 1, 16)


@pytest.mark.parametrize(
    "change, known, where, sentence",
    [
        ({}, "rcb", {}, "did you mean 'rcbc'"),
        ({}, {"pixels": [1, 0, 0, 0]}, {}, "pixels"),
        ({}, {"state": [1, 0]}, {}, "must have the shape (4,) or (3, 4), got (2,)"),
        ({}, [7], {}, "0 to 3"),
        ({}, "bc", {"step": 4}, "0 to 3"),
        ({}, [0], {"step": 1}, "known says already"),
        ({"return": None}, {"return": [1, 1, 1, 1]}, {}, "the trajectory lacks it"),
        ({"state": torch.zeros(3, 4, 4)}, "bc", {}, "'state' must have the shape"),
        ({"state": torch.zeros(3, 5, 3)}, "bc", {}, "1 to 4 time steps"),
        ({"state": torch.full((3, 4, 3), torch.nan)}, "bc", {}, "NaN"),
        ({"action": torch.zeros(3, 3, 2)}, "bc", {}, "same number of steps"),
        ({"action": torch.zeros(2, 4, 2)}, "bc", {}, "same number of"),
    ],
)
def test_wrong_input(change, known, where, sentence):
    trajectory = {name: x for name, x in (some() | change).items() if x is not None}
    with pytest.raises(MmsslError, match=re.escape(sentence)):
        make().predict(trajectory, known, **where)


def test_directions_have_no_length():
    with pytest.raises(MmsslError, match="norm 'none'"):
        make(norm="l2").predict(some(), "bc")
