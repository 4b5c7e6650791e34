"""Encoders of sound judged on words and notes from disk: how they are sampled, baselines, probes, embeddings."""

import importlib.util
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import mmssl
from mmssl.config import to_dict
from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.loading import DataConfig, open_dataset
from mmssl.encoder import Encoder, EncoderConfig, Features
from mmssl.errors import MmsslError
from mmssl.evaluation.baselines import LogMelStatistics, SpectrogramEncoder, random_like, raw_inputs
from mmssl.evaluation.embed import embed
from mmssl.evaluation.features import extract, pool
from mmssl.evaluation.frames import fit_to, frames_of
from mmssl.evaluation.probe import probe
from mmssl.evaluation.sources import DataChoice, choose_audio, choose_clip, own_audio
from mmssl.methods.base import create_method
from mmssl.tokenizers.audio import AudioTokenizerConfig
from mmssl.training.checkpoint import RunFolder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SPEECH, NOTES = ("yes", "stop", "seven"), (0, 24, 56, 114)


def sound_maker():
    """benchmarks/sounds.py, which is no package's module."""
    spec = importlib.util.spec_from_file_location("sounds_for_tests", BENCHMARKS / "sounds.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Three words, eight voices in train/ and four others in test/."""
    pytest.importorskip("espeakng_loader")
    root, maker = tmp_path_factory.mktemp("words"), sound_maker()
    maker.write(maker.words(SPEECH, maker.TRAIN_VOICES[:8], maker.TEST_VOICES[:4], takes=1), root)
    return root


def tiny_method():
    torch.manual_seed(0)
    sizes = {"size": "custom", "dim": 32, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 1}
    shape = {"frames": 96, "mel_bins": 32, "patch_size": 16, "mean": -7.0, "std": 4.0, "decoder_heads": 2}
    return create_method("audiomae", **sizes, **shape, decoder="global").eval()


@pytest.fixture
def run(tmp_path, words):
    """A run folder as pretraining leaves it."""
    method, folder = tiny_method(), RunFolder(tmp_path / "run")
    folder.start()
    data = to_dict(DataConfig(source=(str(words),), audio=AudioSampling(16000, 1.0), target="none"))
    folder.config.write_text(yaml.safe_dump({"method": to_dict(method.config), "data": data}))
    folder.save(1, method, {"step": 1}, keep=1)
    method.encoder.save_pretrained(folder.export)
    return folder.path


def encoder_of(**settings) -> Encoder:
    torch.manual_seed(0)
    tokenizer = AudioTokenizerConfig(**{"frames": 96, "mel_bins": 32, "patch_size": 16, **settings})
    shape = {"dim": 32, "depth": 1, "heads": 2, "positions": "sincos_swapped"}
    return Encoder(EncoderConfig(tokenizers={"audio": tokenizer}, **shape)).eval()


def test_words_are_the_same_each_time_and_test_voices_are_never_trained_on(words, tmp_path):
    """In processes that begin alike: eSpeak NG keeps some state from one word to the next."""
    maker = sound_maker()

    def write(folder: Path) -> None:
        maker.write(maker.words(SPEECH, maker.TRAIN_VOICES[:8], maker.TEST_VOICES[:4], takes=1), folder)

    for name in ("one", "other"):
        process = multiprocessing.get_context("fork").Process(target=write, args=(tmp_path / name,))
        process.start()
        process.join()
        assert process.exitcode == 0
    files = sorted((tmp_path / "one").rglob("*.wav"))
    assert len(files) == 3 * 12 == len(list(words.rglob("*.wav")))
    for file in files:
        assert file.read_bytes() == (tmp_path / "other" / file.relative_to(tmp_path / "one")).read_bytes()
    voices = {part: {f.stem for f in words.rglob(f"{part}/*/*.wav")} for part in ("train", "test")}
    assert voices["train"] and voices["test"] and not voices["train"] & voices["test"]
    train = open_dataset(words, split="train", audio=AudioSampling(16000, 1.0))
    assert train.classes == sorted(SPEECH) and 0.01 < train.fetch(torch.arange(24))["audio"].abs().max() <= 1


def test_notes_have_their_pitch_and_test_pitches_are_never_trained_on():
    pytest.importorskip("tinysoundfont")
    maker = sound_maker()
    notes = list(maker.notes(NOTES, (48, 72), (60,), takes=1))
    assert [n.label for n in notes[:8:2]] == ["piano", "guitar", "brass", "percussive"]
    assert {n.name.split("_")[1] for n in notes if n.split == "test"} == {"60"}
    again = list(maker.notes(NOTES, (48, 72), (60,), takes=1))
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(notes, again, strict=True))
    trumpet = next(n for n in notes if n.label == "brass" and n.split == "test").samples
    spectrum = np.abs(np.fft.rfft(trumpet[1600:8000] * np.hanning(6400))) ** 2

    def share(pitch: int) -> float:
        """Of the energy that lies within 10 Hz of a pitch or of one of its first 11 overtones."""
        tones = np.arange(1, 13) * 440 * 2 ** ((pitch - 69) / 12) * 6400 / maker.RATE  # in bins of 2.5 Hz
        return sum(spectrum[round(t) - 4 : round(t) + 5].sum() for t in tones) / spectrum.sum()

    assert max(range(54, 67), key=share) == 60 and share(60) > 0.8
    assert max(maker.TRAIN_PITCHES[:5]) < min(maker.TEST_PITCHES) < max(maker.TEST_PITCHES) < maker.TRAIN_PITCHES[5]


