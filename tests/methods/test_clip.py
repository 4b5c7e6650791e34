"""CLIP: its loss against a slow version, rows that are no pairs, two processes, and what it refuses.

That towers, vectors and loss are transformers' is tested with the weights, tests/weights/test_clip.py.
"""

import math
import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.config import load_config
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.losses import info_nce
from mmssl.methods.base import create_method
from mmssl.nn.processes import gather_rows, place_among
from mmssl.paths import find_resource
from mmssl.training.optim import OptimConfig, parameter_groups
from mmssl.training.pretrain import PretrainConfig

TINY = {"size": "custom", "dim": 16, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 4, "joint_dim": 8}
TINY |= {"text_dim": 24, "text_depth": 1, "text_heads": 2, "text_length": 8}
END = 258


def make(**settings):
    torch.manual_seed(0)
    return create_method("clip", **TINY, **settings)


def pairs(n: int = 6, seed: int = 1) -> dict[str, Tensor]:
    """Random images and texts of 3 to 8 tokens, each text ended by END."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.arange(n) % 6 + 3
    ids = torch.randint(1, 257, (n, 8), generator=generator)
    ids[torch.arange(n), length - 1] = END
    mask = torch.arange(8)[None] < length[:, None]
    images = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return {"image": images, "text": ids * mask, "text_mask": mask, "index": torch.arange(n)}


def slow_loss(image: Tensor, text: Tensor, scale: float, real: list[bool]) -> tuple[float, int]:
    """Both directions, row by row, over the pairs that are there."""
    there, total = [i for i, r in enumerate(real) if r], 0.0
    for i in there:
        for one, others in ((image, text), (text, image)):
            logits = {j: scale * (one[i] * others[j]).sum().item() for j in there}
            total += 0.5 * (math.log(sum(math.exp(v) for v in logits.values())) - logits[i])
    return total, len(there)


@pytest.mark.parametrize("real", [[True] * 6, [True, False, True, True, False, True]])
def test_the_loss_is_the_slow_one(real):
    method, batch = make(), pairs()
    vectors = method.embed(batch)
    if not all(real):  # one row lacks its text, another one its image
        batch["present/text"] = torch.tensor([True] + [real[1]] + [True] * 4)
        batch["present/image"] = torch.tensor([True] * 4 + [real[4]] + [True])
    total, count = method(batch)["loss"]
    slow, number = slow_loss(vectors["image"], vectors["text"], 1 / 0.07, real)
    assert total.item() == pytest.approx(slow, rel=1e-4) and count.item() == number
    assert total.dtype == count.dtype == torch.float32


def test_rows_that_are_no_pairs_change_nothing_for_the_others():
    method, batch = make(), pairs()
    batch["present/text"] = torch.tensor([True, True, False, True, False, True])
    kept = batch["present/text"]
    method(batch)["loss"][0].backward()
    gradients = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    method({key: value[kept] for key, value in batch.items() if "/" not in key})["loss"][0].backward()
    for one, other in zip(gradients, method.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, atol=1e-5, rtol=1e-4)


def test_a_batch_without_any_pair_has_no_loss_and_no_nan():
    method, batch = make(), pairs()
    total, count = method({**batch, "present/text": torch.zeros(6, dtype=torch.bool)})["loss"]
    total.backward()
    assert total.item() == count.item() == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in method.parameters())


def test_logits_are_float32_under_autocast():
    vectors = F.normalize(torch.randn(64, 8), dim=1)
    exact = info_nce(vectors, vectors, torch.tensor(100.0))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce(vectors, vectors, torch.tensor(100.0))[0], exact)
        total, count = make()(pairs())["loss"]
    assert total.dtype == count.dtype == torch.float32


def test_vectors_have_unit_length_and_each_modality_is_read_alone():
    method, batch = make().eval(), pairs()
    both = method.embed(batch)
    assert both.keys() == {"image", "text"}
    for name, vectors in both.items():
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))
        alone = method.embed({key: value for key, value in batch.items() if key.startswith(name)})
        assert alone.keys() == {name} and torch.equal(alone[name], vectors)


def test_padding_and_what_stands_in_it_do_not_matter():
    method, batch = make().eval(), pairs()
    text, mask = batch["text"], batch["text_mask"]
    found = method.embed(batch)["text"]
    other = method.embed({"text": torch.where(mask, text, 77), "text_mask": mask})["text"]
    torch.testing.assert_close(other, found)
    shorter = method.embed({"text": text[:1, :3], "text_mask": mask[:1, :3]})["text"]
    torch.testing.assert_close(shorter, found[:1])
    torch.testing.assert_close(method.embed({"text": text})["text"], found)  # the first END says where a text ends
    changed = text.clone()
    changed[:, 0] = 5
    assert (method.embed({"text": changed, "text_mask": mask})["text"] - found).abs().amax(1).min() > 1e-4


def test_left_out_patches_follow_the_keys_in_training_alone():
    method, batch = make(mask_ratio=0.5).eval(), pairs()
    whole, masks = make().eval(), {"image": torch.arange(16).expand(6, -1) % 3 == 0}
    keys = [sample_keys(seed, 0, 0, batch["index"]) for seed in (1, 2)]
    one, again, two = (method(batch, keys=k)["loss"][0] for k in (keys[0], keys[0], keys[1]))
    assert torch.equal(one, again) and not torch.equal(one, two)
    drawn = method.sampler(method.encoder.grids, keys[0])
    torch.testing.assert_close(method(batch, masks=drawn)["loss"][0], one)
    assert torch.equal(method(batch, masks=masks)["loss"][0], whole(batch, masks=masks)["loss"][0])
    assert all(torch.equal(v, whole.embed(batch)[name]) for name, v in method.embed(batch).items())


def test_the_scale_is_held_between_1_and_its_limit():
    method = make()
    assert method.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    for value, wanted in ((9.0, 100.0), (-3.0, 1.0), (2.0, math.exp(2))):
        method.logit_scale.data.fill_(value)
        method.after_step(0.5)
        assert method.logit_scale.exp().item() == pytest.approx(wanted)
    assert method(pairs())["logit_scale"].item() == pytest.approx(math.exp(2))


def test_what_decays_is_what_the_authors_let_decay():
    groups = parameter_groups(make(), OptimConfig(weight_decay=0.2))
    decayed, still = ({n for g in groups if bool(g["weight_decay"]) == it for n in g["names"]} for it in (True, False))
    assert {"logit_scale", "encoder.cls_token", "encoder.norm_pre.weight"} <= still
    assert {"project.text.weight", "encoder.tokenizers.image.pos_embed"} <= decayed
    assert not any(name.endswith(".bias") or ".norm" in name for name in decayed)


def test_the_published_recipe_is_the_papers():
    config = load_config(PretrainConfig, find_resource("configs", "clip/pretrain_base_wit400m"))
    method, optim, loop = config.method, config.optim, config.loop
    assert config.method.encoder_shape() == {"dim": 768, "depth": 12, "heads": 12} and method.patch_size == 32
    assert (method.text_dim, method.text_depth, method.text_heads, method.text_length) == (512, 12, 8, 77)
    assert (method.joint_dim, method.temperature, method.max_scale, method.gelu) == (512, 0.07, 100, "quick")
    assert (optim.lr, optim.betas, optim.eps, optim.weight_decay) == (5e-4, (0.9, 0.98), 1e-6, 0.2)
    assert (loop.batch_size, loop.epochs, loop.accumulate, optim.warmup_steps) == (32768, 32, 1, 2000)


def test_it_finds_each_text_again():
    """A problem that it must solve: sixteen pairs by heart."""
    method, batch = make(), pairs(16)
    optimizer = torch.optim.AdamW(method.parameters(), lr=5e-3)
    for _ in range(60):
        total, count = method(batch)["loss"]
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        method.after_step(0.0)
    found = method.embed(batch)
    assert torch.equal((found["image"] @ found["text"].T).argmax(1), torch.arange(16))
    assert (total / count).item() < 0.1


PROGRAM = """
import sys, torch
from mmssl.methods.clip import CLIP, CLIPConfig

