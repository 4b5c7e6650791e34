"""Sound <-> tokens: waveforms to log-mel spectrograms, and those to patches of time and pitch, time slowest."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.nn.positions import recut_positions, sincos_2d
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, Tokenizer, TokenizerConfig
from mmssl.tokenizers.fbank import SILENCE, Kind, LogMel, LogMelConfig, in_groups
from mmssl.tokenizers.image import as_pair, nearest_multiple
from mmssl.tokenizers.resample import Resample

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
_BLOCK = 128
_LOUDEST = 64.0  # a waveform of [-1, 1] with any gain stays far below, one in 16-bit integers does not


@dataclass(frozen=True)
class AudioTokenizerConfig(TokenizerConfig):
    """Sound of any length as a spectrogram of a fixed one, cut into patches."""

    name: str = "audio"
    frames: int = 1024
    """Frames of the spectrogram; shorter sound is padded, longer cut."""
    mel_bins: int = 128
    patch_size: int | tuple[int, int] = 16
    """Frames and mel bins of a patch."""
    stride: int | tuple[int, int] | None = None
    """Frames and mel bins from one patch to the next: None = those of a patch, less = patches that overlap."""
    sample_rate: int = 16000
    """Samples a second at which spectrograms are computed."""
    input_rate: int | None = None
    """Samples a second of the waveforms that come in; they are resampled on the device. None = `sample_rate`."""
    kind: Kind = "kaldi"
    """Kaldi's filter bank features, or plain log-mel ones (`mmssl.tokenizers.fbank.LogMelConfig`)."""
    window_ms: float = 25.0
    hop_ms: float = 10.0
    low_freq: float = 20.0
    """Where the first mel filter begins, in hertz."""
    high_freq: float = 0.0
    """Where the last mel filter ends, in hertz; 0 or less: so far from half the sample rate."""
    mean: float = AUDIOSET_MEAN
    """Mean of raw log-mel values; they are prepared as (x - mean) / (2 * std), as AST and Audio-MAE do."""
    std: float = AUDIOSET_STD
    pad: Literal["fbank", "silence"] = "fbank"
    """Raw value of frames of padding: 0, as Audio-MAE, or that of digital silence."""

    def __post_init__(self) -> None:
        patch = as_pair(self.patch_size)
        stride = patch if self.stride is None else as_pair(self.stride)
        object.__setattr__(self, "patch_size", patch)
        object.__setattr__(self, "stride", None if stride == patch else stride)
        _refuse_patches((self.frames, self.mel_bins), patch, stride)
        if self.std <= 0:
            raise MmsslError(f"std must be above 0, got {self.std}.")
        if self.input_rate is not None and self.input_rate < 1:
            raise MmsslError(f"input_rate must be 1 or more samples a second, such as 44100, got {self.input_rate}.")
        _ = self.log_mel

    @property
    def log_mel(self) -> LogMelConfig:
        """How the spectrogram is computed."""
        names = ("kind", "sample_rate", "mel_bins", "window_ms", "hop_ms", "low_freq", "high_freq")
        return LogMelConfig(**{name: getattr(self, name) for name in names})

    @property
    def steps(self) -> tuple[int, int]:
        """Frames and mel bins from one patch to the next."""
        return self.stride or self.patch_size


def _refuse_patches(size: tuple[int, int], patch: tuple[int, int], stride: tuple[int, int]) -> None:
    if min(*size, *patch, *stride) < 1:
        raise MmsslError(f"frames and mel_bins {size}, patch_size {patch} and stride {stride} must be positive.")
    if any(s > p for s, p in zip(stride, patch, strict=True)) or any(p > n for p, n in zip(patch, size, strict=True)):
        raise MmsslError(
            f"stride {stride} must not be above patch_size {patch}, nor that above frames and mel_bins {size}."
        )
    if stride == patch and (size[0] % patch[0] or size[1] % patch[1]):
        near = [nearest_multiple(n, p) for n, p in zip(size, patch, strict=True)]
        raise MmsslError(
            f"{size[0]} frames of {size[1]} mel_bins are not divisible by patch_size {patch[0]}x{patch[1]}; the "
            f"nearest that are: {near[0]} frames of {near[1]} mel_bins."
        )


