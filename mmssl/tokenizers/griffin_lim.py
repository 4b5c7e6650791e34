"""Log-mel spectrograms -> sound, to hear what a model predicts: non-negative mel inversion and Griffin-Lim."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.tokenizers.fbank import FLOOR, PRE_EMPHASIS, LogMelConfig, mel_bank

_ROUNDS = 50  # of the mel inversion
_EPSILON = 1e-10


def invert(
    log_mel: Tensor, config: LogMelConfig, iterations: int = 32, start: Tensor | None = None, momentum: float = 0.99
) -> Tensor:
    """Raw log-mel (B, T, M) -> waveforms float32 (B, S), S = `config.samples(T)`, that sound like it.

    Args:
        log_mel: natural logarithms of energies, as `LogMel` gives them. Frames of zeros (padding) are silent.
        config: how the spectrogram was computed.
        iterations: of Griffin-Lim.
        start: phases to begin with, complex (B, F, T); drawn from a fixed seed by default, so that the result is too.
        momentum: of the fast Griffin-Lim algorithm; 0 is the original one.
    """
    padding = (log_mel == 0).all(-1, keepdim=True)
    energy = (log_mel.float().exp() - FLOOR).clamp(min=0).masked_fill(padding, 0)
    magnitude = powers(energy, config).sqrt().mT  # (B, F, T)
    window = torch.hann_window(config.window, periodic=config.kind == "mel", device=log_mel.device)
    waveform = griffin_lim(magnitude, window, config.fft, config.hop, iterations, start, momentum)
    edge = config.window // 2  # the first frame is centred there
    waveform = F.pad(waveform, (edge, config.window - edge))[:, : config.samples(log_mel.shape[1])]
    return deemphasise(waveform) if config.kind == "kaldi" else waveform


def powers(energy: Tensor, config: LogMelConfig) -> Tensor:
    """Energies of mel filters (B, T, M) -> non-negative powers of the frequencies (B, T, F) that give about these.

    Multiplicative updates of least squares: Lee and Seung 2001, with the filters as the fixed factor.
    """
    bank = mel_bank(config).to(energy.device)  # (F, M)
    power = energy @ (bank / bank.sum(0).clamp(min=_EPSILON)).T
    wanted, gram = energy @ bank.T, bank @ bank.T
    for _ in range(_ROUNDS):
        power = power * wanted / (power @ gram + _EPSILON)
    return power


def griffin_lim(
    magnitude: Tensor,
    window: Tensor,
    fft: int,
    hop: int,
    iterations: int,
    start: Tensor | None = None,
    momentum: float = 0.99,
) -> Tensor:
    """Magnitudes (B, F, T) of centred frames -> waveforms (B, (T - 1) * hop) whose spectra have about these.

    Griffin and Lim 1984, with the momentum of Perraudin, Balazs and Søndergaard 2013.
    """
    settings = {"n_fft": fft, "hop_length": hop, "win_length": len(window), "window": window}
    length = (magnitude.shape[2] - 1) * hop
    phase, before = _random_phase(magnitude) if start is None else start, 0.0
    if length == 0:  # one frame has no other that it must agree with
        return magnitude.new_zeros(len(magnitude), 0)
    for _ in range(iterations):
        waveform = torch.istft(magnitude * phase, length=length, **settings)
        spectrum = torch.stft(waveform, return_complex=True, **settings)
        phase = spectrum - before * (momentum / (1 + momentum))
        phase, before = phase / (phase.abs() + 1e-16), spectrum
    return torch.istft(magnitude * phase, length=length, **settings)


def _random_phase(magnitude: Tensor) -> Tensor:
    draws = torch.rand(magnitude.shape[1:], generator=torch.Generator().manual_seed(0))
    return torch.polar(torch.ones_like(draws), 2 * torch.pi * draws).to(magnitude.device).expand(magnitude.shape)


def deemphasise(waveform: Tensor) -> Tensor:
    """Undo Kaldi's pre-emphasis of (B, S): x[n] = y[n] + .97 x[n - 1], as a product of spectra."""
    length = waveform.shape[1]
    response = PRE_EMPHASIS ** torch.arange(length, device=waveform.device)
    size = 2 * length  # long enough that nothing wraps around
    return torch.fft.irfft(torch.fft.rfft(waveform, size) * torch.fft.rfft(response, size), size)[:, :length]
