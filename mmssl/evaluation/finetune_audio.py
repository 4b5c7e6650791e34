"""What fine-tuning on sound has of its own: the length, rate and statistics that the encoder is set to, and the batch
transforms of training (Huang et al. 2022, Audio-MAE, arXiv 2207.06405).
"""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from mmssl.data.audio_mixing import WaveformMix
from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.loading import DataConfig
from mmssl.data.spec_augment import SpecAugment
from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.tokenizers.audio import AudioTokenizer, AudioTokenizerConfig, audio_tokenizer
from mmssl.training.logging import say


def set_to_sound(
    encoder: Encoder,
    data: DataConfig,
    frames: int | None = None,
    statistics: tuple[float, float] | None = None,
    tell: Callable[[str], None] = say,
) -> DataConfig:
    """Set an encoder of sound, in place, to a recipe's data; returns these with their clips filled in.

    Where the data name no length, they get the encoder's. Where they do and the encoder's spectrograms are two patches
    longer, or a whole one shorter, than the clips, its positions are re-cut to the clips. Waveforms of another rate are
    resampled by the tokenizer from then on.

    Args:
        frames: frames of the spectrogram, in place of what the clips ask for.
        statistics: mean and standard deviation of the data's raw log-mel values, in place of the tokenizer's.
        tell: is told what was changed.

    Raises:
        MmsslError: frames or statistics for an encoder that hears nothing, or impossible ones.
    """
    tokenizer = audio_tokenizer(encoder)
    if tokenizer is None:
        if frames is not None or statistics is not None:
            reads = ", ".join(encoder.modalities)
            raise MmsslError(f"frames and statistics are of sound, and this encoder reads {reads}.")
        return data
    old = tokenizer.config
    mean, std = statistics or (old.mean, old.std)
    if data.audio is None:
        length = old.log_mel.samples(frames or old.frames) / old.sample_rate
        data = dataclasses.replace(data, audio=AudioSampling(old.input_rate or old.sample_rate, length))
    frames = frames or wanted_frames(tokenizer, data.audio.seconds)
    rate = None if data.audio.sample_rate == old.sample_rate else data.audio.sample_rate
    if frames != old.frames:
        tell(f"the weights are of spectrograms of {old.frames} frames; positions are changed to the recipe's {frames}.")
    _set(encoder, tokenizer, dataclasses.replace(old, frames=frames, input_rate=rate, mean=mean, std=std))
    return data


def wanted_frames(tokenizer: AudioTokenizer, seconds: float) -> int:
    """Frames of the spectrogram for clips of so many seconds.

    The tokenizer's own, where the clips fill them but for two patches and lose less than one; else those of the clips,
    rounded up to whole patches.
    """
    config = tokenizer.config
    patch = config.patch_size[0]
    found = max(1, config.log_mel.frames(round(seconds * config.sample_rate)))
    if config.frames - 2 * patch < found < config.frames + patch:
        return config.frames
    return -(-found // patch) * patch


def _set(encoder: Encoder, tokenizer: AudioTokenizer, config: AudioTokenizerConfig) -> None:
    """Give the tokenizer another config, its statistics included, and write it into the encoder's."""
    if config == tokenizer.config:
        return
    tokenizer.resize(config)
    tokenizer.mean.fill_(config.mean)
    tokenizer.std.fill_(config.std)
    tokenizers = {**encoder.config.tokenizers, tokenizer.modality: config}
    encoder.config = dataclasses.replace(encoder.config, tokenizers=tokenizers)


class SoundTransform:
    """(batch, keys) -> batch: waveforms are mixed, then turned into log-mel spectrograms, then blanked in bands.

    Args:
        tokenizer: what makes the spectrograms; on the batch's device.
        mix: mixes waveforms and labels, None for not at all.
        bands: blanks bands of raw log-mel spectrograms (B, 1, T, M), None for not at all.
    """

    def __init__(self, tokenizer: AudioTokenizer, mix: WaveformMix | None, bands: SpecAugment | None):
        self.tokenizer, self.mix, self.bands = tokenizer, mix, bands

    def __call__(self, batch: dict[str, Tensor], keys: Tensor) -> dict[str, Tensor]:
        if self.mix is not None:
            batch = self.mix(batch, keys)
        if self.bands is None:
            return batch
        key = self.tokenizer.modality
        return {**batch, key: self.bands(self.tokenizer.spectrogram(batch[key]), keys)}
