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


def test_file_without_a_head(tmp_path, make_vit):
    torch.save({"model": make_vit().state_dict()}, tmp_path / "x.pth")
    with pytest.raises(MmsslError, match="no classifier"):
        load_classifier(tmp_path / "x.pth", heads=4)
