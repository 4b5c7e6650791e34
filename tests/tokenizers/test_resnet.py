"""ResNets as encoders: torchvision's own output, the Encoder contract, frozen batch norms, pixels of one kind only."""

import pytest
import torch
import torchvision
from torch import nn

import mmssl
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.nn.resnets import RESNETS
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD

SIZE = (70, 96)


def make(**settings) -> Encoder:
    torch.manual_seed(0)
    settings = {"network": "resnet18", "width": 8, "image_size": SIZE} | settings
    return Encoder(EncoderConfig.of_resnet(**settings))


def pictures(n: int = 3, size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", RESNETS)
def test_pooled_features_are_those_of_torchvision_before_its_classifier(name):
    theirs = getattr(torchvision.models, name)(weights=None)
    theirs.fc = nn.Identity()
    encoder = make(network=name, width=64)
    assert encoder.tokenizers["image"].net.state_dict().keys() == theirs.state_dict().keys()
    encoder.tokenizers["image"].net.load_state_dict(theirs.state_dict())
    x = pictures(2)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for mode in (True, False):
        features = encoder.train(mode)({"image": x})
        expected = theirs.train(mode)((x / 255 - mean) / std)
        torch.testing.assert_close(features.pooled(), expected, rtol=1e-4, atol=1e-4)
    assert features.cls is None and features.grid == {"image": (3, 3)} and encoder.embed_dim == expected.shape[1]
    assert features.tokens.shape == (2, 9, encoder.embed_dim) and features.map().shape == (2, 3, 3, encoder.embed_dim)


def test_it_starts_as_torchvision_does():
    torch.manual_seed(0)
    theirs, own = torchvision.models.resnet18(weights=None), make(width=64).tokenizers["image"].net
    for name, value in own.named_parameters():
        theirs_of_it = theirs.state_dict()[name]
        torch.testing.assert_close(value.std(), theirs_of_it.std(), rtol=0.1, atol=1e-3)
        torch.testing.assert_close(value.mean(), theirs_of_it.mean(), rtol=0.1, atol=1e-2)


def test_in_evaluation_mode_a_picture_has_the_same_features_whatever_stands_beside_it():
    encoder = make().train()
    encoder({"image": pictures(8)})
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.eval()
    alone = encoder({"image": pictures(1)}).pooled()
    beside = encoder({"image": pictures(8)}).pooled()[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_bytes_and_floats_in_0_to_1_mean_the_same_and_r3ms_range_is_refused():
    encoder = make().eval()
    whole = encoder({"image": pictures()}).tokens
    torch.testing.assert_close(encoder({"image": pictures() / 255}).tokens, whole, rtol=1e-4, atol=1e-4)
    for call in (encoder, encoder.check):
        with pytest.raises(MmsslError, match=r"floats from 0 to 255, but floats must lie in \[0, 1\]; give uint8"):
            call({"image": pictures().float()})
    with pytest.raises(MmsslError, match=r"floats from -.*give uint8 pixels"):
        encoder({"image": (pictures() / 255 - 0.5) / 0.2})


def test_it_comes_back_from_disk_and_takes_other_sizes(tmp_path):
    encoder = make(network="resnet34").train()
    encoder({"image": pictures(4)})
    encoder.save_pretrained(tmp_path)
    loaded = mmssl.load(tmp_path)
    assert loaded.config == encoder.config and not loaded.training
    expected = encoder.eval()({"image": pictures()}).tokens
    assert torch.equal(loaded({"image": pictures()}).tokens, expected)
    with pytest.raises(MmsslError, match=r"must have the shape \(batch, 3, 70, 96\)"):
        loaded({"image": pictures(size=(64, 64))})
    assert mmssl.load(tmp_path, image_size=64)({"image": pictures(size=(64, 64))}).tokens.shape == (3, 4, 64)


def test_what_it_has_not_is_said():
    encoder = make()
    with pytest.raises(MmsslError, match="tokens cannot be masked"):
        encoder({"image": pictures()}, {"image": torch.zeros(3, 9, dtype=torch.bool)})
    tokenizer = encoder.tokenizer("image")
    for call in (tokenizer.patchify, tokenizer.unpatchify):
        with pytest.raises(MmsslError, match="convolutions that overlap"):
            call(pictures().float())
    with pytest.raises(MmsslError, match="unknown network 'resnet5'"):
        make(network="resnet5")
    with pytest.raises(MmsslError, match="width of a ResNet must be at least 1, got 0"):
        make(width=0)
    with pytest.raises(MmsslError, match="has dim 64 and no positions, got dim 32 and positions 'none'; make it with"):
        Encoder(EncoderConfig({"image": encoder.config.tokenizers["image"]}, 32, 0, 1, cls_token=False,
                              positions="none"))  # fmt: skip


def test_it_compiles_without_graph_breaks():
    encoder = make().eval()
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    x = pictures() / 255
    torch.testing.assert_close(compiled({"image": x}).tokens, encoder({"image": x}).tokens, rtol=1e-4, atol=1e-4)
