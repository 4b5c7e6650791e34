"""`mmssl pretrain` from end to end on a few small sounds."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import soundfile
import torch
from training_toys import assert_same, weights

import mmssl
from mmssl.config import load_config
from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.loading import DataConfig
from mmssl.errors import MmsslError
from mmssl.methods.audiomae import AudioMAE, AudioMAEConfig
from mmssl.methods.base import create_method
from mmssl.training.asked import sound_sampling
from mmssl.training.loop import LoopConfig
from mmssl.training.optim import OptimConfig
from mmssl.training.pretrain import PretrainConfig, pretrain

SHAPE = {"frames": 32, "mel_bins": 16, "patch_size": 4, "decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}
TINY = AudioMAEConfig(size="custom", dim=16, depth=1, heads=2, drop_path=0.2, **SHAPE)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    random = np.random.default_rng(0)
    for i in range(10):
        rate = (16000, 22050)[i % 2]
        soundfile.write(folder / f"{i}.wav", 0.1 * random.standard_normal(rate // 2).astype(np.float32), rate)
    return folder


def recipe(sounds, method=TINY, **loop) -> PretrainConfig:
    loop = {"steps": 4, "batch_size": 4, "log_every": 2, "checkpoint_every": 2, "device": "cpu", **loop}
    return PretrainConfig(method, LoopConfig(**loop), DataConfig(source=(str(sounds),)), OptimConfig(lr=1e-3))


@pytest.fixture(scope="module")
def finished(sounds, tmp_path_factory):
    return pretrain(recipe(sounds), tmp_path_factory.mktemp("runs") / "finished")


def test_a_run_folder_has_everything_and_comes_back(finished, sounds):
    assert load_config(PretrainConfig, finished.config) == recipe(sounds)
    assert "<html" in finished.report.read_text() and (finished.figures / "spectrograms.npz").is_file()
    encoder, method = mmssl.load(finished.path), mmssl.load_method(finished.path)
    assert method.config == TINY and encoder.config == method.encoder.config
    batch = {"audio": torch.randn(2, 1, 5000, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(encoder(batch).tokens, method.encoder(batch).tokens)


def test_an_interrupted_run_ends_bit_equal(finished, sounds, tmp_path, monkeypatch):
    calls = []

    def stop(self, progress):
        calls.append(progress)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(AudioMAE, "after_step", stop)
        with pytest.raises(SystemExit):
            pretrain(recipe(sounds), tmp_path)
    pretrain(recipe(sounds), tmp_path)
    assert_same(weights(finished.path), weights(tmp_path))


def test_longer_sounds_start_from_an_export(finished, sounds, tmp_path):
    still = OptimConfig(lr=0.0, weight_decay=0.0)
    longer = dataclasses.replace(TINY, frames=40)
    pretrain(dataclasses.replace(recipe(sounds, longer, steps=1), optim=still), tmp_path, init=finished.export)
    mine, theirs = weights(tmp_path)[1], weights(finished.path)[1]
    assert torch.equal(mine["encoder.blocks.0.attn.qkv.weight"], theirs["encoder.blocks.0.attn.qkv.weight"])
    table = mine["encoder.tokenizers.audio.pos_embed"]
    assert table.shape == (1, 40, 16) and torch.equal(table[:, :32], theirs["encoder.tokenizers.audio.pos_embed"])


def test_the_method_says_how_long_and_how_fast():
    encoder = create_method(TINY).encoder
    assert sound_sampling(encoder, None) == AudioSampling(16000, (31 * 160 + 400) / 16000)
    faster = create_method(dataclasses.replace(TINY, input_rate=44100)).encoder
    sampling = sound_sampling(faster, None)
    assert sampling.sample_rate == 44100 and sampling.samples == 14774  # 5360 * 2.75625, rounded up
    given = AudioSampling(16000, 0.2, channel=0)
    assert sound_sampling(encoder, given) is given
    with pytest.raises(MmsslError, match="sample_rate is 16000 and the method reads 44100"):
        sound_sampling(faster, given)
    assert sound_sampling(create_method("mae", size="custom", dim=16, depth=1, heads=2).encoder, None) is None
