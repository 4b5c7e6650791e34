"""M3AE: against a slow version that goes sample by sample, against MAE on images, and on batches that lack things."""

import math

import pytest
import torch
import torch.nn.functional as F

import mmssl
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.training.optim import OptimConfig, parameter_groups

TINY = {"size": "custom", "dim": 16, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 4, "text_length": 8,
        "decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}  # fmt: skip


def make(**settings):
    torch.manual_seed(0)
    method = mmssl.create_method("m3ae", **{**TINY, **settings})
    for parameter in method.parameters():  # vectors and norms away from their starts, where a mistake could hide
        if parameter.ndim < 2 or parameter.shape[:1] == (1,):
            parameter.data += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    return method.eval()


def pairs(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([8, 5, 2, 1, 7, 3])[:n]
    mask = torch.arange(8)[None] < lengths[:, None]
    return {
        "image": torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=generator),
        "text": torch.randint(1, 257, (n, 8), generator=generator) * mask,
        "text_mask": mask,
        "index": torch.arange(n),
    }


def slow_block(block, x):
    """A pre-norm block of tanh GELU over the tokens (N, D) of one sample, all of them real."""
    heads, dim = block.attn.heads, x.shape[1]
    h = F.layer_norm(x, (dim,), block.norm1.weight, block.norm1.bias, 1e-6)
    q, k, v = (h @ block.attn.qkv.weight.T + block.attn.qkv.bias).view(len(x), 3, heads, -1).unbind(1)
    out = []
    for head in range(heads):
        weight = (q[:, head] @ k[:, head].T / math.sqrt(dim // heads)).softmax(-1)
        out.append(weight @ v[:, head])
    x = x + torch.cat(out, 1) @ block.attn.proj.weight.T + block.attn.proj.bias
    h = F.layer_norm(x, (dim,), block.norm2.weight, block.norm2.bias, 1e-6)
    h = F.gelu(h @ block.mlp.fc1.weight.T + block.mlp.fc1.bias, approximate="tanh")
    return x + h @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


def slow_loss(method, batch, masks):
    """Image and text loss of each sample, in the order of the released code: un-shuffled, padding left out."""
    encoder, decoder, config, found = method.encoder, method.decoder, method.config, []
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    for row in range(len(batch["index"])):
        tokens, where, goals = [], [], []
        if "image" in batch and batch.get("present/image", torch.ones(99, dtype=torch.bool))[row]:
            picture = (batch["image"][row].float() / 255 - mean) / std
            for place in range(16):
                r, c = divmod(place, 4)
                patch = picture[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].permute(1, 2, 0).flatten()
                weight = encoder.tokenizers["image"].proj
                token = weight.weight @ patch + weight.bias + encoder.tokenizers["image"].pos_embed[0, place]
                tokens.append(token + encoder.type_embed["image"][0, 0])
                where.append(("image", place))
                goals.append(patch)
        for place in range(int(batch["text_mask"][row].sum()) if "text" in batch else 0):
            number = int(batch["text"][row, place])
            token = encoder.tokenizers["text"].embedding.weight[number]
            tokens.append(token + encoder.tokenizers["text"].pos_embed[0, place] + encoder.type_embed["text"][0, 0])
            where.append(("text", place))
            goals.append(number)
        kept = [k for k, (name, place) in enumerate(where) if not masks[name][row, place]]
        x = torch.stack([encoder.cls_token[0, 0], *(tokens[k] for k in kept)])
        for block in encoder.blocks:
            x = slow_block(block, x)
        x = F.layer_norm(x, x.shape[1:], encoder.norm.weight, encoder.norm.bias, 1e-6)
        x = x @ decoder.embed.weight.T + decoder.embed.bias
        full = [x[0]]
        for k, (name, place) in enumerate(where):
            token = x[1 + kept.index(k)] if k in kept else decoder.mask_token[name][0, 0]
            full.append(token + decoder.pos_embed[name][0, place] + decoder.type_embed[name][0, 0])
        x = torch.stack(full)
        for block in decoder.blocks:
            x = slow_block(block, x)
        x = F.layer_norm(x, x.shape[1:], decoder.norm.weight, decoder.norm.bias, 1e-6)[1:]
        losses = {"image": [], "text": []}
        for k, (name, _) in enumerate(where):
            if k in kept:
                continue
            said = x[k] @ decoder.pred[name].weight.T + decoder.pred[name].bias
            losses[name].append(
                (said - goals[k]).square().mean() if name == "image" else -said.log_softmax(0)[goals[k]]
            )
        found.append({name: sum(v) / len(v) if v else torch.zeros(()) for name, v in losses.items()})
    return found


@pytest.mark.parametrize("settings", [{}, {"mask_scope": "batch"}, {"mask_padding": "skip", "text_mask_ratio": 0.5}])
def test_the_loss_is_the_slow_one(settings):
    method, batch = make(text_weight=0.3, **settings), pairs()
    keys = sample_keys(1, 0, 0, batch["index"])
    masks = method.sampler(method.encoder.grids, keys, method.encoder.valid(batch))
    wanted = sum(loss["image"] + 0.3 * loss["text"] for loss in slow_loss(method, batch, masks)) / 4
    for found in (method(batch, keys=keys)["loss"], method(batch, masks=masks)["loss"]):
        torch.testing.assert_close(found[0] / found[1], wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("lacks", ["text", "image", "some of each"])
def test_samples_that_lack_something(lacks):
    method, batch = make(unpaired_text_weight=2.0), pairs()
    if lacks == "text":
        del batch["text"], batch["text_mask"]
    elif lacks == "image":
        del batch["image"]
    else:
        batch["present/image"] = torch.tensor([True, False, True, True])
        batch["present/text"] = torch.tensor([True, True, False, True])
        batch["image"][1], batch["text"][2], batch["text_mask"][2] = 0, 0, False
    keys = sample_keys(1, 0, 0, batch["index"])
    masks = method.sampler(method.encoder.grids_of(batch), keys, method.encoder.valid(batch))
    slow = slow_loss(method, batch, masks)
    image = batch.get("present/image", torch.full((4,), "image" in batch))
    wanted = sum(s["image"] + (0.5 if image[row] else 2.0) * s["text"] for row, s in enumerate(slow)) / 4
    total, count = method(batch, keys=keys)["loss"]
    torch.testing.assert_close(total / count, wanted, atol=2e-5, rtol=1e-5)
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_nothing_at_all_in_a_row_is_no_nan():
    method, batch = make(), pairs()
    for name in ("image", "text"):
        batch[f"present/{name}"] = torch.tensor([False, True, True, True])
    batch["text_mask"][0] = False
    total, _ = method(batch)["loss"]
    total.backward()
    assert torch.isfinite(total) and all(torch.isfinite(p.grad).all() for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize("norm_pix", [False, True])
def test_on_images_it_is_mae(norm_pix):
    shape = {k: v for k, v in TINY.items() if k != "text_length"}
    method = make(gelu="exact", norm_pix=norm_pix)
    stats = {"mean": method.config.mean, "std": method.config.std}
    mae = mmssl.create_method("mae", **shape, norm_pix=norm_pix, **stats).eval()
    for vector in (*method.encoder.type_embed.values(), *method.decoder.type_embed.values()):
        vector.data.zero_()
    mae.encoder.load_state_dict({k: v for k, v in method.encoder.state_dict().items() if k in mae.encoder.state_dict()})
    renamed = {"mask_token": "mask_token.image", "pos_embed": "pos_embed.image", "pred.weight": "pred.image.weight",
               "pred.bias": "pred.image.bias"}  # fmt: skip
    own = method.decoder.state_dict()
    mae.decoder.load_state_dict({name: own[renamed.get(name, name)] for name in mae.decoder.state_dict()})
    batch = {"image": pairs()["image"], "index": torch.arange(4)}
    masks = mae.sampler(mae.encoder.grids, sample_keys(3, 0, 0, batch["index"]))
    (one, n), (two, m) = method(batch, masks=masks)["loss"], mae(batch, masks=masks)["loss"]
    torch.testing.assert_close(one / n, two / m, atol=1e-6, rtol=1e-6)
    filled, wanted = method.reconstruct(batch, masks), mae.reconstruct(batch, masks)
    for key in ("target", "masked", "prediction"):
        torch.testing.assert_close(filled[key], wanted[key], atol=1e-5, rtol=1e-5)


def test_words_are_filled_in_where_they_were_hidden():
    method, batch = make(), pairs()
    masks = {"image": torch.zeros(4, 16, dtype=torch.bool), "text": torch.zeros(4, 8, dtype=torch.bool)}
    masks["text"][:, 1] = True
    found = method.reconstruct(batch, masks)
    assert torch.equal(found["prediction/text"][:, 2:], batch["text"][:, 2:])
    assert torch.equal(found["target/text"], batch["text"]) and (found["masked/text"][:, 1] == 0).all()
    hidden, said = method.decode(method.see(batch, masks, None))
    assert said["text"].shape == (4, hidden["text"].index.shape[1], 259)
    real = batch["text_mask"][:, 1]
    assert torch.equal(found["prediction/text"][real, 1], said["text"].argmax(-1)[real, 0])


def test_it_learns_captions_by_heart():
    torch.manual_seed(0)
    method, batch = mmssl.create_method("m3ae", **TINY, text_weight=1.0), pairs()
    optimizer = torch.optim.AdamW(method.parameters(), lr=5e-3)
    for step in range(150):
        total, count = method(batch, keys=sample_keys(step, 0, 0, batch["index"]))["loss"]
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    out = method.eval()(batch, keys=sample_keys(999, 0, 0, batch["index"]))
    assert out["text_accuracy"] > 0.8 and out["loss_text"] < 1.0  # a uniform guess has ln 259 = 5.6


def test_what_decays_is_what_the_released_code_names():
    method = make()
    groups = parameter_groups(method, OptimConfig(lr=1.0, weight_decay=0.05, decay_norms=True))
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert {"encoder.norm.weight", "encoder.blocks.0.norm1.weight", "decoder.blocks.1.norm2.weight"} <= decayed
    exempt = {"encoder.cls_token", "encoder.type_embed.text", "decoder.mask_token.image", "encoder.norm.bias",
              "encoder.tokenizers.text.embedding.weight", "decoder.type_embed.image"}  # fmt: skip
    assert exempt.isdisjoint(decayed) and "encoder.tokenizers.image.proj.weight" in decayed
    plain = parameter_groups(method, OptimConfig(lr=1.0, weight_decay=0.05))
    assert "encoder.norm.weight" not in {n for g in plain if g["weight_decay"] for n in g["names"]}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"text_mask_ratio": 1.0}, "text_mask_ratio must lie strictly between 0 and 1, got 1.0"),
        ({"text_mask_ratio": 0.95}, "leaves 0 of 8 tokens of text visible"),
        ({"mask_scope": "device"}, "mask_scope 'device'.*batch, sample"),
        ({"vocab_size": 100}, "the vocabulary bytes has 259 ids"),
        ({"text_weight": -1.0}, "must be 0 or more"),
        ({"decoder_dim": 18}, "multiple of 4"),
    ],
)
def test_wrong_settings(settings, words):
    with pytest.raises(MmsslError, match=words):
        make(**settings)


def test_wrong_batches():
    method, batch = make(), pairs()
    for change, words in (
        ({"text": batch["text"].float()}, "text"),
        ({"text": torch.full_like(batch["text"], 400)}, "400"),
        ({"image": batch["image"][:, :, :8]}, "shape"),
    ):
        with pytest.raises(MmsslError, match=words):
            method.check({**batch, **change})
    with pytest.raises(MmsslError, match=r"any of \['image', 'text'\]"):
        method({"index": torch.arange(4)})
