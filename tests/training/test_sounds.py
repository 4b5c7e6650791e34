"""What a run of sounds shows and lets one hear: spectrograms, sound files, and the page that is made of them."""

import re

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
import yaml

from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.report.html import write_report
from mmssl.tokenizers.audio import AudioTokenizer, AudioTokenizerConfig, audio_tokenizer
from mmssl.tokenizers.griffin_lim import invert
from mmssl.training.pictures import feature_arrays, save_pictures
from mmssl.training.sounds import sound_frames, spectrogram_arrays, write_sound

FRAMES, SECONDS = 96, 0.975
TINY = {"size": "custom", "dim": 16, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def voices(n: int, seconds: float = SECONDS, rate: int = 16000) -> torch.Tensor:
    """(n, 1, S): harmonic tones that glide and swell, in a little noise."""
    random = np.random.default_rng(0)
    time = np.arange(round(seconds * rate)) / rate
    pitch, glide, swell = (random.uniform(*span, (n, 1)) for span in ((120, 300), (-60, 90), (1, 4)))
    phase = 2 * np.pi * (pitch * time + glide * time**2)
    voiced = sum(np.sin(k * phase) / k for k in range(1, 11)) * (0.6 + 0.4 * np.sin(2 * np.pi * swell * time))
    return torch.tensor(0.15 * voiced + 0.002 * random.normal(size=voiced.shape), dtype=torch.float32)[:, None]


class Held:
    """A dataset of sounds, and the config that opens it."""

    def __init__(self, clips: torch.Tensor):
        self.clips, self.clip = clips, None

    def open(self, split: str = "train"):
        return self

    def __len__(self) -> int:
        return len(self.clips)

    def fetch(self, places):
        return {"audio": self.clips[places], "index": places}


def make(**settings):
    torch.manual_seed(1)
    return create_method("audiomae", frames=FRAMES, **TINY, **settings).eval()


def tokenizer_of(**settings) -> AudioTokenizer:
    return AudioTokenizer(AudioTokenizerConfig(**settings), "audio", 16, "sincos")


def test_files_of_a_run_and_the_page_made_of_them(tmp_path):
    clips = voices(9)
    clips[8, :, 8000:] = 0
    figures = tmp_path / "figures"
    save_pictures(make(), Held(clips), figures)
    with np.load(figures / "spectrograms.npz") as file:
        found = {key: file[key] for key in file}
    assert found["original"].shape == (6, FRAMES, 128) and found["frames"].tolist() == [96] * 5 + [48]
    names = {f"{clip}-{name}.mp3" for clip in range(6) for name in ("original", "inverted", "reconstructed")}
    assert {path.name for path in (figures / "sound").iterdir()} == names
    for clip, place in enumerate((0, 1, 3, 4, 6, 8)):
        samples = 400 + 160 * (found["frames"][clip] - 1)
        heard, rate = soundfile.read(figures / f"sound/{clip}-original.mp3")
        assert rate == 16000 and len(heard) == samples
        assert np.corrcoef(heard, clips[place, 0, :samples])[0, 1] > 0.99
        assert {len(soundfile.read(figures / f"sound/{clip}-{n}.mp3")[0]) for n in ("inverted", "reconstructed")} == {
            samples
        }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"method": {"name": "audiomae", "modality": "audio"}}))
    page = write_report(tmp_path).read_text()
    assert page.count("<audio") == page.count('<svg class="spectrogram"') == 18 and len(page) < 3e6
    assert len(re.findall("<figcaption>spectrogram</figcaption>", page)) == 4


def test_hidden_places_are_those_of_the_mask_and_the_others_are_the_input():
    method, clips = make(), voices(3)
    found = method.reconstruct({"audio": clips})
    arrays = spectrogram_arrays(method.tokenizer, clips, found)
    hidden = np.isnan(arrays["masked"])
    mask = found["mask"].view(3, 6, 8).repeat_interleave(16, 1).repeat_interleave(16, 2).numpy()
    assert np.array_equal(hidden, mask) and 0.7 < mask.mean() < 0.9
    truth = method.tokenizer.spectrogram(clips)[:, 0].numpy()
    for name in ("masked", "reconstructed", "original"):
        np.testing.assert_allclose(arrays[name][~hidden], truth[~hidden], atol=0.02)
    assert not np.allclose(arrays["reconstructed"][hidden], truth[hidden], atol=0.5)
    assert arrays["original"].dtype == np.float16 and arrays["hop"] == 0.01


def test_frequencies_of_bins_are_kaldis():
    arrays_of = spectrogram_arrays(make().tokenizer, voices(1), make().reconstruct({"audio": voices(1)}))
    _, centres = torchaudio.compliance.kaldi.get_mel_banks(128, 512, 16000.0, 20.0, 0.0, 100.0, -500.0, 1.0)
    mel = 1127 * np.log1p(arrays_of["mels"] / 700)
    np.testing.assert_allclose(mel, 1127 * np.log1p(centres[:, 0].numpy() / 700), rtol=1e-4)


