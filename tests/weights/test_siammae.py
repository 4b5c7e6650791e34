"""CropMAE's layout, against a model that torch.nn's and timm's own layers make up under those names."""

import argparse
import re

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mmssl
from mmssl.errors import MmsslError
from mmssl.methods.siammae import SiamMAE, SiamMAEConfig
from mmssl.weights.layout import Facts, Published
from mmssl.weights.official import build_encoder
from mmssl.weights.siammae import build_siammae, is_siammae_layout, siammae_to_authors

DIM, HEADS, N, PATCH = 64, 4, 64, 8
FACTS = Facts(heads=HEADS, decoder_heads=4)


class Oracle(VisionTransformer):
    """CropMAE's model: their names, torch's layers, mask tokens put back among the others in raster order."""

    def __init__(self, dim=32, heads=4, hidden=40, depth=2):
        super().__init__(img_size=64, patch_size=PATCH, embed_dim=DIM, depth=2, num_heads=HEADS, num_classes=0)
        options = {"activation": "gelu", "layer_norm_eps": 1e-6, "batch_first": True}
        self.decoder_embed = nn.Linear(DIM, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + N, dim))
        self.decoder_blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(dim, heads, hidden, **options) for _ in range(depth)
        )
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_pred = nn.Linear(dim, PATCH * PATCH * 3)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
            self.decoder_pos_embed[:, 0] = 0

    def encode(self, image, mask):
        x = (self.patch_embed(image) + self.pos_embed[:, 1:])[~mask].view(len(image), -1, DIM)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(image), -1, -1), x], dim=1)
        return self.norm(self.blocks(x))

    def forward(self, past, future, mask):
        context = self.decoder_embed(self.encode(past, torch.zeros_like(mask)))
        seen = self.decoder_embed(self.encode(future, mask))
        x = self.mask_token.repeat(len(past), N, 1)
        x[~mask] = seen[:, 1:].flatten(0, 1)
        x = torch.cat([seen[:, :1], x], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block.norm2(x + block.multihead_attn(x, context, context)[0])
            x = block.norm3(x + block.linear2(block.activation(block.linear1(x))))
            x = block.norm1(x + block.self_attn(x, x, x)[0])
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


@pytest.fixture(scope="module")
def oracle():
    return Oracle().eval()


@pytest.fixture
def state(oracle):
    return {k: v.detach().clone() for k, v in oracle.state_dict().items()}


def build(state, **facts):
    return build_siammae(Published(state, "cropmae.pth", Facts(**{"heads": HEADS, "decoder_heads": 4, **facts})))


@torch.no_grad()
def test_the_whole_method_predicts_what_torchs_layers_do(oracle, state):
    method = build(state)
    assert isinstance(method, SiamMAE) and not method.training
    assert method.config.decoder_order == "cropmae" and method.config.decoder_shape() == (32, 2, 4)
    assert method.config.norm_pix and method.config.mask_ratio == 0.95
    video = torch.randint(0, 256, (3, 2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mask = torch.stack([torch.randperm(N, generator=torch.Generator().manual_seed(i)) >= 4 for i in range(3)])
    past, future = (method.tokenizer.prepare(frame) for frame in video.unbind(1))
    theirs = oracle(past, future, mask)
    found = method.reconstruct({"video": video}, {"image": mask})
    assert (found["prediction_patches"] - theirs)[mask].abs().max() < 1e-5
    patches = method.tokenizer.patchify(future)[mask]  # their loss, norm-pix
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    total, count = method({"video": video}, {"image": mask})["loss"]
    assert (total / count - (theirs[mask] - target).square().mean()).abs() < 1e-5 * (total / count)


def test_there_and_back_is_exact(state):
    method = build(state)
    assert torch.equal(method.encoder.cls_token, state["cls_token"] + state["pos_embed"][:, :1])
    state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]  # where our encoder keeps that row
    state["pos_embed"][:, 0] = 0
    back = siammae_to_authors(method)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)
    again = build(back).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in method.state_dict().items())


def test_a_fresh_model_goes_there_and_back():
    shape = {"size": "custom", "dim": 32, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 4, "mask_ratio": 0.5}
    shape |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    ours = SiamMAE(SiamMAEConfig(**shape, decoder_order="cropmae"))
    theirs = siammae_to_authors(ours)
    assert theirs["decoder_blocks.0.linear1.weight"].shape == (2048, 16)
    back = build_siammae(Published(theirs, "x", Facts(heads=2, decoder_heads=2, mask_ratio=0.5)))
    assert back.config.encoder_config() == ours.config.encoder_config()
    assert back.config.decoder_block() == ours.config.decoder_block()
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in ours.state_dict().items())
    with pytest.raises(MmsslError, match="order 'rsp' has no place in CropMAE's layout"):
        siammae_to_authors(SiamMAE(SiamMAEConfig(**shape)))