def test_how_sounds_that_judge_an_encoder_are_sampled(run):
    encoder = mmssl.load(run)
    assert own_audio(run) == AudioSampling(16000, 1.0) == choose_audio(run, encoder)
    assert choose_audio(run / "export", encoder).samples == 95 * 160 + 400  # all of its 96 frames and no more
    assert choose_audio(run / "export", encoder_of(input_rate=44100)).sample_rate == 44100
    assert choose_audio(run, encoder, ("test_clips=3",)).test_clips == 3
    assert frames_of(encoder) is None and choose_clip(run, encoder) is None  # frames of a spectrogram are no pictures


def test_another_length_is_given_to_the_encoder_too(run):
    encoder = mmssl.load(run)
    before = encoder.tokenizers["audio"].pos_embed.clone()
    assert choose_audio(run, encoder, ("seconds=0.5",)).samples == 8000
    assert encoder.tokenizers["audio"].grid == (3, 2) and encoder.config.tokenizers["audio"].frames == 48
    assert torch.equal(encoder.tokenizers["audio"].pos_embed, before[:, :6])
    assert encoder({"audio": torch.randn(2, 1, 8000)}).tokens.shape == (2, 6, 32)
    assert random_like(encoder)({"audio": torch.randn(2, 1, 8000)}).tokens.shape == (2, 6, 32)
    fifty = mmssl.load(run)
    assert choose_audio(run, fifty, data=("esc50",)) == AudioSampling(16000, 5.0, test_start="first")  # its card's
    assert fifty.config.tokenizers["audio"].frames == 512


@pytest.mark.parametrize(
    "options, words",
    [
        (("second=5",), "seconds"),
        (("five",), "--clip takes SETTING=VALUE, e.g. --clip seconds=5"),
        (("seconds=-1",), "audio.seconds must give 1 or more samples"),
        (("test_clips=0",), "test_clips must be 1 or more"),
    ],
)
def test_wrong_settings_are_said(run, options, words):
    with pytest.raises(MmsslError, match=words):
        choose_audio(run, mmssl.load(run), options)


def test_encoders_and_data_of_different_senses_are_said(words, tiny_encoder, looker):
    sounds = open_dataset(words, audio=AudioSampling(16000, 1.0))
    with pytest.raises(MmsslError, match=r"reads image and .* gives sound"):
        fit_to(tiny_encoder, sounds)
    with pytest.raises(MmsslError, match="hears no sound; it reads image"):
        choose_audio("nowhere", tiny_encoder)
    assert set(raw_inputs(tiny_encoder, "image")) == {"pixels"}


