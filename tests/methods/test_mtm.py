"""MTM: against torch.nn.TransformerEncoder with its weights, and a slow loss that goes sample by sample."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import mmssl
from mmssl.config import from_dict, to_dict
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.methods.base import MethodConfig
from mmssl.methods.mtm import MTM, MTMConfig
from mmssl.training.optim import OptimConfig, parameter_groups
from mmssl.training.pictures import save_pictures
from mmssl.weights.layout import Facts, Published
from mmssl.weights.mtm import build_mtm

sys.path.append(str(Path(__file__).parent))
from mtm_reference import Oracle

WIDTHS = {"state": 5, "action": 2, "return": 1}
SHAPE = {"dim": 16, "heads": 2, "depth": 2, "decoder_depth": 1, "length": 4}


def pair(**settings):
    """Our model, and the reference with the same weights."""
    torch.manual_seed(0)
    oracle = Oracle(WIDTHS, **SHAPE).scatter_all()
    ours = build_mtm(Published(oracle.state_dict(), "the reference", Facts(heads=2)))
    method = mmssl.create_method(dataclasses.replace(ours.config, drop=0.0, **settings))
    method.load_state_dict(ours.state_dict())
    for name, mean in (("state", 0.5), ("action", -0.2), ("return", 3.0)):
        n = WIDTHS[name]
        method.encoder.tokenizer(name).set_statistics(torch.full((n,), mean), torch.linspace(0.5, 2, n))
    return method, oracle


def batch_of(rows=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = {name: torch.randn(rows, 4, n, generator=generator) for name, n in WIDTHS.items()}
    return batch | {"index": torch.arange(rows)}


def with_holes(batch):
    """Windows of several lengths, some without actions, and one without returns."""
    valid = torch.arange(4)[None] < torch.tensor([4, 2, 1, 4, 3, 4])[:, None]
    holes = {"valid": valid, "present/action": torch.tensor([True, True, False, False, True, True]),
             "present/return": torch.tensor([True, True, True, True, True, False])}  # fmt: skip
    found = {name: batch[name] * valid[..., None] for name in WIDTHS}
    return batch | found | holes


def slow_loss(method, oracle, batch, masks, loss_on="all", norm="none"):
    """The loss of each modality, the sum over the samples; each sample by itself, cut to what is there."""
    losses = {name: torch.zeros(()) for name in WIDTHS}
    for row in range(len(batch["index"])):
        length = int(batch["valid"][row].sum()) if "valid" in batch else 4
        names = [n for n in WIDTHS if bool(batch.get(f"present/{n}", torch.ones(99, dtype=torch.bool))[row])]
        goals, visible = {}, {}
        for name in names:
            tokenizer = method.encoder.tokenizer(name)
            goals[name] = (batch[name][row : row + 1, :length] - tokenizer.mean) / tokenizer.std
            visible[name] = ~masks[name][row, :length]
        for name, said in oracle(goals, visible).items():
            goal = goals[name] / goals[name].norm(dim=-1, keepdim=True) if norm == "l2" else goals[name]
            errors = []
            for t in range(length):
                if loss_on == "all" or not visible[name][t]:
                    errors.append(sum((said[0, t, i] - goal[0, t, i]) ** 2 for i in range(WIDTHS[name])) / WIDTHS[name])
            if errors:
                losses[name] = losses[name] + sum(errors) / len(errors)
    return losses


@pytest.mark.parametrize("settings", [{}, {"loss_on": "masked"}, {"norm": "l2"}, {"mask": "random"}])
@pytest.mark.parametrize("scope", ["batch", "sample"])
@pytest.mark.parametrize("holes", [False, True])
def test_the_loss_and_its_gradient_are_the_slow_ones(settings, scope, holes):
    method, oracle = pair(mask_scope=scope, **settings)
    batch = with_holes(batch_of()) if holes else batch_of()
    keys = sample_keys(2, 0, 0, batch["index"])
    masks = method.sampler(method.encoder.grids, keys, method.encoder.valid(batch) or None)
    slow = slow_loss(method, oracle, batch, masks, settings.get("loss_on", "all"), settings.get("norm", "none"))
    total, count = method(batch, keys=keys)["loss"]
    torch.testing.assert_close(total, sum(slow.values()), atol=1e-4, rtol=1e-4)
    assert count == 6
    wanted = torch.autograd.grad(sum(slow.values()), [oracle.encoder.layers[0].linear1.weight])
    found = torch.autograd.grad(total, [method.encoder.blocks[0].mlp.fc1.weight])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_where_counts_are_not_read_the_result_is_the_same(monkeypatch):
    """On a GPU, and compiled, every place goes through the encoder, and nothing looks at the hidden ones."""
    method, _ = pair(mask_scope="sample")
    for batch in (batch_of(), with_holes(batch_of())):
        keys = sample_keys(2, 0, 0, batch["index"])
        read, narrow = method(batch, keys=keys), method.see(batch, None, keys).features.tokens.shape[1]
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        whole, wide = method(batch, keys=keys), method.see(batch, None, keys).features.tokens.shape[1]
        monkeypatch.undo()
        assert narrow < wide == 12
        torch.testing.assert_close(whole, read, atol=1e-5, rtol=1e-5)


def test_on_a_cpu_only_what_is_visible_enters_the_encoder():
    method, _ = pair()
    batch, keys = batch_of(), sample_keys(5, 0, 0, torch.arange(6))
    seen = method.see(batch, None, keys)
    assert seen.features.tokens.shape[1] == sum(int((~mask[0]).sum()) for mask in seen.masks.values()) < 12
    assert bool(seen.features.valid.all())


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_nothing_visible_gives_no_nan(drop):
    config = pair()[0].config
    method = mmssl.create_method(dataclasses.replace(config, drop=drop)).train()
    batch = batch_of()
    masks = {name: torch.ones(6, 4, dtype=torch.bool) for name in WIDTHS}
    some = {name: mask.clone() for name, mask in masks.items()}
    some["state"][1:, 0] = False
    for given in (masks, some):
        method.zero_grad()
        total, _ = method(batch, given)["loss"]
        total.backward()
        assert torch.isfinite(total)
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)


def test_padding_and_missing_rows_change_nothing():
    method, _ = pair(mask_scope="sample")
    batch = with_holes(batch_of())
    masks = method.sampler(method.encoder.grids, sample_keys(2, 0, 0, batch["index"]))
    other = {key: x.clone() for key, x in batch.items()}
    for name in WIDTHS:
        absent = ~(batch["valid"] & batch.get(f"present/{name}", torch.ones(6, dtype=torch.bool))[:, None])
        other[name][absent] = 1e4
    one, two = (method(b, masks) for b in (batch, other))
    assert torch.equal(one["loss"][0], two["loss"][0])
    cut = {name: batch[name][1:2, :2] for name in WIDTHS}
    short = method(cut, {name: mask[1:2, :2] for name, mask in masks.items()})["loss"][0]
    alone = method({key: x[1:2] for key, x in batch.items()}, {name: mask[1:2] for name, mask in masks.items()})
    torch.testing.assert_close(alone["loss"][0], short, atol=1e-5, rtol=1e-5)


def test_a_row_without_actions_has_no_loss_of_them():
    method, _ = pair()
    batch, keys = batch_of(), sample_keys(2, 0, 0, torch.arange(6))
    batch["present/action"] = torch.zeros(6, dtype=torch.bool)
    without = {key: x for key, x in batch.items() if "action" not in key}
    one, two = method(batch, keys=keys), method(without, keys=keys)
    assert one["loss_action"] == 0
    torch.testing.assert_close(one["loss_state"], two["loss_state"], atol=1e-5, rtol=1e-5)


def test_it_starts_as_torch_does():
    torch.manual_seed(0)
    method = MTM(MTMConfig())
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 11_059_727
    one, two = (block.state_dict() for block in method.encoder.blocks)
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = method.decoder.blocks[0].state_dict()
    assert not torch.equal(one["mlp.fc1.weight"], other["mlp.fc1.weight"])
    layer = nn.TransformerEncoderLayer(512, 4)
    attention = layer.self_attn
    for ours, theirs in (("attn.qkv.weight", attention.in_proj_weight), ("mlp.fc1.bias", layer.linear1.bias),
                         ("attn.proj.weight", attention.out_proj.weight), ("mlp.fc2.weight", layer.linear2.weight),
                         ("attn.proj.bias", attention.out_proj.bias)):  # fmt: skip
        torch.testing.assert_close(one[ours].std(), theirs.std(), rtol=0.1, atol=1e-8)
    for vectors in (method.encoder.type_embed, method.decoder.type_embed, method.decoder.mask_token):
        assert all(not vector.any() for vector in vectors.values())


def test_what_does_not_decay_is_the_released_codes_choice():
    method, _ = pair()
    decayed, plain = parameter_groups(method, OptimConfig(weight_decay=0.1))[:2]
    by_id = {id(p): name for name, p in method.named_parameters()}
    names = {by_id[id(p)] for group in (decayed, plain) for p in group["params"] if group["weight_decay"] > 0}
    assert names == {name for name, p in method.named_parameters()
                     if p.ndim == 2 and name.endswith("weight") and p.requires_grad}  # fmt: skip


def test_compiles_without_graph_breaks():
    method, _ = pair()
    batch, keys = with_holes(batch_of()), sample_keys(2, 0, 0, torch.arange(6))
    compiled = torch.compile(method, backend="aot_eager", fullgraph=True)
    expected, result = method(batch, keys=keys)["loss"][0], compiled(batch, keys=keys)["loss"][0]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    result.backward()
    assert torch.isfinite(method.decoder.norm.weight.grad).all()


def test_its_settings_come_back_from_yaml():
    config = MTMConfig(widths={"proprio": 3, "action": 2}, mask="bc", kept=(0.5,), cameras=("front",), image_size=32)
    assert from_dict(MethodConfig, to_dict(config)) == config
    assert mmssl.create_method(config).encoder.modalities == ("proprio", "action", "video/front")


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"widths": {"stat": 3}}, "state"),
        ({"widths": {}}, "at least one modality"),
        ({"cameras": ("front",)}, "need image_size"),
        ({"length": 0}, "length"),
        ({"mask": "rcb"}, "rcbc"),
        ({"norm": "l1"}, "norm"),
        ({"bins": 1}, "bins must be 2"),
    ],
)
def test_wrong_settings(settings, sentence):
    with pytest.raises(MmsslError, match=re.escape(sentence)):
        mmssl.create_method("mtm", **settings)


class Held:
    """A dataset of one batch, and the config that opens it."""

    name, audio, clip = "held", None, None

    def open(self, split="train"):
        return self

    def __len__(self):
        return 6

    def fetch(self, places):
        return {key: x[places] for key, x in with_holes(batch_of()).items()}


def test_a_run_without_pictures_shows_none(tmp_path):
    method, _ = pair()
    save_pictures(method.eval(), Held(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert method.reconstruct(batch_of())["prediction/state"].shape == (6, 4, 5)


@pytest.mark.parametrize("masks", [{"pixels": (6, 4)}, {"state": (6, 3)}, {"state": (4,)}])
def test_masks_of_another_shape_or_of_nothing(masks):
    method, _ = pair()
    given = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in masks.items()}
    with pytest.raises(MmsslError, match="mask"):
        method(with_holes(batch_of()), given)