def test_long_clips_are_cut_and_short_ones_end_where_their_sound_does():
    tokenizer = tokenizer_of(frames=1600)
    clips = torch.cat([voices(1, 16.015), torch.zeros(1, 1, 256240)])
    clips[1, :, :4000] = clips[0, :, :4000]
    levels = tokenizer.spectrogram(clips)
    assert sound_frames(levels).tolist() == [1600, 23]
    found = {"target": levels, "prediction": levels, "mask": torch.zeros(2, 800, dtype=torch.bool)}
    arrays = spectrogram_arrays(tokenizer, clips, found)
    assert arrays["original"].shape == (2, 1200, 128) and arrays["frames"].tolist() == [1200, 23]
    assert not np.isnan(arrays["masked"]).any()


@pytest.mark.parametrize("pad", ["fbank", "silence"])
def test_silence_has_one_frame(pad):
    tokenizer = tokenizer_of(frames=32, pad=pad)
    assert sound_frames(tokenizer.spectrogram(torch.zeros(2, 1, 5360))).tolist() == [1, 1]


@pytest.mark.parametrize(("rate", "kind"), [(8000, "mp3"), (16000, "mp3"), (44100, "mp3"), (10000, "wav")])
def test_sounds_are_what_every_browser_plays(tmp_path, rate, kind):
    sound = voices(1, 1.0, rate)[0, 0]
    path = write_sound(tmp_path / "3-original", sound, rate)
    assert path == tmp_path / f"3-original.{kind}"
    heard, found = soundfile.read(path)
    assert found == rate and len(heard) == len(sound) and np.corrcoef(heard, sound)[0, 1] > 0.99
    loud, _ = soundfile.read(write_sound(tmp_path / "loud", sound / sound.abs().max() * 50, rate))
    assert np.corrcoef(loud, sound)[0, 1] > 0.99, "made quieter, and not clipped"


@pytest.mark.parametrize("settings", [{}, {"kind": "mel", "mel_bins": 64}])
def test_griffin_lim_of_the_true_spectrogram_sounds_like_the_original(settings):
    tokenizer = tokenizer_of(frames=FRAMES, **settings)
    clips = voices(2)
    levels = tokenizer.spectrogram(clips)
    heard = invert(levels[:, 0], tokenizer.config.log_mel)
    assert heard.shape == (2, 400 + 160 * (FRAMES - 1))
    magnitude, again = (tokenizer.spectrogram(x).mul(0.5).exp() for x in (clips, heard[:, None]))
    convergence = (again - magnitude).norm() / magnitude.norm()
    assert convergence < 0.2, "spectral convergence of mel magnitudes"
    levels, again = (tokenizer.spectrogram(x).flatten() for x in (clips, heard[:, None]))
    assert torch.corrcoef(torch.stack([levels, again]))[0, 1] > 0.95
    noise = torch.randn(heard.shape, generator=torch.Generator().manual_seed(0)) * heard.std()
    assert (tokenizer.spectrogram(noise[:, None]).mul(0.5).exp() - magnitude).norm() / magnitude.norm() > 0.7
    assert heard.std() == pytest.approx(clips.std().item(), rel=0.25)


def test_features_lie_as_their_spectrogram_does():
    """The picture of a tone of 6 kHz, and the features of its patch, are at the top; time runs to the right."""
    encoder = make().encoder
    time = torch.arange(15600) / 16000
    tone = 0.3 * torch.sin(2 * np.pi * 6000 * time)[None, None].repeat(6, 1, 1)
    tone[:, :, 8000:] = 0
    found = feature_arrays(encoder, encoder, {"audio": tone})
    assert found["image"].shape == (4, 128, FRAMES, 3) and found["tokens"].shape == (4, 8, 6, 16)
    row = found["image"][0, :, 20].astype(int).sum(1).argmax()
    assert row < 24 and (found["image"][:, :, 48:] == 128).all()
    maps = encoder({"audio": tone}).map().detach().numpy()  # (6, T', M', D)
    np.testing.assert_allclose(found["tokens"][1, 0, 2], maps[1, 2, 7], atol=1e-5)
    assert np.isnan(found["tokens"][:, :, 3:]).all() and not np.isnan(found["tokens"][:, :, :3]).any()


def test_overlapping_patches_are_shown_by_their_features_alone(tmp_path):
    method = make(stride=10, positions="sincos")
    save_pictures(method, Held(voices(2)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]
    with pytest.raises(MmsslError, match="overlap"):
        method.reconstruct({"audio": voices(2)})


def test_an_encoder_of_pictures_hears_nothing():
    encoder = create_method("mae", **TINY, image_size=16, patch_size=4).encoder
    assert audio_tokenizer(encoder) is None and feature_arrays(encoder, encoder, {"audio": voices(2)}) == {}
    assert isinstance(audio_tokenizer(make().encoder), AudioTokenizer)
