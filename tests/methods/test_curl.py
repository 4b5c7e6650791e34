"""CURL's objective: logits and loss against slow versions, crops, the key encoder, its encoders, runs, wrong input."""

import dataclasses
import math
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import mmssl
from mmssl.config import load_config
from mmssl.data.loading import DataConfig
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.losses import bilinear_info_nce, bilinear_logits
from mmssl.methods.base import create_method
from mmssl.methods.curl import Contrast, CURLConfig
from mmssl.nn.convnets import ControlConvs, conv_grid
from mmssl.nn.crop import centre
from mmssl.training.asked import as_asked
from mmssl.training.loop import LoopConfig
from mmssl.training.optim import OptimConfig, parameter_groups
from mmssl.training.pretrain import PretrainConfig, pretrain
from mmssl.weights.init import load_into

CONV = {"image_size": 24, "dim": 4, "depth": 2, "feature_dim": 6}
VIT = {"network": "vit", "size": "custom", "dim": 16, "depth": 1, "heads": 2, "image_size": 24, "patch_size": 4}
BOTH = pytest.mark.parametrize("settings", [CONV, VIT], ids=["conv", "vit"])


def make(settings=CONV, **more):
    torch.manual_seed(0)
    return create_method("curl", **{**settings, **more})


def pictures(n: int = 6, size: int = 24, seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=g)
    return {"image": images, "index": torch.arange(n)}


def slow_logits(q: Tensor, k: Tensor, w: Tensor) -> list[list[float]]:
    """Number by number."""
    rows = []
    for a in q.tolist():
        row = []
        for b in k.tolist():
            row.append(sum(a[i] * w[i][j].item() * b[j] for i in range(len(a)) for j in range(len(b))))
        rows.append([value - max(row) for value in row])
    return rows


def test_logits_and_loss_are_the_slow_ones():
    g = torch.Generator().manual_seed(0)
    q, k, w = (torch.randn(*shape, generator=g) for shape in ((4, 5), (7, 5), (5, 5)))
    rows = slow_logits(q, k, w)
    torch.testing.assert_close(bilinear_logits(q, k, w), torch.tensor(rows), rtol=1e-4, atol=1e-4)
    assert bilinear_logits(q, k, w).amax(1).abs().max() == 0
    for first, real in ((0, [True] * 7), (3, [True, True, False, True, True, False, True])):
        valid = torch.tensor(real) if not all(real) else None
        total, count = bilinear_info_nce(q, k, w, first, valid)
        slow = 0.0
        for b, row in enumerate(rows):
            if real[first + b]:
                slow += math.log(sum(math.exp(v) for v, r in zip(row, real, strict=True) if r)) - row[first + b]
        assert total.item() == pytest.approx(slow, rel=1e-4)
        assert count.item() == sum(real[first : first + 4]) and total.dtype == count.dtype == torch.float32


def test_the_maximum_changes_no_gradient_and_keeps_large_logits_finite():
    q, k, w = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5), torch.rand(5, 5, requires_grad=True)
    ours = torch.autograd.grad(bilinear_info_nce(q, k, w)[0], (q, w))
    plain = torch.autograd.grad(F.cross_entropy(q @ w @ k.T, torch.arange(4), reduction="sum"), (q, w))
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other)
    total = bilinear_info_nce(1e4 * q, 1e4 * k, w)[0]
    assert torch.isfinite(total) and all(torch.isfinite(x).all() for x in torch.autograd.grad(total, (q, w)))


def test_logits_are_float32_under_autocast():
    vectors, w = torch.randn(16, 8), torch.rand(8, 8)
    exact = bilinear_logits(vectors, vectors, w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bilinear_logits(vectors, vectors, w), exact)
        assert make()(pictures())["loss"][0].dtype == torch.float32


def test_w_begins_uniform_between_0_and_1_and_keys_are_constants():
    torch.manual_seed(0)
    contrast = Contrast(50)
    w = contrast.weight.detach()
    assert (
        w.shape == (50, 50)
        and 0 <= w.min() < 0.01
        and 0.99 < w.max() < 1
        and w.mean().item() == pytest.approx(0.5, abs=0.02)
    )
    keys = torch.randn(3, 50, requires_grad=True)
    contrast(torch.randn(3, 50), keys)[0].backward()
    assert keys.grad is None and contrast.weight.grad.abs().max() > 0


