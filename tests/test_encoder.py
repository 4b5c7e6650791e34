"""The encoder: parity with timm, the Features contract, masks, saving, resizing, wrong input."""

import json
import math

import pytest
import timm
import torch

from mmssl.config import from_dict, to_dict
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.masking import RandomMask
from mmssl.tokenizers.image import ImageTokenizerConfig


def config(**changes):
    options = {"dim": 32, "depth": 2, "heads": 4, "tokenizers": {"image": image_config()}, **changes}
    return EncoderConfig(**options)


def image_config(image_size=(16, 24), patch_size=4):
    return ImageTokenizerConfig(image_size=image_size, patch_size=patch_size)


def encoder(**changes):
    torch.manual_seed(0)
    return Encoder(config(**changes)).eval()


def images(n=2, size=(16, 24)):
    return {"image": torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8)}


def from_timm(model: timm.models.VisionTransformer, size: int, patch: int, **shape) -> Encoder:
    """Ours with the weights of a timm model; its position row of cls is folded into cls."""
    ours = Encoder(EncoderConfig(tokenizers={"image": ImageTokenizerConfig("image", size, patch)}, **shape))
    state = {k: v for k, v in model.state_dict().items() if k.startswith(("blocks.", "norm."))}
    state["cls_token"] = model.cls_token + model.pos_embed[:, :1]
    weight = model.patch_embed.proj.weight
    state["tokenizers.image.proj.weight"] = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    state["tokenizers.image.proj.bias"] = model.patch_embed.proj.bias
    state["tokenizers.image.pos_embed"] = model.pos_embed[:, 1:]
    state |= {k: v for k, v in ours.state_dict().items() if k.endswith((".mean", ".std"))}
    ours.load_state_dict(state)
    return ours.eval()


@pytest.mark.parametrize(
    ("size", "patch", "shape"),
    [(32, 8, {"dim": 48, "depth": 3, "heads": 4}), (224, 16, {"dim": 768, "depth": 12, "heads": 12})],
    ids=["tiny", "vit_base_patch16_224"],
)
def test_parity_with_timm(size, patch, shape):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_base_patch16_224",
        img_size=size,
        patch_size=patch,
        embed_dim=shape["dim"],
        depth=shape["depth"],
        num_heads=shape["heads"],
    ).eval()
    ours = from_timm(model, size, patch, **shape)
    x = torch.rand(1, 3, size, size)
    with torch.no_grad():
        reference = model.forward_features(ours.tokenizers["image"].prepare(x))
        features = ours({"image": x})
    assert (features.tokens - reference[:, 1:]).abs().max() < 1e-5
    assert (features.cls - reference[:, 0]).abs().max() < 1e-5


def test_features_contract():
    model, batch = encoder(), images(3)
    features = model(batch)
    assert features.tokens.shape == (3, 24, 32) and features.cls.shape == (3, 32)
    assert features.grid == {"image": (4, 6)} == model.grids
    assert torch.equal(features.index, torch.arange(24).expand(3, -1)) and features.valid.all()
    assert torch.equal(features.map(), features.tokens.view(3, 4, 6, 32))
    torch.testing.assert_close(features.pooled("mean"), features.tokens.mean(1))
    torch.testing.assert_close(features.pooled("max"), features.tokens.amax(1))
    assert torch.equal(features.pooled("cls"), features.cls)
    assert model.embed_dim == 32 and model.modalities == ("image",)
    with pytest.raises(MmsslError, match="unknown pooling 'median'"):
        features.pooled("median")


