"""Tiny models with random weights, made by timm and transformers, that the tests take as oracles."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # stmae_models is imported by its neighbours

SIZE, PATCH, DIM, DEPTH, HEADS, FRAMES = 32, 8, 64, 2, 4, 4
DECODER = {"decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}


def scramble(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random and none of them zero or one, so that no mistake hides behind an initial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1 + (0.5 if "norm" in name else 0.0))
    return model.eval()


@pytest.fixture
def scrambled():
    """`scramble`, for tests that make their models themselves."""
    return scramble


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_vit():
    """A tiny timm ViT: the encoder of the MAE authors."""
    from timm.models.vision_transformer import VisionTransformer

    def make(**settings) -> torch.nn.Module:
        shape = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
        return scramble(VisionTransformer(**(shape | {"num_classes": 0} | settings)))

    return make


@pytest.fixture
def make_vitmae():
    """A tiny transformers ViTMAEForPreTraining, with the epsilon of the authors."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    def make(**settings) -> torch.nn.Module:
        shape = {"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
        shape |= {"intermediate_size": 4 * DIM, "image_size": SIZE, "patch_size": PATCH, "layer_norm_eps": 1e-6}
        shape |= DECODER | {"decoder_intermediate_size": 128, "norm_pix_loss": True}
        model = scramble(ViTMAEForPreTraining(ViTMAEConfig(**(shape | settings))))
        with torch.no_grad():
            model.decoder.decoder_pos_embed[:, 0] = 0  # as in every MAE
        return model

    return make


@pytest.fixture(scope="session")
def clips() -> torch.Tensor:
    shape = (2, FRAMES, 3, SIZE, SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def mask() -> torch.Tensor:
    """Of the clips: 24 of the 32 tokens masked in both rows, at other places."""
    noise = torch.rand(2, 32, generator=torch.Generator().manual_seed(3))
    return noise.argsort(1).argsort(1) >= 8


@pytest.fixture
def make_videomae():
    """A tiny transformers VideoMAE (`kind`: Model, ForPreTraining, ForVideoClassification), epsilon of the authors."""
    import transformers

    def make(kind: str = "ForPreTraining", **settings) -> torch.nn.Module:
        shape = {"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
        shape |= {"intermediate_size": 4 * DIM, "image_size": SIZE, "patch_size": PATCH, "layer_norm_eps": 1e-6}
        shape |= DECODER | {"decoder_intermediate_size": 128, "num_frames": FRAMES, "tubelet_size": 2}
        shape |= {"use_mean_pooling": kind == "ForVideoClassification", "num_labels": 5}
        config = transformers.VideoMAEConfig(**(shape | settings))
        return scramble(getattr(transformers, f"VideoMAE{kind}")(config))

    return make


@pytest.fixture
def make_stmae():
    """A tiny ST-MAE by the name of its class in stmae_models: Encoder, MaskedAutoencoder, Classifier."""
    import stmae_models

    return lambda kind, **settings: scramble(getattr(stmae_models, kind)(**settings))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, said by the library's own switch, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty_cache"))