def test_the_encoder_loads_by_itself(oracle, state):
    encoder = build_encoder(Published(state, "cropmae.pth", FACTS))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = oracle.encode(encoder.tokenizers["image"].prepare(images), torch.zeros(2, N, dtype=torch.bool))
        assert (encoder({"image": images}).tokens - theirs[:, 1:]).abs().max() < 1e-5


def test_the_layout_is_known_by_its_names(state):
    assert is_siammae_layout(state)
    assert not is_siammae_layout({n: x for n, x in state.items() if not n.startswith("decoder")})
    assert not is_siammae_layout({n: x for n, x in state.items() if n.startswith("decoder")})
    mae = {n.replace("multihead_attn.in_proj_weight", "attn.qkv.weight"): x for n, x in state.items()}
    assert not is_siammae_layout(mae)


@pytest.mark.parametrize(
    "gone",
    ["mask_token", "decoder_pred.bias", "decoder_blocks.1.norm3.weight", "decoder_blocks.0.self_attn.in_proj_bias"],
)
def test_what_is_missing_is_named(state, gone):
    del state[gone]
    with pytest.raises(MmsslError, match=f"lacks {re.escape(gone)}"):
        build(state)


@pytest.mark.parametrize("extra", ["decoder_blocks.0.norm4.weight", "decoder_blocks.1.attn.qkv.weight", "decoder_head"])
def test_what_has_no_place_is_named(state, extra):
    with pytest.raises(MmsslError, match=f"it also has {re.escape(extra)}"):
        build({**state, extra: torch.zeros(3)})
    with pytest.raises(MmsslError, match="no place for teacher"):
        build({**state, "teacher": torch.zeros(3)})


def test_shapes_and_sizes_that_do_not_fit_are_named(state):
    with pytest.raises(MmsslError, match=r"decoder\.blocks\.0\.cross\.kv\.weight \(32, 32\), not \(64, 32\)"):
        build({**state, "decoder_blocks.0.multihead_attn.in_proj_weight": torch.zeros(48, 32)})
    with pytest.raises(MmsslError, match="whose width 32 is not a published one"):
        build(state, decoder_heads=None)
    with pytest.raises(MmsslError, match="decoder_heads=5 does not divide the width 32"):
        build(state, decoder_heads=5)
    with pytest.raises(MmsslError, match="position, which SiamMAE's does not have"):
        build({**state, "decoder_pos_embed": state["decoder_pos_embed"] + 1})
    with pytest.raises(MmsslError, match="holds no SiamMAE decoder"):
        build({k: v for k, v in state.items() if not k.startswith("decoder")})
    with pytest.raises(MmsslError, match="no SiamMAE as published"):
        build({k: v for k, v in state.items() if k not in ("norm.weight", "norm.bias")})


@pytest.mark.parametrize(("width", "heads"), [(256, 8), (512, 16)])
def test_published_widths_have_published_heads(width, heads):
    assert build(Oracle(width, heads, depth=1).state_dict(), decoder_heads=None).config.decoder_heads == heads


def test_a_file_is_read_by_its_names_and_its_arguments_are_believed(tmp_path, state):
    arguments = {"norm_pix_loss": False, "masking_ratio": 0.9, "decoder_num_heads": 2, "architecture": "vits"}
    torch.save({"model": state, "epoch": 399, "args": argparse.Namespace(**arguments)}, tmp_path / "checkpoint-399.pth")
    method = mmssl.load_method(tmp_path / "checkpoint-399.pth", heads=HEADS)
    assert isinstance(method, SiamMAE) and method.config.decoder_shape() == (32, 2, 2)
    assert not method.config.norm_pix and method.config.mask_ratio == 0.9
    encoder = mmssl.load(tmp_path / "checkpoint-399.pth", heads=HEADS)
    assert all(torch.equal(v, method.encoder.state_dict()[k]) for k, v in encoder.state_dict().items())
    torch.save(state, tmp_path / "bare.pth")
    method = mmssl.load_method(tmp_path / "bare.pth", heads=HEADS, decoder_heads=4, norm_pix=False)
    assert not method.config.norm_pix and method.config.mask_ratio == 0.95
