"""Extraction: order, pooling, batch size, and what Splits refuses."""

import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.evaluation.baselines import PixelEncoder, random_like
from mmssl.evaluation.features import EvaluatorConfig, Splits, extract, mean_and_spread


@pytest.mark.parametrize("pooling, width", [("mean", 3), ("max", 3), ("grid2", 12), ("grid4", 12), ("flat", 12)])
def test_poolings_give_known_features(looker, regression, pooling, width):
    found = extract(looker, regression[0], pooling, batch_size=64)
    assert found.features.shape == (200, width)
    quadrants = torch.nn.functional.adaptive_avg_pool2d(regression[0].images.float() / 255, 2).flatten(2)
    expected = {"mean": quadrants.mean(2), "max": quadrants.amax(2)}.get(pooling, quadrants.transpose(1, 2).flatten(1))
    torch.testing.assert_close(found.features, expected)
    assert torch.equal(found.labels, regression[0].values) and torch.equal(found.groups, regression[0].groups)


def test_grid_pooling_is_the_mean_of_each_cell(tiny_encoder, classification):
    batch = {"image": classification[0].images[:2]}
    cells = extract(tiny_encoder, classification[0].subset(range(2)), "grid2").features.view(2, 2, 2, 32)
    maps = tiny_encoder(batch).map()  # (2, 4, 4, 32)
    torch.testing.assert_close(cells[:, 1, 0], maps[:, 2:, :2].mean((1, 2)), atol=1e-5, rtol=1e-5)


def test_features_do_not_depend_on_the_batch_size(tiny_encoder, classification):
    one, all_ = (extract(tiny_encoder, classification[1], "grid4", batch_size=b).features for b in (7, 60))
    torch.testing.assert_close(one, all_, atol=1e-5, rtol=1e-5)


def test_the_encoder_comes_back_in_the_mode_it_was_in(tiny_encoder, classification):
    tiny_encoder.train()
    extract(tiny_encoder, classification[1])
    assert tiny_encoder.training


def test_an_unreadable_sample_leaves_no_row(looker, classification):
    data = classification[1]
    fetch = data.fetch
    data.fetch = lambda index, *rest: fetch(torch.where(index == 5, 6, index))  # as a dataset replaces a bad file
    found = extract(looker, data, batch_size=8)
    assert found.index.tolist() == [i for i in range(60) if i != 5]
    assert torch.equal(found.labels, data.values[found.index]) and len(found) == 59


def test_features_are_extracted_once_for_an_encoder_and_a_pooling(looker, classification, monkeypatch):
    splits, calls = Splits(*classification), []
    forward = looker.forward
    monkeypatch.setattr(looker, "forward", lambda batch, masks=None: calls.append(1) or forward(batch))
    first = splits.features(looker, EvaluatorConfig())
    assert splits.features(looker, EvaluatorConfig(seed=3)) is first and len(calls) == 2
    splits.forget(looker)
    assert splits.features(looker, EvaluatorConfig()) is not first


def test_random_like_has_the_shape_and_other_weights(tiny_encoder):
    a, b, again = random_like(tiny_encoder, 1), random_like(tiny_encoder, 2), random_like(tiny_encoder, 1)
    weight = lambda m: m.blocks[0].attn.qkv.weight  # noqa: E731
    assert a.config == tiny_encoder.config and not weight(a).requires_grad
    assert torch.equal(weight(a), weight(again)) and not torch.equal(weight(a), weight(b))
    assert not torch.equal(weight(a), weight(tiny_encoder))


def test_pixels_are_the_whole_picture_under_every_pooling(classification):
    images = classification[1].images
    found = extract(PixelEncoder(patch_size=8), classification[1], "mean").features
    assert found.shape == (60, 3 * 16 * 16)
    torch.testing.assert_close(found.sort(1).values, (images.float() / 255).flatten(1).sort(1).values)
    large = PixelEncoder(max_side=32)({"image": torch.zeros(1, 3, 128, 64, dtype=torch.uint8)})
    assert large.grid == {"image": (4, 2)} and large.tokens.shape == (1, 8, 192)


def test_wrong_input_is_said(looker, tiny_encoder, classification, regression, in_memory):
    with pytest.raises(MmsslError, match="pooling"):
        EvaluatorConfig(pooling="avg")
    with pytest.raises(MmsslError, match="draws"):
        EvaluatorConfig(draws=0)
    with pytest.raises(MmsslError, match="no cls token"):
        extract(looker, classification[0], "cls")
    with pytest.raises(MmsslError, match="GB"):
        extract(looker, classification[0], max_gb=1e-9)
    with pytest.raises(MmsslError, match="no labels"):
        Splits(in_memory(classification[0].images), in_memory(classification[0].images))
    with pytest.raises(MmsslError, match="different"):
        Splits(classification[0], regression[1])
    small = in_memory(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(MmsslError, match="shape"):
        extract(tiny_encoder, small)


def test_mean_and_spread():
    assert mean_and_spread([{"a": 1.0}]) == {"a": 1.0}
    assert mean_and_spread([{"a": 1.0}, {"a": 3.0}]) == {"a": 2.0, "a/spread": pytest.approx(2**0.5)}
