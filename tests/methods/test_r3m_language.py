"""R3M with a language model of transformers: frozen, averaged as released or over real tokens, found by its folder."""

import pytest
import torch

from mmssl import create_method
from mmssl.errors import MmsslError
from mmssl.methods.r3m_language import FrozenLanguage, load_language
from mmssl.training.asked import check_vocabulary, text_encoding
from mmssl.training.optim import OptimConfig, build_optimizer

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "open", "the", "door", "drawer", "[MASK]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny DistilBERT with its vocabulary."""
    path = tmp_path_factory.mktemp("distilbert")
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(vocab_size=9, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    transformers.DistilBertModel(config).save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    transformers.DistilBertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    return str(path)


def make(folder, **settings):
    torch.manual_seed(0)
    tiny = {"network": "resnet18", "width": 4, "image_size": 32, "text_length": 9, "reward_dim": 16}
    return create_method("r3m", language=folder, **tiny, **settings)


@torch.no_grad()
def test_texts_are_averaged_over_padding_as_released_or_over_their_own_tokens(folder):
    model, tokenizer = load_language(folder), transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["open the door", "door", ""]
    given = tokenizer(texts, return_tensors="pt", padding=True)  # to the longest of the batch
    hidden = model(**{k: given[k] for k in ("input_ids", "attention_mask")}).last_hidden_state
    ids = torch.nn.functional.pad(given["input_ids"], (0, 4))
    mask = torch.nn.functional.pad(given["attention_mask"], (0, 4)).bool()
    assert ids.shape == (3, 9)
    released, own = (FrozenLanguage(model, folder, 9, mean) for mean in ("all", "real"))
    torch.testing.assert_close(released(ids, mask), hidden.mean(1))
    for b in range(3):
        torch.testing.assert_close(own(ids, mask)[b], hidden[b][given["attention_mask"][b].bool()].mean(0))
    assert not torch.allclose(released(ids[1:], mask[1:])[0], released(ids, mask)[1])  # it depends on the batch
    torch.testing.assert_close(own(ids[1:], mask[1:])[0], own(ids, mask)[1])


def test_it_is_never_trained_and_keeps_its_dropout_off(folder):
    method = make(folder).train()
    assert method.encoder.training and not any(m.training for m in method.language.modules())
    trained = {n for group in build_optimizer(method, OptimConfig()).param_groups for n in group["names"]}
    assert trained and not any(name.startswith("language.") for name in trained)
    assert any(name.startswith("reward.") for name in trained)


def test_the_data_are_asked_for_its_vocabulary(folder):
    encoding = text_encoding(make(folder), None)
    assert (encoding.vocabulary, encoding.length, encoding.special) == (folder, 9, True)
    from mmssl.data.text import text_encoder

    ids, mask = text_encoder(encoding)(["open the door", None])
    assert ids[0].tolist() == [2, 4, 5, 6, 3, 0, 0, 0, 0] and mask.sum(1).tolist() == [5, 0]
    held = type("Held", (), {"text_encoder": text_encoder(encoding)})()
    check_vocabulary(make(folder), held)


def test_a_step_reaches_reward_and_encoder(folder):
    method = make(folder)
    ids, mask = torch.tensor([[2, 4, 3], [2, 6, 3], [0, 0, 0]]), torch.tensor([[True] * 3, [True] * 3, [False] * 3])
    batch = {"video": torch.randint(0, 256, (3, 5, 3, 32, 32), dtype=torch.uint8), "text": ids, "text_mask": mask}
    method.check(batch)
    total, count = method(batch)["loss"]
    (total / count).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.reward.parameters())
    with pytest.raises(MmsslError, match=r"'text' holds ids from 3 to 9, and .* has 9; encode texts with that"):
        method.check({**batch, "text": ids + 3})
    with pytest.raises(MmsslError, match=r"'text' must be int64 ids of the shape \(batch, 1 to 9 tokens\)"):
        method.check({**batch, "text": ids.float()})
