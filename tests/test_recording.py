"""`mmssl record`: what lands on disk, whoever records it and whatever interrupts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest

from mmssl.envs.interrupt import Interrupts
from mmssl.envs.rendering import opengl_context
from mmssl.envs.storage import EpisodeWriter, RecordingFolder
from mmssl.errors import MmsslError
from mmssl.recording import record

h5py = pytest.importorskip("h5py")
minari = pytest.importorskip("minari")
pytest.importorskip("mujoco")
try:
    opengl_context()
except MmsslError as error:
    pytest.skip(str(error), allow_module_level=True)

CHEETAH = "gym/HalfCheetah-v5"


def arrays(folder):
    """Everything in a recording's data file: path -> array or attributes."""
    found = {}

    def visit(name, item):
        attributes = {k: str(v) for k, v in item.attrs.items()}
        found[name] = item[()] if isinstance(item, h5py.Dataset) else attributes

    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        file.visititems(visit)
    return found


def assert_same(one, other):
    one, other = arrays(one), arrays(other)
    assert one.keys() == other.keys() and one
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """One Meta-World recording with everything in it, and one plain one."""
    root = tmp_path_factory.mktemp("datasets")
    record(
        ("metaworld/drawer-open",), episodes=2, size=(32, 40), cameras=("corner4", "gripperPOV"), depth=True,
        segmentation=True, randomize=0.5, noise=0.1, out=root, quiet=True,
    )  # fmt: skip
    record((CHEETAH,), episodes=3, size=(24, 24), steps=20, seed=5, out=root, quiet=True)
    return root


def test_layout(root):
    folder = root / "mmssl/metaworld/drawer-open-v0"
    assert [p.name for p in folder.iterdir()] == ["data"]
    metadata = json.loads((folder / "data/metadata.json").read_text())
    with h5py.File(folder / "data/main_data.hdf5") as file:
        assert list(file) == ["episode_0", "episode_1"]
        episode = file["episode_1"]
        steps = int(episode.attrs["total_steps"])
        for camera in ("corner4", "gripperPOV"):
            rgb, depth = (episode[f"observations/{kind}/{camera}"] for kind in ("rgb", "depth"))
            ids = episode[f"observations/segmentation/{camera}"]
            assert (rgb.shape, rgb.dtype, rgb.chunks) == ((steps + 1, 32, 40, 3), np.uint8, (1, 32, 40, 3))
            assert (depth.shape, depth.dtype, depth.chunks) == ((steps + 1, 32, 40), np.float16, (1, 32, 40))
            assert (ids.shape, ids.dtype) == ((steps + 1, 32, 40), np.int16)
            assert ids[()].max() < len(metadata["geoms"])
            assert rgb[0].std() > 5 and (rgb[0] != rgb[-1]).any() and 0 < depth[0].min() < 2
            assert episode[f"infos/camera_pose/{camera}"].shape == (steps + 1, 4, 4)
        assert episode["observations/state"].shape == (steps + 1, 39)
        assert episode["actions"].shape == (steps, 4) and episode["infos/success"].shape == (steps + 1,)
        success = episode["infos/success"][()]
        assert episode.attrs["success"] and success.argmax() + 10 == steps  # ten steps after the first success
        assert episode["truncations"][()].tolist() == [False] * (steps - 1) + [True]
        clean, taken = episode["infos/policy_action"][1:], episode["actions"][()]
        assert 0.03 < np.std((np.clip(clean, -1, 1) - taken)[np.abs(taken) < 0.9]) < 0.2
        poses = [file[f"episode_{i}/infos/camera_pose/corner4"][0] for i in (0, 1)]
        assert not np.allclose(*poses)  # the camera moved between the episodes
    assert metadata["instruction"] == "open the drawer" and metadata["policy"] == "expert"
    assert metadata["randomize"]["half_widths"]["camera"]["azimuth_degrees"] == 8.0
    assert list(metadata["cameras"]) == ["corner4", "gripperPOV"] and metadata["fps"] == pytest.approx(80)
    assert metadata["jpeg_encoding"] is False and metadata["versions"]["mujoco"]


