"""Probes with a trained head: the LARS recipe and the attentive one, on problems solved in seconds."""

import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.evaluation.attentive import AttentiveConfig, attentive
from mmssl.evaluation.baselines import PixelEncoder
from mmssl.evaluation.features import Splits
from mmssl.evaluation.fitting import TargetScaler, shuffled_rows
from mmssl.evaluation.linear import LinearConfig, linear

SHORT = {"steps": 300, "train_batch": 64}


def test_linear_finds_classes_and_values(looker, classification, regression):
    assert linear(looker, Splits(*classification), LinearConfig(**SHORT))["accuracy"] > 0.95
    assert linear(looker, Splits(*regression), LinearConfig(pooling="flat", **SHORT))["r2"] > 0.95


def test_the_recipe_is_the_published_one_and_small_data_have_their_own():
    assert LinearConfig().budget(1_281_167) == (round(90 * 1_281_167 / 16384), 16384, pytest.approx(6.4))
    assert LinearConfig().budget(300) == (2000, 300, 6.4)
    assert LinearConfig(epochs=3, train_batch=100, lr=1.0).budget(1000) == (30, 100, 1.0)


def test_attentive_finds_where_to_look(looker, regression, classification):
    """The label is one quadrant's colour, which the mean of the tokens loses and a query over tokens cannot find
    without positions; with them it can."""
    config = AttentiveConfig(steps=250, train_batch=64, lr=3e-3)
    assert attentive(looker, Splits(*classification), config)["accuracy"] > 0.95
    with_positions = attentive(PixelEncoder(patch_size=8), Splits(*regression), config)["r2"]
    assert with_positions > 0.8 > attentive(looker, Splits(*regression), config)["r2"]


def test_the_same_seed_gives_the_same_score_and_the_batch_size_of_extraction_changes_nothing(
    tiny_encoder, classification
):
    scores = [
        attentive(tiny_encoder, Splits(*classification), AttentiveConfig(batch_size=b, steps=20))["accuracy"]
        for b in (16, 150, 150)
    ]
    assert scores[1] == scores[2] and abs(scores[0] - scores[1]) < 0.04


def test_regression_losses_are_in_unit_variance_and_outputs_in_the_labels_units():
    labels = torch.tensor([[1.0, 1000.0], [3.0, 3000.0], [5.0, 5000.0]])
    scaler = TargetScaler("regression", labels)
    assert scaler.losses(torch.zeros(3, 2), labels).mean().item() == pytest.approx(1.0)
    torch.testing.assert_close(scaler.restore((labels - scaler.mean) / scaler.std), labels)


def test_every_row_is_seen_once_a_pass():
    stream = shuffled_rows(10, 4, seed=0)
    rows = torch.cat([next(stream) for _ in range(5)])
    assert sorted(rows[:10].tolist()) == list(range(10)) == sorted(rows[10:].tolist())


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearConfig(epochs=1, steps=1),
        lambda: LinearConfig(lr=-1.0),
        lambda: LinearConfig(warmup=1.0),
        lambda: AttentiveConfig(steps=0),
    ],
)
def test_wrong_settings(make):
    with pytest.raises(MmsslError):
        make()
