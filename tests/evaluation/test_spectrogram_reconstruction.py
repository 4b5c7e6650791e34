"""The judge of filled-in spectrograms: models whose merit is known, fillers that see no hidden value, no padding."""

import types

import numpy as np
import pytest
import torch
from torch import nn

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.evaluation.spectrogram_interpolation import linear_in_frequency, linear_in_time, spectrogram_fillers
from mmssl.evaluation.spectrogram_reconstruction import judge_spectrograms
from mmssl.losses import norm_pix_target
from mmssl.masking import MASKS
from mmssl.tokenizers.audio import AudioTokenizerConfig

FILLERS = spectrogram_fillers((4, 4))
SAMPLES = 400 + 31 * 160  # 32 frames


def sounds(n: int, seed: int, in_memory, padded: bool = True):
    """Gliding tones that swell; some end early."""
    random = np.random.default_rng(seed)
    time = np.arange(SAMPLES) / 16000
    low, glide, swell = (random.uniform(*span, (n, 1)) for span in ((300, 900), (-500, 900), (2, 6)))
    clips = np.sin(2 * np.pi * (low * time + glide * time**2)) * (0.6 + 0.4 * np.sin(2 * np.pi * swell * time))
    clips = torch.tensor(0.3 * clips + 0.01 * random.normal(size=clips.shape), dtype=torch.float32)
    if padded:
        clips[::3, 3000:] = 0
    return sound_dataset(in_memory, clips[:, None])


def sound_dataset(in_memory, clips):
    class Sounds(in_memory):
        modality = "audio"

        def fetch(self, index, keys=None, augmentation=None):
            return {"audio": clips[index], "index": index.clone()}

        def __len__(self):
            return len(clips)

    return Sounds(torch.zeros(len(clips), 3, 2, 2, dtype=torch.uint8))


class Knowing(nn.Module):
    """A method that predicts what `guess` makes of the truth."""

    def __init__(self, guess, norm_pix=False):
        super().__init__()
        tokenizer = AudioTokenizerConfig(frames=32, mel_bins=32, patch_size=8)
        self.encoder = Encoder(EncoderConfig(tokenizers={"audio": tokenizer}, dim=16, depth=1, heads=2))
        self.config = types.SimpleNamespace(norm_pix=norm_pix, name="knowing")
        self.guess, self.seen = guess, []

    def reconstruct(self, batch, keys):
        tokenizer = self.encoder.tokenizers["audio"]
        mask = MASKS["random"](0.75)(self.encoder.grids, keys)["audio"]
        self.seen.append(mask)
        target = tokenizer.spectrogram(batch["audio"])
        prediction = self.guess(target)
        patches = tokenizer.target(prediction)
        patches = norm_pix_target(patches) if self.config.norm_pix else patches
        return {"mask": mask, "target": target, "prediction": prediction, "prediction_patches": patches}


@pytest.fixture
def data(in_memory):
    return sounds(12, 0, in_memory), sounds(9, 1, in_memory)


def test_every_contestant_is_scored_in_squared_decibels(data):
    found = judge_spectrograms(Knowing(lambda x: x + 2), *data, clips=9)
    families = {name.partition("@")[0] for name in FILLERS}
    assert set(found.mse) == set(found.explained) == families | {"model", "best_interpolation"}
    assert found.mse["model"] == pytest.approx((20 / np.log(10)) ** 2, rel=1e-5)
    assert found.explained["model"] == pytest.approx(1, abs=1e-4)
    assert found.mse["best_interpolation"] == min(found.mse[name] for name in families) == found.mse[found.best]
    assert found.mse["best_interpolation"] < 0.9 * found.mse["mean_level"] and found.pictures == {}


def test_padding_is_not_judged(data, in_memory):
    """What is said about padding changes no score; where there is none, everything masked is judged."""

    def spoil(target):
        padding = (target == 0).all(-1, keepdim=True)
        return torch.where(padding, 1e3, target + 1)

    clean, spoilt = (judge_spectrograms(Knowing(guess), *data, clips=9) for guess in (lambda x: x + 1, spoil))
    assert clean.mse == spoilt.mse
    whole = [sounds(n, seed, in_memory, padded=False) for n, seed in ((12, 0), (9, 1))]
    found = judge_spectrograms(Knowing(lambda x: torch.where(x == 0, 1e3, x + 1)), *whole, clips=9)
    assert found.mse["model"] == pytest.approx((10 / np.log(10)) ** 2, rel=1e-5)


