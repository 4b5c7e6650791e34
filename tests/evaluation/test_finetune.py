"""Fine-tuning: the model, the recipe's verb, and the evaluator."""

import dataclasses
import json

import pytest
import torch

import mmssl
from mmssl.data.loading import DataConfig
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError
from mmssl.evaluation.features import Splits
from mmssl.evaluation.finetune import FinetuneConfig, FinetuneProbeConfig, finetune, finetune_probe
from mmssl.evaluation.finetune_model import HeadConfig, build_model, mixer
from mmssl.training.loop import LoopConfig
from mmssl.training.optim import OptimConfig, layer_scales

SHORT = FinetuneProbeConfig(steps=60, train_batch=30, lr=2e-3, drop_path=0.0)


def test_the_model_starts_from_the_encoder_without_its_norm(tiny_encoder, classification):
    model = build_model(tiny_encoder, classification[0], HeadConfig(drop_path=0.3), seed=0)
    assert torch.equal(model.encoder.blocks[1].mlp.fc1.weight, tiny_encoder.blocks[1].mlp.fc1.weight)
    assert not any(name.startswith("encoder.norm") for name, _ in model.named_parameters())
    assert model.encoder.config.drop_path == 0.3 and tiny_encoder.config.drop_path == 0.0
    assert model.encoder.tokenizers["image"].pos_embed.requires_grad
    with_cls = build_model(tiny_encoder, classification[0], HeadConfig(pooling="cls"), seed=0)
    batch = {"image": classification[0].images[:3]}
    expected = with_cls.head(tiny_encoder(batch).cls)
    torch.testing.assert_close(with_cls.eval().output(batch), expected)


def test_frozen_it_is_the_linear_probe(tiny_encoder, classification):
    model = build_model(tiny_encoder, classification[0], HeadConfig(pooling="cls", freeze=True), seed=0).train()
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["head.fc.weight", "head.fc.bias"]
    assert model.head.bn.training and not model.encoder.training
    batch = {"image": classification[0].images[:9]}
    cls = tiny_encoder(batch).cls.detach()
    expected = (cls - cls.mean(0)) / (cls.var(0, unbiased=False) + 1e-6).sqrt() @ model.head.fc.weight.T
    torch.testing.assert_close(model.output(batch), expected, atol=1e-4, rtol=1e-4)


def test_layer_decay_and_exemptions_see_the_names_that_they_need(tiny_encoder, classification):
    model = build_model(tiny_encoder, classification[0], HeadConfig(), seed=0)
    scales = layer_scales(model, 0.5)
    assert scales["encoder.cls_token"] == scales["encoder.tokenizers.image.pos_embed"] == 0.125
    assert scales["encoder.blocks.0.norm1.weight"] == 0.25 and scales["head.fc.weight"] == 1.0
    assert model.no_decay() == {"encoder.cls_token", "encoder.tokenizers.image.pos_embed"}


def test_loss_is_the_tasks_own_sum_and_count(tiny_encoder, classification, regression):
    for data, labels in ((classification[0], torch.arange(4) % 3), (regression[0], regression[0].values[:4])):
        model = build_model(tiny_encoder, data, HeadConfig(), seed=0).eval()
        total, count = model({"image": data.images[:4], "label": labels})["loss"]
        output = model.output({"image": data.images[:4]})
        if data.task == "single_label":
            expected = torch.nn.functional.cross_entropy(output, labels, reduction="sum")
        else:
            varying = (labels - data.values.mean(0)) / data.values.std(0, unbiased=False).where(
                torch.tensor([1, 1, 0]) > 0, torch.ones(3)
            )
            expected = (output - varying).square().mean(1).sum()
        assert count == 4
        torch.testing.assert_close(total, expected)


def test_as_an_evaluator_it_learns_and_leaves_the_encoder_alone(tiny_encoder, classification):
    before = {k: v.clone() for k, v in tiny_encoder.state_dict().items()}
    found = finetune_probe(tiny_encoder, Splits(*classification), SHORT)
    assert found["accuracy"] > 0.6  # a third by chance
    assert all(torch.equal(v, before[k]) for k, v in tiny_encoder.state_dict().items())


def test_as_an_evaluator_it_regresses(tiny_encoder, regression):
    longer = dataclasses.replace(SHORT, steps=150)
    assert finetune_probe(tiny_encoder, Splits(*regression), longer)["r2"] > 0.3


def recipe(folder, **head) -> FinetuneConfig:
    data = DataConfig(source=(str(folder),), augmentation=Augmentation(crop_scale=(0.8, 1.0)))
    loop = LoopConfig(steps=6, batch_size=8, log_every=2, checkpoint_every=3, device="cpu")
    return FinetuneConfig(data, loop, OptimConfig(lr=1e-3, layer_decay=0.75), HeadConfig(**head))


def test_the_verb_writes_scores_and_an_export(run_folder, picture_folder, tmp_path):
    config = recipe(picture_folder, mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    out = finetune(config, run=tmp_path / "tuned", init=str(run_folder))
    row = json.loads((out / "scores.json").read_text())["rows"][0]
    assert (row["evaluator"], row["target"], row["metric"]) == ("finetune", "class", "accuracy")
    assert mmssl.load(out).config.final_norm is False
    assert (out / "export" / "head.safetensors").is_file() and (out / "checkpoints" / "step_00000006").is_dir()
    weights = (out / "export" / "model.safetensors").read_bytes()
    finetune(config, run=out, init=str(run_folder))  # it is at its end: nothing is trained again
    assert (out / "export" / "model.safetensors").read_bytes() == weights


def test_the_linear_recipe_runs_with_lars(run_folder, picture_folder, tmp_path):
    config = recipe(picture_folder, pooling="cls", freeze=True)
    config = dataclasses.replace(config, optim=OptimConfig(name="lars", base_lr=100.0, weight_decay=0.0))
    out = finetune(config, run=tmp_path / "linear", init=str(run_folder))
    before, after = mmssl.load(run_folder), mmssl.load(out)
    assert all(torch.equal(v, after.state_dict()[k]) for k, v in before.state_dict().items())
    assert json.loads((out / "scores.json").read_text())["rows"][0]["metric"] == "accuracy"


def test_wrong_input(tiny_encoder, regression, in_memory, picture_folder):
    with pytest.raises(MmsslError, match="--init"):
        finetune(recipe(picture_folder))
    with pytest.raises(MmsslError, match="single_label"):
        build_model(tiny_encoder, regression[0], HeadConfig(mixup=0.8), seed=0)
    with pytest.raises(MmsslError, match="no labels"):
        build_model(tiny_encoder, in_memory(regression[0].images), HeadConfig(), seed=0)
    with pytest.raises(MmsslError, match="drop_path"):
        HeadConfig(drop_path=1.0)
    assert mixer(HeadConfig(), 3) is None