def test_minari_loads_it(root, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    assert set(minari.list_local_datasets()) == {"mmssl/metaworld/drawer-open-v0", "mmssl/gym/HalfCheetah-v5-v0"}
    dataset = minari.load_dataset("mmssl/metaworld/drawer-open-v0")
    episodes = list(dataset.iterate_episodes())
    assert len(episodes) == dataset.total_episodes == 2
    assert sum(len(e) for e in episodes) == dataset.total_steps
    first = {k: v[0] if not isinstance(v, dict) else {c: f[0] for c, f in v.items()}
             for k, v in episodes[0].observations.items()}  # fmt: skip
    assert first in dataset.observation_space
    assert episodes[0].actions[0] in dataset.action_space
    env = dataset.recover_environment()
    seen, _ = env.reset(seed=0)
    assert env.observation_space == dataset.observation_space and seen in env.observation_space
    assert next(iter(dataset.storage.get_episode_metadata([1])))["instruction"] == "open the drawer"


def test_workers_change_nothing(root, tmp_path):
    record((CHEETAH,), episodes=3, size=(24, 24), steps=20, seed=5, workers=2, out=tmp_path, quiet=True)
    assert_same(root / "mmssl/gym/HalfCheetah-v5-v0", tmp_path / "mmssl/gym/HalfCheetah-v5-v0")


def test_more_episodes_extend_a_recording(root, tmp_path):
    for episodes in (1, 3):
        record((CHEETAH,), episodes=episodes, size=(24, 24), steps=20, seed=5, out=tmp_path, quiet=True)
    assert_same(root / "mmssl/gym/HalfCheetah-v5-v0", tmp_path / "mmssl/gym/HalfCheetah-v5-v0")
    metadata = json.loads((tmp_path / "mmssl/gym/HalfCheetah-v5-v0/data/metadata.json").read_text())
    assert (metadata["total_episodes"], metadata["total_steps"]) == (3, 60)


def test_another_seed_is_another_recording(root, tmp_path):
    (folder,) = record((CHEETAH,), episodes=1, size=(24, 24), steps=20, seed=6, out=tmp_path, quiet=True)
    here, there = arrays(folder), arrays(root / "mmssl/gym/HalfCheetah-v5-v0")
    assert not np.array_equal(here["episode_0/actions"], there["episode_0/actions"])
    assert not np.array_equal(there["episode_1/actions"], there["episode_0/actions"])


def test_other_settings_do_not_mix(root):
    with pytest.raises(MmsslError, match=r"other settings \(size \[24, 24\] there, \[32, 32\] here\).*--overwrite"):
        record((CHEETAH,), episodes=4, size=(32, 32), steps=20, seed=5, out=root, quiet=True)


def test_overwrite_deletes_only_when_all_is_in_order(tmp_path):
    options = {"episodes": 1, "steps": 4, "out": tmp_path, "quiet": True, "overwrite": True}
    (folder,) = record((CHEETAH,), size=(24, 24), **options)
    before = arrays(folder)
    with pytest.raises(MmsslError, match="unknown camera"):
        record((CHEETAH,), cameras=("typo",), **options)
    assert arrays(folder).keys() == before.keys()
    record((CHEETAH,), size=(32, 32), **options)
    assert arrays(folder)["episode_0/observations/rgb/track"].shape == (5, 32, 32, 3)


def command(out, *more):
    words = ["record", CHEETAH, "--episodes", "500", "--size", "64", "64", "--steps", "60", "--out", str(out), *more]
    return [sys.executable, "-m", "mmssl.cli", *words]


def wait_for_an_episode(folder, process, count=2):
    """Until the first `count` episodes are finished: those that a second worker has may be done before them."""
    for _ in range(600):
        if all((folder / f".episodes/episode_{i:06d}.hdf5").is_file() for i in range(count)):
            return
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.05)
    raise AssertionError("no episode in 30 seconds")


