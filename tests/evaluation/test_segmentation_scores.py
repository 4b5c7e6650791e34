"""J, F and mIoU against versions written from their published definitions."""

import math

import numpy as np
import pytest

from mmssl.data.labelled_videos import IGNORE
from mmssl.evaluation.segmentation_scores import MaskTally, PartTally, boundary, boundary_f, over_time, region_j


def slow_boundary(mask):
    """Martin's seg2bmap at full size: a pixel is on the boundary where its east, south or south-east differs."""
    height, width = mask.shape
    out = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            here = mask[y, x]
            east = mask[y, x + 1] if x + 1 < width else None
            south = mask[y + 1, x] if y + 1 < height else None
            diagonal = mask[y + 1, x + 1] if x + 1 < width and y + 1 < height else None
            if y == height - 1 and x == width - 1:
                continue
            if y == height - 1:
                out[y, x] = here != east
            elif x == width - 1:
                out[y, x] = here != south
            else:
                out[y, x] = here != east or here != south or here != diagonal
    return out


def slow_f(truth, guess, bound=0.008):
    """Precision and recall of boundary pixels after dilating the other boundary by a disk, pixel by pixel."""
    radius = int(np.ceil(bound * np.linalg.norm(truth.shape)))
    ours, theirs = slow_boundary(guess), slow_boundary(truth)

    def dilated(mask):
        out = np.zeros_like(mask)
        for y, x in zip(*np.nonzero(mask), strict=True):
            for dy in range(-radius, radius + 1):
                for dx in range(-radius, radius + 1):
                    inside = 0 <= y + dy < mask.shape[0] and 0 <= x + dx < mask.shape[1]
                    if inside and dy * dy + dx * dx <= radius * radius:
                        out[y + dy, x + dx] = True
        return out

    n_ours, n_theirs = ours.sum(), theirs.sum()
    if n_ours == 0 and n_theirs == 0:
        return 1.0
    if n_ours == 0 or n_theirs == 0:
        return 0.0
    precision = (ours & dilated(theirs)).sum() / n_ours
    recall = (theirs & dilated(ours)).sum() / n_theirs
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def blob(rng, size=(40, 61)):
    """A union of a few ellipses, often touching the border."""
    y, x = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, bool)
    for _ in range(3):
        cy, cx, a, b = rng.uniform(-3, 45), rng.uniform(-3, 65), *rng.uniform(3, 16, 2)
        mask |= ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1
    return mask


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bound", [0.008, 0.03])
def test_j_and_f_agree_with_the_definition(seed, bound):
    rng = np.random.default_rng(seed)
    truth = blob(rng)
    guess = np.roll(truth, rng.integers(-2, 3, 2), (0, 1)) ^ (rng.random(truth.shape) < 0.01)
    assert np.array_equal(boundary(truth), slow_boundary(truth)) and np.array_equal(
        boundary(guess), slow_boundary(guess)
    )
    assert boundary_f(truth, guess, bound=bound) == pytest.approx(slow_f(truth, guess, bound), abs=1e-6)
    both, either = (truth & guess).sum(), (truth | guess).sum()
    assert region_j(truth, guess) == pytest.approx(both / either, abs=1e-6) and 0 < both < either


def test_noise_has_a_boundary_at_every_border():
    noise = np.random.default_rng(0).random((13, 17)) < 0.5
    assert np.array_equal(boundary(noise), slow_boundary(noise))


def test_a_pixel_exactly_at_the_tolerance_is_right_and_one_beyond_is_not():
    """Two single boundary lines `d` apart in a frame whose tolerance is 3 pixels."""
    truth, guess = np.zeros((2, 250, 250), bool)
    assert math.ceil(0.008 * math.hypot(250, 250)) == 3
    truth[:, :100], guess[:, :103] = True, True
    assert boundary_f(truth, guess) == 1
    guess[:, :104] = True
    assert boundary_f(truth, guess) == 0


def test_empty_masks():
    nothing, something = np.zeros((20, 20), bool), np.eye(20, dtype=bool)
    assert region_j(nothing, nothing) == boundary_f(nothing, nothing) == 1
    assert region_j(nothing, something) == boundary_f(nothing, something) == 0
    assert region_j(something, nothing) == boundary_f(something, nothing) == 0
    assert region_j(something, something) == boundary_f(something, something) == 1


def test_void_pixels_do_not_count():
    truth, guess, void = np.zeros((3, 20, 20), bool)
    truth[5:10, 5:10], guess[5:10, 5:15], void[:, 10:] = True, True, True
    assert region_j(truth, guess) == 0.5 and region_j(truth, guess, void) == 1
    assert boundary_f(truth, guess) < 1 and boundary_f(truth, guess, void) == 1


def test_recall_and_decay():
    found = over_time(np.array([1.0, 0.8, 0.6, 0.4, 0.2]))
    assert found == pytest.approx({"mean": 0.6, "recall": 0.6, "decay": (1 + 0.8) / 2 - (0.4 + 0.2) / 2})
    assert over_time(np.array([0.7]))["decay"] == 0


def frames(*rows):
    return [np.array(row, np.uint8) for row in rows]


def test_first_and_last_frame_are_not_judged_and_objects_count_alike():
    start = [[1, 1, 2, 0]]
    truths = frames(start, start, start, start)
    wrong = [[0, 0, 0, 0]]
    tally = MaskTally()
    found = tally.add(truths, frames(wrong, start, [[1, 1, 0, 0]], wrong))
    assert found["J"] == pytest.approx((1 + 0.5) / 2)  # object 1 is always right, object 2 in one of two frames
    tally.add(frames([[3, 0]], [[3, 0]], [[3, 0]]), frames([[3, 0]], [[0, 0]], [[3, 0]]))
    assert tally.total()["J"] == pytest.approx((1 + 0.5 + 0) / 3)  # over objects, not over sequences
    assert tally.total()["J&F"] == pytest.approx((tally.total()["J"] + tally.total()["F"]) / 2)


def test_ignored_pixels_and_unknown_frames():
    truths = [*frames([[1, 0, IGNORE]], [[1, 0, IGNORE]]), None, *frames([[1, 0, 0]])]
    found = MaskTally().add(truths, frames([[1, 0, 0]], [[1, 0, 1]], [[0, 0, 0]], [[1, 0, 0]]))
    assert found["J"] == 1


def test_iou_of_parts_by_hand():
    tally = PartTally(4)
    found = tally.add(frames([[0, 0, 1, 1]], [[0, 2, 2, IGNORE]]), frames([[0, 1, 1, 1]], [[0, 2, 0, 3]]))
    # class 0: 2 of 4, class 1: 2 of 3, class 2: 1 of 2, class 3 is nowhere
    assert found["mIoU"] == pytest.approx((2 / 4 + 2 / 3 + 1 / 2) / 3)
    assert found["pixel accuracy"] == pytest.approx(5 / 7)
    tally.add([*frames([[3, 3]]), None], frames([[3, 3]], [[0, 0]]))
    assert tally.total()["mIoU"] == pytest.approx((2 / 4 + 2 / 3 + 1 / 2 + 1) / 4)