def test_a_norm_pix_model_gets_its_levels_from_interpolation(data):
    """Levels that a model makes up are not in its score: those of the best filler are. Its contrast is its own."""

    def off(target):
        levels = torch.arange(16.0).view(1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return target + levels

    found = judge_spectrograms(Knowing(off, norm_pix=True), *data, clips=9)
    assert found.explained["model"] == pytest.approx(1, abs=1e-4)
    assert found.mse["model_own_statistics"] > 500
    assert 0.1 < found.mse["model"] < found.mse["best_interpolation"]


def test_a_model_that_knows_nothing_explains_nothing(data):
    torch.manual_seed(0)
    found = judge_spectrograms(Knowing(torch.randn_like, norm_pix=True), *data, clips=9)
    assert abs(found.explained["model"]) < 0.1 and found.mse["model"] > found.mse["best_interpolation"]


def test_masks_and_scores_depend_on_the_seed_alone(data):
    one, two, other = (Knowing(lambda x: x + 1, norm_pix=True) for _ in range(3))
    assert judge_spectrograms(one, *data, clips=9, batch_size=9) == judge_spectrograms(
        two, *data, clips=9, batch_size=2
    )
    assert torch.equal(torch.cat(one.seen), torch.cat(two.seen))
    judge_spectrograms(other, *data, clips=9, seed=1)
    assert not torch.equal(torch.cat(one.seen), torch.cat(other.seen))


def test_what_is_no_sound_is_said(make_mae, data, in_memory):
    with pytest.raises(MmsslError, match="sound is judged here; this model reads image"):
        judge_spectrograms(make_mae(), *data)
    empty = sound_dataset(in_memory, torch.zeros(0, 1, SAMPLES))
    with pytest.raises(MmsslError, match="no samples in this split"):
        judge_spectrograms(Knowing(lambda x: x), data[0], empty)


def patchy(seed: int = 0):
    """Levels (2, 1, 16, 12) and a visibility (2, 16, 12) of whole patches of 4 x 4."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randn(2, 1, 16, 12, generator=generator, dtype=torch.float64) * 3 - 6
    visible = torch.rand(2, 4, 3, generator=generator) < 0.4
    return levels, visible.repeat_interleave(4, 1).repeat_interleave(4, 2)


@pytest.mark.parametrize("name", FILLERS)
def test_hidden_values_are_never_read_and_visible_ones_come_back(name):
    levels, visible = patchy()
    filled = FILLERS[name](torch.where(visible[:, None], levels, torch.nan), visible)
    assert torch.isfinite(filled).all()
    assert torch.equal(filled[visible[:, None]], levels[visible[:, None]])
    flat = torch.full_like(levels, -7.5)
    torch.testing.assert_close(FILLERS[name](flat, visible), flat, atol=1e-6, rtol=0)


def test_linear_along_one_axis_is_the_slow_one():
    levels, visible = patchy(1)
    visible[0, :, 4:8] = False
    filled, mean = linear_in_time(levels, visible), levels[0, 0][visible[0]].mean()
    for bin_ in range(12):
        known = [t for t in range(16) if visible[0, t, bin_]]
        for t in range(16):
            before, after = [k for k in known if k <= t], [k for k in known if k >= t]
            if not known:
                expected = mean
            elif not before or not after:
                expected = levels[0, 0, (before or after)[-1 if before else 0], bin_]
            else:
                (a, b), share = (before[-1], after[0]), (t - before[-1]) / max(after[0] - before[-1], 1)
                expected = (1 - share) * levels[0, 0, a, bin_] + share * levels[0, 0, b, bin_]
            torch.testing.assert_close(filled[0, 0, t, bin_], expected)
    assert torch.equal(linear_in_frequency(levels.mT, visible.mT), filled.mT)
