"""The MultiMAE authors' layout, against a model that timm's and torch's layers make up under those names."""

import argparse
import re

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import nn

import mmssl
from mmssl import cli
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.methods.multimae import MultiMAE
from mmssl.nn.positions import sincos_2d
from mmssl.weights import layout
from mmssl.weights.init import load_into
from mmssl.weights.layout import Facts, Published
from mmssl.weights.multimae import build_encoder, build_multimae, is_multimae_layout
from mmssl.weights.multimae_back import multimae_to_authors

DIM, HEADS, WIDTH, N, CLASSES = 16, 2, 12, 6, 5
CHANNELS = {"rgb": 3, "depth": 1, "semseg": CLASSES}
OURS = {"rgb": "image", "depth": "depth", "semseg": "segmentation"}


def table(dim):
    return nn.Parameter(sincos_2d(dim, (2, 3), "row_first").T.reshape(1, dim, 2, 3), requires_grad=False)


def blocks(dim, heads, n=2):
    return nn.Sequential(*[Block(dim, heads, qkv_bias=True) for _ in range(n)])  # timm's norms have their epsilon


class Input(nn.Module):
    def __init__(self, task):
        super().__init__()
        self.pos_emb, cell = table(DIM), 2 if task == "semseg" else 8
        if task == "semseg":
            self.class_emb = nn.Embedding(CLASSES, 4)
        self.proj = nn.Conv2d(4 if task == "semseg" else CHANNELS[task], DIM, cell, cell)

    def forward(self, x):
        x = self.class_emb(x).permute(0, 3, 1, 2) if hasattr(self, "class_emb") else x
        return (self.proj(x) + self.pos_emb).flatten(2).mT  # (B, N, D)


class Output(nn.Module):
    def __init__(self, task, context):
        super().__init__()
        self.task, self.channels = task.removeprefix("norm_"), CHANNELS[task.removeprefix("norm_")]
        self.cell = 2 if task == "semseg" else 8
        self.task_embeddings = nn.ParameterDict({name: torch.zeros(1, 1, WIDTH) for name in context})
        self.mask_token, self.pos_emb = nn.Parameter(torch.zeros(1, 1, WIDTH)), table(WIDTH)
        self.proj_context = nn.Linear(DIM, WIDTH)
        self.query_norm, self.context_norm, self.out_norm = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(3))
        self.decoder = nn.ModuleDict({"q": nn.Linear(WIDTH, WIDTH), "kv": nn.Linear(WIDTH, 2 * WIDTH)})
        self.decoder["proj"] = nn.Linear(WIDTH, WIDTH)
        self.mlp = Mlp(WIDTH, 4 * WIDTH)
        self.decoder_transformer = blocks(WIDTH, 3, 1)
        self.out_proj = nn.Linear(WIDTH, self.channels * self.cell**2)

    def forward(self, tokens, masks):
        """One sample: tokens (n + 1, D), the global one last; task -> mask (N,). Gives a picture (C, h, w)."""
        x, place = self.proj_context(tokens), self.pos_emb[0].flatten(1).T
        slots = {name: self.mask_token[0].repeat(N, 1) for name in masks}
        start = 0
        for name, mask in masks.items():
            slots[name][~mask] = x[start : start + int((~mask).sum())]
            slots[name] = slots[name] + place + self.task_embeddings[name][0]
            start += int((~mask).sum())
        context = torch.cat([*(slots[name][~mask] for name, mask in masks.items()), x[-1:]])[None]
        q = self.decoder["q"](self.query_norm(slots[self.task]))[None]
        k, v = self.decoder["kv"](self.context_norm(context)).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (3, -1)).transpose(1, 2) for t in (q, k, v))
        x = self.decoder["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = self.decoder_transformer(x + self.mlp(self.out_norm(x)))
        x = self.out_proj(x)[0].view(2, 3, self.channels, self.cell, self.cell)
        return x.permute(2, 0, 3, 1, 4).reshape(self.channels, 2 * self.cell, 3 * self.cell)


class Oracle(nn.Module):
    """The authors' model under their names, sample by sample."""

    def __init__(self, inputs=("rgb", "depth", "semseg"), outputs=("rgb", "depth", "semseg", "norm_rgb")):
        super().__init__()
        self.input_adapters = nn.ModuleDict({task: Input(task) for task in inputs})
        self.output_adapters = nn.ModuleDict({task: Output(task, inputs) for task in outputs})
        self.global_tokens, self.encoder = nn.Parameter(torch.zeros(1, 1, DIM)), blocks(DIM, HEADS)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if "pos_emb" not in name:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.2)

    def encode(self, x, masks):
        """Tokens of each sample, the global one last."""
        tokens = {task: self.input_adapters[task](x[task]) for task in x}
        rows = []
        for b in range(len(next(iter(x.values())))):
            seen = [tokens[task][b][~masks[task][b]] for task in x]
            rows.append(self.encoder(torch.cat([*seen, self.global_tokens[0]])[None])[0])
        return rows

    def forward(self, x, masks):
        rows = self.encode(x, masks)
        return {
            task: torch.stack([out(row, {t: masks[t][b] for t in x}) for b, row in enumerate(rows)])
            for task, out in self.output_adapters.items()
        }


