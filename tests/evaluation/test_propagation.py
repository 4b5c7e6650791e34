"""Label propagation against a slow version, and on videos whose answer is known."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmssl.errors import MmsslError
from mmssl.evaluation import propagation
from mmssl.evaluation.propagation import PropagationConfig, hard_labels, propagate, soft_labels


def slow_propagate(maps, first, config):
    """Token by token, as published: everything near in the context, the best k of it, and their weighted mean."""
    height, width, _ = maps[0].shape
    context = [(maps[0], first)]
    results = []
    for target in maps[1:]:
        labels = torch.zeros_like(first)
        for y in range(height):
            for x in range(width):
                candidates = []
                for features, known in context:
                    for v in range(height):
                        for u in range(width):
                            far = max(abs(v - y), abs(u - x)) > config.neighbourhood
                            if config.neighbourhood and far:
                                continue
                            cosine = float(target[y, x] @ features[v, u])
                            candidates.append((math.exp(cosine / config.temperature), known[:, v, u]))
                best = sorted(candidates, key=lambda c: -c[0])[: config.top_k]
                total = sum(weight for weight, _ in best)
                labels[:, y, x] = sum(weight * known for weight, known in best) / total
        results.append(labels)
        kept = [*context[1:], (target, labels)]
        context = [context[0], *(kept[-config.queue :] if config.queue else [])]
    return results


def random_maps(frames, height, width, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(F.normalize(torch.randn(frames, height, width, dim, generator=generator), dim=-1))


@pytest.mark.parametrize(
    "config",
    [
        PropagationConfig(),
        PropagationConfig(top_k=3, neighbourhood=1, queue=2, temperature=0.05),
        PropagationConfig(top_k=5, neighbourhood=2, queue=0),
        PropagationConfig(top_k=1, neighbourhood=0, queue=1),
        PropagationConfig(top_k=1000, neighbourhood=1, queue=9, temperature=0.7),
    ],
)
@pytest.mark.parametrize("budget", [2**25, 200])  # the small one makes many tiles
def test_equals_the_slow_version(config, budget, monkeypatch):
    monkeypatch.setattr(propagation, "_BUDGET", budget)
    maps, first = random_maps(5, 4, 6), torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(1))
    found, slow = list(propagate(maps, first, config)), slow_propagate(maps, first, config)
    assert len(found) == 4
    for fast, expected in zip(found, slow, strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-5)


def test_tiles_change_nothing(monkeypatch):
    maps, first = random_maps(4, 20, 19), torch.rand(2, 20, 19)
    config = PropagationConfig(neighbourhood=3)
    whole = list(propagate(maps, first, config))
    monkeypatch.setattr(propagation, "_LARGEST_TILE", 5)
    for a, b in zip(whole, propagate(maps, first, config), strict=True):
        torch.testing.assert_close(a, b)


def test_features_that_name_their_object_carry_its_mask_without_error():
    """One-hot features of things that move and even jump: the mask follows exactly."""
    rng = np.random.default_rng(0)
    ids = [rng.permutation(np.repeat(np.arange(4), 9)).reshape(6, 6) for _ in range(8)]
    maps = [F.one_hot(torch.tensor(frame), 4).float() for frame in ids]
    first = soft_labels(torch.tensor(ids[0]), [0, 1, 2, 3], (6, 6), "nearest")
    for truth, soft in zip(ids[1:], propagate(maps, first, PropagationConfig(top_k=5)), strict=True):
        assert np.array_equal(hard_labels(soft, (6, 6), (6, 6)).numpy(), truth)


def test_a_neighbourhood_keeps_labels_near():
    """The only likeness is far away: without a bound it is found, with one the label cannot get there."""
    maps = [torch.zeros(1, 9, 2) for _ in range(2)]
    maps[0][..., 0], maps[1][..., 0] = 1, 1
    maps[0][0, 0], maps[1][0, 8] = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])
    first = torch.zeros(2, 1, 9)
    first[0], first[0, 0, 0], first[1, 0, 0] = 1, 0, 1
    for reach, expected in ((0, 1.0), (8, 1.0), (7, 0.0)):
        (soft,) = propagate(maps, first, PropagationConfig(top_k=1, neighbourhood=reach))
        assert soft[1, 0, 8] == expected


def test_the_first_frame_is_never_forgotten():
    """Frame 1 shows nothing like frame 2; with a queue of one, frame 3 is found in the first frame alone."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    maps = [x.expand(2, 2, 2) for x in (a, b, b, a)]
    first = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])
    last = list(propagate(maps, first, PropagationConfig(top_k=2, queue=1)))[-1]
    torch.testing.assert_close(last[1], torch.ones(2, 2))


def test_first_labels_at_token_resolution():
    ids = torch.zeros(8, 12, dtype=torch.uint8)
    ids[0, 0], ids[4:, 6:], ids[0, 11] = 7, 3, 255
    share = soft_labels(ids, [0, 3, 7], (2, 3), "share")
    assert share.shape == (3, 2, 3) and torch.allclose(share.sum(0), torch.ones(2, 3))
    assert share[2, 0, 0] == 1 / 16 and share[1, 1, 1] == 0.5 and share[1, 1, 2] == 1
    assert share[0, 0, 2] == 1  # what is to be ignored is background
    nearest = soft_labels(ids, [0, 3, 7], (2, 3), "nearest")
    picture = np.asarray(Image.fromarray(ids.numpy()).resize((3, 2), Image.Resampling.NEAREST))  # as DINO does
    assert np.array_equal(torch.tensor([0, 3, 7])[nearest.argmax(0)].numpy(), picture)


def slow_winner(soft, factor, size):
    """DINO's own order of steps: upsample, stretch each class in a loop, take the maximum, nearest neighbour."""
    planes = F.interpolate(soft[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]
    for plane in planes:
        if plane.max() > plane.min():
            plane -= plane.min().clone()
            plane /= plane.max().clone()
    winner = planes.max(0).indices.byte().numpy()
    return np.asarray(Image.fromarray(winner).resize(size[::-1], Image.Resampling.NEAREST))


@pytest.mark.parametrize("size", [(24, 40), (31, 45), (48, 80)])
def test_hard_labels_as_dino(size):
    soft = (
        torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(3))
        * torch.tensor([1, 0.2, 0.05, 0.0])[:, None, None]
    )
    found = hard_labels(soft, (24, 40), size)
    assert np.array_equal(found.numpy(), slow_winner(soft, 8, size))
    assert {0, 1, 2} == set(found.unique().tolist())  # stretched, even the faint ones win somewhere
    assert set(hard_labels(soft, (24, 40), size, stretch=False).unique().tolist()) < {0, 1, 2}


def test_a_frame_of_background_alone_stays_background():
    soft = torch.stack([torch.ones(3, 3), torch.zeros(3, 3)])
    assert hard_labels(soft, (6, 6), (6, 6)).sum() == 0


@pytest.mark.parametrize(
    "wrong", [{"top_k": 0}, {"neighbourhood": -1}, {"queue": -1}, {"temperature": 0.0}, {"temperature": float("nan")}]
)
def test_wrong_settings_are_one_sentence(wrong):
    with pytest.raises(MmsslError, match=next(iter(wrong))):
        PropagationConfig(**wrong)
