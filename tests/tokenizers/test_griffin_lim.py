"""Sound from spectrograms: Griffin-Lim against torchaudio's, and what is heard again."""

import math

import pytest
import torch
import torchaudio

from mmssl.tokenizers.fbank import LogMel, LogMelConfig, mel_bank
from mmssl.tokenizers.griffin_lim import deemphasise, griffin_lim, invert, powers


def voice(seconds=1.0):
    """(1, S): a tone with overtones whose loudness and pitch change."""
    time = torch.arange(int(16000 * seconds)) / 16000
    phase = 2 * math.pi * (220 * time + 3 * torch.sin(2 * math.pi * 2 * time))
    return (0.2 * sum(torch.sin(k * phase) / k for k in range(1, 12)) * (1 + 0.5 * torch.sin(19 * time)))[None]


def test_griffin_lim_equals_torchaudio():
    torch.manual_seed(0)
    magnitude, window = torch.rand(2, 257, 30), torch.hann_window(400)
    ours = griffin_lim(magnitude, window, 512, 160, 6, torch.ones(2, 257, 30, dtype=torch.complex64))
    wanted = torchaudio.functional.griffinlim(magnitude, window, 512, 160, 400, 1.0, 6, 0.99, 29 * 160, False)
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


def test_deemphasis_is_the_inverse():
    x = torch.randn(2, 5000)
    emphasised = x - 0.97 * torch.nn.functional.pad(x[:, :-1], (1, 0))
    torch.testing.assert_close(deemphasise(emphasised), x, atol=1e-3, rtol=0)


def test_powers_are_not_negative_and_give_the_energies():
    config = LogMelConfig()
    energy = LogMel(config)(voice()).exp()
    found = powers(energy, config)
    assert found.shape == (1, 98, 257) and found.min() >= 0
    assert ((found @ mel_bank(config) - energy).norm() / energy.norm()).item() < 0.02


@pytest.mark.parametrize("kind", ["kaldi", "mel"])
def test_the_sound_has_the_spectrogram_that_it_was_made_from(kind):
    config = LogMelConfig(kind)
    log_mel = LogMel(config)
    wanted = log_mel(voice())
    sound = invert(wanted, config)
    assert sound.shape == (1, config.samples(98)) and torch.equal(sound, invert(wanted, config))
    error = [(log_mel(s) - wanted).abs().mean().item() for s in (sound, invert(wanted, config, 0))]
    assert error[0] < 0.5 and error[0] < error[1] / 2  # in nats; iterations count
    assert 0.5 < sound.std() / voice().std() < 2


def test_padding_is_silent_and_one_frame_enough():
    config = LogMelConfig()
    wanted = LogMel(config)(voice())
    wanted[:, 50:] = 0
    sound = invert(wanted, config)
    assert sound[:, 54 * 160 :].abs().max() < 0.02 < sound[:, :7000].std()
    assert invert(wanted[:, :1], config).shape == (1, 400)
    assert invert(torch.zeros(2, 9, 128), config).abs().max() == 0