def loss_of(task, said, true, mask):
    """Their loss: pictures compared pixel by pixel, the mask made as large as they are."""
    if task == "norm_rgb":
        patches = F.unfold(true, 8, stride=8)  # (B, 192, N)
        patches = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, keepdim=True) + 1e-6).sqrt()
        true = F.fold(patches, true.shape[-2:], 8, stride=8)
    kinds = {"semseg": lambda a, b: F.cross_entropy(a, b, reduction="none"), "depth": F.l1_loss}
    loss = kinds["semseg"](said, true) if task == "semseg" else None
    if loss is None:
        loss = kinds.get(task, F.mse_loss)(said, true, reduction="none").mean(1)
    mask = F.interpolate(mask.view(-1, 1, 2, 3).float(), loss.shape[-2:], mode="nearest")[:, 0]
    return ((loss * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)).nanmean()


@pytest.fixture(scope="module")
def oracle():
    return Oracle().eval()


@pytest.fixture
def state(oracle):
    return {k: v.detach().clone() for k, v in oracle.state_dict().items()}


def published(state, **facts):
    return Published(state, "multimae.pth", Facts(**{"heads": HEADS, "decoder_heads": 3, **facts}))


def batch_of(n=3):
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randint(0, 256, (n, 3, 16, 24), dtype=torch.uint8, generator=generator),
        "depth": 1 + torch.rand(n, 1, 16, 24, generator=generator),
        "segmentation": torch.randint(0, CLASSES, (n, 16, 24), generator=generator),
    }


def masks_of(n=3):
    generator = torch.Generator().manual_seed(2)
    masks = {name: torch.rand(n, N, generator=generator) < 0.6 for name in OURS.values()}
    masks["depth"][0], masks["image"][1] = True, False  # a modality hidden wholly, and one not at all
    return masks


def theirs_of(encoder, batch):
    return {task: encoder.tokenizer(OURS[task]).prepare(batch[OURS[task]]) for task in OURS if OURS[task] in batch}


@torch.no_grad()
def test_the_whole_method_predicts_and_loses_what_theirs_does(oracle, state):
    method, batch, masks = build_multimae(published(state)), batch_of(), masks_of()
    assert isinstance(method, MultiMAE) and not method.training and method.config.in_tasks == tuple(OURS.values())
    inputs = theirs_of(method.encoder, batch)
    said = oracle(inputs, {task: masks[name] for task, name in OURS.items()})
    seen, out = method.see(batch, masks, None), method(batch, masks)
    for task in method.tasks:
        theirs, tokenizer = {**OURS, "norm_rgb": "norm_image"}, method.tokenizer(task.modality)
        key = next(k for k, name in theirs.items() if name == task.name)
        ours = method.decode(task, seen)
        if task.name == "segmentation":
            ours = torch.stack([tokenizer.unpatchify(x) for x in ours.unflatten(-1, (4, CLASSES)).unbind(-1)], 1)
        else:
            ours = tokenizer.unpatchify(ours)
        assert (ours - said[key]).abs().max() < 1e-5
        wanted = loss_of(key, said[key], inputs[key.removeprefix("norm_")], masks[task.modality])
        assert abs(out[f"loss_{task.name}"] - wanted) < 1e-5


