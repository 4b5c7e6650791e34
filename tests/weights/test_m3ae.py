"""M3AE's layout, against its forward pass written in NumPy over a tree of exactly the published names and shapes."""

import math
import pickle

import numpy as np
import pytest
import torch

import mmssl
from mmssl.errors import MmsslError
from mmssl.methods.m3ae import M3AE
from mmssl.weights.published import read_published_file

DIM, HEADS, WIDTH, DECODER_HEADS, PATCH, SIZE, VOCABULARY, LENGTH = 32, 4, 24, 3, 4, 16, 40, 8
N = (SIZE // PATCH) ** 2
MEAN, STD = np.array([0.5762, 0.5503, 0.5213]), np.array([0.3207, 0.3169, 0.3307])
VARIANT = {
    "seed": 42,
    "text_loss_weight": 0.3,
    "image_loss_weight": 1.0,
    "m3ae.model_type": None,
    "m3ae.num_heads": HEADS,
    "m3ae.dec_num_heads": DECODER_HEADS,
    "m3ae.image_mask_ratio": 0.5,
    "m3ae.text_mask_ratio": 0.75,
    "data.image_size": SIZE,
    "data.tokenizer": "bert-base-uncased",
    "data.tokenizer_max_length": LENGTH,
    "data.image_normalization": "cc12m",
}


def transformer(draw, dim, depth):
    def dense(n, m):
        return {"kernel": draw(n, m), "bias": draw(m)}

    def norm():
        return {"scale": 1 + draw(dim), "bias": draw(dim)}

    blocks = {
        f"Block_{k}": {
            "LayerNorm_0": norm(),
            "Attention_0": {"Dense_0": dense(dim, 3 * dim), "Dense_1": dense(dim, dim)},
            "LayerNorm_1": norm(),
            "TransformerMLP_0": {"fc1": dense(dim, 4 * dim), "fc2": dense(4 * dim, dim)},
        }
        for k in range(depth)
    }
    return blocks | {"LayerNorm_0": norm()}


def make_tree(text=True, types=True):
    random = np.random.default_rng(0)

    def draw(*shape):
        return (0.15 * random.standard_normal(shape)).astype(np.float32)

    tree = {
        "cls_token": draw(1, 1, DIM),
        "image_embedding": {"kernel": draw(3 * PATCH**2, DIM), "bias": draw(DIM)},
        "encoder": transformer(draw, DIM, 2),
        "decoder": transformer(draw, WIDTH, 1),
        "decoder_input_projection": {"kernel": draw(DIM, WIDTH), "bias": draw(WIDTH)},
    }
    for name, values in (("image", 3 * PATCH**2), ("text", VOCABULARY)) if text else (("image", 3 * PATCH**2),):
        tree[f"{name}_mask_embedding"] = draw(1, 1, WIDTH)
        tree[f"decoder_{name}_output"] = {"Dense_0": {"kernel": draw(WIDTH, values), "bias": draw(values)}}
        if types:
            tree[f"encoder_{name}_type_embedding"] = draw(1, 1, DIM)
            tree[f"decoder_{name}_type_embedding"] = draw(1, 1, WIDTH)
    if text:
        tree["text_embedding"] = {"embedding": draw(VOCABULARY, DIM)}
    return tree


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"].astype(np.float64) + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def run(tree, x, padding, heads):
    """flax's Transformer on x (B, N, D); padding (B, N), 1 = pad."""
    for k in range(len(tree) - 1):
        block = tree[f"Block_{k}"]
        qkv = dense(norm(x, block["LayerNorm_0"]), block["Attention_0"]["Dense_0"])
        batch, n, dim = x.shape
        q, k_, v = qkv.reshape(batch, n, 3, heads, dim // heads).transpose(2, 0, 3, 1, 4)
        weights = q @ k_.swapaxes(-1, -2) * (dim // heads) ** -0.5
        weights = np.where(padding[:, None, None] > 0, -1e7, weights)
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        seen = (weights / weights.sum(-1, keepdims=True)) @ v
        x = x + dense(seen.swapaxes(1, 2).reshape(batch, n, dim), block["Attention_0"]["Dense_1"])
        mlp = block["TransformerMLP_0"]
        x = x + dense(gelu(dense(norm(x, block["LayerNorm_1"]), mlp["fc1"])), mlp["fc2"])
    return norm(x, tree["LayerNorm_0"])


def waves(dim, places):
    angle = np.asarray(places, float)[:, None] / 10000 ** (np.arange(dim // 2) / (dim / 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def positions(name, dim):
    if name == "text":
        return waves(dim, range(LENGTH))
    side = SIZE // PATCH
    return np.concatenate([waves(dim // 2, np.arange(N) % side), waves(dim // 2, np.arange(N) // side)], axis=1)


def patches(image):
    """(B, 3, H, W) uint8 -> normalised (B, N, p * p * 3), channel fastest."""
    x = (image.numpy().transpose(0, 2, 3, 1) / 255 - MEAN) / STD
    side = SIZE // PATCH
    return x.reshape(len(x), side, PATCH, side, PATCH, 3).swapaxes(2, 3).reshape(len(x), N, -1)


class Oracle:
    """Their model over a batch and one permutation of each modality for all samples."""

    def __init__(self, tree):
        self.tree = tree

    def embed(self, batch):
        """Modality -> tokens with positions and type, and padding (B, n)."""
        tree, found = self.tree, {}
        if "image" in batch:
            x = dense(patches(batch["image"]), tree["image_embedding"])
            found["image"] = x, np.zeros(x.shape[:2])
        if "text" in batch:
            x = tree["text_embedding"]["embedding"].astype(np.float64)[batch["text"].numpy()]
            found["text"] = x, (~batch["text_mask"]).numpy().astype(float)
        types = {name: tree.get(f"encoder_{name}_type_embedding", 0) for name in found}
        return {name: (x + positions(name, DIM) + types[name], pad) for name, (x, pad) in found.items()}

    def encode(self, batch, kept=None):
        """Tokens after the encoder, cls first, of all places or of those in `kept`."""
        parts = {
            name: (x, pad) if kept is None else (x[:, kept[name]], pad[:, kept[name]])
            for name, (x, pad) in self.embed(batch).items()
        }
        rows = len(next(iter(parts.values()))[0])
        x = np.concatenate([np.tile(self.tree["cls_token"], (rows, 1, 1)), *(x for x, _ in parts.values())], axis=1)
        pad = np.concatenate([np.zeros((rows, 1)), *(pad for _, pad in parts.values())], axis=1)
        return run(self.tree["encoder"], x, pad, HEADS)

    def predict(self, batch, order, keep):
        """Modality -> output at every place, un-shuffled; order: its permutation, keep: how many are visible."""
        tree, embedded = self.tree, self.embed(batch)
        x = dense(self.encode(batch, {n: order[n][: keep[n]] for n in embedded}), tree["decoder_input_projection"])
        parts, pads, start = [x[:, :1]], [np.zeros((len(x), 1))], 1
        for name, (tokens, pad) in embedded.items():
            seen, start = x[:, start : start + keep[name]], start + keep[name]
            hidden = np.tile(tree[f"{name}_mask_embedding"], (len(x), tokens.shape[1] - keep[name], 1))
            whole = np.concatenate([seen, hidden], axis=1)[:, np.argsort(order[name])]
            parts.append(whole + positions(name, WIDTH) + tree.get(f"decoder_{name}_type_embedding", 0))
            pads.append(pad)
        x = run(tree["decoder"], np.concatenate(parts, axis=1), np.concatenate(pads, axis=1), DECODER_HEADS)
        found, start = {}, 1
        for name, (tokens, _) in embedded.items():
            end = start + tokens.shape[1]
            found[name], start = dense(x[:, start:end], tree[f"decoder_{name}_output"]["Dense_0"]), end
        return found

    def losses(self, batch, order, keep):
        """Image and text loss as their two functions compute them."""
        said, found = self.predict(batch, order, keep), {}
        masks = {name: np.argsort(order[name]) >= keep[name] for name in said}
        if "image" in said:
            error = ((said["image"] - patches(batch["image"])) ** 2).mean(-1)
            found["image"] = np.where(masks["image"], error, 0).mean(-1).mean() / masks["image"].mean()
        if "text" in said:
            shifted = said["text"] - said["text"].max(-1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            log_p = np.take_along_axis(log_p, batch["text"].numpy()[..., None], -1)[..., 0]
            valid = masks["text"] & batch["text_mask"].numpy()
            found["text"] = -(np.where(valid, log_p, 0).sum(-1) / np.maximum(valid.sum(-1), 1e-5)).mean()
        return found


@pytest.fixture(scope="module")
def tree():
    return make_tree()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(LENGTH)[None] < torch.tensor([8, 5, 1])[:, None]
    return {
        "image": torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator),
        "text": torch.randint(1, VOCABULARY, (3, LENGTH), generator=generator) * mask,
        "text_mask": mask,
    }


def write(path, tree, variant=VARIANT):
    path.write_bytes(pickle.dumps({"step": 1, "epoch": 0, "variant": variant, "state": {"params": {"params": tree}}}))
    return path


def without(batch, *names):
    return {k: v for k, v in batch.items() if k.split("_")[0] not in names}


@torch.no_grad()
@pytest.mark.parametrize("lacks", [(), ("text",), ("image",)])
@pytest.mark.parametrize("types", [True, False])
def test_the_whole_method_is_theirs(tmp_path, batch, lacks, types):
    tree, batch = make_tree(types=types), without(batch, *lacks)
    method, oracle = mmssl.load_method(write(tmp_path / "x.pkl", tree)), Oracle(tree)
    assert isinstance(method, M3AE) and not method.training
    random, keep = np.random.default_rng(5), {"image": N // 2, "text": LENGTH // 4}
    order = {"image": random.permutation(N), "text": random.permutation(LENGTH)}
    masks = {n: torch.from_numpy(np.tile(np.argsort(order[n]) >= keep[n], (3, 1))) for n in ("image", "text")}
    masks = {name: mask for name, mask in masks.items() if name in batch}
    said, theirs = method(batch, masks), oracle.losses(batch, order, keep)
    total = theirs.get("image", 0) + 0.3 * theirs.get("text", 0)
    assert said["loss"][0] / said["loss"][1] == pytest.approx(total, rel=1e-5)
    assert ("image" in batch) == ("loss_image" in said) and ("text" in batch) == ("loss_text" in said)
    if "image" in batch:
        assert float(said["loss_image"]) == pytest.approx(theirs["image"], rel=1e-5)
    hidden, values = method.decode(method.see(batch, masks, None))
    for name, out in oracle.predict(batch, order, keep).items():
        index, valid = hidden[name].index, hidden[name].valid
        wanted = torch.from_numpy(out).gather(1, index[..., None].expand(-1, -1, out.shape[-1]))
        error = (values[name] - wanted).abs().amax(-1)
        assert (error if valid is None else error[valid]).max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("lacks", [(), ("text",), ("image",)])
def test_the_encoder_is_theirs(tmp_path, tree, batch, lacks):
    encoder, batch = mmssl.load(write(tmp_path / "x.pkl", tree)), without(batch, *lacks)
    assert encoder.modalities == ("image", "text") and encoder.config.gelu == "tanh"
    wanted, features = torch.from_numpy(Oracle(tree).encode(batch)), encoder(batch)
    assert (features.cls - wanted[:, 0]).abs().max() < 1e-5
    assert (features.tokens - wanted[:, 1:]).abs().amax(-1)[features.valid].max() < 1e-5


def test_what_the_settings_in_the_file_say(tmp_path, tree):
    config = mmssl.load_method(write(tmp_path / "x.pkl", tree)).config
    assert (config.mask_ratio, config.text_mask_ratio, config.text_weight) == (0.5, 0.75, 0.3)
    assert config.mask_scope == "batch"
    assert (config.vocabulary, config.vocab_size, config.text_length) == ("bert-base-uncased", VOCABULARY, LENGTH)
    assert config.mean == tuple(MEAN) and not config.norm_pix and config.image_size == (SIZE, SIZE)
    imagenet = mmssl.load_method(write(tmp_path / "x.pkl", tree, VARIANT | {"data.image_normalization": "imagenet"}))
    assert imagenet.config.mean == (0.485, 0.456, 0.406)


def test_a_file_without_settings_is_as_published(tmp_path, tree):
    path = write(tmp_path / "x.pkl", tree, {})
    config = mmssl.load_method(path, heads=HEADS, decoder_heads=DECODER_HEADS).config
    assert config.text_length == 64 and config.image_size == (256, 256) and config.mean == tuple(MEAN)
    small = mmssl.load(path, heads=HEADS, image_size=(16, 32))
    assert small.grids["image"] == (4, 8)
    named = VARIANT | {"m3ae.model_type": "base", "m3ae.num_heads": 16}  # these heads are then not the model's
    with pytest.raises(MmsslError, match=r"its width 32 is not a published one.*heads="):
        mmssl.load(write(path, tree, named))


@torch.no_grad()
def test_an_npz_file_and_the_family(tmp_path, tree, batch):
    def flat(tree, name="params"):
        for key, value in tree.items():
            yield from flat(value, f"{name}/{key}") if isinstance(value, dict) else [(f"{name}/{key}", value)]

    np.savez(tmp_path / "x.npz", **dict(flat(tree)))
    encoder = mmssl.load(tmp_path / "x.npz", heads=HEADS, image_size=SIZE)
    wanted = Oracle(tree).encode(without(batch, "text"))
    assert (encoder(without(batch, "text")).cls - torch.from_numpy(wanted[:, 0])).abs().max() < 1e-5
    assert "M3AE" in read_published_file(tmp_path / "x.npz")[0].name


@torch.no_grad()
@pytest.mark.parametrize("types", [True, False])
def test_the_mae_of_the_same_repository(tmp_path, batch, types):
    tree, images = make_tree(text=False, types=types), without(batch, "text")
    variant = {"mae.model_type": None, "mae.num_heads": HEADS, "mae.dec_num_heads": DECODER_HEADS}
    path = write(tmp_path / "x.pkl", tree, variant | {"cc12m_data.image_size": SIZE})
    encoder = mmssl.load(path)
    assert encoder.modalities == ("image",) and encoder.config.type_embedding == types
    assert (encoder(images).cls - torch.from_numpy(Oracle(tree).encode(images)[:, 0])).abs().max() < 1e-5
    with pytest.raises(MmsslError, match=r"holds the MAE of M3AE's authors.*mmssl\.load"):
        mmssl.load_method(path)


def cut(tree, *path):
    """The tree without one of its branches."""
    name, *rest = path
    return {k: cut(v, *rest) if k == name and rest else v for k, v in tree.items() if k != name or rest}


def dense_of(inputs, outputs):
    return {"kernel": np.ones((inputs, outputs)), "bias": np.ones(outputs)}


@pytest.mark.parametrize(
    ("change", "variant", "words"),
    [
        (lambda t: cut(t, "encoder", "Block_1", "TransformerMLP_0", "fc2"), {}, r"lacks blocks\.1\.mlp\.fc2"),
        (lambda t: cut(t, "decoder_text_output"), {}, r"lacks decoder_text_output\.Dense_0"),
        (lambda t: cut(t, "cls_token"), {}, "lacks cls_token"),
        (lambda t: {**t, "extra": np.ones(3)}, {}, "no place for extra"),
        (lambda t: {**t, "decoder_extra": np.ones(3)}, {}, "also has decoder_extra"),
        (lambda t: {**t, "decoder_image_output": {"Dense_0": dense_of(WIDTH, 1024)}}, {}, "it predicts 1024"),
        (lambda t: {**t, "image_embedding": {"kernel": np.ones((50, DIM)), "bias": np.ones(DIM)}}, {}, "50 values"),
        (lambda t: t, {"data.image_normalization": "custom"}, "image_normalization 'custom'"),
        (lambda t: t, {"m3ae.num_heads": 5}, "heads=5 does not divide the width 32"),
    ],
)  # fmt: skip
def test_what_does_not_fit(tmp_path, tree, change, variant, words):
    with pytest.raises(MmsslError, match=words):
        mmssl.load_method(write(tmp_path / "x.pkl", change(tree), VARIANT | variant))