@BOTH
def test_the_loss_is_of_two_crops_of_each_picture(settings):
    method, batch = make(settings), pictures()
    keys, x = sample_keys(3, 0, 0, batch["index"]), batch["image"]
    found = []
    for stream, encoder, head in (
        (2000, method.encoder, method.head),
        (2001, method.key_encoder, method.key_head),
    ):
        crops = method.crop(x, keys, stream)
        assert crops.shape == (6, 3, 20, 20)
        for crop, picture in zip(crops, x, strict=True):
            windows = [picture[:, t : t + 20, s : s + 20] for t in range(5) for s in range(5)]
            assert sum(torch.equal(crop, window) for window in windows) == 1
        found.append(head(encoder({"image": crops})))
    slow = F.cross_entropy(found[0] @ method.contrast.weight @ found[1].T, torch.arange(6), reduction="sum")
    total, count = method(batch, keys=keys)["loss"]
    torch.testing.assert_close(total, slow)
    assert count.item() == 6


@pytest.mark.parametrize(("authors", "last"), [(False, 4), (True, 3)])
def test_all_places_of_a_crop_occur(authors, last):
    method = make(authors_offsets=authors)
    places = (torch.arange(24)[:, None] * 24 + torch.arange(24)).expand(2000, 1, 24, 24)
    corner = method.crop(places, sample_keys(0, 0, 0, torch.arange(2000)), 2000)[:, 0, 0, 0]
    for axis in (corner // 24, corner % 24):
        assert axis.unique().tolist() == list(range(last + 1))
    other = method.crop(places, sample_keys(0, 0, 0, torch.arange(2000)), 2001)[:, 0, 0, 0]
    assert 0.02 < (other == corner).float().mean() < 0.1


@BOTH
def test_the_key_encoder_follows_slowly_and_has_no_gradient(settings):
    method, batch = make(settings, tau=0.05), pictures()
    slow = [*method.key_encoder.named_parameters(), *method.key_head.named_parameters()]
    fast = dict([*method.encoder.named_parameters(), *method.head.named_parameters()])
    assert all(torch.equal(p, fast[name]) and p is not fast[name] for name, p in slow)
    method(batch)["loss"][0].backward()
    assert all(p.grad is None for _, p in slow)
    trained = {name for group in parameter_groups(method, OptimConfig()) for name in group["names"]}
    assert not any(name.startswith("key_") for name in trained) and "contrast.weight" in trained
    before = {name: p.clone() for name, p in slow}
    with torch.no_grad():
        for p in fast.values():
            p.add_(torch.randn_like(p))
    method.after_step(0.5)
    for name, p in slow:
        torch.testing.assert_close(p, 0.95 * before[name] + 0.05 * fast[name])


def test_rows_without_a_picture_are_nobodys_negative():
    method, batch = make(), pictures()
    batch["present/image"] = torch.tensor([True, False, True, True, False, True])
    kept = batch["present/image"]
    total, count = method(batch)["loss"]
    alone, number = method({key: x[kept] for key, x in batch.items() if "/" not in key})["loss"]
    torch.testing.assert_close(total, alone)
    assert count == number == 4


@BOTH
def test_it_tells_its_pictures_apart(settings):
    """A problem that it must solve: of which of eight smooth pictures a crop is."""
    method, g = make(settings, tau=0.2, feature_dim=16), torch.Generator().manual_seed(0)
    x = F.interpolate(255 * torch.rand(8, 3, 3, 3, generator=g), size=(24, 24), mode="bilinear").byte()
    batch = {"image": x, "index": torch.arange(8)}
    optimizer, losses = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 3e-3), []
    for k in range(60):
        total, count = method(batch, keys=sample_keys(0, k, 0, batch["index"]))["loss"]
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        method.after_step(0.0)
        losses.append((total / count).item())
    assert np.mean(losses[-10:]) < 0.8 < 1.5 < losses[0]


def test_it_compiles_without_a_break():
    method, batch = make(), pictures()
    found = torch.compile(method, backend="aot_eager", fullgraph=True)(batch)["loss"][0]
    torch.testing.assert_close(found, method(batch)["loss"][0])


@pytest.mark.parametrize(("size", "layers", "side"), [(84, 2, 39), (84, 4, 35), (84, 6, 31), (64, 2, 29), (64, 6, 21)])
def test_the_lattice_of_the_convolutions(size, layers, side):
    assert conv_grid((size, size), layers) == (side, side)
    convs = ControlConvs(3, (size, size), layers, 4)
    assert convs(torch.zeros(1, 3, size, size)).shape == (1, 4, side, side)


@pytest.mark.parametrize("start", ["delta", "orthogonal"])
def test_how_the_convolutions_begin(start):
    torch.manual_seed(0)
    for conv in ControlConvs(9, (20, 20), 3, 16, start).layers:
        w = conv.weight.detach()
        assert conv.bias.abs().max() == 0
        if start == "delta":
            assert w.flatten(2).abs().amax((0, 1)).nonzero().flatten().tolist() == [4]
            w = w[:, :, 1, 1]
        w = w.flatten(1) if w.shape[0] <= w[0].numel() else w.flatten(1).T
        torch.testing.assert_close(w @ w.T, 2 * torch.eye(len(w)), atol=1e-5, rtol=0)  # the square of a ReLU's gain


