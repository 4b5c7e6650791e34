"""Fine-tuned classifiers of others give the logits that timm gives."""

import pytest
import torch

from mmssl.errors import MmsslError
from mmssl.weights.classifier import load_classifier


@pytest.mark.parametrize(("pool", "pooling"), [("avg", "mean"), ("token", "cls")])
def test_logits_equal_timm(tmp_path, make_vit, images, pool, pooling):
    vit = make_vit(global_pool=pool, num_classes=5)
    torch.save({"model": vit.state_dict()}, tmp_path / "mae_finetuned_vit_tiny.pth")
    classifier = load_classifier(tmp_path / "mae_finetuned_vit_tiny.pth", heads=4)
    assert classifier.pooling == pooling
    with torch.no_grad():
        ours = classifier({"image": images})
        theirs = vit(classifier.encoder.tokenizers["image"].prepare(images))
    assert ours.shape == (3, 5)
    assert (ours - theirs).abs().max() < 1e-5


def test_folder_of_a_vit_equals_transformers(tmp_path, images):
    from transformers import ViTConfig, ViTForImageClassification

    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160}
    vit = ViTForImageClassification(ViTConfig(**shape, image_size=32, patch_size=8, num_labels=5)).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.2)
    vit.save_pretrained(tmp_path)
    classifier = load_classifier(tmp_path)
    assert classifier.pooling == "cls"
    with torch.no_grad():
        theirs = vit(classifier.encoder.tokenizers["image"].prepare(images)).logits
        assert (classifier({"image": images}) - theirs).abs().max() < 1e-5


def test_file_without_a_head(tmp_path, make_vit):
    torch.save({"model": make_vit().state_dict()}, tmp_path / "x.pth")
    with pytest.raises(MmsslError, match="no classifier"):
        load_classifier(tmp_path / "x.pth", heads=4)