def test_there_and_back_is_exact(state):
    method = build_multimae(published(state))
    back = multimae_to_authors(method)
    assert back.keys() == state.keys() and all(torch.equal(back[k], v) for k, v in state.items())
    again = build_multimae(published(back)).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in method.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("inputs", [("rgb", "depth", "semseg"), ("depth",), ("semseg",), ("semseg", "rgb")])
def test_an_encoder_of_the_files_modalities(inputs, tmp_path):
    oracle = Oracle(inputs, ()).eval()
    torch.save({"model": oracle.state_dict(), "epoch": 1599}, tmp_path / "multivit.pth")
    encoder = mmssl.load(tmp_path / "multivit.pth", heads=HEADS)
    assert set(encoder.modalities) == {OURS[task] for task in inputs} and encoder.config.positions == "sincos_row"
    if inputs == ("semseg",):  # alone it tells no size of patches: four pixels an id are the authors'
        encoder = mmssl.load(tmp_path / "multivit.pth", heads=HEADS)
        assert encoder.tokenizer("segmentation").config.patch_size == (8, 8)
    batch = {name: x for name, x in batch_of().items() if name in encoder.modalities}
    inside = theirs_of(encoder, batch)
    rows = oracle.encode(inside, {task: torch.zeros(3, N, dtype=torch.bool) for task in inside})
    features = encoder(batch)
    assert (features.tokens - torch.stack(rows)[:, :-1]).abs().max() < 1e-5
    assert (features.cls - torch.stack(rows)[:, -1]).abs().max() < 1e-5
    with pytest.raises(MmsslError, match="holds no MultiMAE decoder"):
        mmssl.load_method(tmp_path / "multivit.pth", heads=HEADS)


def to_timm(state):
    """What the authors' converter makes: a ViT of the image path, cls first."""
    out = {k.replace("encoder.", "blocks.", 1): v for k, v in state.items() if k.startswith("encoder.")}
    out |= {f"patch_embed.proj.{k}": state[f"input_adapters.rgb.proj.{k}"] for k in ("weight", "bias")}
    rows = state["input_adapters.rgb.pos_emb"].flatten(2).mT
    return out | {"cls_token": state["global_tokens"], "pos_embed": F.pad(rows, (0, 0, 1, 0))}


@torch.no_grad()
def test_their_timm_file_is_the_image_path(state, tmp_path):
    torch.save({"model": to_timm(state)}, tmp_path / "timm.pth")
    encoder = mmssl.load(tmp_path / "timm.pth", heads=HEADS, image_size=(16, 24))
    assert encoder.config.positions == "sincos_row" and not encoder.config.final_norm
    image, whole = {"image": batch_of()["image"]}, build_encoder(published(state))
    assert (encoder(image).tokens - whole(image).tokens).abs().max() < 1e-5


def test_a_files_arguments_are_believed(tmp_path, state):
    said = {"num_encoded_tokens": 7, "alphas": 0.5, "decoder_num_heads": 3, "sample_tasks_uniformly": True}
    torch.save({"model": state, "args": argparse.Namespace(**said, standardize_depth=False)}, tmp_path / "x.pth")
    method = mmssl.load_method(tmp_path / "x.pth", heads=HEADS)
    config = method.config
    assert (config.budget, config.alpha, config.uniform_subsets, config.standardise) == (7, 0.5, True, "none")
    assert config.decoder_heads == 3 and config.class_stride == 4 and config.ignore == (254, 255)
    torch.save(state, tmp_path / "bare.pth")
    config = mmssl.load_method(tmp_path / "bare.pth", heads=HEADS, decoder_heads=2).config
    assert (config.budget, config.decoder_heads, config.standardise) == (3, 2, "truncated")


