"""The masked decoder: order does not matter, positions and masks do."""

import torch

from mmssl.nn.decoders import MaskedDecoder
from mmssl.nn.positions import sincos_2d
from mmssl.nn.transformer import BlockConfig


def decoder():
    torch.manual_seed(0)
    return MaskedDecoder(12, 7, sincos_2d(16, (3, 4))[None], BlockConfig(dim=16, heads=2), depth=2)


def test_shapes_and_permutation_of_the_visible():
    model, tokens = decoder(), torch.randn(2, 5, 12)
    place = torch.stack([torch.randperm(12), torch.randperm(12)])
    out = model(tokens, place[:, :5], place[:, 5:], cls=torch.randn(2, 12))
    assert out.shape == (2, 7, 7)
    model_in = dict(visible=place[:, :5], masked=place[:, 5:])
    order, target_order = torch.randperm(5), torch.randperm(7)
    shuffled = model(tokens[:, order], place[:, :5][:, order], place[:, 5:][:, target_order])
    torch.testing.assert_close(shuffled, model(tokens, **model_in)[:, target_order], atol=1e-5, rtol=1e-5)


def test_predictions_differ_by_place_and_see_the_tokens():
    model, tokens = decoder(), torch.randn(1, 2, 12)
    visible, masked = torch.tensor([[0, 5]]), torch.tensor([[3, 7]])
    out = model(tokens, visible, masked)
    assert (out[:, 0] - out[:, 1]).abs().max() > 1e-3
    assert (model(tokens + 1, visible, masked) - out).abs().max() > 1e-3


def test_padded_tokens_are_not_seen():
    model, tokens = decoder(), torch.randn(1, 3, 12)
    visible, masked = torch.tensor([[0, 5, 9]]), torch.tensor([[3, 7]])
    key_mask = torch.tensor([[True, True, False, True, True]])
    padded = model(tokens, visible, masked, key_mask=key_mask)
    torch.testing.assert_close(padded, model(tokens[:, :2], visible[:, :2], masked), atol=1e-5, rtol=1e-5)


def test_everything_but_the_positions_is_trained():
    trained = {name for name, p in decoder().named_parameters() if p.requires_grad}
    assert "mask_token" in trained and "pos_embed" not in trained
