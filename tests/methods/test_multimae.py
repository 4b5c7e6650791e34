"""MultiMAE against a slow version of all of it, timm's blocks on its image path, and what may be missing."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mmssl
from mmssl.config import from_dict, to_dict
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.methods.base import MethodConfig
from mmssl.methods.multimae import MultiMAE
from mmssl.methods.multimae_settings import MultiMAEConfig
from mmssl.registry import TOKENIZERS
from mmssl.report.modalities import read_modalities
from mmssl.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from mmssl.training.joint_pictures import save_modalities
from mmssl.training.optim import OptimConfig, build_optimizer

sys.path.insert(0, str(Path(__file__).parent))
from multimae_reference import Reference

TINY = {"size": "custom", "dim": 16, "depth": 2, "heads": 2, "image_size": (16, 24), "patch_size": 8, "classes": 5}
TINY |= {"class_dim": 3, "class_stride": 4, "budget": 5, "decoder_dim": 12, "decoder_depth": 1, "decoder_heads": 3}


def tiny(**changes) -> MultiMAE:
    """A model whose every parameter is random, so that no mistake hides behind an initial zero or one."""
    torch.manual_seed(0)
    model = MultiMAE(MultiMAEConfig(**{**TINY, **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = float(name.split(".")[-2].startswith("norm")) if "." in name else 0.0
            p.copy_(p if "pos_embed" in name else torch.randn(p.shape) * 0.3 + scale)
    return model


def batch_of(n=3, size=(16, 24), seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, 5, (n, *size), generator=generator)
    return {
        "image": torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=generator),
        "depth": 1 + torch.rand(n, 1, *size, generator=generator),
        "segmentation": torch.where(ids == 4, 255, ids),
        "index": torch.arange(n),
    }


def hidden(*counts: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """Masks with so many hidden tokens of each modality in each row, the first ones."""
    return {
        name: torch.arange(6)[None] < torch.tensor([row[i] for row in counts])[:, None]
        for i, name in enumerate(("image", "depth", "segmentation"))
    }


def check(model, batch, masks=None) -> None:
    """Losses of all tasks, the loss, its gradient and what is predicted: ours and the slow ones."""
    keys = sample_keys(3, 0, 0, torch.arange(3))
    out, seen = model(batch, masks, keys), model.see(batch, masks, keys)
    losses, said = Reference(model)(batch, seen.masks)
    assert {k for k in out if k.startswith("loss_")} >= {f"loss_{task}" for task in losses}
    for task in model.tasks:
        assert abs(out.get(f"loss_{task.name}", 0) - losses.get(task.name, 0)) < 1e-5
        assert (model.decode(task, seen) - said[task.name]).abs().max() < 1e-5
    total, count = out["loss"]
    assert count == 3 and abs(total / count - sum(losses.values())) < 1e-6 * total
    parameters = [p for p in model.encoder.parameters() if p.requires_grad]
    for a, b in zip(*(torch.autograd.grad(y, parameters, allow_unused=True) for y in
                      (total / count, sum(losses.values()))), strict=True):  # fmt: skip
        assert (a is None or not a.any()) if b is None else (a - b).abs().max() < 1e-4


def test_it_is_the_slow_one():
    check(tiny(), batch_of())


def test_rows_may_lack_modalities():
    present = torch.tensor([True, False, True])
    batch = batch_of() | {"present/depth": present, "present/segmentation": ~present}
    batch["depth"], batch["segmentation"] = (batch["depth"] * present.view(3, 1, 1, 1),
                                             batch["segmentation"] * ~present.view(3, 1, 1))  # fmt: skip
    check(tiny(), batch)
    check(tiny(extra_norm_pix=False), batch, hidden((6, 0, 3), (1, 6, 6), (2, 2, 0)))


def test_a_batch_may_lack_modalities():
    batch = batch_of()
    del batch["depth"]
    model = tiny()
    check(model, batch)
    found = model.reconstruct(batch)
    assert found["prediction/depth"].shape == (3, 1, 16, 24) and "target/depth" not in found
    check(model, {key: batch[key] for key in ("segmentation", "index")})


def test_any_modality_predicts_any_other():
    model, batch = tiny(), batch_of()
    for row in ((6, 6, 0), (6, 0, 6), (0, 6, 6), (6, 6, 6)):
        check(model, batch, hidden(row, (1, 2, 3), (6, 6, 6)))
    masks = model.hide(batch, "depth", "segmentation")
    found = model.reconstruct(batch, masks)
    assert found["mask/depth"].all() and not found["mask/image"].any()
    other = batch_of(seed=5) | {"image": batch["image"]}
    assert torch.equal(found["prediction/depth"], model.reconstruct(other, masks)["prediction/depth"])
    assert torch.equal(found["prediction/image"], found["target/image"])


def test_what_is_predicted_need_not_be_read():
    model, batch = tiny(in_tasks=("image",), out_tasks=("depth", "segmentation"), budget=3), batch_of()
    assert model.encoder.modalities == ("image",) and not any(p.requires_grad for p in model.targets.parameters())
    check(model, batch)
    check(model, batch | {"present/depth": torch.tensor([True, False, True])})
    found = model.reconstruct(batch)
    assert found["mask/depth"].all() and "target/image" not in found and found["target"].shape == (3, 1, 16, 24)
    with pytest.raises(MmsslError, match="'depth' holds NaN"):
        model.check(batch | {"depth": batch["depth"] * torch.nan})


def test_what_is_not_read_is_drawn_but_never_given(tmp_path):
    model, batch = tiny(in_tasks=("image", "segmentation"), out_tasks=("image", "depth")), batch_of()
    save_modalities(model, batch, tmp_path)
    found = read_modalities(tmp_path)
    assert found.names == ("image", "depth") and list(found.crossed) == [("image", "depth")]
    assert [[name for name, _ in row] for row in found.squares()] == [["original", "given image"]] * 3


def test_all_parameters_decay_as_in_the_authors_code():
    model = tiny()
    groups = [build_optimizer(model, OptimConfig(decay_all=everything)).param_groups for everything in (True, False)]
    assert [group["weight_decay"] for group in groups[0]] == [0.05]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(groups[0][0]["names"]) == trained >= {"encoder.cls_token", "encoder.blocks.0.norm1.bias"}
    assert sorted(group["weight_decay"] for group in groups[1]) == [0, 0.05]


def test_learned_variances_weigh_the_tasks():
    model, batch = tiny(weighting="uncertainty"), batch_of()
    masks = hidden((3, 3, 0), (3, 3, 0), (3, 3, 0))  # nothing of the segmentation is to be predicted
    losses, _ = Reference(model)(batch, masks)
    assert losses.keys() == {"image", "depth", "norm_image"}
    order = {task.name: i for i, task in enumerate(model.tasks)}
    wanted = sum((-model.log_vars[order[t]]).exp() * loss + model.log_vars[order[t]] for t, loss in losses.items())
    total, count = model(batch, masks)["loss"]
    assert abs(total / count - wanted) < 1e-5
    ours, slow = (torch.autograd.grad(y, model.log_vars)[0] for y in (total / count, wanted))
    assert (ours - slow).abs().max() < 1e-5 and ours[order["segmentation"]] == 0


def test_nothing_to_predict_is_a_loss_of_zero_and_not_nan():
    model, batch = tiny(), batch_of()
    total, _ = model(batch, hidden(*[(0, 0, 0)] * 3))["loss"]
    total.backward()
    assert total == 0 and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_image_path_is_timms():
    """The authors' timm file is a ViT whose norm is left out."""
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=(16, 24), patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0).eval()
    vit.norm = nn.Identity()
    model, image = tiny(), batch_of()["image"]
    encoder, tokenizer = model.encoder, model.encoder.tokenizer("image")
    with torch.no_grad():
        vit.cls_token.copy_(encoder.cls_token)
        vit.pos_embed.copy_(nn.functional.pad(tokenizer.pos_embed, (0, 0, 1, 0)))
        kernel = tokenizer.proj.weight.view(16, 8, 8, 3).permute(0, 3, 1, 2)
        vit.patch_embed.proj.load_state_dict({"weight": kernel, "bias": tokenizer.proj.bias})
        vit.blocks.load_state_dict(encoder.blocks.state_dict())
        theirs, ours = vit.forward_features(tokenizer.prepare(image)), encoder({"image": image})
    assert (theirs[:, 1:] - ours.tokens).abs().max() < 1e-5 and (theirs[:, 0] - ours.cls).abs().max() < 1e-5


