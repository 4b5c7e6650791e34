"""The documents' own `mmssl` commands: each names what exists; those on video and sound run with tiny budgets."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl import cli
from mmssl.data.trajectory_files import Trajectory
from mmssl.data.trajectory_writing import write_trajectories
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.vector import VectorTokenizerConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TINY = shlex.split("--method.dim 16 --method.depth 1 --method.heads 2 --method.decoder-dim 16 --method.decoder-depth 1")
SMALL = shlex.split("--method.image-size 32 --method.patch-size 4 --data.image-size 32 32 --loop.log-every 1")


def commands(page: Path) -> list[str]:
    """Lines of code blocks that begin with `mmssl`, without their comments."""
    text = page.read_text()
    lines = re.findall(r"^(?:    )?(mmssl [a-z].*)$", text, re.MULTILINE)
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines]


ALL = [pytest.param(line, id=f"{page.stem}:{line[:60]}") for page in PAGES for line in commands(page)]


@pytest.mark.parametrize("line", ALL)
def test_a_command_names_a_verb_a_recipe_and_options_that_exist(line):
    verb, *rest = shlex.split(line)[1:]
    assert verb in cli.VERBS
    if verb not in cli.RECIPES or rest[0].startswith("-") or "..." in rest[0] or f"{verb} {rest[0]}" in cli.VERBS:
        return
    config = cli._read_recipe(cli._locate(cli.RECIPES[verb]), rest[0])
    options, left = cli._take_options(rest[1:], "usage")
    cli.override(config, left, "mmssl")
    assert set(options) - {"shared_only"} == {"run", "overwrite", "init"}


CONTROL = {
    "td3": "--algorithm.hidden 8 --algorithm.random-steps 2 --algorithm.batch-size 2 --algorithm.capacity 50",
    "td3_mtm": "--algorithm.hidden 8 --algorithm.random-steps 2 --algorithm.batch-size 2",
    "sac": "--algorithm.hidden 8 --algorithm.random-steps 2 --algorithm.batch-size 2 --algorithm.capacity 50",
    "curl": "--algorithm.hidden 8 --algorithm.random-steps 2 --algorithm.batch-size 2 --algorithm.capacity 50",
    "drqv2": "--algorithm.hidden 8 --algorithm.random-steps 2 --algorithm.batch-size 2 --algorithm.capacity 50",
}
"""Tiny budgets of algorithms; beside them episodes of 10 or 20 steps, for each step repeats its action."""


def test_the_commands_of_control_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    """Every line of docs/control.md, with one seed where it says several."""
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tokenizer = ImageTokenizerConfig(image_size=16, patch_size=8)
    Encoder(EncoderConfig({"image": tokenizer}, dim=16, depth=1, heads=2)).save_pretrained("runs/demo")
    states = {"state": VectorTokenizerConfig(width=17), "action": VectorTokenizerConfig(width=6)}
    Encoder(EncoderConfig(states, dim=16, depth=1, heads=2, cls_token=False)).save_pretrained("runs/mtm")
    arrays = {name: np.ones((3, width), np.float32) for name, width in {"state": 17, "action": 6, "reward": 1}.items()}
    write_trajectories(Path("recordings"), [Trajectory(arrays, {}, "gym/HalfCheetah-v5", 0, "one")], "medium")
    short = shlex.split("--steps 6 --eval-every 6 --eval-episodes 1 --action-repeat 50 --film False")
    lines = [shlex.split(line)[1:] for line in commands(ROOT / "docs/control.md")]
    assert {line[1] for line in lines if line[0] == "rl"} == {*CONTROL, "play"}
    for line in lines:
        tiny = [*short, *shlex.split(CONTROL[line[1]])] if line[1] in CONTROL else []
        tiny += ["--seeds", "0"] if "--seeds" in line else ["--size", "32", "32"] if line[1] == "play" else []
        cli.main([*line, *tiny])
    assert capsys.readouterr().out.count("episode ") == 5 and Path("runs/cheetah/figures/play.mp4").is_file()
    assert "Probability of improvement" in Path("runs/comparison.html").read_text()


def test_the_documents_are_read():
    assert len(ALL) > 30


def load_script(path: Path):
    """A file that is no package's module."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_for_documents", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def toys():
    return load_script(ROOT / "tests/data/video_toys.py")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for k in range(4):
        toys().write_video(folder / f"{k}.mp4", None, n=30, size=(48, 64))
    toys().truncated(folder / "damaged.mp4")
    return folder