def conv_encoder(**settings) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig.of_convolutions(4, image_size=(20, 26), channels=9, layers=2, **settings)).eval()


PLAIN = {"mean": (0.0,) * 9, "std": (1.0,) * 9}


def test_a_convolutional_encoder_is_an_encoder(tmp_path):
    encoder, x = conv_encoder(**PLAIN), torch.randint(0, 256, (2, 9, 20, 26), dtype=torch.uint8)
    features = encoder({"image": x})
    last = encoder.tokenizers["image"].convs(x.float() / 255)  # (B, D, h, w)
    assert features.cls is None and features.grid == {"image": tuple(last.shape[2:])} == {"image": (7, 10)}
    assert torch.equal(features.map(), last.permute(0, 2, 3, 1)) and torch.equal(features.tokens, last.flatten(2).mT)
    assert features.index[0].tolist() == list(range(70)) and features.valid.all() and encoder.embed_dim == 4
    torch.testing.assert_close(features.pooled("max"), last.amax((2, 3)))
    torch.testing.assert_close(encoder({"image": x.float() / 255}).tokens, features.tokens)
    encoder.save_pretrained(tmp_path)
    loaded = mmssl.load(tmp_path)
    assert loaded.config == encoder.config and torch.equal(loaded({"image": x}).tokens, features.tokens)
    larger = loaded.resize((30, 26))
    assert larger({"image": torch.zeros(1, 9, 30, 26)}).grid == {"image": (12, 10)}