def test_the_published_sizes():
    with torch.device("meta"):
        model = MultiMAE(MultiMAEConfig())
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model, model.encoder)]
    assert [round(count, 1) for count in counts] == [98.6, 87.1]
    shapes = {name: tuple(d.pred.weight.shape) for name, d in model.decoders.items()}
    assert shapes == {"image": (768, 256), "depth": (256, 256), "segmentation": (2128, 256), "norm_image": (768, 256)}
    assert isinstance(model.encoder.norm, nn.Identity) and model.sampler.budget(model.encoder.grids) == 98


def test_attention_starts_as_three_matrices():
    torch.manual_seed(0)
    model = mmssl.create_method("multimae", **TINY | {"dim": 64})
    bound = (6 / (64 + 64)) ** 0.5
    for matrix in model.encoder.blocks[1].attn.qkv.weight.chunk(3):
        assert 0.97 * bound < matrix.abs().max() <= bound
    assert not any(decoder.mask_token.any() for decoder in model.decoders.values())


def test_classes_are_decoded_in_full_precision():
    model, found = tiny(), {}
    for name, decoder in model.decoders.items():
        decoder.pred.register_forward_hook(lambda _, args, out, name=name: found.update({name: out.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = model(batch_of())["loss"]
    assert found.pop("segmentation") == torch.float32 and set(found.values()) == {torch.bfloat16}
    assert total.dtype == torch.float32 and total.isfinite()


def test_cameras_are_modalities():
    names = ("image/front", "depth/front", "image/wrist")
    model, batch = tiny(in_tasks=names, out_tasks=names), batch_of()
    batch = {"image/front": batch["image"], "depth/front": batch["depth"], "image/wrist": batch["image"].flip(0)}
    out = model(batch)
    wanted = {f"loss_{name}" for name in (*names, "norm_image/front", "norm_image/wrist")}
    assert out.keys() == wanted | {"loss"} and out["loss"][0].isfinite()
    assert not torch.equal(*(model.encoder.tokenizer(name).proj.weight for name in names[::2]))


@dataclass(frozen=True)
class NormalsConfig(ImageTokenizerConfig):
    name: str = "normals"


class Normals(ImageTokenizer):
    config_class = NormalsConfig


def test_a_further_registered_modality_is_a_task_like_any_other(monkeypatch):
    monkeypatch.setitem(TOKENIZERS._entries, "normals", Normals)
    names = ("image", "normals")
    model, batch = tiny(in_tasks=names, out_tasks=names, mean=(0.5,) * 3, std=(0.5,) * 3), batch_of()
    batch = {"image": batch["image"], "normals": batch["image"].flip(0)}
    masks = {name: torch.arange(6)[None].expand(3, -1) < 4 for name in names}
    out, seen = model(batch, masks), model.see(batch, masks, None)
    goal = model.goal("normals", batch["normals"])[:, :4]
    said = model.decode(model.tasks[1], seen)[:, :4]
    assert out["loss_normals"] == pytest.approx(nn.functional.mse_loss(said, goal).item(), rel=1e-5)
    assert model.decoders["image"].task_embed.keys() == {"image", "normals"}


def test_create_method_and_config_round_trip():
    model = mmssl.create_method("multimae", **TINY, alpha=0.5, uniform_subsets=True)
    assert model.sampler.alpha == 0.5 and model.sampler.uniform_subsets
    assert from_dict(MethodConfig, to_dict(model.config)) == model.config


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"in_tasks": ()}, "in_tasks must be one or more different modalities"),
        ({"out_tasks": ("image", "image")}, "out_tasks must be one or more different modalities"),
        ({"in_tasks": ("image", "dpeth")}, "unknown tokenizer 'dpeth': did you mean 'depth'"),
        ({"in_tasks": ("image", "text")}, "single pictures, and 'text' is none"),
        ({"out_tasks": ("video",)}, "single pictures, and 'video' is none"),
        ({"budget": 0}, "budget must be at least 1"),
        ({"budget": 18}, "a budget of 18 tokens masks none of the 18 that image, depth, segmentation have together"),
        ({"alpha": 0.0}, "alpha of the Dirichlet draw"),
        ({"class_stride": 3}, "stride 3 does not divide patch_size"),
        ({"decoder_dim": 18}, "decoder_dim must be a multiple of 4"),
        ({"decoder_depth": -1}, "decoder_depth must be 0 or more"),
        ({"decoder_heads": 5}, "multiple of heads"),
        ({"image_size": 30}, "not divisible by patch_size"),
        ({"size": "giant"}, "unknown size 'giant'"),
    ],
)
def test_impossible_settings_are_named(bad, words):
    with pytest.raises(MmsslError, match=words):
        MultiMAE(MultiMAEConfig(**{**TINY, **bad}))


def test_wrong_batches_are_named():
    model, batch = tiny(), batch_of()
    for call in (model, model.reconstruct, model.check):
        with pytest.raises(MmsslError, match=r"lacks the modality any of \['image', 'depth', 'segmentation'\]"):
            call({"index": batch["index"]})
    with pytest.raises(MmsslError, match="holds the ids 7, and this model has 5 classes"):
        model.check({"segmentation": torch.full((1, 16, 24), 7)})
    with pytest.raises(MmsslError, match="unknown modality of a mask 'sketch'"):
        model(batch, {"sketch": torch.ones(3, 6, dtype=torch.bool)})
    model.encoder.resize((24, 24))
    with pytest.raises(MmsslError, match=r"resized to a lattice of \(3, 3\) of 'image', the decoders have \(2, 3\)"):
        model(batch_of(size=(24, 24)))
