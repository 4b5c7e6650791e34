"""Fine-tuning on sound: tones told apart in seconds, tokens dropped in training, lengths, statistics and folds."""

import dataclasses
import json
import math
import shutil

import pytest
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

import mmssl
from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.loading import DataConfig
from mmssl.data.transforms import Augmentation
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.evaluation.features import Splits
from mmssl.evaluation.finetune import FinetuneConfig, FinetuneProbeConfig, finetune, finetune_probe
from mmssl.evaluation.finetune_audio import set_to_sound, wanted_frames
from mmssl.evaluation.finetune_model import HeadConfig, build_model, mixer
from mmssl.evaluation.metrics import score
from mmssl.masking import visible_index
from mmssl.tokenizers.audio import AudioTokenizerConfig
from mmssl.training.loop import LoopConfig, fit
from mmssl.training.optim import OptimConfig

RATE, SAMPLES = 4000, 1340  # 32 frames of 25 ms every 10 ms
NAMES = ["low", "middle", "high"]
SHORT = FinetuneProbeConfig(steps=60, train_batch=24, lr=2e-3, drop_path=0.0)


class Tones(Dataset):
    """Waveforms (N, 1, S) in memory."""

    modality = "audio"

    def __init__(self, waves: Tensor, labels: Tensor, task: str, views: int = 1):
        self.waves, self.values = waves, labels
        super().__init__("tones", Geometry(None))
        self.task, self.classes, self.views = task, NAMES, views
        self.targets, self.target = ("class",), "class"
        self.groups = torch.arange(len(waves)) // views

    def __len__(self) -> int:
        return len(self.waves)

    def _labels(self, target: str) -> Tensor:
        return self.values

    def fetch(self, index, keys=None, augmentation=None):
        return {"audio": self.waves[index], "label": self.values[index], "index": index.clone()}


def tone(label: Tensor, generator: torch.Generator) -> Tensor:
    """(N, S): a sine of about 300, 700 or 1500 Hz with a phase of its own, in noise."""
    pitch = torch.tensor([300.0, 700.0, 1500.0])[label] * (1 + 0.1 * torch.rand(len(label), generator=generator))
    phase = 2 * math.pi * torch.rand(len(label), generator=generator)
    time = torch.arange(SAMPLES) / RATE
    noise = torch.randn(len(label), SAMPLES, generator=generator)
    return 0.2 * torch.sin(2 * math.pi * pitch[:, None] * time + phase[:, None]) + 0.02 * noise


def tones(n: int, seed: int, views: int = 1) -> Tones:
    """One tone a sound."""
    generator = torch.Generator().manual_seed(seed)
    label = (torch.arange(n) % 3).repeat_interleave(views)
    return Tones(tone(label, generator)[:, None], label, "single_label", views)


