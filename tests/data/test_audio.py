"""Stretches of sound files against the whole file, read by soundfile or PyAV and resampled by torchaudio."""

import sys

import numpy as np
import pytest
import soundfile
import torch
from audio_toys import break_files, chirp, write_sound, write_track
from hypothesis import given, settings
from hypothesis import strategies as st
from torchaudio.functional import resample

from mmssl.data import audio
from mmssl.data.audio import AudioFacts, AudioUnreadable, probe, read_audio
from mmssl.errors import MmsslError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sounds")


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "opus"])
@pytest.mark.parametrize("rate", [16000, 44100, 8000, 48000])
def test_a_stretch_is_that_of_the_resampled_whole(folder, ending, rate):
    path, own = folder / f"a.{ending}", 48000 if ending == "opus" else 44100
    if not path.exists():
        write_sound(path, 2.0, own, **({"format": "OGG", "subtype": "OPUS"} if ending == "opus" else {}))
    whole = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    expected = whole if rate == own else resample(whole, own, rate)
    assert torch.equal(torch.from_numpy(read_audio(path, own)), whole)
    for start in (0.0, 0.6789, 1.9):
        found = torch.from_numpy(read_audio(path, rate, start, 0.25))
        first = round(start * rate)
        torch.testing.assert_close(found, expected[first : first + round(0.25 * rate)], atol=1e-5, rtol=0)
    assert len(read_audio(path, rate)) == len(expected)


@settings(max_examples=20, deadline=None)
@given(own=st.integers(4000, 50000), rate=st.sampled_from([16000, 22050]), start=st.floats(0, 0.8))
def test_any_rate_in_any_place(tmp_path_factory, own, rate, start):
    """A straight line stays one under any resampling, far from its ends: place and value are right at every rate."""
    path = tmp_path_factory.mktemp("ramp") / "ramp.wav"
    soundfile.write(path, np.linspace(0, 1, own, endpoint=False, dtype=np.float32), own, subtype="FLOAT")
    found = read_audio(path, rate, start, 0.1)
    expected = (round(start * rate) + np.arange(len(found))) / rate
    inside = (expected > 0.02) & (expected < 0.98)
    assert inside.any() or start > 0.9
    np.testing.assert_allclose(found[inside], expected[inside], atol=2e-3)


def test_only_what_is_needed_is_decoded(folder, monkeypatch):
    write_sound(folder / "long.wav", 20.0)
    asked = []
    real = audio.SoundFile.samples
    monkeypatch.setattr(audio.SoundFile, "samples", lambda self, *a: asked.append(a) or real(self, *a))
    read_audio(folder / "long.wav", 8000, 10.0, 1.0)
    assert len(asked) == 1 and asked[0][1] < 16000 + 300


def test_channels(folder):
    left, right = chirp(0.2, 16000), chirp(0.2, 16000, seed=3)
    soundfile.write(folder / "two.wav", np.stack([left, right], 1), 16000, subtype="FLOAT")
    assert probe(folder / "two.wav") == AudioFacts(3200, 16000, 2)
    np.testing.assert_allclose(read_audio(folder / "two.wav"), (left + right) / 2, atol=1e-7)
    np.testing.assert_array_equal(read_audio(folder / "two.wav", channel=1), right)
    with pytest.raises(AudioUnreadable, match=r"it has 2 channel\(s\), counted from 0, but channel 2 is wanted"):
        read_audio(folder / "two.wav", channel=2)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("a.m4a", "aac"), ("a.webm", "libopus"), ("a.mkv", "flac")]
)
def test_sound_tracks_of_videos(folder, name, codec):
    av = pytest.importorskip("av")
    sound = chirp(3.0, 48000)
    write_track(folder / name, sound, 48000, codec)
    with av.open(str(folder / name)) as file:
        whole = np.concatenate([frame.to_ndarray().reshape(-1) for frame in _flat(av, file)]).reshape(-1, 2).mean(1)
    assert probe(folder / name).rate == 48000 and abs(probe(folder / name).frames - len(sound)) < 480
    for start in (0.0, 0.777, 1.9):
        first = round(start * 48000)
        found = read_audio(folder / name, start_s=start, seconds=0.5)
        np.testing.assert_allclose(found, whole[first : first + 24000], atol=1e-4)
    resampled = resample(torch.from_numpy(whole), 48000, 16000).numpy()
    np.testing.assert_allclose(read_audio(folder / name, 16000, 1.1, 0.5), resampled[17600:25600], atol=1e-4)
    np.testing.assert_allclose(np.corrcoef(whole[4800:96000], sound[4800:96000])[0, 1] if codec == "flac" else 1, 1)


def _flat(av, file):
    resampler = av.AudioResampler("flt", rate=48000)
    return [piece for frame in file.decode(audio=0) for piece in resampler.resample(frame)]


def test_broken_files_say_why(tmp_path):
    for name, reason in break_files(tmp_path).items():
        with pytest.raises(AudioUnreadable, match=reason):
            read_audio(tmp_path / name)


def test_a_video_without_sound_and_without_pyav(tmp_path, monkeypatch):
    from video_toys import write_video

    write_video(tmp_path / "mute.mp4", n=5)
    with pytest.raises(AudioUnreadable, match="there is no sound track in it"):
        probe(tmp_path / "mute.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(AudioUnreadable, match="damaged, or no sound file"):
        probe(tmp_path / "text.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MmsslError, match=r"needs PyAV; install it: pip install 'mmssl\[video\]'"):
        probe(tmp_path / "mute.mp4")


def test_past_the_end(folder):
    write_sound(folder / "short.wav", 0.5)
    assert len(read_audio(folder / "short.wav", start_s=0.4, seconds=1.0)) == 1600
    with pytest.raises(AudioUnreadable, match=r"it ends after 0\.50 s, before what is wanted begins"):
        read_audio(folder / "short.wav", start_s=0.5, seconds=1.0)


def test_a_wav_file_of_unknown_length_is_whole(tmp_path):
    """What was written to a pipe has a length in its header that means nothing."""
    write_sound(tmp_path / "a.wav", 0.5)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert len(read_audio(tmp_path / "a.wav")) == 8000
