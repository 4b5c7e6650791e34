"""Heads: what they compute and how they start."""

import torch
from torch import nn

from mmssl.nn.heads import AttentiveHead, BatchNormLinearHead, LinearHead


def test_linear_head_starts_small_and_normalises():
    head = LinearHead(32, 5, std=2e-5, norm=True)
    assert head.fc.weight.abs().max() < 1e-4 and head.fc.bias.abs().max() == 0
    x = torch.randn(4, 32)
    torch.testing.assert_close(head(x), head(3 * x + 1), atol=1e-6, rtol=0)
    plain = LinearHead(32, 5)
    torch.testing.assert_close(plain(x), x @ plain.fc.weight.T)


def test_batch_norm_head_standardises_without_parameters():
    head = BatchNormLinearHead(8, 3)
    assert not list(head.bn.parameters()) and head.bn.eps == 1e-6
    x = torch.randn(64, 8)
    torch.testing.assert_close(head(x), head(100 * x + 5), atol=1e-4, rtol=1e-4)


def test_attentive_head_is_attention_with_a_learned_query():
    head = AttentiveHead(16, 3, heads=2)
    tokens = torch.randn(2, 6, 16)
    mha = nn.MultiheadAttention(16, 2, batch_first=True)
    with torch.no_grad():
        mha.in_proj_weight.copy_(torch.cat([torch.eye(16), head.kv.weight]))
        mha.in_proj_bias.copy_(torch.cat([torch.zeros(16), head.kv.bias]))
        mha.out_proj.weight.copy_(torch.eye(16))
        mha.out_proj.bias.zero_()
    normed = head.norm(tokens)
    reference = head.fc(mha(head.query.expand(2, -1, -1), normed, normed)[0][:, 0])
    torch.testing.assert_close(head(tokens), reference, atol=1e-5, rtol=1e-5)


def test_attentive_head_ignores_padding_and_is_not_fooled_by_none():
    head = AttentiveHead(16, 3, heads=2, queries=3)
    tokens = torch.randn(2, 6, 16)
    valid = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    torch.testing.assert_close(head(tokens, valid)[0], head(tokens[:1, :4])[0], atol=1e-5, rtol=1e-5)
    assert head(tokens, torch.zeros(2, 6, dtype=torch.bool)).isfinite().all()
