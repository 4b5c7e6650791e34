"""What a run that learned from sound shows: spectrograms with what was hidden and filled in, and sounds to play."""

import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from mmssl.report.figures import NOTHING
from mmssl.report.spectrograms import FILE, Scale, colours, shorter
from mmssl.tokenizers.audio import AudioTokenizer
from mmssl.tokenizers.fbank import mel_edges
from mmssl.tokenizers.griffin_lim import invert

COUNT = 6  # clips that are shown
_SECONDS = 12.0  # of a clip that are shown and heard, at most
_MPEG_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


def save_sounds(folder: Path, tokenizer: AudioTokenizer, audio: Tensor, found: dict[str, Tensor]) -> None:
    """Write `spectrograms.npz` and `sound/<clip>-<name>.<kind>`, as `mmssl.report.spectrograms` reads them.

    Args:
        folder: the run's `figures/`.
        audio: waveforms (n, 1, S), or spectrograms (n, 1, T, M), of which no recording is written.
        found: what the method's `reconstruct` returned for them.
    """
    arrays = spectrogram_arrays(tokenizer, audio, found)
    np.savez_compressed(folder / FILE, **arrays)
    sounds = folder / "sound"
    shutil.rmtree(sounds, ignore_errors=True)
    sounds.mkdir()
    for clip, frames in enumerate(arrays["frames"].tolist()):
        if audio.ndim == 3:
            write_sound(sounds / f"{clip}-original", *_recording(tokenizer, audio[clip, 0], frames))
        for name, key in (("inverted", "target"), ("reconstructed", "prediction")):
            heard = invert(found[key][clip, :, :frames].float().cpu(), tokenizer.config.log_mel)[0]
            write_sound(sounds / f"{clip}-{name}", heard, tokenizer.config.sample_rate)


def spectrogram_arrays(tokenizer: AudioTokenizer, audio: Tensor, found: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The beginning of each clip.

    Returns:
        original, masked, reconstructed: raw log-mel, float16 (n, T, M), NaN in `masked` where it was hidden; hop:
        seconds from frame to frame; mels: centre frequencies in Hz (M,); frames: how many of a clip are sound (n,).
    """
    config = tokenizer.config
    patches = found["mask"][..., None].expand(-1, -1, tokenizer.patch_dim).float()
    hidden = tokenizer.unpatchify(patches).bool()  # (n, 1, T, M)
    levels = {"original": found["target"], "reconstructed": found["prediction"]}
    levels["masked"] = found["target"].masked_fill(hidden, torch.nan)
    most = max(1, int(_SECONDS * 1000 / config.hop_ms))
    return {
        **{name: x[:, 0, :most].half().cpu().numpy() for name, x in levels.items()},
        "hop": np.float64(config.log_mel.hop / config.sample_rate),
        "mels": mel_edges(config.log_mel)[1:-1].numpy(),
        "frames": sound_frames(tokenizer.spectrogram(audio)).clamp(max=most).cpu().numpy(),
    }


def sound_frames(spectrogram: Tensor) -> Tensor:
    """Raw log-mel (n, 1, T, M) -> frames before the padding or digital silence at its end, int64 (n,), at least 1.

    Such frames have one value in every bin, which no sound has.
    """
    sound = (spectrogram != spectrogram[..., :1]).any(-1)[:, 0]  # (n, T)
    place = torch.arange(1, sound.shape[1] + 1, device=sound.device)
    return (sound * place).amax(1).clamp(min=1)


def _recording(tokenizer: AudioTokenizer, waveform: Tensor, frames: int) -> tuple[Tensor, int]:
    """The part of a waveform that so many frames cover, and its rate."""
    config = tokenizer.config
    rate = config.input_rate or config.sample_rate
    return waveform[: round(config.log_mel.samples(frames) * rate / config.sample_rate)], rate


def write_sound(path: Path, waveform: Tensor, rate: int) -> Path:
    """Write (S,) as mp3, which every browser plays; as 16-bit wav where mp3 does not know the rate. Returns the path.

    What is louder than a file can hold is made quieter as a whole.
    """
    samples = waveform.float().cpu().numpy()
    samples = samples / max(1.0, float(np.abs(samples).max(initial=0.0)))
    if rate in _MPEG_RATES and "MP3" in soundfile.available_formats():
        path = path.with_name(path.name + ".mp3")
        soundfile.write(path, samples, rate, format="MP3")
        return path
    path = path.with_name(path.name + ".wav")
    soundfile.write(path, samples, rate, format="WAV", subtype="PCM_16")
    return path


@torch.no_grad()
def sound_features(
    encoder: nn.Module, random: nn.Module, tokenizer: AudioTokenizer, audio: Tensor, most: int = 4
) -> dict[str, np.ndarray]:
    """Spectrograms and the features of their patches, for pictures coloured by PCA.

    Returns:
        image: uint8 (n, M, at most T, 3), high frequencies on top, padding grey; tokens, random: float32
        (n, M', T', D), NaN where a patch holds padding alone.
    """
    audio = audio[:most].to(next(encoder.parameters()).device)
    levels = tokenizer.spectrogram(audio)
    frames = sound_frames(levels)  # (n,)
    sound = np.concatenate([x[0, :n].flatten().cpu().numpy() for x, n in zip(levels, frames, strict=True)])
    scale = Scale.of(sound)
    begins = torch.arange(tokenizer.grid[0], device=frames.device) * tokenizer.config.steps[0]
    padding = begins >= frames[:, None]  # (n, T')
    maps = {"tokens": encoder, "random": random}
    for name, model in maps.items():
        features = model({tokenizer.modality: audio}).map().float()  # (n, T', M', D)
        features = features.masked_fill(padding[..., None, None], torch.nan)
        maps[name] = features.transpose(1, 2).flip(1).cpu().numpy()
    image = np.stack([colours(shorter(x[0].cpu().numpy()), scale) for x in levels])
    for picture, end in zip(image, frames.tolist(), strict=True):
        picture[:, round(end * picture.shape[1] / levels.shape[2]) :] = NOTHING
    return {"image": image, **maps}