@register_tokenizer("audio")
class AudioTokenizer(Tokenizer):
    """Waveforms (B, 1, S) in [-1, 1], or raw log-mel spectrograms (B, 1, T, M), <-> patches (B, N, p * q).

    Exact zeros at the end of a waveform are padding. A patch is flattened in the order (time, mel), mel fastest, and so
    are the tokens. Huang et al. 2022, Audio-MAE (arXiv 2207.06405).
    """

    config_class = AudioTokenizerConfig

    def __init__(
        self, config: AudioTokenizerConfig, modality: str, embed_dim: int, positions: Positions = "sincos_swapped"
    ):
        super().__init__(config, modality, embed_dim)
        self.register_buffer("mean", torch.tensor([config.mean]))
        self.register_buffer("std", torch.tensor([config.std]))
        self.lay_out()
        self.build(positions)

    def lay_out(self) -> None:
        """Set `grid` and `patch_dim` from the config."""
        config = self.config
        size, (p, q) = (config.frames, config.mel_bins), config.patch_size
        self.grid = tuple((n - k) // s + 1 for n, k, s in zip(size, (p, q), config.steps, strict=True))
        self.patch_dim = p * q
        self.log_mel = LogMel(config.log_mel)
        self.resample = Resample(config.input_rate or config.sample_rate, config.sample_rate)

    def spectrogram(self, x: Tensor) -> Tensor:
        """Waveforms (B, 1, S) -> raw log-mel float32 (B, 1, T, M), padded or cut to T frames; spectrograms stay."""
        self.check_shape(x)
        return x.float() if x.ndim == 4 else in_groups(self._spectrogram, x, self.log_mel.group(x.shape[2]))

    def _spectrogram(self, x: Tensor) -> Tensor:
        config, given = self.log_mel.config, x[:, 0].float()
        waveform = self.resample(given)[:, : config.samples(self.config.frames)]
        if waveform.shape[1] < config.window:
            waveform = F.pad(waveform, (0, config.window - waveform.shape[1]))
        values = self.log_mel(waveform)  # (B, t, M), t <= T
        fill = SILENCE if self.config.pad == "silence" else 0.0
        if not _end_in_sound(given):
            values.masked_fill_(self._padding(given, values.shape[1])[..., None], fill)
        return F.pad(values, (0, 0, 0, self.config.frames - values.shape[1]), value=fill)[:, None]

    def _padding(self, waveform: Tensor, frames: int) -> Tensor:
        """Which frames reach into the zeros at the end of a row, bool (B, frames); none of a silent row."""
        config, samples = self.log_mel.config, self.resample.samples(_lengths(waveform))  # (B,)
        real = ((samples - config.window) // config.hop + 1).clamp(min=1)
        return torch.arange(frames, device=waveform.device) >= real[:, None]

    def prepare(self, x: Tensor) -> Tensor:
        """Waveforms (B, 1, S) or raw log-mel (B, 1, T, M) -> normalised (B, 1, T, M), float32."""
        self.check_shape(x)
        return in_groups(self._prepare, x, self.log_mel.group(x.shape[2]) if x.ndim == 3 else len(x))

    def _prepare(self, x: Tensor) -> Tensor:
        values = self._spectrogram(x) if x.ndim == 3 else x.float()
        return (values - self.mean.float()).div_(2 * self.std.float())

    def restore(self, prepared: Tensor) -> Tensor:
        """Normalised (B, 1, T, M) -> raw log-mel."""
        return prepared * (2 * self.std) + self.mean

    def patchify(self, prepared: Tensor) -> Tensor:
        """(B, 1, T, M) -> (B, N, p * q), mel fastest."""
        (p, q), (down, across) = self.config.patch_size, self.config.steps
        patches = prepared[:, 0].unfold(1, p, down).unfold(2, q, across)  # (B, T', M', p, q)
        return patches.flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N, p * q) -> (B, 1, T, M), exactly what `patchify` took; an `MmsslError` where patches overlap."""
        if self.config.stride is not None:
            raise MmsslError(
                f"patches of {self.config.patch_size} at stride {self.config.stride} overlap, so that no spectrogram "
                "can be put together from them; leave out stride."
            )
        rows, columns = grid or self.grid
        x = patches.reshape(patches.shape[0], rows, columns, *self.config.patch_size)
        return x.transpose(2, 3).reshape(patches.shape[0], 1, rows * x.shape[3], columns * x.shape[4])

    def position_table(self, dim: int, positions: Positions) -> Tensor | tuple[Tensor, Tensor]:
        if positions in ("sincos", "sincos_row"):
            return sincos_2d(dim, self.grid, "row_first" if positions == "sincos_row" else "column_first")[None]
        if positions == "sincos_swapped":
            return sincos_2d(dim, (self.grid[1], self.grid[0]))[None]  # raster order of the wrong lattice
        return super().position_table(dim, positions)

    def resize(self, config: AudioTokenizerConfig) -> None:
        """Take another size from now on, in place; `mmssl.nn.positions.recut_positions` says what becomes of tables."""
        old_grid, self.config = self.grid, config
        self.lay_out()
        self.log_mel, self.resample = self.log_mel.to(self.mean.device), self.resample.to(self.mean.device)
        table = recut_positions(self.pos_embed.data, old_grid, self.grid, self.scheme)
        self.set_positions(table, self.pos_embed.requires_grad)

    def check_shape(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise MmsslError(f"{self.modality!r} must be a torch tensor, got {type(x).__name__}.")
        if not x.is_floating_point():
            raise MmsslError(
                f"{self.modality!r} must be a float waveform in [-1, 1], got {x.dtype}; divide 16-bit samples by 32768."
            )
        if x.ndim == 3 and x.shape[1] == 1 and x.shape[2] > 0:
            return
        wanted = (1, self.config.frames, self.config.mel_bins)
        if x.ndim == 4 and tuple(x.shape[1:]) == wanted:
            return
        hint = "mix channels into one, and leave out what is empty"
        if x.ndim == 4:
            hint = f"resize the encoder with encoder.resize(frames={x.shape[2]}), or give waveforms"
        raise MmsslError(
            f"{self.modality!r} must be waveforms (batch, 1, samples) or log-mel spectrograms (batch, 1, {wanted[1]}, "
            f"{wanted[2]}), got {tuple(x.shape)}; {hint}."
        )

    def check(self, x: Tensor) -> None:
        self.check_shape(x)
        if x.numel() == 0:
            return
        largest = x.abs().max().item()
        if not largest < float("inf"):  # also true for NaN
            raise MmsslError(f"{self.modality!r} holds NaN or infinite values; leave those clips out.")
        if x.ndim == 3 and largest > _LOUDEST:
            raise MmsslError(
                f"{self.modality!r} holds samples up to {largest:.4g}, but a waveform must lie in about [-1, 1]; "
                "divide 16-bit samples by 32768."
            )


def _end_in_sound(waveform: Tensor) -> bool:
    """Whether no row of (B, S) ends in a zero, as most clips; only known where looking waits for no device."""
    looks = waveform.device.type == "cpu" and not torch.compiler.is_compiling()
    return looks and bool((waveform[:, -1] != 0).all())


def audio_tokenizer(encoder: nn.Module) -> AudioTokenizer | None:
    """The tokenizer of an encoder that reads sound and nothing else."""
    tokenizers = list(encoder.tokenizers.values()) if hasattr(encoder, "tokenizers") else []
    return tokenizers[0] if len(tokenizers) == 1 and isinstance(tokenizers[0], AudioTokenizer) else None


def _lengths(waveform: Tensor) -> Tensor:
    """Samples of each row of (B, S) before its exact zeros at the end, int64 (B,); S in a row of zeros alone.

    The last block that is not all zeros is found first, which is ten times as fast as looking at every sample.
    """
    length = waveform.shape[1]
    whole = F.pad(waveform, (0, -length % _BLOCK)) if length % _BLOCK else waveform
    blocks = whole.unflatten(1, (-1, _BLOCK))  # (B, n, block)
    block = _last(blocks.abs().amax(2) != 0)  # (B,)
    inside = blocks.take_along_dim(block[:, None, None], 1)[:, 0]  # (B, block)
    return (block * _BLOCK + _last(inside != 0) + 1).clamp(max=length)


def _last(found: Tensor) -> Tensor:
    """Place of the last True in each row of bool (B, n), int64 (B,); n - 1 where there is none."""
    return found.shape[1] - 1 - found.flip(1).to(torch.uint8).argmax(1)
