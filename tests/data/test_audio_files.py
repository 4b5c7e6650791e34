"""Folders of sound as batches: what comes out, which stretch, what is skipped, and how folders are recognised."""

import numpy as np
import pytest
import soundfile
import torch
from audio_toys import break_files, chirp, write_folder, write_sound, write_track
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmssl import open_dataset
from mmssl.data.audio import read_audio
from mmssl.data.audio_sampling import MARK, AudioSampling, SoundTooShort, first_sample, to_length
from mmssl.data.cards import load_card
from mmssl.data.loader import Loader
from mmssl.data.loading import DataConfig
from mmssl.data.skip_list import read_skip_list
from mmssl.data.transforms import Augmentation
from mmssl.data.vetting import vet
from mmssl.doctor_data import check_data
from mmssl.errors import MmsslError

SHORT = AudioSampling(seconds=0.25)


def test_class_folders_by_default_and_through_a_loader(tmp_path):
    folder = write_folder(tmp_path / "pets")
    dataset = open_dataset(folder)
    assert (dataset.modality, dataset.task, dataset.classes) == ("audio", "single_label", ["cat", "dog"])
    assert dataset.audio == AudioSampling() and dataset[0]["audio"].shape == (1, 160000)
    dataset = open_dataset(folder, audio=SHORT, split="all")
    batches = {}
    for workers in (0, 2):
        loader = Loader(dataset, 4, augmentation=Augmentation(), workers=workers)
        batches[workers] = list(loader.epoch(3))
        loader.close()
    for ours, theirs in zip(batches[0], batches[2], strict=True):
        assert ours["audio"].shape == (4, 1, 4000) and ours["audio"].dtype == torch.float32
        assert all(torch.equal(ours[key], theirs[key]) for key in ("audio", "label", "index", "keys"))
    assert set(ours["label"].tolist()) <= {0, 1} and len(dataset) == 10


def test_a_sample_is_a_stretch_of_its_file(tmp_path):
    folder = write_folder(tmp_path / "pets")
    dataset = open_dataset(folder, audio=SHORT, split="all")
    middle = read_audio(dataset.sample_name(1), 16000)[2000:6000]
    np.testing.assert_allclose(dataset[1]["audio"][0], middle, atol=1e-5)
    keys = torch.arange(40)
    batch = dataset.fetch(torch.ones(40, dtype=torch.int64), keys, Augmentation())
    whole = read_audio(dataset.sample_name(1), 16000)
    places = np.lib.stride_tricks.sliding_window_view(whole, 100)
    starts = {int(np.abs(places - row[0, :100].numpy()).sum(1).argmin()) for row in batch["audio"]}
    assert len(starts) > 30 and min(starts) < 1000 and max(starts) > 3000
    assert torch.equal(batch["audio"], dataset.fetch(torch.ones(40, dtype=torch.int64), keys, Augmentation())["audio"])


def test_short_sounds(tmp_path):
    write_sound(tmp_path / "a.wav", 0.1)
    write_sound(tmp_path / "b.wav", 0.5)
    options = {"split": "all", "max_bad": 1.0}
    padded = open_dataset(tmp_path, audio=SHORT, **options)[0]["audio"][0]
    assert padded[1599] != 0 and bool((padded[1600:] == 0).all())
    again = open_dataset(tmp_path, audio=AudioSampling(seconds=0.25, short="repeat"), **options)[0]["audio"][0]
    assert torch.equal(again[:1600], again[1600:3200]) and torch.equal(again[3200:], again[:800])
    skipping = open_dataset(tmp_path, audio=AudioSampling(seconds=0.25, short="skip"), **options)
    assert int(skipping[0]["index"]) == 1
    assert "0.10 s, 0.25 wanted; lower audio.seconds" in skipping.bad.names[str(tmp_path / "a.wav")]


def test_silent_files(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 16000)
    half = chirp(0.5, 16000)
    half[:6000] = 0
    soundfile.write(tmp_path / "b.wav", half, 16000)
    first = AudioSampling(seconds=0.25, test_start="first")
    kept = open_dataset(tmp_path, audio=first, split="all")[0]["audio"][0]
    assert kept[-1] == np.float32(MARK) and bool((kept[:-1] == 0).all())  # its end is that of the sound, not padding
    strict = AudioSampling(seconds=0.25, test_start="first", silent="skip")
    skipping = open_dataset(tmp_path, audio=strict, split="all", max_bad=1.0)
    assert int(skipping[0]["index"]) == 1 and list(skipping.bad.names.values()) == ["silent: every sample is 0"]


