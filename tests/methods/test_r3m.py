"""R3M: every term against a slow version, negatives that are themselves, texts that are not there, two processes."""

import math
import os
import socket
import subprocess
import sys

import pytest
import torch

from mmssl import create_method
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.losses import one_against_others
from mmssl.methods.r3m import strangers

TINY = {"network": "resnet18", "width": 4, "image_size": 32, "text_length": 8, "text_dim": 8, "text_depth": 1}
TINY |= {"text_heads": 2, "reward_dim": 16}
VIT = {"network": "vit", "size": "custom", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8}
EPSILON = 1e-8


def make(**settings):
    torch.manual_seed(0)
    return create_method("r3m", **{**TINY, **settings})


def clips(n: int = 5, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random clips, the third without a text."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor([8, 3, 0, 5, 1, 4, 2, 6])[:n]
    mask = torch.arange(8)[None] < length[:, None]
    return {
        "video": torch.randint(0, 256, (n, 5, 3, 32, 32), dtype=torch.uint8, generator=generator),
        "text": torch.randint(1, 257, (n, 8), generator=generator) * mask,
        "text_mask": mask,
        "index": torch.arange(n),
    }


def slow_terms(method, batch, rows) -> dict[str, list[float]]:
    """Each term of each clip, a frame at a time, in the words of the paper's appendix and the released code."""
    k, n = method.config.negatives, len(batch["video"])
    z = [[method.encoder({"image": batch["video"][b, t][None]}).pooled()[0].double() for t in range(5)]
         for b in range(n)]  # fmt: skip

    def similar(a, b):
        if method.config.similarity == "cosine":
            return float((a @ b) / (a.norm() * b.norm()))
        return -float(((a - b) ** 2).sum().sqrt())

    def score(b, other, later):
        text = method.language(batch["text"][b : b + 1], batch["text_mask"][b : b + 1])[0].double()
        pair = torch.cat([z[other][0], z[other][later], text]).float()
        return float(method.reward.pred(pair)[0])

    def contrast(positive, negatives):
        total = EPSILON + math.exp(positive) + sum(map(math.exp, negatives))
        return -math.log(EPSILON + math.exp(positive) / total)

    terms = {"l1": [], "l2": [], "tcn": [], "language": []}
    for b in range(n):
        terms["l1"].append(sum(float(v.abs().sum()) for v in z[b]) / 5)
        terms["l2"].append(sum(float((v**2).sum().sqrt()) for v in z[b]) / 5)
        others = [rows[b, i * k : (i + 1) * k].tolist() for i in range(5)]
        early, middle, late = z[b][2:]
        far = similar(late, early)
        last = contrast(similar(late, middle), [far, *(similar(late, z[o][4]) for o in others[4])])
        first = contrast(similar(middle, early), [far, *(similar(early, z[o][2]) for o in others[3])])
        terms["tcn"].append((last + first) / 2)
        progress = 0.0
        for i, (later, before) in enumerate([(1, 0), (3, 2), (4, 3)]):
            negatives = [score(b, b, before), *(score(b, o, later) for o in others[i])]
            progress += contrast(score(b, b, later), negatives) / 3
        terms["language"].append(progress if batch["text_mask"][b].any() else 0.0)
    return terms


@pytest.mark.parametrize("settings", [{}, {"similarity": "cosine", "negatives": 2}, {"negatives_from": "others"}, VIT])
@torch.no_grad()
def test_every_term_is_that_of_a_slow_version(settings):
    method, batch = (
        make(l1_weight=0.01, l2_weight=0.02, tcn_weight=3.0, language_weight=2.0, **settings).eval(),
        clips(),
    )
    keys = sample_keys(3, 0, 0, batch["index"])
    out = method(batch, keys=keys)
    rows = strangers(keys, 5 * method.config.negatives, method.config.negatives_from)
    terms = slow_terms(method, batch, rows)
    for name, values in terms.items():
        assert out[name].item() == pytest.approx(sum(values) / 5, rel=1e-4), name
    total, count = out["loss"]
    weights = {"l1": 0.01, "l2": 0.02, "tcn": 3.0, "language": 2.0}
    expected = sum(weights[name] * sum(values) for name, values in terms.items())
    assert count == 5 and total.item() == pytest.approx(expected, rel=1e-4)


def test_one_against_others_stays_finite_and_keeps_its_gradient():
    positive = torch.tensor([-200.0, 200.0, 0.0], requires_grad=True)
    loss = one_against_others(positive, torch.tensor([[-190.0, -300.0], [100.0, -math.inf], [0.0, -math.inf]]))
    loss.sum().backward()
    assert loss[1].item() == pytest.approx(0, abs=1e-6) and loss[2].item() == pytest.approx(math.log(2), abs=1e-4)
    # Far below the epsilon of the denominator nothing is told apart, as in the released code.
    assert loss[0].item() == pytest.approx(-math.log(EPSILON), rel=1e-3) and positive.grad.isfinite().all()


def test_a_permutation_may_leave_a_clip_in_its_place_and_others_never_do():
    own = torch.arange(6)[:, None]
    seen = torch.zeros(6, 6)
    for epoch in range(200):
        keys = sample_keys(0, epoch, 0, torch.arange(6))
        rows = strangers(keys, 15, "permutations")
        assert torch.equal(rows.sort(0).values, own.expand(-1, 15))
        others = strangers(keys, 15, "others")
        assert not (others == own).any()
        seen += torch.nn.functional.one_hot(others, 6).sum(1)
        assert torch.equal(strangers(keys, 15, "others"), others)
    share = (
        strangers(sample_keys(0, 0, 0, torch.arange(60)), 200, "permutations") == torch.arange(60)[:, None]
    ).float()
    assert 0.5 / 60 < share.mean() < 2 / 60  # one clip a permutation stays, on average
    assert torch.allclose(seen[~torch.eye(6, dtype=torch.bool)] / seen.sum(1)[0], torch.tensor(0.2), atol=0.02)


def test_what_a_negative_that_is_the_clip_itself_costs(monkeypatch):
    """It is as similar as can be, so that the loss cannot fall below the log of two, however good the features are."""
    apart = 40 * torch.eye(4)[:, None].expand(4, 3, 4)  # clips far apart, whose frames do not move
    frames = torch.cat([torch.zeros(4, 2, 4), apart], 1) + torch.tensor([0, 0, 30.0, 0, 0])[None, :, None]
    losses = {}
    for name, rows in {"self": torch.arange(4)[:, None], "other": (torch.arange(4)[:, None] + 1) % 4}.items():
        method = make(language_weight=0.0, negatives=1)
        monkeypatch.setattr("mmssl.methods.r3m.strangers", lambda keys, count, how, rows=rows: rows.expand(-1, count))
        monkeypatch.setattr(method, "embed_frames", lambda batch: frames)
        losses[name] = method(clips(4))["tcn"].item()
    late = math.log(2)  # of the late frame, which is at the middle one; the early one is far from both
    assert losses["self"] - losses["other"] > late / 2 - 1e-3


def test_clips_without_a_text_count_nothing_for_language_but_stay_in_the_mean():
    method, batch = make(l1_weight=0, l2_weight=0, tcn_weight=0).eval(), clips()
    before = method(batch)
    assert before["loss"][1] == 5 and "tcn" not in before
    changed = {**batch, "text": batch["text"].clone()}
    changed["text"][2] = 7  # where the mask says that there is none
    assert torch.equal(method(changed)["loss"][0], before["loss"][0])
    silent = {**batch, "text": batch["text"] * 0, "text_mask": torch.zeros_like(batch["text_mask"])}
    assert method(silent)["loss"][0] == 0
    assert "language" not in make(language_weight=0)({"video": batch["video"]})


def test_clips_that_are_not_there_teach_nothing():
    method, batch = make(negatives_from="others").eval(), clips()
    there = torch.tensor([True, True, False, True, True])
    one = method({**batch, "present/video": there})
    other = {**batch, "video": batch["video"].clone(), "present/video": there}
    other["video"][2] = 0
    two = method(other)
    assert one["loss"][1] == 4 and torch.equal(one["loss"][0], two["loss"][0]) and torch.equal(one["tcn"], two["tcn"])


def test_frames_of_one_clip_are_put_in_their_order():
    """A problem that it must solve: a square that wanders, at another height in each clip, and what its text says."""
    method = make(**VIT, pooling="cls", negatives_from="others")
    batch = clips(8)
    batch["text_mask"][:] = True
    batch["video"] = torch.zeros_like(batch["video"])
    for b in range(8):
        for t, place in enumerate((0, 24, 6, 12, 18)):
            batch["video"][b, t, :, 4 * b : 4 * b + 4, place : place + 6] = 255
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    first = None
    for step in range(120):
        out = method(batch, keys=sample_keys(0, step, 0, batch["index"]))
        first = first or {name: out[name].item() for name in ("tcn", "language")}
        optimizer.zero_grad()
        (out["loss"][0] / out["loss"][1]).backward()
        optimizer.step()
    assert out["tcn"] < 0.6 * first["tcn"] and out["language"] < 0.6 * first["language"]
    assert out["tcn_right"] == 1 and out["language_right"] > 0.5
    method.eval()
    start, later, end = (batch["video"][:, t] for t in (0, 3, 1))
    text = batch["text"], batch["text_mask"]
    assert (method.score(start, end, *text) > method.score(start, start, *text)).float().mean() > 0.8
    assert method.score(start, later, *text).shape == (8,)


def test_it_compiles_without_graph_breaks():
    method, batch = make(**VIT).eval(), clips()
    keys = sample_keys(0, 0, 0, batch["index"])
    found = torch.compile(method, backend="aot_eager", fullgraph=True)(batch, keys=keys)
    torch.testing.assert_close(found["loss"][0], method(batch, keys=keys)["loss"][0], rtol=1e-4, atol=1e-4)


PROGRAM = """
import sys, torch
from mmssl import create_method

settings, batch, out = torch.load(sys.argv[1])
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
method = create_method("r3m", **settings)
total, count = method({k: v.chunk(2)[rank] for k, v in batch.items()})["loss"]
total.backward()
joint = torch.stack([total.detach(), count])
learned = {n: p for n, p in method.named_parameters() if p.requires_grad}
for values in (joint, *[p.grad for p in learned.values()]):  # as the training loop does, through DDP
    torch.distributed.all_reduce(values)
torch.save((joint[0] / joint[1], {n: p.grad / joint[1] for n, p in learned.items()}), f"{out}/{rank}.pt")
"""


def test_two_processes_have_the_gradient_of_one_on_the_joined_batch(tmp_path):
    """Without batch norm, whose statistics are each process' own."""
    settings, batch = TINY | VIT, clips(8)
    batch["present/video"] = torch.tensor([True, True, True, False, True, True, True, True])
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
    method = make(**VIT)
    total, count = method(batch)["loss"]
    (total / count).backward()
    for rank in (0, 1):
        loss, gradients = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(loss, (total / count).detach())
        for name, p in method.named_parameters():
            if p.requires_grad:
                torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"network": "resnet5"}, "network 'resnet5': did you mean 'resnet50'"),
        ({"modality": "image"}, "learns from 'video' or 'video/<camera>', not from 'image'"),
        ({"pooling": "cls"}, "a resnet18 has no cls token; pool 'mean'"),
        ({"negatives": 0}, "negatives must be at least 1, got 0"),
        ({"tcn_weight": 0, "language_weight": 0}, "tcn or language above 0"),
        ({"l1_weight": -1.0}, "the weights must be 0 or more"),
        ({"text_dim": 9}, "dim 9 must be a positive multiple of heads 2"),
        ({"language": "no/such-model"}, "there is no language model 'no/such-model' of transformers"),
    ],
)
def test_impossible_settings_are_one_sentence(settings, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MmsslError, match=words):
        make(**settings)


def test_wrong_batches_are_one_sentence():
    method, batch = make(), clips()
    method.check(batch)
    with pytest.raises(MmsslError, match=r"nothing from one alone; raise loop.batch_size"):
        method(clips(1))
    for call in (method, method.check):
        with pytest.raises(
            MmsslError, match=r"shape \(batch, 5, 3, 32, 32\), got \(5, 4, 3, 32, 32\); set data.clip to"
        ):
            call({**batch, "video": batch["video"][:, :4]})
        with pytest.raises(MmsslError, match=r"lacks 'text', .*set method.language_weight to 0"):
            call({key: value for key, value in batch.items() if not key.startswith("text")})
    with pytest.raises(MmsslError, match=r"floats from 0 to 255, but floats must lie in \[0, 1\]; give uint8"):
        method.check({**batch, "video": batch["video"].float()})
    with pytest.raises(MmsslError, match="masks nothing"):
        method(batch, masks={"image": torch.zeros(5, 1, dtype=torch.bool)})
    with pytest.raises(MmsslError, match="trained without language"):
        make(language_weight=0).score(*batch["video"].unbind(1)[:2], batch["text"], batch["text_mask"])
