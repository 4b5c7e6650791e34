"""Playing a saved policy: the episodes are Gymnasium's own, films show them and change nothing, mistakes are said."""

import json
from pathlib import Path

import av
import gymnasium as gym
import numpy as np
import pytest

from mmssl import cli
from mmssl.control import movie, video
from mmssl.control.base import Spaces, create_algorithm
from mmssl.control.movie import Movie
from mmssl.control.play import play
from mmssl.control.rl_config import RLConfig
from mmssl.control.saving import load_policy, save_policy
from mmssl.control.td3 import TD3Config
from mmssl.control.video import FASTEST, Onlooker, film_seed, four, play_episodes
from mmssl.control.worlds import make_world
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.envs.suites import find_task
from mmssl.envs.vector import episode_seed, make_vec, wrap_vec
from mmssl.errors import MmsslError
from mmssl.tokenizers.image import ImageTokenizerConfig

needs_pictures = pytest.mark.needs_pictures


def save_one(folder: Path, task: str, encoder: Encoder | None = None) -> Path:
    """The folder of a run with a policy that has learned nothing."""
    where = None if encoder is None else "where it was taken from"
    config = RLConfig(TD3Config(hidden=(8,), capacity=10), task=task, encoder=where).resolved()
    world = make_world(config, 1, 0, encoder)
    spaces = Spaces(**world.spaces())
    world.close()
    policy = create_algorithm(config.algorithm, spaces, seed=1).policy()
    save_policy(folder / "seed-0/export", policy, config, spaces, encoder, steps=123)
    return folder


