"""R3M from a manifest on disk to an encoder for users, and the batch norms of a run that was stopped."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from training_toys import assert_same, weights

from mmssl.data.clips import ClipSampling
from mmssl.data.loading import DataConfig
from mmssl.data.transforms import Augmentation
from mmssl.errors import MmsslError
from mmssl.methods.r3m_settings import R3MConfig
from mmssl.training.loop import LoopConfig
from mmssl.training.optim import OptimConfig
from mmssl.training.pretrain import PretrainConfig, pretrain
from mmssl.weights.load import load, load_method

METHOD = R3MConfig(network="resnet18", width=4, image_size=32, text_dim=8, text_heads=2, text_length=16, reward_dim=8)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Ten clips of four frames, as R3M's code wants them, the last without an annotation."""
    folder, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    lines = ["path,len,txt"]
    for k in range(10):
        (folder / f"clip{k}").mkdir()
        for time in range(1, 5):
            pixels = random.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"clip{k}" / f"{time:06}.jpg")
        lines.append(f"clip{k},4," + ("" if k == 9 else f"C lifts cup {k}"))
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def recipe(manifest, steps: int = 4, **data) -> PretrainConfig:
    clip, crop = ClipSampling(how="r3m", frames=5), Augmentation(hflip=0.0, interpolation="bilinear")
    data = {"source": (str(manifest),), "split": "all", "clip": clip, "augmentation": crop, **data}
    loop = LoopConfig(steps=steps, batch_size=4, log_every=1, checkpoint_every=2, device="cpu")
    return PretrainConfig(METHOD, loop, DataConfig(**data), OptimConfig(lr=1e-3))


def test_a_run_gives_an_encoder_and_goes_on_bit_for_bit(manifest, tmp_path):
    whole = pretrain(recipe(manifest), tmp_path / "whole")
    encoder, method = load(whole.path), load_method(whole.path)
    assert not encoder.training and encoder.modalities == ("image",) and encoder.embed_dim == 32
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    features = encoder({"image": pictures})
    assert torch.equal(features.tokens, method.encoder({"image": pictures}).tokens)
    assert features.pooled().shape == (2, 32) and features.cls is None
    moved = encoder.state_dict()["tokenizers.image.net.bn1.running_mean"]
    assert moved.abs().max() > 0 and encoder.state_dict()["tokenizers.image.net.bn1.num_batches_tracked"] == 4
    logged = whole.metrics.read_text()
    assert all(f'"{name}"' in logged for name in ("tcn", "language", "l1", "l2", "tcn_right", "language_right"))

    parted, config = tmp_path / "parted", recipe(manifest)
    pretrain(config, parted)
    for late in (parted / "checkpoints").glob("step_*4"):  # as if it had been killed after its second step
        for file in late.iterdir():
            file.unlink()
        late.rmdir()
    assert_same(weights(pretrain(config, parted).path), weights(whole.path))


def test_what_the_method_needs_of_the_data_is_one_sentence(manifest, tmp_path):
    with pytest.raises(MmsslError, match=r"set data.clip to \{how: r3m, frames: 5\}"):
        pretrain(recipe(manifest, clip=ClipSampling(frames=4, stride=1)), tmp_path / "dense")
    plain = manifest.with_name("plain.csv")
    plain.write_text("path\n" + "\n".join(f"clip{k}" for k in range(10)) + "\n")
    with pytest.raises(MmsslError, match="lacks 'text', the annotations of its clips"):
        pretrain(recipe(plain), tmp_path / "plain")
    silent = dataclasses.replace(recipe(plain), method=dataclasses.replace(METHOD, language_weight=0.0))
    assert pretrain(silent, tmp_path / "silent").report.is_file()