def test_statistics_are_means_and_deviations_over_the_frames_that_are_sound():
    tokenizer = encoder_of().tokenizers["audio"]
    model = LogMelStatistics(tokenizer)
    audio = 0.1 * torch.randn(2, 1, 16000, generator=torch.Generator().manual_seed(0))
    audio[1, :, 8000:] = 0
    got = model({"audio": audio}).tokens
    assert got.shape == (2, 1, 64)
    levels = tokenizer.prepare(audio)[:, 0]
    for row, frames in ((0, 96), (1, 1 + (8000 - 400) // 160)):
        for bin in (0, 7, 31):
            values = levels[row, :frames, bin].double().numpy()
            assert got[row, 0, bin] == pytest.approx(values.mean(), abs=1e-5)
            assert got[row, 0, 32 + bin] == pytest.approx(values.std(), abs=1e-5)
    rolled = tokenizer.spectrogram(audio).roll(40, 2)[:1]
    assert torch.allclose(model({"audio": rolled}).tokens, got[:1], atol=1e-5)  # it knows no order in time
    silent = model({"audio": torch.zeros(1, 1, 16000)}).tokens
    assert silent.isfinite().all() and model({"audio": audio}).pooled("mean").shape == (2, 64)


def test_the_small_spectrogram_is_the_spectrogram():
    tokenizer = encoder_of(frames=48, mel_bins=32).tokenizers["audio"]
    audio = torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(0))
    found = SpectrogramEncoder(tokenizer)({"audio": audio})
    assert found.grid == {"audio": (6, 4)}
    patch = tokenizer.prepare(audio)[0, 0, 8:16, 16:24]  # second patch in time, third in frequency
    assert torch.equal(found.tokens[0, 4 + 2], patch.flatten())
    large = encoder_of(frames=512, mel_bins=128).tokenizers["audio"]
    assert SpectrogramEncoder(large)({"audio": audio}).grid == {"audio": (8, 2)}
    with pytest.raises(MmsslError, match="the batch lacks 'audio'"):
        LogMelStatistics(tokenizer)({"image": audio})


def test_bands_keep_the_frequency_and_forget_the_time():
    tokens = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    index = torch.arange(6).expand(2, -1)
    features = Features(tokens, index, torch.ones_like(index, dtype=torch.bool), None, {"audio": (3, 2)})
    slow = torch.stack([(tokens[:, f] + tokens[:, 2 + f] + tokens[:, 4 + f]) / 3 for f in (0, 1)], 1).flatten(1)
    assert torch.allclose(pool(features, "bands"), slow, atol=1e-6)
    features.grid = {"image": (3, 2)}
    with pytest.raises(MmsslError, match="'bands' is for sound, and these are features of image"):
        pool(features, "bands")


def test_a_run_is_probed_beside_random_statistics_and_spectrogram(run, capsys):
    evaluators = ("ridge", "ridge:bands", "knn", "attentive", "logistic")
    options = ("knn.k=[1]", "attentive.steps=5", "logistic.l2=[0.1]")
    rows = probe(str(run), evaluators=evaluators, options=options, labels_per_class=4, draws=2, target="class")
    by = {(r.evaluator, r.encoder): r for r in rows}
    assert {encoder for _, encoder in by} == {"pretrained", "random", "logmel", "spectrogram"}
    assert len(by) == 5 * 4 and all(r.spread is not None for r in rows)
    assert by["ridge, 4 per class", "logmel"].value > 0.6  # three words by unseen voices; chance is 0.33
    assert "reconstruction" in json.loads((run / "scores.json").read_text())
    assert "logmel" in capsys.readouterr().out


def test_every_fold_is_tested_once(run, words, tmp_path, capsys):
    files = sorted((words / "train").glob("*/*.wav"))
    lines = [f"{file},{file.parent.name},{k % 2 + 1}" for k, file in enumerate(files)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,fold", *lines]) + "\n")
    settings = {"data": (str(tmp_path / "list.csv"),), "evaluators": ("knn",), "options": ("knn.k=[1]",)}
    rows = probe(str(run), **settings, folds="all", pixels=False, reconstruction=False)
    own = {row.evaluator: row for row in rows if row.encoder == "pretrained"}
    assert set(own) == {"knn, fold 1", "knn, fold 2", "knn, 2 folds"}
    each = [own[f"knn, fold {k}"].value for k in (1, 2)]
    assert own["knn, 2 folds"].value == pytest.approx(sum(each) / 2)
    (alone,) = probe(str(run), **settings, folds=(2,), pixels=False, reconstruction=False, quiet=True)[:1]
    assert alone.value == each[1]
    with pytest.raises(MmsslError, match="come in no folds"):
        probe(str(run), data=(str(words),), folds="all")


def test_several_stretches_of_a_sound_are_judged_as_one(run, words):
    encoder = mmssl.load(run)
    choice = DataChoice.for_encoder(encoder, run, (str(words),), ("seconds=0.5", "test_clips=2"), target="class")
    splits = choice.splits()
    assert (splits.train.views, splits.test.views) == (1, 2) and len(splits.test) == 2 * 12
    rows = probe(
        str(run), clip=("seconds=0.5", "test_clips=2"), target="class", evaluators=("ridge",), reconstruction=False
    )
    assert {r.evaluator for r in rows} == {"ridge, 2 views"}


def test_embedding_sounds(run, words, tmp_path):
    out = embed(str(run / "export"), data=(str(words),), out=tmp_path / "e.safetensors", pooling="bands", split="test")
    held = load_file(out)
    assert held["features"].shape == (12, 2 * 32)
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["classes"] == sorted(SPEECH) and about["rows"][0]["name"].endswith(".wav")
    choice = DataChoice.for_encoder(mmssl.load(run / "export"), run / "export", (str(words),))
    again = extract(mmssl.load(run / "export"), choice.part("test"), "bands")
    assert torch.allclose(again.features, held["features"], atol=1e-5)
    with pytest.raises(MmsslError, match="bands"):
        embed(str(run / "export"), data=(str(words),), out=tmp_path / "e.safetensors", pooling="band")


def test_fine_tuning_as_an_evaluator_hears_too(run):
    options = {"evaluators": ("finetune",), "options": ("finetune.steps=4",), "reconstruction": False, "quiet": True}
    rows = probe(str(run), target="class", **options)
    assert {r.encoder for r in rows} == {"pretrained", "random"}  # there is nothing to fine-tune in a spectrogram