def chords(n: int, seed: int) -> Tones:
    """One or two tones a sound."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.stack([torch.arange(n) % 3, (torch.arange(n) // 3) % 3], 1)  # (N, 2)
    waves = tone(label[:, 0], generator) + tone(label[:, 1], generator)
    return Tones(waves[:, None], F.one_hot(label, 3).amax(1).float(), "multi_label")


def sound_encoder(**settings) -> Encoder:
    torch.manual_seed(0)
    sizes = {"frames": 32, "mel_bins": 16, "patch_size": 8, "sample_rate": RATE, "mean": -5.0, "std": 4.0}
    tokenizer = AudioTokenizerConfig(**{**sizes, **settings})
    config = EncoderConfig(tokenizers={"audio": tokenizer}, dim=32, depth=2, heads=2, positions="sincos_swapped")
    return Encoder(config).eval()


KEYS = torch.arange(4) * 7919


def test_fine_tuning_tells_tones_apart():
    data = Splits(tones(48, 0), tones(30, 1))
    assert finetune_probe(sound_encoder(), data, SHORT)["accuracy"] > 0.9  # a third by chance


def test_fine_tuning_hears_every_tone_of_a_chord():
    found = finetune_probe(sound_encoder(), Splits(chords(72, 0), chords(36, 1)), SHORT)
    assert list(found) == ["map", "auc", "dprime"]
    assert found["map"] > 0.9 and found["auc"] > 0.9 and found["dprime"] > 2  # two thirds and a half by chance


@pytest.mark.parametrize(("shares", "kept"), [((0.5, 0.5), 2), ((0.25, 0.0), 6)])
def test_training_drops_tokens_that_the_keys_draw_and_judging_none(shares, kept, monkeypatch):
    data = tones(12, 0)
    model = build_model(sound_encoder(), data, HeadConfig(token_drop=shares, drop_path=0.0, std=1.0), seed=0)
    seen, forward = [], model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda *a, **k: seen.append(forward(*a, **k)) or seen[-1])
    batch = {"audio": data.waves[:1].expand(4, -1, -1), "label": torch.zeros(4, dtype=torch.int64)}
    model.train()
    again = [model(batch, keys=keys)["loss"][0] for keys in (KEYS, KEYS, KEYS + 1)]
    assert again[0] == again[1] != again[2]
    index = seen[0].index
    assert index.shape == (4, kept) and len({tuple(row.tolist()) for row in index}) > 1  # of one sound, four draws
    times, pitches = index // 2, index % 2
    for row in range(4):  # whole times and whole pitches are left
        t, f = set(times[row].tolist()), set(pitches[row].tolist())
        assert len(t) * len(f) == kept and len(set(index[row].tolist())) == kept
    mask = model.drop(model.encoder.grids, KEYS)["audio"]
    assert torch.equal(visible_index(mask, kept), index)
    assert model.eval().output(batch, KEYS).shape == (4, 3) and seen[-1].tokens.shape[1] == 8
    model.predict(data, 12)
    assert seen[-1].tokens.shape[1] == 8


def test_audio_maes_own_drop_keeps_51_by_6_tokens():
    encoder = sound_encoder(frames=1024, mel_bins=128, patch_size=16, sample_rate=16000)
    model = build_model(encoder, tones(6, 0), HeadConfig(token_drop=(0.2, 0.2)), seed=0)
    assert model.drop.visible(model.encoder.grids) == {"audio": 306}


def test_it_learns_with_dropped_tokens_bands_and_mixed_waves():
    config = HeadConfig(token_drop=(0.25, 0.25), wave_mix=0.5, spec_augment=(3, 6), drop_path=0.0)
    for train, test, name in ((tones(48, 0), tones(30, 1), "accuracy"), (chords(72, 0), chords(36, 1), "map")):
        model = build_model(sound_encoder(), train, config, seed=0)
        transform = mixer(config, 3, train.task, model.encoder)
        loop = LoopConfig(steps=60, batch_size=24, device="cpu", precision="fp32")
        fit(model, train, loop, OptimConfig(lr=2e-3), transform=transform, quiet=True)
        assert score(train.task, *model.predict(test, 30))[name] > 0.85


def test_the_transform_mixes_waves_then_masks_bands_of_the_spectrogram():
    model = build_model(sound_encoder(), tones(6, 0), HeadConfig(), seed=0)
    data, tokenizer = tones(4, 0), model.encoder.tokenizers["audio"]
    batch = {"audio": data.waves, "label": data.values}
    masked = mixer(HeadConfig(spec_augment=(4, 8)), 3, "single_label", model.encoder)(batch, KEYS)
    plain = tokenizer.spectrogram(data.waves)
    assert masked["audio"].shape == plain.shape == (4, 1, 32, 16)
    changed = masked["audio"] != plain
    assert 0 < changed.float().mean() < 0.6 and torch.equal(masked["label"], data.values)
    assert batch["audio"] is data.waves  # the given batch stays as it was
    mixed = mixer(HeadConfig(wave_mix=1.0), 3, "single_label", model.encoder)(batch, KEYS)
    assert mixed["audio"].shape == data.waves.shape and not torch.equal(mixed["audio"], data.waves)
    assert mixed["label"].shape == (4, 3)
    torch.testing.assert_close(mixed["label"].sum(1), torch.ones(4))
    assert mixer(HeadConfig(), 3, "single_label", model.encoder) is None


def test_views_of_a_sound_are_averaged_as_probabilities():
    train, test = tones(12, 0), tones(6, 1, views=3)
    model = build_model(sound_encoder(), train, HeadConfig(std=1.0), seed=0).eval()
    prediction, labels = model.predict(test, batch_size=7)
    with torch.no_grad():
        rows = model.output({"audio": test.waves}).softmax(1)
    expected = torch.stack([rows[3 * i : 3 * i + 3].mean(0) for i in range(6)])
    torch.testing.assert_close(prediction, expected)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(("data", "loss"), [(tones(4, 0), "bce"), (chords(4, 0), "task")])
def test_binary_cross_entropy_is_that_of_torch(data, loss):
    model = build_model(sound_encoder(), data, HeadConfig(loss=loss, std=1.0), seed=0).eval()
    rows = data.values if data.task == "multi_label" else F.one_hot(data.values, 3).float()
    output = model.output({"audio": data.waves})
    expected = torch.nn.BCEWithLogitsLoss()(output, rows)
    for labels in (data.values, rows * 0.7):  # soft rows too
        total, count = model({"audio": data.waves, "label": labels})["loss"]
        wanted = expected if labels is data.values else torch.nn.BCEWithLogitsLoss()(output, labels)
        torch.testing.assert_close(total / count, wanted)


def test_pooling_is_the_mean_then_a_new_norm():
    encoder, data = sound_encoder(), tones(4, 0)
    model = build_model(encoder, data, HeadConfig(std=1.0), seed=0).eval()
    bare = Encoder(dataclasses.replace(encoder.config, final_norm=False))
    bare.load_state_dict({k: v for k, v in encoder.state_dict().items() if not k.startswith("norm.")})
    mean = bare({"audio": data.waves}).tokens.mean(1)
    expected = F.layer_norm(mean, (32,), eps=1e-6) @ model.head.fc.weight.T
    torch.testing.assert_close(model.output({"audio": data.waves}), expected)


@pytest.mark.parametrize(
    ("frames", "patch", "seconds", "wanted"),
    [
        (1024, 16, 10.0, 1024),  # 998 frames: AudioSet's clips, which leave 26 of Audio-MAE's
        (1024, 16, 5.0, 512),  # 498: ESC-50
        (1024, 16, 1.0, 112),  # 98
        (96, 16, 1.0, 96),  # two frames more than the encoder's: cut
        (96, 16, 1.2, 128),
    ],
)
def test_the_encoder_gets_the_frames_of_the_clips(frames, patch, seconds, wanted):
    encoder = sound_encoder(frames=frames, mel_bins=128, patch_size=patch, sample_rate=16000)
    assert wanted_frames(encoder.tokenizers["audio"], seconds) == wanted


@pytest.mark.parametrize(
    ("settings", "task", "words"),
    [
        ({"token_drop": (1.0, 0.0)}, "single_label", "token_drop|time"),
        ({"token_drop": (0.9, 0.9)}, "single_label", r"leaves no token of the lattice \(4, 2\)"),
        ({"wave_mix": 1.5}, "single_label", "wave_mix must lie in"),
        ({"wave_mix": 0.5, "wave_mix_alpha": 0.0}, "single_label", "wave_mix_alpha above 0"),
        ({"mixup": 0.8}, "single_label", "mix sounds with wave_mix"),
        ({"loss": "bce", "label_smoothing": 0.1}, "single_label", "label smoothing is for cross-entropy"),
        ({"label_smoothing": 0.1}, "multi_label", "single_label target"),
        ({"wave_mix": 0.5}, "regression", "need a target of classes"),
    ],
)
def test_wrong_settings_are_said(settings, task, words):
    data = chords(4, 0) if task != "single_label" else tones(4, 0)
    data.task = task
    with pytest.raises(MmsslError, match=words):
        build_model(sound_encoder(), data, HeadConfig(**settings), seed=0)


def test_settings_of_sound_need_an_encoder_that_hears(tiny_encoder, classification):
    with pytest.raises(MmsslError, match="token_drop and spec_augment are for sound"):
        build_model(tiny_encoder, classification[0], HeadConfig(token_drop=(0.2, 0.2), spec_augment=(4, 8)), seed=0)
    with pytest.raises(MmsslError, match="this encoder reads image"):
        set_to_sound(tiny_encoder, None, statistics=(0.0, 1.0))
    model = build_model(sound_encoder(), tones(4, 0), HeadConfig(token_drop=(0.5, 0.0)), seed=0)
    with pytest.raises(MmsslError, match="keys"):
        model({"audio": tones(4, 0).waves, "label": torch.zeros(4).long()})


@pytest.fixture(scope="session")
def folds_of_tones(tmp_path_factory):
    """ESC-50's layout: 36 tones of three classes in three folds, 8 kHz."""
    root = tmp_path_factory.mktemp("folds")
    (root / "meta").mkdir()
    (root / "audio").mkdir()
    label = torch.arange(36) % 3
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for k, wave in enumerate(tone(label, torch.Generator().manual_seed(5)).repeat_interleave(2, 1)):  # an octave lower
        soundfile.write(root / "audio" / f"{k}.wav", wave.numpy(), 2 * RATE)
        lines.append(f"{k}.wav,{k // 12 + 1},{label[k]},{NAMES[label[k]]},False,{k},A")
    (root / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def weights(tmp_path):
    """An export folder of an encoder of sound, whose spectrograms have 64 frames."""
    sound_encoder(frames=64).save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


def recipe(folder, steps: int = 40, **settings) -> FinetuneConfig:
    audio = AudioSampling(sample_rate=2 * RATE, seconds=SAMPLES / RATE)
    data = DataConfig(source=(str(folder),), audio=audio, augmentation=Augmentation(gain_beta=10.0))
    loop = LoopConfig(steps=steps, batch_size=12, device="cpu", precision="fp32")
    head = HeadConfig(token_drop=(0.25, 0.0), wave_mix=0.5, spec_augment=(3, 6), train_positions=False)
    return FinetuneConfig(data, loop, OptimConfig(lr=2e-3, layer_decay=0.75, min_lr=1e-6), head, **settings)


def rows_of(run) -> dict[str, dict]:
    return {row["evaluator"]: row for row in json.loads((run / "scores.json").read_text())["rows"]}


def test_every_fold_has_its_run_and_the_whole_their_mean(folds_of_tones, weights, tmp_path, capsys):
    config, run = recipe(folds_of_tones, 25, folds="all"), tmp_path / "run"
    assert finetune(config, run=run, init=str(weights)) == run
    found, parts = rows_of(run), [rows_of(run / f"fold-{k}")["finetune"]["value"] for k in (1, 2, 3)]
    assert list(found) == ["finetune, fold 1", "finetune, fold 2", "finetune, fold 3", "finetune, 3 folds"]
    assert [found[f"finetune, fold {k}"]["value"] for k in (1, 2, 3)] == parts
    mean = found["finetune, 3 folds"]
    assert mean["value"] == pytest.approx(sum(parts) / 3) and mean["value"] > 0.8  # a third by chance
    assert mean["spread"] == pytest.approx(torch.tensor(parts).std().item(), abs=1e-6)
    assert "finetune, 3 folds" in capsys.readouterr().out
    tuned = [(run / f"fold-{k}" / "export" / "model.safetensors").read_bytes() for k in (1, 2, 3)]
    assert len(set(tuned)) == 3  # each learned from other sounds

    lines = [len((run / f"fold-{k}" / "metrics.jsonl").read_text().splitlines()) for k in (1, 2)]
    shutil.rmtree(run / "fold-3")  # as an interrupted run would be
    (run / "scores.json").unlink()
    finetune(config, run=run, init=str(weights))
    assert rows_of(run) == found and lines == [
        len((run / f"fold-{k}" / "metrics.jsonl").read_text().splitlines()) for k in (1, 2)
    ]
    assert [(run / f"fold-{k}" / "export" / "model.safetensors").read_bytes() for k in (1, 2, 3)] == tuned


def test_some_folds_and_wrong_ones(folds_of_tones, weights, tmp_path):
    config, run = recipe(folds_of_tones, steps=1, folds=(2,)), tmp_path / "run"
    finetune(config, run=run, init=str(weights))
    assert list(rows_of(run)) == ["finetune, fold 2", "finetune, folds 2 of 3"] and not (run / "fold-1").exists()
    with pytest.raises(MmsslError, match="from 1 to 3"):
        finetune(dataclasses.replace(config, folds=(4,)), run=tmp_path / "other", init=str(weights))
    with pytest.raises(MmsslError, match="give folds or"):
        dataclasses.replace(config, data=dataclasses.replace(config.data, fold=1))
    plain = tmp_path / "plain"
    for k, name in enumerate(NAMES * 2):
        (plain / name).mkdir(parents=True, exist_ok=True)
        soundfile.write(plain / name / f"{k}.wav", torch.randn(SAMPLES).numpy() * 0.1, RATE)
    with pytest.raises(MmsslError, match="come in no folds"):
        finetune(recipe(plain, folds="all"), run=tmp_path / "none", init=str(weights))


def test_length_rate_and_statistics_are_the_recipes(folds_of_tones, weights, tmp_path, capsys):
    run = finetune(recipe(folds_of_tones, 1, statistics=(-3.0, 2.0)), run=tmp_path / "run", init=str(weights))
    assert "positions are changed to the recipe's 32" in capsys.readouterr().err
    before, after = mmssl.load(weights).tokenizers["audio"], mmssl.load(run).tokenizers["audio"]
    assert before.config.frames == 64 and before.config.input_rate is None
    wanted = dataclasses.replace(before.config, frames=32, mean=-3.0, std=2.0, input_rate=2 * RATE)
    assert after.config == wanted and after.grid == (4, 2)
    assert torch.equal(after.pos_embed, before.pos_embed[:, :8])  # re-cut, not made anew
    assert (after.mean.item(), after.std.item()) == (-3.0, 2.0)
    assert before.mean.item() == -5.0 and rows_of(run)["finetune"]["metric"] == "accuracy"  # the last fold is the test


def test_without_a_length_the_clips_are_as_long_as_the_spectrogram(weights):
    encoder = mmssl.load(weights)
    audio = set_to_sound(encoder, DataConfig()).audio
    assert (audio.sample_rate, audio.samples) == (RATE, 100 + 63 * 40)  # 64 frames
    assert set_to_sound(encoder, DataConfig(), frames=40).audio.samples == 100 + 39 * 40
    assert encoder.grids == {"audio": (5, 2)}


def test_several_labels_from_a_list_drawn_evenly_and_judged_in_views(weights, tmp_path):
    data, audio = chords(45, 0), AudioSampling(sample_rate=RATE, seconds=0.2, test_clips=2)
    for k, wave in enumerate(data.waves[:, 0]):
        soundfile.write(tmp_path / f"{k}.wav", wave.numpy(), RATE)
    rows = [
        {"wav": f"{k}.wav", "labels": ",".join(NAMES[c] for c in row.nonzero()[:, 0])}
        for k, row in enumerate(data.values)
    ]
    (tmp_path / "list.json").write_text(json.dumps({"data": rows}))
    config = recipe(tmp_path / "list.json")
    part = dataclasses.replace(config.data, audio=audio, balance=True, epoch_samples=24)
    config = dataclasses.replace(config, data=part, loop=LoopConfig(epochs=20, batch_size=12, device="cpu"))
    found = json.loads((finetune(config, run=tmp_path / "run", init=str(weights)) / "scores.json").read_text())["rows"]
    assert [row["metric"] for row in found] == ["map", "auc", "dprime"]
    assert {row["evaluator"] for row in found} == {"finetune, 2 views"} and found[0]["value"] > 0.8
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 40  # two batches an epoch


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"statistics": (0.0, 0.0)}, "std must be above 0"), ({"frames": 30}, "30 frames .* not divisible by patch_size")],
)
def test_an_impossible_length_or_statistic_is_said_and_changes_nothing(settings, words):
    encoder = sound_encoder()
    before = encoder.config
    with pytest.raises(MmsslError, match=words):
        set_to_sound(encoder, DataConfig(), **settings)
    assert encoder.config == before == Encoder(before).config and encoder.grids == {"audio": (4, 2)}