def test_masks_remove_tokens():
    """Masked pixels do not matter, visible ones do, and both ways of giving the count agree."""
    model, batch = encoder(), images(3)
    sampler = RandomMask(0.75)
    masks = sampler(model.grids, torch.arange(3))
    features = model(batch, masks, sampler.visible(model.grids))
    assert features.tokens.shape == (3, 6, 32)
    for row in range(3):
        assert features.index[row].tolist() == (~masks["image"][row]).nonzero().flatten().tolist()
    assert torch.equal(model(batch, masks).tokens, features.tokens)
    tokenizer = model.tokenizers["image"]
    hidden = tokenizer.unpatchify(masks["image"][..., None].expand(-1, -1, 48)).to(torch.uint8) * 255
    assert torch.equal(model({"image": batch["image"] ^ hidden}, masks).tokens, features.tokens)
    assert not torch.equal(model({"image": 255 - batch["image"]}, masks).tokens, features.tokens)


def test_ragged_masks_equal_each_row_alone():
    model, batch = encoder(), images(3)
    mask = torch.arange(24)[None] >= torch.tensor([[5], [11], [0]])  # 5, 11 and no visible tokens
    features = model(batch, {"image": mask})
    assert features.tokens.shape == (3, 11, 32)
    assert features.valid.sum(1).tolist() == [5, 11, 0]
    assert features.tokens.isfinite().all() and features.pooled().isfinite().all()
    for row, n in ((0, 5), (1, 11), (2, 0)):
        alone = model({"image": batch["image"][row : row + 1]}, {"image": mask[row : row + 1]})
        torch.testing.assert_close(features.tokens[row, :n], alone.tokens[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features.cls[row], alone.cls[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features.pooled()[row], alone.pooled()[0], atol=1e-5, rtol=1e-5)


def test_nothing_visible_without_cls_is_not_nan():
    model = encoder(cls_token=False)
    mask = torch.ones(2, 24, dtype=torch.bool)
    mask[0, :3] = False
    features = model(images(2), {"image": mask})
    assert features.pooled("max").isfinite().all() and features.pooled("max")[1].abs().max() == 0
    assert features.cls is None and features.tokens.isfinite().all()
    with pytest.raises(MmsslError, match="no cls token"):
        features.pooled("cls")


def two_cameras(**changes):
    return encoder(tokenizers={"image/front": image_config(), "image/wrist": image_config((8, 8))}, **changes)


def test_several_cameras_and_absent_rows():
    model = two_cameras()
    batch = {"image/front": images(2)["image"], "image/wrist": images(2, (8, 8))["image"]}
    features = model(batch)
    assert features.tokens.shape == (2, 24 + 4, 32) and features.index[0].tolist() == list(range(28))
    assert features.map("image/wrist").shape == (2, 2, 2, 32)
    assert torch.equal(features.map("image/wrist").flatten(1, 2), features.tokens[:, 24:])
    batch["present/image/wrist"] = torch.tensor([True, False])
    partly = model(batch)
    assert partly.valid.sum(1).tolist() == [28, 24]
    batch["image/wrist"] = batch["image/wrist"] * torch.tensor([1, 0], dtype=torch.uint8).view(2, 1, 1, 1)
    torch.testing.assert_close(model(batch).pooled(), partly.pooled())
    torch.testing.assert_close(partly.tokens[0], features.tokens[0], atol=1e-5, rtol=1e-5)
    unmasked = model(batch, {"image/front": torch.zeros(2, 24, dtype=torch.bool)})
    torch.testing.assert_close(unmasked.tokens[1, :24], partly.tokens[1, :24], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "learned", "cls_token": False, "final_norm": False},
        {"qkv_bias": "qv", "norm": "post", "layer_scale": 0.1, "gelu": "tanh", "positions": "sincos_row"},
        {"positions": "none", "qkv_bias": "none", "drop_path": 0.2},
    ],
)
def test_saving_and_loading_is_exact(tmp_path, changes):
    model, batch = encoder(**changes), images()
    model.save_pretrained(tmp_path)
    again = Encoder.from_pretrained(tmp_path)
    assert again.config == model.config and not again.training
    assert torch.equal(again(batch).tokens, model(batch).tokens)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_config_goes_through_yaml_types():
    assert from_dict(EncoderConfig, to_dict(config())) == config()