def test_broken_files_are_counted_named_and_skipped(tmp_path):
    reasons = break_files(tmp_path)
    for k in range(3):
        write_sound(tmp_path / f"z{k}.wav", 0.5)
    dataset = open_dataset(tmp_path, audio=SHORT, split="all", max_bad=1.0)
    index = dataset.fetch(torch.arange(len(dataset)))["index"]
    assert len(dataset) == len(reasons) - 1 + 3 and set(index.tolist()) <= set(range(len(dataset) - 3, len(dataset)))
    found = {name.rsplit("/", 1)[1] for name in dataset.bad.names}
    assert found >= set(reasons) - {"missing.wav", "cut.mp3"}  # of the half of an mp3 that is there, a stretch is whole
    with pytest.raises(MmsslError, match=r"1 of 13 samples cannot be read, more than max_bad=0\.01 allows"):
        open_dataset(tmp_path, audio=SHORT, split="all").fetch(torch.arange(13))


def test_vetting_and_the_doctor_name_every_broken_file(tmp_path, capsys):
    folder = tmp_path / "sounds"
    folder.mkdir()
    reasons = break_files(folder)
    write_sound(folder / "z.wav", 0.5, 22050)
    found = vet(open_dataset(folder, split="all", max_bad=1.0), workers=1)
    assert found.good == {str(folder / "z.wav"): 8000}
    assert {name.rsplit("/", 1)[1] for name in found.bad} == set(reasons) - {"missing.wav"}
    assert check_data(str(folder), workers=1)
    shown = capsys.readouterr().out
    assert "0.50 to 0.50 s" in shown and "1 good one is shorter than a sample of 10 s" in shown
    listed = read_skip_list(tmp_path / "sounds.skip.txt")
    assert str(folder / "nan.wav") in listed
    skipping = open_dataset(folder, audio=SHORT, split="all", skip_list=tmp_path / "sounds.skip.txt")
    assert int(skipping[0]["index"]) == len(skipping) - 1 and skipping.bad.count == 0


def test_views_are_spread_over_the_file_and_share_its_group(tmp_path):
    write_sound(tmp_path / "a.wav", 1.0)
    write_sound(tmp_path / "b.wav", 0.1)
    sampling = AudioSampling(seconds=0.25, test_clips=3)
    dataset = open_dataset(tmp_path, audio=sampling, split="all", views=True)
    assert len(dataset) == 6 and dataset.groups.tolist() == [0, 0, 0, 1, 1, 1] and dataset.views == 3
    whole = read_audio(tmp_path / "a.wav")
    for view, first in enumerate((0, 6000, 12000)):
        np.testing.assert_array_equal(dataset[view]["audio"][0], whole[first : first + 4000])
    assert len(open_dataset(tmp_path, audio=sampling, split="all")) == 2


def test_folders_are_recognised(tmp_path):
    write_folder(tmp_path / "sounds")
    assert open_dataset(tmp_path / "sounds").modality == "audio"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "a.png")
    assert open_dataset(pictures).modality == "image"
    with pytest.raises(MmsslError, match="there is no sound in"):
        open_dataset(pictures, audio=SHORT)
    (tmp_path / "films" / "a").mkdir(parents=True)
    write_track(tmp_path / "films" / "a" / "x.mp4", chirp(1.0, 48000), 48000)
    tracks = open_dataset(tmp_path / "films", audio=SHORT, split="all")
    assert tracks[0]["audio"].shape == (1, 4000) and tracks[0]["audio"].abs().max() > 0.05
    with pytest.raises(MmsslError, match="sources are of different kinds"):
        open_dataset([tmp_path / "sounds", pictures])


