"""R3M's files and plain ResNets, written here by torchvision and transformers under the published names."""

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

import mmssl
from mmssl.errors import MmsslError
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD


def net(name: str, **settings) -> nn.Module:
    """A ResNet whose batch norms have seen something."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None, **settings)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1)
    model.fc = nn.Identity()
    return model.eval()


class Author(nn.Module):
    """What R3M's code saves: a ResNet, a DistilBERT and a reward, by their names there."""

    def __init__(self, name: str, language: bool = True):
        super().__init__()
        self.convnet = net(name)
        if language:
            transformers = pytest.importorskip("transformers")
            config = transformers.DistilBertConfig(vocab_size=20, dim=64, n_layers=2, hidden_dim=32, n_heads=1,
                                                   max_position_embeddings=30)  # fmt: skip
            self.lang_enc, self.lang_rew = nn.Module(), nn.Module()
            self.lang_enc.model = transformers.DistilBertModel(config).eval()
            dims = [2 * 512 + 64, 24, 24, 24, 24]
            hidden = [layer for i, o in pairwise(dims) for layer in (nn.Linear(i, o), nn.ReLU())]
            self.lang_rew.pred = nn.Sequential(*hidden, nn.Linear(24, 1))

    def forward(self, x):
        """Pixels in 0..255, as its users give them."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self.convnet((x.float() / 255 - mean) / std)


def save(model: nn.Module, path) -> str:
    torch.save({"r3m": nn.DataParallel(model).state_dict(), "global_step": 7}, path)
    return str(path)


@pytest.fixture
def pictures():
    return torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "dim"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
@torch.no_grad()
def test_an_authors_file_gives_their_features(name, dim, tmp_path, pictures):
    author = Author(name, language=False)
    encoder = mmssl.load(save(author, tmp_path / "model.pt"))
    assert encoder.embed_dim == dim and not encoder.training
    features = encoder({"image": pictures})
    torch.testing.assert_close(features.pooled(), author(pictures), rtol=1e-4, atol=1e-4)
    assert features.grid == {"image": (7, 7)}
    with pytest.raises(MmsslError, match=r"floats from 0 to 255, but floats must lie in \[0, 1\]; give uint8 pixels"):
        encoder({"image": pictures.float()})
    with pytest.raises(MmsslError, match=r"holds the encoder alone, no language reward; read it with mmssl.load"):
        mmssl.load_method(tmp_path / "model.pt")


@torch.no_grad()
def test_the_language_head_comes_along(tmp_path, pictures):
    author = Author("resnet18")
    path = save(author, tmp_path / "model.pt")
    torch.testing.assert_close(mmssl.load(path)({"image": pictures}).pooled(), author(pictures), rtol=1e-4, atol=1e-4)
    method = mmssl.load_method(path)
    assert (method.config.language, method.config.reward_dim) == ("distilbert-base-uncased", 24)
    ids, mask = torch.tensor([[2, 5, 7, 3], [2, 9, 3, 0]]), torch.tensor([[True] * 4, [True] * 3 + [False]])
    hidden = author.lang_enc.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.mean(1)
    start, now = author(pictures), author(pictures.flip(0))
    expected = author.lang_rew.pred(torch.cat([start, now, hidden], -1))[:, 0]
    found = method.score(pictures, pictures.flip(0), ids, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_plain_resnet_of_torchvision_is_read_and_its_classifier_left_out(tmp_path, pictures):
    model = net("resnet34")
    state = {**model.state_dict(), "fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)}
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "resnet34.pth")
    encoder = mmssl.load(tmp_path / "resnet34.pth", image_size=(96, 64))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    small = pictures[:, :, :96, :64]
    expected = model((small / 255 - mean) / std)
    torch.testing.assert_close(encoder({"image": small}).pooled(), expected, rtol=1e-4, atol=1e-4)
    encoder.save_pretrained(tmp_path / "ours")
    again = mmssl.load(tmp_path / "ours")
    assert torch.equal(again({"image": small}).tokens, encoder({"image": small}).tokens)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: state | {"head.weight": torch.zeros(1)},
            "not a plain ResNet: there is no place for head.weight",
        ),
        (lambda state: {k: v for k, v in state.items() if k != "layer2.0.bn1.weight"}, "layer2.0.bn1.weight"),
        (lambda state: state | {"layer3.2.conv1.weight": torch.zeros(1)}, r"a ResNet of \(2, 2, 3, 2\) plain blocks"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, words, tmp_path):
    torch.save(change(net("resnet18").state_dict()), tmp_path / "model.pth")
    with pytest.raises(MmsslError, match=words):
        mmssl.load(tmp_path / "model.pth")
