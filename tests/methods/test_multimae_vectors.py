"""MultiMAE with vectors beside its pictures, against the slow version of all of it."""

import sys
from pathlib import Path

import pytest
import torch

from mmssl.config import from_dict, to_dict
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.methods.base import MethodConfig

sys.path.insert(0, str(Path(__file__).parent))
from multimae_reference import Reference
from test_multimae import batch_of, tiny

PAIR = {"in_tasks": ("image", "proprio"), "out_tasks": ("image", "proprio"), "widths": {"proprio": 4}, "budget": 3}


def with_vectors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return batch_of(seed=seed) | {"proprio": torch.randn(3, 1, 4, generator=generator)}


def masks(*rows: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Masks with so many hidden tokens of the image and of the vector in each row, the first ones."""
    images, vectors = torch.tensor(rows).T
    return {"image": torch.arange(6) < images[:, None], "proprio": (vectors > 0)[:, None]}


def check(model, batch, masks=None) -> None:
    """Losses, their gradient and what is predicted: ours and the slow ones. Some losses are large: see the rounding."""
    keys = sample_keys(3, 0, 0, torch.arange(3))
    out, seen = model(batch, masks, keys), model.see(batch, masks, keys)
    losses, said = Reference(model)(batch, seen.masks)
    for task in model.tasks:
        torch.testing.assert_close(model.decode(task, seen), said[task.name])
        if task.name in losses:
            torch.testing.assert_close(out[f"loss_{task.name}"], losses[task.name].detach())
    total = out["loss"][0] / out["loss"][1]
    torch.testing.assert_close(total, sum(losses.values()))
    parameters = [p for p in model.encoder.parameters() if p.requires_grad]
    ours, slow = (torch.autograd.grad(y, parameters, materialize_grads=True) for y in (total, sum(losses.values())))
    torch.testing.assert_close(ours, slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        PAIR,
        PAIR | {"in_tasks": ("depth", "proprio", "image"), "out_tasks": ("proprio", "image", "segmentation")},
        PAIR | {"in_tasks": ("image",)},
        PAIR | {"in_tasks": ("proprio", "state"), "widths": {"proprio": 4, "state": 2}, "budget": 1},
    ],
)
def test_it_is_the_slow_one(changes):
    model, batch = tiny(**changes), with_vectors()
    batch |= {"state": torch.ones(3, 1, 2)} if "state" in model.config.widths else {}
    batch = {key: x for key, x in batch.items() if key in (*changes["in_tasks"], *changes["out_tasks"], "index")}
    check(model, batch)
    check(model, batch | {"present/proprio": torch.tensor([True, False, True])})
    if "proprio" in changes["in_tasks"] and "image" in changes["in_tasks"]:
        check(model, batch, masks((6, 0), (0, 1), (3, 1)))


def test_vectors_are_standardised_and_shown_as_they_came():
    model, batch = tiny(**PAIR), with_vectors()
    model.check(batch)
    mean, std = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.5, 1, 2, 3])
    hidden = masks((3, 1), (0, 1), (6, 0))
    expected = model(batch, hidden)["loss"][0]
    model.encoder.tokenizer("proprio").set_statistics(mean, std)
    raw = batch | {"proprio": batch["proprio"] * std + mean}
    torch.testing.assert_close(model(raw, hidden)["loss"][0], expected)
    found = model.reconstruct(raw, hidden)
    torch.testing.assert_close(found["target/proprio"], raw["proprio"])
    torch.testing.assert_close(found["prediction/proprio"][2], raw["proprio"][2])  # it was visible
    said = Reference(model)(batch, hidden)[1]["proprio"]  # in standard units
    torch.testing.assert_close(found["prediction/proprio"][:2], (said * std + mean)[:2])
    assert not found["masked/proprio"][:2].any() and torch.equal(found["target"], found["target/image"])


def test_what_is_not_read_is_predicted_in_every_sample():
    model, batch = tiny(**PAIR | {"in_tasks": ("image",)}), with_vectors()
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(30):
        out = model(batch)
        (out["loss"][0] / out["loss"][1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out["loss_proprio"]))
    assert losses[-1] < 0.5 * losses[0] and model.reconstruct(batch)["mask/proprio"].all()
    with pytest.raises(MmsslError, match="'proprio' holds NaN"):
        model.check(batch | {"proprio": batch["proprio"] * torch.nan})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": {}}, "widths must say how many numbers 'proprio' has, got {}"),
        ({"widths": {"proprio": 4, "state": 2}}, "unknown vector of widths 'state'"),
        ({"widths": {"proprio": 0}}, "width 0 and frames 1 of vectors must be 1 or more"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(MmsslError, match=message):
        tiny(**PAIR | changes)


def test_settings_are_plain_values():
    config = tiny(**PAIR).config
    assert from_dict(MethodConfig, to_dict(config)) == config