def frames_of(path: Path) -> tuple[np.ndarray, float, str]:
    """All frames of a film, its frames per second, and its codec."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        rate, codec = float(stream.average_rate), stream.codec_context.name
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]), rate, codec


@pytest.fixture(scope="module")
def hopper(tmp_path_factory) -> Path:
    return save_one(tmp_path_factory.mktemp("runs") / "hopper", "gym/Hopper-v5")


def test_episodes_are_those_of_gymnasium(hopper, capsys):
    played = play(hopper, episodes=3, seed=5, video=False)
    policy, env = load_policy(hopper).policy, gym.make("Hopper-v5")
    for k, episode in enumerate(played):
        seen, _ = env.reset(seed=episode_seed(5, 0, k))
        total, length, ended = 0.0, 0, False
        while not ended:
            action = policy.act({"state": seen[None].astype(np.float32)})[0]
            seen, reward, terminated, truncated, _ = env.step(action)
            total, length, ended = total + reward, length + 1, terminated or truncated
        assert (episode.total, episode.length, episode.success) == (pytest.approx(total), length, None)
    said = capsys.readouterr().out
    totals = [episode.total for episode in played]
    assert "trained for 123 steps" in said and f"return {np.mean(totals):.1f} on the average" in said
    assert said.count("episode ") == 3 and "success" not in said and "film" not in said


@needs_pictures
def test_a_film_shows_every_episode_and_changes_none(hopper, tmp_path, capsys):
    out = tmp_path / "films/a.mp4"
    filmed = play(hopper, episodes=2, out=out, size=(64, 80))
    assert filmed == play(hopper, episodes=2, video=False)
    frames, rate, codec = frames_of(out)
    every = 5  # a step of Hopper takes 8 ms
    assert len(frames) == sum(-(-episode.length // every) + 1 for episode in filmed) and rate == 25 <= FASTEST
    assert frames.shape[1:] == (64, 80, 3) and codec == "h264" and f"film: {out}" in capsys.readouterr().out
    assert frames[0].std() > 10 and np.abs(frames[0].astype(int) - frames[-1]).mean() > 1  # something is seen to move


@needs_pictures
def test_a_film_shows_what_the_camera_sees(hopper):
    world = make_vec("gym/Hopper-v5", 1)
    world.reset()
    onlooker = Onlooker(world, find_task("gym/Hopper-v5"), size=(48, 48))
    pictures = make_vec("gym/Hopper-v5", 1, observe="pixels", size=(48, 48))
    obs, _ = pictures.reset()
    (picture,) = (value for name, value in obs.items() if name.startswith("image/"))
    assert np.array_equal(onlooker.look(), picture[0].transpose(1, 2, 0))
    onlooker.close()
    world.close()
    pictures.close()


class Watching:
    """A policy of random actions that keeps what it was shown."""

    def __init__(self, world):
        self.world, self.seen = world, []

    def act(self, obs):
        self.seen += [np.concatenate([value.ravel() for value in obs.values()])]
        return self.world.random_actions()


@needs_pictures
def test_a_policy_that_sees_pictures_sees_the_same_while_it_is_filmed():
    seen = []
    for filmed in (False, True):
        world = make_vec("robotics/FetchReach-v4", 1, observe="both", size=(24, 24), frame_stack=2)
        onlooker = Onlooker(world, find_task("robotics/FetchReach-v4"), size=(32, 48)) if filmed else None
        policy, frames = Watching(world), []
        (episode,) = play_episodes(policy, world, 1, onlooker, frames.append)
        assert episode.length == 50 and episode.success is False
        assert [frame.shape for frame in frames] == [(32, 48, 3)] * (51 if filmed else 0)
        seen.append(np.stack(policy.seen))
        world.close()
    assert np.array_equal(*seen)


@needs_pictures
def test_a_policy_behind_a_frozen_encoder_plays(tmp_path, capsys):
    tokenizer = ImageTokenizerConfig(image_size=16, patch_size=8)
    encoder = Encoder(EncoderConfig({"image": tokenizer}, dim=16, depth=1, heads=2))
    run = save_one(tmp_path, "robotics/FetchReach-v4", encoder)
    (episode,) = play(run, episodes=1, size=(32, 32))
    said = capsys.readouterr().out
    assert episode.length == 50 and "no success" in said and "success in 0 of 1" in said
    assert len(frames_of(run / "figures/play.mp4")[0]) == 51


@needs_pictures
def test_the_film_of_a_seed_for_its_page(hopper, capsys):
    folder, said = hopper / "seed-0", []
    film_seed(folder, said.append)
    about = json.loads((folder / "figures/policy.json").read_text())
    (episode,) = play(hopper, episodes=1, video=False)
    assert about == {"steps": 123, "return": episode.total, "length": episode.length, "success": None} and said == []
    frames, _, _ = frames_of(folder / "figures/policy.mp4")
    assert frames.shape[1:] == (256, 256, 3)
    before = {p: p.stat().st_mtime_ns for p in (folder / "figures").iterdir()}
    assert {p.name for p in before} == {"policy.mp4", "policy.webp", "policy.png", "policy.json"}
    film_seed(folder, said.append)  # of the same policy: nothing is to be done
    assert {p: p.stat().st_mtime_ns for p in (folder / "figures").iterdir()} == before


@needs_pictures
def test_a_film_for_a_page_stops_and_its_episode_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MOST", 4)
    episode = video.film(load_policy(save_one(tmp_path, "robotics/FetchReach-v4")), tmp_path / "film")
    assert episode.length == 50 and len(frames_of(tmp_path / "film/policy.mp4")[0]) == 4


def test_a_run_does_not_fail_by_its_film(hopper, tmp_path, monkeypatch):
    said = []

    def nothing_renders():
        raise MmsslError("nothing renders here.")

    monkeypatch.setattr(video, "opengl_context", nothing_renders)
    film_seed(save_one(tmp_path, "gym/Hopper-v5") / "seed-0", said.append)
    assert said == ["no film of seed-0: nothing renders here."]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_movies_of_odd_sizes_in_every_codec(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(movie, "CODECS", {codec: movie.CODECS[codec]})
    given = np.broadcast_to(np.linspace(0, 255, 9).astype(np.uint8)[:, None, None, None], (9, 51, 67, 3))
    with Movie(tmp_path / "a.mp4", 12.5) as film:
        for frame in given:
            film.add(frame)
    found, rate, name = frames_of(tmp_path / "a.mp4")
    assert found.shape == (9, 52, 68, 3) and rate == 12.5 and name == {"libx264": "h264", "mpeg4": "mpeg4"}[codec]
    assert np.abs(found[:, :51, :67].astype(int) - given).max() < 12


def test_a_movie_is_whole_or_not_there(tmp_path, monkeypatch):
    with pytest.raises(KeyError), Movie(tmp_path / "a.mp4", 10) as film:
        film.add(np.zeros((32, 32, 3), np.uint8))
        raise KeyError
    with Movie(tmp_path / "a.mp4", 10):
        pass  # no frame at all
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(movie, "CODECS", {"nonsense": {}})
    with pytest.raises(MmsslError, match=r"neither H\.264 nor MPEG-4"):
        Movie(tmp_path / "a.mp4", 10)


def test_four_frames_of_a_film():
    frames = [np.full((2, 3, 3), k, np.uint8) for k in range(10)]
    picture = four(frames)
    assert picture[0, 0, 0] == 0 and picture[-1, -1, 0] == 9 and {3, 6} < set(picture.ravel().tolist())
    assert four(frames[:1]).shape == picture.shape


@needs_pictures
def test_what_cannot_be_filmed_is_said():
    world = wrap_vec(lambda: gym.make("InvertedPendulum-v5"), 1)
    with pytest.raises(MmsslError, match="only tasks of suites"):
        Onlooker(world, find_task("gym/InvertedPendulum-v5"))
    world.close()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--episodes", "0"], "episodes must be at least 1"),
        (["--out", "a.avi"], "the film is an .mp4 file, got --out a.avi"),
        (["--task", "gym/Hoper-v5"], "did you mean 'Hopper-v5'"),
        (["--task", "gym/Walker2d-v5"], "the policy was trained on state 11, and gym/Walker2d-v5 shows state 17."),
        pytest.param(["--camera", "trak"], "did you mean 'track'", marks=needs_pictures),
        pytest.param(["--size", "8", "8"], "at least 16 pixels", marks=needs_pictures),
    ],
)
def test_mistakes_end_in_one_sentence(hopper, args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = [] if {"--camera", "--size"} & set(args) else ["--no-video"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["rl", "play", str(hopper), *args, *shown])
    said = capsys.readouterr().err
    assert (
        stop.value.code == 2 and words in said and said.count("\n") == 1 and not (hopper / "figures/play.mp4").exists()
    )


def test_a_folder_without_a_policy_is_said(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["rl", "play", str(tmp_path), "--no-video"])
    assert "holds no policy" in capsys.readouterr().err


def test_the_verb_plays(hopper, capsys):
    cli.main(["rl", "play", str(hopper / "seed-0"), "--episodes", "1", "--no-video"])
    assert "td3 on gym/Hopper-v5" in capsys.readouterr().out