def test_the_layout_of_speech_commands(tmp_path):
    folder = write_folder(tmp_path / "words", ("go", "stop"), 4)
    write_sound(folder / "_background_noise_" / "pink.wav", 2.0)
    (folder / "validation_list.txt").write_text("go/1.wav\nstop/0.wav\n")
    (folder / "testing_list.txt").write_text("go/2.wav\n")
    for split, number in {"train": 5, "val": 2, "test": 1, "all": 8}.items():
        dataset = open_dataset(folder, split=split, audio=SHORT)
        assert len(dataset) == number and dataset.classes == ["go", "stop"], split
    assert open_dataset(folder, split="test").sample_name(0).endswith("go/2.wav")
    with pytest.raises(MmsslError, match=r"has no split 'dev'; valid: train, val, test, all"):
        open_dataset(folder, split="dev")


def test_the_card_of_speech_commands(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "words", ("go", "stop"), 4)
    for name in ("validation", "testing"):
        (folder / f"{name}_list.txt").write_text("go/1.wav\n")
    monkeypatch.setenv("SPEECHCOMMANDS", str(folder))
    assert open_dataset("speechcommands")[0]["audio"].shape == (1, 16000)
    assert load_card("speechcommands")[0].statistics.mean == (-6.845978,)
    assert open_dataset("speechcommands", audio=SHORT).audio == SHORT


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image_size": (8, 8)}, "image_size is of pictures, and 'pets' holds sound; leave it out"),
        ({"cache": "memory"}, "files of sound are decoded: use cache: none"),
        ({"camera": "front"}, "camera is of pictures"),
        ({"fold": 1}, "'pets' comes in no folds; set fold to null"),
        ({"target": "colour"}, "colour"),
    ],
)
def test_options_of_other_data_are_refused(tmp_path, fields, sentence):
    folder = write_folder(tmp_path / "pets")
    with pytest.raises(MmsslError, match=sentence):
        open_dataset(folder, **fields)


def test_audio_of_pictures_is_refused(pictures, record):
    record("metaworld/reach")
    with pytest.raises(MmsslError, match="holds no sound; set audio to null"):
        open_dataset("mmssl/metaworld/reach-v0", audio=SHORT)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"sample_rate": 0}, "audio.sample_rate must be a number of samples a second, such as 16000, got 0"),
        ({"seconds": 0.0}, "audio.seconds must give 1 or more samples at 16000 a second, got 0.0"),
        ({"seconds": float("nan")}, "audio.seconds must give"),
        ({"channel": -1}, "audio.channel must be mix or a channel counted from 0, got -1"),
        ({"test_clips": 0}, "audio.test_clips must be 1 or more, got 0"),
    ],
)
def test_sampling_refuses_what_cannot_be(fields, sentence):
    with pytest.raises(MmsslError, match=sentence):
        AudioSampling(**fields)


def test_epoch_samples_must_be_positive():
    with pytest.raises(MmsslError, match="epoch_samples must be 1 or more, got 0"):
        DataConfig(epoch_samples=0)


@given(
    n=st.integers(1, 300), draw=st.none() | st.floats(0, 1, exclude_max=True), parts=st.integers(1, 5), data=st.data()
)
def test_a_stretch_lies_inside(n, draw, parts, data):
    sampling = AudioSampling(sample_rate=100, seconds=1.0)
    first = first_sample(sampling, n, draw, data.draw(st.integers(0, parts - 1)), parts)
    assert first == 0 if n <= 100 else 0 <= first <= n - 100


@given(n=st.integers(1, 40), short=st.sampled_from(["pad", "repeat", "skip"]), ends_in_zero=st.booleans())
def test_every_sample_has_one_length(n, short, ends_in_zero):
    sampling = AudioSampling(sample_rate=20, seconds=1.0, short=short)
    sound = np.arange(1, n + 1, dtype=np.float32)
    sound[-1] = 0 if ends_in_zero else sound[-1]
    if n < 20 and short == "skip":
        with pytest.raises(SoundTooShort):
            to_length(sampling, sound)
        return
    out = to_length(sampling, sound)
    real = 20 if short == "repeat" else min(n, 20)
    assert out.shape == (20,) and out.dtype == np.float32 and out[real - 1] != 0 and not out[real:].any()
    np.testing.assert_allclose(out[:real], np.resize(sound, real), atol=1e-19)