def test_the_layout_is_known_by_its_names(state):
    assert is_multimae_layout(state) and not is_multimae_layout(to_timm(state))
    assert not is_multimae_layout({k: x for k, x in state.items() if not k.startswith("input")})


@pytest.mark.parametrize(
    "gone",
    ["global_tokens", "input_adapters.semseg.class_emb.weight", "encoder.1.norm2.bias",
     "input_adapters.depth.pos_emb"],
)  # fmt: skip
def test_what_is_missing_is_named(state, gone):
    del state[gone]
    shown = gone.replace("encoder.1", "blocks.1").replace("global_tokens", "cls_token")
    with pytest.raises(MmsslError, match=f"lacks {re.escape(shown)}"):
        build_multimae(published(state))


def test_decoders_that_are_not_whole_are_named(state):
    for gone, words in (("decoder.q.bias", r"missing: decoders\.depth\.cross\.q\.bias"),
                        ("out_proj.weight", "output_adapters.depth lacks out_proj.weight"),
                        ("task_embeddings.rgb", r"missing: decoders\.depth\.task_embed\.image")):  # fmt: skip
        with pytest.raises(MmsslError, match=words):
            build_multimae(published({k: v for k, v in state.items() if k != f"output_adapters.depth.{gone}"}))
    with pytest.raises(MmsslError, match=r"unknown: decoders\.image\.gate"):
        build_multimae(published({**state, "output_adapters.rgb.gate": torch.zeros(3)}))


def test_what_has_no_place_is_named(state):
    with pytest.raises(MmsslError, match=r"no place for input_adapters\.rgb\.norm\.weight"):
        build_encoder(published({**state, "input_adapters.rgb.norm.weight": torch.zeros(3)}))
    with pytest.raises(MmsslError, match=r"has input_adapters.normals; known are rgb, depth and semseg"):
        build_encoder(published({**state, "input_adapters.normals.pos_emb": torch.zeros(3)}))
    with pytest.raises(MmsslError, match="has 2 global tokens"):
        build_encoder(published({**state, "global_tokens": torch.zeros(1, 2, DIM)}))
    with pytest.raises(MmsslError, match="no MultiMAE as published"):
        build_multimae(published({**state, "input_adapters.depth.pos_emb": torch.rand(1, DIM, 2, 3)}))
    with pytest.raises(MmsslError, match="whose width 12 is not the published one"):
        build_multimae(published(state, decoder_heads=None))
    with pytest.raises(MmsslError, match="decoder_heads=5 does not divide the width 12"):
        build_multimae(published(state, decoder_heads=5))


def test_a_modality_without_a_name_there_is_said():
    settings = {"size": "custom", "dim": 16, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8, "budget": 2}
    settings |= {"in_tasks": ("image", "image/left"), "out_tasks": ("image",), "decoder_dim": 16}
    with pytest.raises(MmsslError, match="no name for image/left"):
        multimae_to_authors(create_method("multimae", **settings))


SMALL = {"size": "custom", "dim": 16, "depth": 2, "heads": 2, "image_size": (16, 24), "patch_size": 8, "budget": 2}
SMALL |= {"classes": 5, "class_dim": 4, "decoder_dim": 12, "decoder_heads": 3, "decoder_depth": 1}