def test_drop_path_grows_with_depth_and_acts_only_in_training():
    model = encoder(depth=5, drop_path=0.4)
    assert [block.drop_path.p for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    batch = images()
    assert torch.equal(model(batch).tokens, model(batch).tokens)
    model.train()
    assert not torch.equal(model(batch).tokens, model(batch).tokens)


def test_resize_interpolates_positions():
    model = encoder()
    before = model.tokenizers["image"].pos_embed.clone()
    assert model.resize((32, 32)) is model
    assert model.config.tokenizers["image"].image_size == (32, 32)
    assert model(images(2, (32, 32))).map().shape == (2, 8, 8, 32)
    model.resize((16, 24))
    assert model.tokenizers["image"].pos_embed.shape == before.shape
    with pytest.raises(MmsslError, match="not divisible"):
        model.resize(30)
    assert model(images()).map().shape == (2, 4, 6, 32)


def test_a_resized_encoder_saves_its_size(tmp_path):
    encoder().resize(32).save_pretrained(tmp_path)
    assert Encoder.from_pretrained(tmp_path)(images(1, (32, 32))).grid == {"image": (8, 8)}


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(2, 3, 16, 24), "a batch is a dict"),
        ({"video": torch.zeros(1)}, r"lacks the modality 'image'.*\['video'\]"),
        ({"image": torch.zeros(2, 3, 16, 16)}, "shape"),
        ({"image": torch.zeros(2, 3, 16, 24, dtype=torch.int32)}, "uint8"),
        ({"image": torch.full((2, 3, 16, 24), 255.0)}, r"\[0, 1\]"),
    ],
)
def test_check_names_what_is_wrong(batch, words):
    with pytest.raises(MmsslError, match=words):
        encoder().check(batch)


def test_wrong_masks_are_named():
    model, batch = encoder(), images()
    with pytest.raises(MmsslError, match=r"bool with the shape \(2, 24\)"):
        model(batch, {"image": torch.zeros(2, 24)})
    with pytest.raises(MmsslError, match=r"got torch.bool \(2, 23\)"):
        model(batch, {"image": torch.zeros(2, 23, dtype=torch.bool)})
    with pytest.raises(MmsslError, match="unknown modality of a mask 'imgae': did you mean 'image'"):
        model(batch, {"imgae": torch.zeros(2, 24, dtype=torch.bool)})
    with pytest.raises(MmsslError, match="without masks"):
        model(batch, {"image": torch.arange(24).expand(2, -1) > 3}).map()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"dim": 30}, "multiple of heads"),
        ({"depth": 0}, "depth"),
        ({"tokenizers": {}}, "at least one"),
        ({"tokenizers": {"image/a.b": image_config()}}, "dot"),
        ({"dim": 30, "heads": 3}, "multiple of 4"),
    ],
)
def test_impossible_shapes(bad, words):
    with pytest.raises(MmsslError, match=words):
        encoder(**bad)


def test_damaged_and_foreign_folders(tmp_path):
    with pytest.raises(MmsslError, match=r"config.json is missing"):
        Encoder.from_pretrained(tmp_path)
    encoder().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MmsslError, match="missing or damaged"):
        Encoder.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    description = json.loads((tmp_path / "config.json").read_text())
    description["encoder"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(MmsslError, match=r"does not fit this model \(missing: blocks.2.norm1.weight"):
        Encoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ViTMAEForPreTraining"]}))
    with pytest.raises(MmsslError, match=r"mmssl\.load"):
        Encoder.from_pretrained(tmp_path)


def test_gradients_reach_every_trained_parameter():
    model = encoder().train()
    features = model(images())
    (features.tokens.square().mean() + features.cls.square().mean()).backward()
    lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking and math.isfinite(sum(p.grad.sum().item() for p in model.parameters() if p.grad is not None))


def test_bfloat16_weights_work():
    features = encoder().bfloat16()(images())
    assert features.tokens.dtype == torch.bfloat16 and features.tokens.isfinite().all()
