"""Audio-MAE: masked autoencoders that listen (Huang et al. 2022, arXiv 2207.06405), as the authors' code has it."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mmssl.encoder import EncoderConfig
from mmssl.errors import MmsslError, unknown_name
from mmssl.masking import MASKS, MaskSampler, TimeFrequencyMask
from mmssl.methods.masked import MaskedAutoencoder, MaskedConfig
from mmssl.nn.decoders import MaskedDecoder
from mmssl.nn.windowed import WindowedDecoder
from mmssl.nn.windows import fit
from mmssl.registry import register_method
from mmssl.tokenizers.audio import AUDIOSET_MEAN, AUDIOSET_STD, AudioTokenizerConfig
from mmssl.tokenizers.fbank import SILENCE, Kind

DEPTHS = {"window": 16, "global": 8}
"""Number of blocks of each decoder: the authors'."""


@dataclass(frozen=True)
class AudioMAEConfig(MaskedConfig):
    """Settings of Audio-MAE; the defaults are the paper's ViT-B on AudioSet."""

    kind: ClassVar[str] = "audio"
    masks: ClassVar[tuple[str, ...]] = ("random", "time_frequency", "time", "frequency")
    lattice: ClassVar[tuple[str, ...]] = ("frames", "mel_bins", "patch_size")
    device: ClassVar[str] = "microphone"

    name: str = "audiomae"
    frames: int = 1024
    """Frames of the spectrogram; shorter sound is padded, longer cut."""
    mel_bins: int = 128
    patch_size: int | tuple[int, int] = 16
    """Frames and mel bins of a patch."""
    stride: int | tuple[int, int] | None = None
    """Frames and mel bins from one patch to the next; null: those of a patch. The authors' overlapping ones have 10."""
    sample_rate: int = 16000
    """Samples a second at which spectrograms are computed."""
    input_rate: int | None = None
    """Samples a second of the waveforms that come in, resampled on the device; null: `sample_rate`."""
    spectrogram: Kind = "kaldi"
    """Kaldi's filter bank features, or plain log-mel ones."""
    window_ms: float = 25.0
    hop_ms: float = 10.0
    low_freq: float = 20.0
    """Where the first mel filter begins, in hertz."""
    high_freq: float = 0.0
    """Where the last mel filter ends, in hertz; 0 or less: so far from half the sample rate."""
    mean: float = AUDIOSET_MEAN
    """Mean of raw log-mel values; they enter as (x - mean) / (2 * std)."""
    std: float = AUDIOSET_STD
    pad: Literal["fbank", "silence"] = "fbank"
    """Raw value of frames of padding: 0, as the authors', or that of digital silence."""
    modality: str = "audio"
    """The batch key to learn from: `audio`, or one microphone, `audio/<microphone>`."""
    mask_ratio: float = 0.8
    """Fraction of the patches that the random mask takes, in (0, 1)."""
    mask: Literal["random", "time_frequency", "time", "frequency"] = "random"
    """`random` masks any patches; the others whole times, whole frequencies, or both."""
    time_ratio: float = 0.7
    """Fraction of the times that the masks `time_frequency` and `time` take."""
    frequency_ratio: float = 0.3
    """Fraction of the frequencies that the masks `time_frequency` and `frequency` take."""
    positions: Literal["sincos_swapped", "sincos", "learned"] | None = None
    """`sincos_swapped` is built for a lattice with its sides exchanged. Null: as the released code has it, that one for
    patches that lie side by side, the clean `sincos` for overlapping ones."""
    norm_pix: bool = True
    """Predict each patch standardised by its own mean and variance; False: normalised log-mel values."""
    decoder: Literal["window", "global"] = "window"
    """Attention inside shifted windows, or over all patches and the cls token."""
    decoder_dim: int = 512
    decoder_depth: int | None = None
    """Number of decoder blocks; null: 16 with windows, 8 global."""
    decoder_heads: int = 16
    window: tuple[int, int] | None = None
    """Times and frequencies of a window, in patches; null: the authors' 4 x 4, 6 x 6 for overlapping patches."""
    shift: tuple[int, int] = (2, 0)
    """How far odd blocks shift the windows. The authors' code shifts time alone, their figure both."""

    def __post_init__(self) -> None:
        if self.decoder not in DEPTHS:
            raise unknown_name("decoder", self.decoder, DEPTHS)
        super().__post_init__()
        if self.decoder_dim % 4:
            raise MmsslError(f"decoder_dim must be a multiple of 4, got {self.decoder_dim}.")
        if self.decoder == "window":
            fit((1, 1), self.window_size(), tuple(self.shift))

    def decoder_shape(self) -> tuple[int, int, int]:
        depth = DEPTHS[self.decoder] if self.decoder_depth is None else self.decoder_depth
        return self.decoder_dim, depth, self.decoder_heads

    def mask_sampler(self) -> MaskSampler:
        if self.mask == "time_frequency":
            return TimeFrequencyMask(self.time_ratio, self.frequency_ratio)
        ratio = {"time": self.time_ratio, "frequency": self.frequency_ratio}
        return MASKS[self.mask](ratio.get(self.mask, self.mask_ratio))

    def mask_words(self) -> str:
        if self.mask == "random":
            return super().mask_words()
        return f"mask {self.mask} with time_ratio {self.time_ratio} and frequency_ratio {self.frequency_ratio}"

    def tokenizer(self) -> AudioTokenizerConfig:
        """Settings of the spectrogram and of its patches."""
        names = ("frames", "mel_bins", "patch_size", "stride", "sample_rate", "input_rate", "window_ms", "hop_ms")
        names += ("low_freq", "high_freq", "mean", "std", "pad")
        return AudioTokenizerConfig(kind=self.spectrogram, **{name: getattr(self, name) for name in names})

    def window_size(self) -> tuple[int, int]:
        """Times and frequencies of the decoder's windows, in patches."""
        if self.window is not None:
            return tuple(self.window)
        return (4, 4) if self.tokenizer().stride is None else (6, 6)

    def encoder_config(self) -> EncoderConfig:
        tokenizer = self.tokenizer()
        return EncoderConfig(
            tokenizers={self.modality: tokenizer},
            **self.encoder_shape(),
            drop_path=self.drop_path,
            norm_eps=self.norm_eps,
            positions=self.positions or ("sincos_swapped" if tokenizer.stride is None else "sincos"),
        )