def test_an_interrupt_that_a_finalizer_swallows_is_raised_at_the_next_step(monkeypatch):
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: lost.append(what.exc_type))

    class Late:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        interrupts.check()
        late = Late()
        del late  # Python prints "Exception ignored in" and goes on
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(signal.SIGINT) is before and lost == [KeyboardInterrupt]


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("how", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 1)])
def test_interrupted_recording_goes_on(how, workers, tmp_path):
    folder = tmp_path / "mmssl/gym/HalfCheetah-v5-v0"
    process = subprocess.Popen(
        command(tmp_path, "--workers", str(workers)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    wait_for_an_episode(folder, process)
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    kept = RecordingFolder(folder).finished()
    assert 2 <= len(kept) < 500 and process.returncode != 0, output
    if how != signal.SIGKILL:
        assert f"{len(kept)} finished episodes are kept" in output and process.returncode == 130
        with h5py.File(folder / "data/main_data.hdf5") as file:  # what is there is whole
            assert all("rewards" in file[name] for name in file) and len(file) >= 1
        before = arrays(folder)
    wanted = max(kept) + 3
    record((CHEETAH,), episodes=wanted, size=(64, 64), steps=60, out=tmp_path, quiet=True)
    after = arrays(folder)
    assert sum(name.endswith("/rewards") for name in after) == wanted
    assert [p.name for p in folder.iterdir()] == ["data"] and len(list((folder / "data").iterdir())) == 2
    if how != signal.SIGKILL:
        for name, value in before.items():
            np.testing.assert_array_equal(value, after[name])


def test_a_kill_between_gathering_and_its_metadata(root, tmp_path):
    """The data file is in place and metadata.json is not, nor are the episode files cleared."""
    source = root / "mmssl/gym/HalfCheetah-v5-v0"
    shutil.copytree(source, tmp_path / "mmssl/gym/HalfCheetah-v5-v0")
    folder = RecordingFolder(tmp_path / "mmssl/gym/HalfCheetah-v5-v0")
    folder.begin(folder.recipe())
    (folder.data / "metadata.json").rename(folder.parts / "metadata.json")
    folder.release()
    record((CHEETAH,), episodes=3, size=(24, 24), steps=20, seed=5, out=tmp_path, quiet=True)
    metadata = json.loads((tmp_path / "mmssl/gym/HalfCheetah-v5-v0/data/metadata.json").read_text())
    assert metadata == json.loads((source / "data/metadata.json").read_text())


def test_half_an_episode_is_never_seen(tmp_path):
    writer = EpisodeWriter(tmp_path / "episode_000000.hdf5", capacity=4)
    writer.add_pictures({"rgb": {"a": np.zeros((4, 4, 3), np.uint8)}})
    assert not (tmp_path / "episode_000000.hdf5").exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_two_recorders_do_not_share_a_folder(tmp_path):
    first = RecordingFolder(tmp_path)
    first.begin({})
    with pytest.raises(MmsslError, match="another process is recording"):
        RecordingFolder(tmp_path).begin({})
    first.release()
    RecordingFolder(tmp_path).begin({})


def test_every_and_blocks_of_actions(tmp_path):
    options = {"episodes": 1, "size": (24, 24), "steps": 10, "out": tmp_path, "quiet": True}
    (all_of_it,) = record((CHEETAH,), **options)
    (coarse,) = record((CHEETAH,), every=4, version=1, **options)
    fine, coarse = arrays(all_of_it), arrays(coarse)
    assert coarse["episode_0/actions"].shape == (3, 4, 6)
    np.testing.assert_array_equal(coarse["episode_0/infos/steps"], [0, 4, 4, 2])
    np.testing.assert_array_equal(coarse["episode_0/actions"].reshape(-1, 6)[:10], fine["episode_0/actions"])
    assert not coarse["episode_0/actions"][2, 2:].any()
    np.testing.assert_array_equal(
        coarse["episode_0/observations/rgb/track"], fine["episode_0/observations/rgb/track"][[0, 4, 8, 10]]
    )
    assert coarse["episode_0/rewards"].sum() == pytest.approx(fine["episode_0/rewards"].sum(), rel=1e-4)


def test_policy_of_the_user(tmp_path, monkeypatch):
    (tmp_path / "my_policy.py").write_text(
        "import numpy as np\n"
        "def follow(env, rng):\n"
        "    return lambda seen: np.full(6, seen['rgb']['track'].mean() / 255 * (seen['state'].shape == (17,)))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (folder,) = record((CHEETAH,), episodes=1, steps=3, policy="my_policy:follow", out=tmp_path / "d", quiet=True)
    found = arrays(folder)
    expected = found["episode_0/observations/rgb/track"][:3].mean((1, 2, 3)) / 255
    np.testing.assert_allclose(found["episode_0/actions"][:, 0], expected, rtol=1e-4)


def test_estimate_is_said_and_about_right(tmp_path, capsys):
    (folder,) = record(("dmc/cheetah-run",), episodes=2, steps=60, depth=True, out=tmp_path)
    said = capsys.readouterr().out
    assert "Recording 2 episodes of 1 tasks: about" in said and "frames/s" in said
    number, unit = said.split("about ")[1].split(" on disk")[0].split()
    estimated = float(number) * {"kB": 1e3, "MB": 1e6}[unit]
    real = (folder / "data/main_data.hdf5").stat().st_size
    assert 0.6 < estimated / real < 1.7


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(MmsslError, match=r"needs about .* has 1.0 kB free.*--out"):
        record((CHEETAH,), episodes=2, out=tmp_path, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_disk_full_while_recording(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmssl.envs.storage.EpisodeWriter.finish", full)
    with pytest.raises(MmsslError, match=r"no space left.*goes on from there"):
        record((CHEETAH,), episodes=1, steps=3, out=tmp_path, quiet=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cameras": ("front",)}, "unknown camera 'front'.*track"),
        ({"policy": "expert"}, "no scripted expert"),
        ({"randomize": 2.0}, "from 0 to 1, got 2.0"),
        ({"noise": -1.0}, "--noise"),
        ({"episodes": 0}, "--episodes must be at least 1"),
        ({"every": 0}, "--every must be at least 1"),
        ({"size": (64, 0)}, "--width must be at least 1"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_wrong_input(given, words, workers, tmp_path):
    with pytest.raises(MmsslError, match=words):
        record((CHEETAH,), workers=workers, out=tmp_path, quiet=True, **given)
    assert list(tmp_path.iterdir()) == []


def test_error_inside_a_worker_reaches_the_user(tmp_path):
    """The second task's camera is only known to be missing once a worker has opened it."""
    with pytest.raises(MmsslError, match="unknown camera 'side'"):
        record(("dmc/cheetah-run", "dmc/pendulum-swingup"), episodes=1, steps=4, cameras=("side",), workers=2,
               out=tmp_path, quiet=True)  # fmt: skip