def test_a_convolutional_encoder_normalises_inside_and_may_carry_a_transformer():
    encoder = conv_encoder(mean=(0.5,) * 9, std=(0.25,) * 9)
    x = torch.randint(0, 256, (2, 9, 20, 26), dtype=torch.uint8)
    last = encoder.tokenizers["image"].convs((x.float() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(encoder({"image": x}).tokens, last.flatten(2).mT)
    config = dataclasses.replace(encoder.config, depth=1, heads=2, cls_token=True, positions="sincos")
    features = Encoder(config)({"image": x})
    assert features.tokens.shape == (2, 70, 4) and features.cls.shape == (2, 4)


def test_wrong_input_of_a_convolutional_encoder_is_one_sentence():
    encoder, x = conv_encoder(**PLAIN), torch.zeros(1, 9, 20, 26)
    with pytest.raises(MmsslError, match="seen by convolutions, whose tokens cannot be masked; give no mask"):
        encoder({"image": x}, {"image": torch.arange(70)[None] > 3})
    with pytest.raises(MmsslError, match=r"must have the shape \(batch, 9, 20, 26\), got"):
        encoder({"image": x[..., :20]})
    with pytest.raises(MmsslError, match="floats from 0 to 9"):
        encoder.check({"image": x + 9 * torch.eye(20, 26)})
    with pytest.raises(MmsslError, match="it has no patches"):
        encoder.tokenizers["image"].target(x)
    with pytest.raises(MmsslError, match=r"7 convolutions leave nothing of pictures of 20x20 pixels; .* 27 a side"):
        EncoderConfig.of_convolutions(4, image_size=20, layers=7)
    with pytest.raises(MmsslError, match=r"depth must be at least 1 \(0 for convolutions alone\), got 0"):
        EncoderConfig(depth=0)


@pytest.mark.parametrize(
    ("settings", "size"),
    [({}, (84, 84)), ({"image_size": (64, 100)}, (53, 84)), ({"network": "vit"}, (84, 84)),
     ({"network": "vit", "image_size": 64, "patch_size": 8}, (48, 48)), ({"crop_size": 60}, (60, 60))],
)  # fmt: skip
def test_the_size_of_crops(settings, size):
    config = CURLConfig(**settings)
    assert config.crop() == size and config.encoder_config().tokenizers["image"].image_size == size


def test_data_are_asked_for_in_the_size_of_the_pictures_and_seen_in_the_middle():
    method, batch = make(), pictures()
    assert tuple(as_asked(method, DataConfig()).image_size) == (24, 24)
    seen = method.as_seen(batch)
    assert torch.equal(seen["image"], batch["image"][:, :, 2:22, 2:22]) and seen["index"] is batch["index"]
    assert centre(torch.arange(5)[None].expand(5, 5), (2, 2)).tolist() == [[1, 2], [1, 2]]


def test_the_key_encoder_begins_as_what_init_gave(tmp_path):
    other, method = make(), create_method("curl", **{**CONV, "feature_dim": 7})
    other.encoder.save_pretrained(tmp_path)
    assert "the encoder's weights" in load_into(method, tmp_path)
    for name, value in other.encoder.state_dict().items():
        assert torch.equal(method.encoder.state_dict()[name], value)
        assert torch.equal(method.key_encoder.state_dict()[name], value)


@BOTH
def test_a_run_that_went_on_is_bit_equal(settings, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "data/a").mkdir(parents=True)
    for i in range(12):
        Image.fromarray(random.integers(0, 255, (30, 28, 3), dtype=np.uint8)).save(tmp_path / f"data/a/{i}.png")
    loop = LoopConfig(steps=4, batch_size=4, checkpoint_every=2, keep=9, device="cpu", precision="fp32")
    config = PretrainConfig(CURLConfig(**settings), loop, DataConfig(source=(str(tmp_path / "data"),)))
    config = dataclasses.replace(config, optim=OptimConfig(lr=1e-3))
    whole = pretrain(config, tmp_path / "whole")
    shutil.copytree(whole.path, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step_00000004")  # as if it had been stopped after two steps
    found = [mmssl.load_method(run.path).state_dict() for run in (whole, pretrain(config, tmp_path / "cut"))]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    early = mmssl.load_method(whole.path / "checkpoints/step_00000002").state_dict()
    assert not torch.equal(early["key_head.fc.weight"], found[0]["key_head.fc.weight"])
    assert mmssl.load(whole.path).config == CURLConfig(**settings).encoder_config()


PROGRAM = """
import sys, torch
from mmssl.methods.curl import CURL, CURLConfig

settings, batch, out = torch.load(sys.argv[1])
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
method = CURL(CURLConfig(**settings))
total, count = method({k: v.chunk(2)[rank] for k, v in batch.items()})["loss"]
total.backward()
joint = torch.stack([total.detach(), count])
for values in (joint, *[p.grad for p in method.parameters() if p.requires_grad]):  # as the training loop does
    torch.distributed.all_reduce(values)
found = {name: p.grad / joint[1] for name, p in method.named_parameters() if p.requires_grad}
torch.save((joint[0] / joint[1], found), f"{out}/{rank}.pt")
"""


def test_two_processes_have_the_gradient_of_one_on_the_joined_batch(tmp_path):
    batch = pictures(8)
    torch.save((CONV, batch, str(tmp_path)), tmp_path / "given.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command, team = [sys.executable, "-c", PROGRAM, tmp_path / "given.pt"], []
    for rank in ("0", "1"):
        environment = {**os.environ, **shared, "RANK": rank}
        team.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    said = [process.communicate(timeout=200)[1] for process in team]
    assert [process.returncode for process in team] == [0, 0], said
    method = make()
    total, count = method(batch)["loss"]
    (total / count).backward()
    for rank in (0, 1):
        loss, gradients = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(loss, (total / count).detach())
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, method.get_parameter(name).grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tau": 0.0}, r"tau must lie in \(0, 1\], got 0.0"),
        ({"feature_dim": 0}, "feature_dim must be at least 1, got 0"),
        ({"crop_size": 30}, "a crop of 30x30 pixels does not fit into pictures of 24x24"),
        ({"modality": "video"}, "'curl' learns from 'image' or 'image/<camera>', not from 'video'"),
        ({"pooling": "cls"}, "convolutions have no cls token; pool 'flat' or 'mean'"),
        ({"depth": 9}, "9 convolutions leave nothing of pictures of 20x20"),
        ({"network": "vit", "crop_size": 21}, "image_size 21x21 is not divisible by patch_size 12x12"),
    ],
)
def test_impossible_settings_are_one_sentence(settings, words):
    with pytest.raises(MmsslError, match=words):
        make(**settings)


def test_wrong_batches_are_one_sentence():
    method, batch = make(), pictures()
    method.check(batch)
    for call in (method, method.check):
        with pytest.raises(
            MmsslError, match=r"must have the shape \(batch, 3, 24, 24\), got \(6, 3, 20, 20\); set data"
        ):
            call({"image": batch["image"][..., :20, :20]})
        with pytest.raises(MmsslError, match="lacks the modality 'image'"):
            call({"video": batch["image"]})
    with pytest.raises(MmsslError, match=r"learns nothing from one alone; raise loop.batch_size"):
        method(pictures(1))
    with pytest.raises(MmsslError, match="CURL crops pictures and masks nothing"):
        method(batch, masks={"image": torch.zeros(6, 4, dtype=torch.bool)})
    with pytest.raises(MmsslError, match="does not reconstruct"):
        method.reconstruct(batch)


@pytest.mark.parametrize("name", ["curl/pretrain_tiny_robots"])
def test_its_recipe_makes_its_method(name):
    from mmssl.paths import find_resource

    config = load_config(PretrainConfig, find_resource("configs", name))
    assert config.method.name == "curl" and config.method.image_size == tuple(config.data.image_size)
    assert create_method(config.method).encoder.grids
