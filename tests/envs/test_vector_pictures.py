"""Pictures of vector worlds, worker processes, which share the memory that pictures need, and Gymnasium's checker."""

import os
import signal
import sys
from multiprocessing.shared_memory import SharedMemory
from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mmssl.envs.single import make_single
from mmssl.envs.vector import episode_seed, make_vec
from mmssl.envs.vector_workers import Shared
from mmssl.envs.wrappers import make_env
from mmssl.errors import MmsslError

pytest.importorskip("mujoco")


needs_pictures = pytest.mark.needs_pictures


@needs_pictures
def test_pictures_are_of_their_own_world():
    """Several worlds draw with one OpenGL context: each must see itself, from each camera, as it would alone."""
    world = make_vec("metaworld/drawer-open", 2, observe="pixels", cameras=("corner4", "topview"), size=(24, 32))
    obs, _ = world.reset()
    assert list(obs) == ["image/corner4", "image/topview"]
    for i in range(2):
        alone = make_env("metaworld/drawer-open", ("corner4", "topview"), (24, 32))
        seen = alone.reset(seed=episode_seed(0, i, 0))[0]["rgb"]
        for camera in ("corner4", "topview"):
            picture = obs[f"image/{camera}"][i]
            np.testing.assert_array_equal(picture, seen[camera].transpose(2, 0, 1))
            assert picture.dtype == np.uint8 and picture.shape == (3, 24, 32) and picture.std() > 10
        alone.close()
    assert not np.array_equal(obs["image/topview"][0], obs["image/topview"][1])
    world.close()


@needs_pictures
def test_frames_are_stacked_oldest_first_and_begin_anew():
    make = {"observe": "both", "proprio": True, "size": (16, 16)}
    world, plain = (make_vec("gym/InvertedPendulum-v5", 2, frame_stack=k, **make) for k in (3, 1))
    name = next(name for name in plain.layout if name.startswith("image/"))
    frames, obs = [plain.reset(seed=0)[0][name]], world.reset(seed=0)[0]
    np.testing.assert_array_equal(obs[name], np.concatenate([frames[0]] * 3, 1))
    begun = [0, 0]
    for t in range(1, 40):
        starting, action = world.starting, np.array([[0.5], [-0.1]], np.float32)
        obs = world.step(action)[0]
        frames.append(plain.step(action)[0][name])
        for i in range(2):
            begun[i] = t if starting[i] else begun[i]
            expected = [frames[max(t - back, begun[i])][i] for back in (2, 1, 0)]
            np.testing.assert_array_equal(obs[name][i], np.concatenate(expected))
    assert min(begun) > 0 and begun[0] != begun[1] and world.spaces()["observations"][name] == ((9, 16, 16), np.uint8)
    assert list(obs) == ["state", "proprio", name]
    before = obs[name].copy()
    obs, _ = world.reset_where(np.array([False, True]))
    np.testing.assert_array_equal(obs[name][0], before[0])
    np.testing.assert_array_equal(obs[name][1], np.concatenate([obs[name][1, -3:]] * 3))


@needs_pictures
def test_workers_change_nothing():
    rows = []
    for workers in (0, 2):
        world = make_vec("gym/InvertedPendulum-v5", 3, observe="both", frame_stack=2, size=(16, 16), workers=workers)
        obs, _ = world.reset(seed=2)
        seen = [obs]
        for _ in range(25):
            obs, reward, terminated, truncated, infos = world.step(world.random_actions())
            seen.append({**obs, "r": reward, "t": terminated, "c": truncated, **infos.get("episode", {})})
        rows.append(seen)
        if workers:
            check_death(world)
            memory, processes = world.runner.shared.memory.name, list(world.runner.processes)
        world.close()
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(FileNotFoundError):
        SharedMemory(memory)
    for here, there in zip(*rows, strict=True):
        assert here.keys() == there.keys()
        for name in here:
            np.testing.assert_array_equal(here[name], there[name])
    assert any("l" in row for row in rows[0])


def check_death(world):
    os.kill(world.runner.processes[1].pid, signal.SIGKILL)
    with pytest.raises(MmsslError, match=r"ended unexpectedly, exit code -9.*fewer workers"):
        for _ in range(2):
            world.step(world.random_actions())


def test_too_little_shared_memory_is_said(monkeypatch):
    """The system would kill a worker that writes beyond it."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux keeps shared memory in a small file system")
    monkeypatch.setattr("mmssl.envs.vector_workers.shutil.disk_usage", lambda _: SimpleNamespace(free=10**7))
    with pytest.raises(MmsslError, match=r"need 21 MB of shared memory and /dev/shm has 10 MB; use workers=0"):
        Shared({"image/front": ((3, 1000, 1000), np.dtype(np.uint8))}, ((6,), np.dtype(np.float32)), 7)


def test_errors_of_workers_arrive():
    with pytest.raises(MmsslError, match="unknown camera 'trak': did you mean 'track'"):
        make_vec("gym/HalfCheetah-v5", 1, observe="pixels", cameras=("trak",), workers=1)


@needs_pictures
def test_unknown_camera():
    with pytest.raises(MmsslError, match="unknown camera 'trak': did you mean 'track'"):
        make_vec("gym/Hopper-v5", 1, observe="pixels", cameras=("trak",))


@pytest.mark.parametrize(
    "task", ["gym/Hopper-v5", "gym/Reacher-v5", "dmc/cheetah-run", "metaworld/drawer-open", "robotics/FetchReach-v4"]
)
@pytest.mark.parametrize("observe", ["state", pytest.param("both", marks=needs_pictures)])
def test_gymnasiums_checker_passes(task, observe):
    env = make_single(task, observe=observe, size=(16, 16), frame_stack=2, proprio=True)
    check_env(env, skip_render_check=True)
    obs, info = env.reset(seed=1)
    assert obs in env.observation_space and info == {"success": False}
    env.close()