def test_pretraining_on_files_runs_resumes_and_shows_its_clips(videos, tmp_path, capsys):
    """`mmssl pretrain videomae/pretrain_tiny_files --data FOLDER`, as docs/video.md has it."""
    run = tmp_path / "run"
    command = ["pretrain", "videomae/pretrain_tiny_files", "--data", str(videos), "--run", str(run), *TINY, *SMALL]
    command += ["--optim.warmup-steps", "1", "--data.max-bad", "0.5", "--loop.checkpoint-every", "2"]
    cli.main([*command, "--loop.steps", "2"])
    cli.main([*command, "--loop.steps", "4"])
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4] and "going on from" in capsys.readouterr().err
    assert "data:image/webp;base64," in (run / "report.html").read_text()


def test_the_doctor_lists_the_damaged_file(videos, tmp_path, capsys):
    listed = tmp_path / "skip.txt"
    cli.main(["doctor", "--data", str(videos), "--skip-list", str(listed), "--workers", "1"])
    assert "damaged.mp4" in listed.read_text() and "0.mp4" not in listed.read_text()


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("videomae/pretrain_tiny_files", ["--method.tubelet", "3"], "tubelet"),
        ("videomae/pretrain_tiny_files", ["--data.clip.frames", "4"], "frames"),
        ("siammae/pretrain_tiny_robots14", ["--data.clip.gap", "40", "48"], "gap"),
        ("siammae/pretrain_tiny_robots14", ["--data.clip.how", "dense", "--data.clip.frames", "3"], "how to pair"),
        ("videomae/pretrain_tiny_files", ["--data.clip.stride", "9", "--data.clip.short", "skip"], "stride"),
    ],
    ids=["tubelet", "frames", "gap", "how", "longer"],
)
def test_wrong_input_is_one_sentence(recipe, options, words, videos, tmp_path, capsys):
    command = ["pretrain", recipe, "--data", str(videos), "--run", str(tmp_path / "run"), *TINY, *SMALL]
    cache = ["--data.cache", "none", "--loop.batch-size", "8", "--loop.repeats", "4", "--data.max-bad", "0.5"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, *cache, *options])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and words in said and "Traceback" not in said and not (tmp_path / "run/export").exists()


def test_the_commands_on_words_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    """Every line of docs/methods/audiomae.md on `runs/words` and on the run that learned from it."""
    pytest.importorskip("espeakng_loader")
    monkeypatch.chdir(tmp_path)
    sounds = load_script(ROOT / "benchmarks/sounds.py")
    sounds.write(sounds.words(("yes", "no"), sounds.TRAIN_VOICES[:6], sounds.TEST_VOICES[:3], takes=1), "runs/words")
    steps = ["--loop.steps", "2", "--loop.batch-size", "4", "--optim.warmup-steps", "0"]
    tiny = {
        "pretrain": [*TINY, *steps],
        "probe": shlex.split("--options attentive.steps=2 logistic.l2=[0.1] --device cpu"),
        "finetune": [*steps, "--optim.warmup-epochs", "None", "--loop.epochs", "None", "--loop.workers", "0"],
    }
    lines = [line for line in commands(ROOT / "docs/methods/audiomae.md") if "runs/words" in line]
    verbs = [line.split()[1] for line in lines]
    assert set(verbs) >= {"pretrain", "probe", "embed", "finetune"}
    for verb, line in zip(verbs, lines, strict=True):
        cli.main([*shlex.split(line)[1:], *tiny.get(verb, [])])
    said = capsys.readouterr().out
    assert "logmel" in said and "spectrogram" in said and "(18, 64)" in said
    assert json.loads(Path("runs/words-finetune/scores.json").read_text())["rows"]