@register_method("audiomae")
class AudioMAE(MaskedAutoencoder):
    """Encode the visible patches of a spectrogram, decode the masked ones, compare with the normalised log-mel values.

    The batch has `audio`, waveforms (B, 1, S) or raw log-mel (B, 1, T, M). The decoder with windows puts all patches
    back in raster order and leaves out the cls token; the global one is MAE's. `reconstruct` gives raw log-mel
    (B, 1, T, M), what is hidden as digital silence; patches that overlap cannot be put together, which it says.
    """

    config_class = AudioMAEConfig
    hidden_value = SILENCE

    @property
    def decoder_class(self) -> type[MaskedDecoder]:
        return WindowedDecoder if self.config.decoder == "window" else MaskedDecoder

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        return super().forward(self._heard(batch), masks, keys)

    def reconstruct(self, batch: dict[str, Tensor], *arguments: Any, **options: Any) -> dict[str, Tensor]:
        return super().reconstruct(self._heard(batch), *arguments, **options)

    def _heard(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with spectrograms in the place of waveforms: encoder and target would each compute their own."""
        sound = self.encoder.require(batch, self.modality)
        return batch if sound.ndim == 4 else {**batch, self.modality: self.tokenizer.spectrogram(sound)}

    def make_decoder(self, **options: Any) -> nn.Module:
        config = self.config
        if config.decoder == "window":
            options = {"grid": self.grid, "window": config.window_size(), "shift": tuple(config.shift), **options}
        decoder = super().make_decoder(**options)
        decoder.pos_embed.requires_grad_(config.positions == "learned")
        return decoder