@pytest.fixture
def file(state, tmp_path):
    torch.save({"model": state, "args": {"decoder_num_heads": 3}}, tmp_path / "multivit.pth")
    return tmp_path / "multivit.pth"


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The width of these tiny models is not a published one."""
    monkeypatch.setitem(layout.ENCODER_HEADS, DIM, HEADS)


def fresh(*names, **changes):
    torch.manual_seed(0)
    return create_method("multimae", **{**SMALL, "in_tasks": names, "out_tasks": names, **changes})


def equal(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_a_run_starts_from_all_of_it(file):
    method = fresh(*OURS.values())
    assert "all weights of 'multimae'" in load_into(method, file)
    assert equal(method, mmssl.load_method(file))


def test_other_modalities_are_refused_with_what_differs(file):
    with pytest.raises(MmsslError, match=r"this model has no segmentation; with --init-shared in place of --init"):
        load_into(fresh("image", "depth"), file)
    with pytest.raises(MmsslError, match="this model has no depth and no segmentation and the source has no image/top"):
        load_into(fresh("image", "image/top"), file)


def test_what_is_shared_is_loaded_where_it_is_asked_for_and_the_rest_is_listed(file):
    method, whole = fresh("image", "segmentation", "image/top", classes=7), mmssl.load_method(file)
    before, segmentation = method.state_dict(), method.encoder.tokenizer("segmentation").proj.weight.clone()
    before = {k: v.clone() for k, v in before.items()}
    said = load_into(method, file, shared_only=True)
    assert equal(whole.encoder.blocks, method.encoder.blocks)
    assert equal(whole.encoder.tokenizer("image"), method.encoder.tokenizer("image"))
    assert torch.equal(method.encoder.tokenizer("segmentation").proj.weight, segmentation)  # of other classes
    ours, theirs = method.decoders["image"], whole.decoders["image"]
    assert equal(ours.cross, theirs.cross) and torch.equal(ours.task_embed["image"], theirs.task_embed["image"])
    new = "decoders.image.task_embed.image/top"
    assert torch.equal(method.state_dict()[new], before[new])
    took, left, anew = said.split("; ")
    assert "blocks" in took and "tokenizers.image" in took and "decoders.norm_image" in took
    assert "tokenizers.depth" in left and "tokenizers.segmentation" in left and "decoders.depth" in left
    assert "tokenizers.image/top" in anew and new in anew and "decoders.segmentation" in anew


def test_an_mae_is_shared_too_and_sizes_are_fitted(file, tmp_path):
    mae = {"size": "custom", "dim": 16, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 8, "mask_ratio": 0.5}
    create_method("mae", **mae).encoder.save_pretrained(tmp_path / "mae")
    method = fresh("image", "depth")
    assert "left there: norm;" in load_into(method, tmp_path / "mae", shared_only=True)
    wanted = mmssl.load(tmp_path / "mae", image_size=(16, 24))
    assert equal(wanted.blocks, method.encoder.blocks)
    assert equal(wanted.tokenizer("image"), method.encoder.tokenizer("image"))
    with pytest.raises(MmsslError, match="is of another size: the blocks of its encoder"):
        load_into(fresh("image", "depth", depth=3), tmp_path / "mae", shared_only=True)
    with pytest.raises(MmsslError, match="no modality is shared"):
        load_into(fresh("depth", "segmentation"), tmp_path / "mae", shared_only=True)
    with pytest.raises(MmsslError, match="has heads 2, this model 4"):
        load_into(fresh("image", "depth", heads=4), tmp_path / "mae", shared_only=True)


def test_where_nothing_differs_sharing_is_loading(file):
    method = fresh(*OURS.values(), decoder_depth=2)
    assert "took the encoder's weights" in load_into(method, file, shared_only=True)
    assert equal(method.encoder, mmssl.load(file))


def test_the_command_line_asks_for_it():
    options, left = cli._take_options(["--init-shared", "x.pth", "--loop.steps", "2"], "usage")
    assert options["init"] == "x.pth" and options["shared_only"] and left == ["--loop.steps", "2"]
    with pytest.raises(MmsslError, match="--init-shared is for mmssl pretrain; mmssl finetune takes --init"):
        cli._run_recipe("finetune", ["mae/finetune_base_imagenet", "--init-shared", "x.pth"])