settings, batch, out = torch.load(sys.argv[1])
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
method = CLIP(CLIPConfig(**settings))
total, count = method({k: v.chunk(2)[rank] for k, v in batch.items()})["loss"]
total.backward()
joint = torch.stack([total.detach(), count])
for values in (joint, *[p.grad for p in method.parameters()]):  # as the training loop does, through DDP
    torch.distributed.all_reduce(values)
found = {name: p.grad / joint[1] for name, p in method.named_parameters()}
torch.save((joint[0] / joint[1], found), f"{out}/{rank}.pt")
"""


def test_two_processes_have_the_gradient_of_one_on_the_joined_batch(tmp_path):
    settings, batch = TINY | {"mask_ratio": 0.5}, pairs(8)
    batch["present/text"] = torch.tensor([True, True, True, False, True, True, False, True])
    torch.save((settings, batch, str(tmp_path)), tmp_path / "given.pt")
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

    method = make(mask_ratio=0.5)
    total, count = method(batch)["loss"]
    (total / count).backward()
    for rank in (0, 1):
        loss, gradients = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(loss, (total / count).detach())
        for name, p in method.named_parameters():
            torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-6)
    assert method.logit_scale.grad.abs() > 1e-3 and method.encoder.cls_token.grad.abs().max() > 1e-3


def test_without_fellows_rows_are_their_own():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(x) is x and place_among(3) == (0, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask_ratio": 1.0}, r"mask_ratio must lie in \[0, 1\), got 1.0"),
        ({"mask_ratio": 0.95}, "mask_ratio 0.95 leaves no patch"),
        ({"joint_dim": 0}, "joint_dim must be at least 1, got 0"),
        ({"temperature": 2.0}, "temperature must lie between 1 / max_scale and 1, got 2.0"),
        ({"temperature": 0.001}, "got 0.001 with max_scale 100"),
        ({"text_end": 259}, r"text_end must be an id in 0..258, got 259"),
        ({"text_dim": 25}, "dim 25 must be a positive multiple of heads 2"),
    ],
)
def test_impossible_settings_are_one_sentence(settings, words):
    with pytest.raises(MmsslError, match=words):
        create_method("clip", **{**TINY, **settings})


@pytest.mark.parametrize("call", ["forward", "check"])
@pytest.mark.parametrize("missing", ["image", "text"])
def test_half_of_a_pair_is_refused(call, missing):
    batch = {key: value for key, value in pairs().items() if not key.startswith(missing)}
    with pytest.raises(MmsslError, match=f"lacks '{missing}': it has .*give images with captions"):
        getattr(make(), call)(batch)


def test_wrong_batches_are_one_sentence():
    method, batch = make(), pairs()
    with pytest.raises(MmsslError, match=r"nothing from one alone; raise loop.batch_size"):
        method(pairs(1))
    assert method.embed(pairs(1))["image"].shape == (1, 8)
    with pytest.raises(MmsslError, match="embeds images and texts; the batch has neither"):
        method.embed({"video": batch["image"]})
    method.check(batch)
    with pytest.raises(MmsslError, match=r"no text of the batch holds the id 258.*data.text.special"):
        method.check({**batch, "text": batch["text"].clamp(max=257)})
    empty = {"text": batch["text"] * 0, "text_mask": torch.zeros(6, 8, dtype=torch.bool)}
    method.check({**batch, **empty, "present/text": torch.zeros(6, dtype=torch.bool)})  # there is none to end
    with pytest.raises(MmsslError, match=r"ids from .* the vocabulary 'bytes'"):
        method.check({**batch, "text": batch["text"] + 2})
    with pytest.raises(MmsslError, match="image"):
        method(batch, masks={"image": torch.zeros(6, 4, dtype=torch.bool)})
    unknown = make(vocabulary="some/tokenizer", vocab_size=300)
    unknown.check({**batch, "text": batch["text"].clamp(max=257)})  # its mark of the end is not known
