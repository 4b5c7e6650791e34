"""The joint decoder: places, modalities and padding matter, order does not, and what is absent costs nothing."""

import pytest
import torch

from mmssl.nn.decoders import MaskedDecoder
from mmssl.nn.joint_decoder import Hidden, JointDecoder, Output
from mmssl.nn.positions import sincos_1d, sincos_2d
from mmssl.nn.transformer import BlockConfig

BLOCK = BlockConfig(dim=16, heads=2)


def decoder(depth=2):
    torch.manual_seed(0)
    outputs = {"image": Output(sincos_2d(16, (3, 4))[None], 7), "text": Output(sincos_1d(16, 5)[None], 11)}
    return JointDecoder(12, outputs, BLOCK, depth)


def inputs(seed=1):
    """Tokens at 6 visible places, four of the image and two of the text; three and two masked ones."""
    generator = torch.Generator().manual_seed(seed)
    tokens, cls = (torch.randn(2, *shape, generator=generator) for shape in ((6, 12), (12,)))
    visible = torch.tensor([[0, 3, 7, 11, 12, 15], [1, 2, 5, 6, 13, 16]])
    hidden = {"image": Hidden(torch.tensor([[1, 2, 4], [0, 3, 4]])), "text": Hidden(torch.tensor([[1, 2], [0, 2]]))}
    return tokens, visible, hidden, cls


def test_it_is_the_slow_way():
    """All tokens through all blocks in the order of the lattice, and the masked ones picked at the end."""
    model, (tokens, visible, hidden, cls) = decoder(), inputs()
    found = model(tokens, visible, hidden, cls)
    assert {name: tuple(values.shape) for name, values in found.items()} == {"image": (2, 3, 7), "text": (2, 2, 11)}
    offsets = {"image": 0, "text": 12}
    for row in range(2):
        said = {int(place): model.embed(token) for place, token in zip(visible[row], tokens[row], strict=True)}
        for name, h in hidden.items():
            said |= {offsets[name] + int(place): model.mask_token[name][0, 0] for place in h.index[row]}
        sequence = [model.embed(cls[row])]
        for place in sorted(said):
            name = "image" if place < 12 else "text"
            position = model.pos_embed[name][0, place - offsets[name]] + model.type_embed[name][0, 0]
            sequence.append(said[place] + position)
        x = torch.stack(sequence)[None]
        for block in model.blocks:
            x = block(x)
        x = model.norm(x)[0, 1:]
        for name, h in hidden.items():
            rows = [sorted(said).index(offsets[name] + int(place)) for place in h.index[row]]
            torch.testing.assert_close(found[name][row], model.pred[name](x[rows]), atol=1e-5, rtol=1e-5)


def test_of_one_modality_it_is_the_masked_decoder():
    torch.manual_seed(0)
    joint = JointDecoder(12, {"image": Output(sincos_2d(16, (3, 4))[None], 7)}, BLOCK, 2)
    joint.type_embed["image"].data.zero_()
    single = MaskedDecoder(12, 7, sincos_2d(16, (3, 4))[None], BLOCK, 2)
    names = {name: name.replace(".image", "") for name in joint.state_dict() if not name.startswith("type_embed")}
    single.load_state_dict({names[name]: value for name, value in joint.state_dict().items() if name in names})
    tokens, visible, index = torch.randn(2, 4, 12), torch.tensor([[0, 3, 7, 11]] * 2), torch.tensor([[1, 2], [4, 5]])
    cls = torch.randn(2, 12)
    found = joint(tokens, visible, {"image": Hidden(index)}, cls)["image"]
    torch.testing.assert_close(found, single(tokens, visible, index, cls))


def test_a_modality_that_is_not_there_costs_nothing():
    model, (tokens, visible, hidden, cls) = decoder(), inputs()
    lengths = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    found = model(tokens[:, :4], visible[:, :4], {"image": hidden["image"]}, cls)
    assert set(found) == {"image"} and lengths == [1 + 4 + 3] * 2
    sum(v.sum() for v in found.values()).backward()
    assert all(p.grad is None or not p.grad.any() for name, p in model.named_parameters() if name.endswith("text"))


def test_padding_is_not_seen():
    model, (tokens, visible, hidden, cls) = decoder(), inputs()
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[:, 5] = False
    ragged = {"image": hidden["image"], "text": Hidden(hidden["text"].index, torch.tensor([[True, False]] * 2))}
    short = {"image": hidden["image"], "text": Hidden(hidden["text"].index[:, :1])}
    padded, wanted = model(tokens, visible, ragged, cls, valid), model(tokens[:, :5], visible[:, :5], short, cls)
    torch.testing.assert_close(padded["image"], wanted["image"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded["text"][:, :1], wanted["text"], atol=1e-5, rtol=1e-5)
    changed = tokens.clone()
    changed[:, 5] += 9
    torch.testing.assert_close(model(changed, visible, ragged, cls, valid)["image"], padded["image"])


def test_a_row_of_nothing_is_finite():
    model, (tokens, visible, hidden, _) = decoder(), inputs()
    nothing = {name: Hidden(h.index, torch.zeros_like(h.index, dtype=torch.bool)) for name, h in hidden.items()}
    found = model(tokens, visible, nothing, None, torch.zeros(2, 6, dtype=torch.bool))
    assert all(torch.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize("part", ["type_embed", "mask_token"])
def test_each_modality_has_its_own_vectors(part):
    model, (tokens, visible, hidden, cls) = decoder(), inputs()
    before = model(tokens, visible, hidden, cls)
    getattr(model, part)["text"].data[..., ::2] += 1  # a constant over all channels no norm would see
    after = model(tokens, visible, hidden, cls)
    assert all((before[name] - after[name]).abs().max() > 1e-3 for name in before)


def test_everything_but_the_positions_is_trained_and_named_as_documented():
    names = {name: p.requires_grad for name, p in decoder(1).named_parameters()}
    kinds = {"pos_embed", "type_embed", "mask_token", "pred"}
    assert {f"{kind}.{modality}" for kind in kinds - {"pred"} for modality in ("image", "text")} <= set(names)
    assert {"embed.weight", "blocks.0.attn.qkv.weight", "norm.weight", "pred.text.bias"} <= set(names)
    assert {name for name, trained in names.items() if not trained} == {"pos_embed.image", "pos_embed.text"}
