"""Pictures against MuJoCo's own renderer, and randomisation."""

import numpy as np
import pytest

from mmssl.envs import rendering
from mmssl.envs.make import make_sim
from mmssl.envs.randomize import RandomizeConfig, VisualRandomizer
from mmssl.envs.rendering import Renderer, geom_names, opengl_context
from mmssl.envs.wrappers import make_env, open_renderer
from mmssl.errors import MmsslError

mujoco = pytest.importorskip("mujoco")
try:
    opengl_context()
except MmsslError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def drawer():
    env = make_sim("metaworld/drawer-open")
    env.reset(seed=1)
    return env


@pytest.fixture
def reference(drawer):
    renderer = mujoco.Renderer(drawer.model, 48, 64)
    yield renderer
    renderer.close()


def draw(reference, env, camera):
    reference.update_scene(env.data, camera)
    return reference.render().copy()


def test_faithful_pictures_are_mujocos_own(drawer, reference):
    ours = Renderer(drawer.model, drawer.data, ("topview",), (48, 64), faithful=True)
    picture = ours.render()["rgb"]["topview"]
    ours.close()
    np.testing.assert_array_equal(picture, draw(reference, drawer, "topview"))
    assert picture.std() > 20


def test_depth_in_metres_and_geom_ids(drawer, reference):
    ours = Renderer(drawer.model, drawer.data, ("topview",), (48, 64), depth=True, segmentation=True)
    pictures = ours.render()
    ours.close()
    reference.enable_depth_rendering()
    expected = draw(reference, drawer, "topview")
    reference.disable_depth_rendering()
    reference.enable_segmentation_rendering()
    ids = draw(reference, drawer, "topview")
    depth, segmentation = pictures["depth"]["topview"], pictures["segmentation"]["topview"]
    assert depth.dtype == np.float16 and segmentation.dtype == np.int16
    np.testing.assert_allclose(depth.astype(float), expected, rtol=1e-3)
    expected_ids = np.where(ids[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM), ids[..., 0], -1)
    np.testing.assert_array_equal(segmentation, expected_ids)
    names = geom_names(drawer.model)
    assert len(names) == drawer.model.ngeom == len(set(names))
    assert any("table" in names[i] for i in np.unique(segmentation[segmentation >= 0]))


def test_depth_and_pose_agree_on_where_things_are(drawer):
    """The pixel into which a known body falls, by pose and field of view, has that body's id and about its depth."""
    ours = open_renderer(drawer, ("corner4",), (96, 96), True, True)
    pictures, fovy = ours.render(), ours.fovy("corner4")
    ours.close()
    handle = [g for g in range(drawer.model.ngeom) if "drawer" in drawer.model.body(drawer.model.geom_bodyid[g]).name]
    world_to_camera = np.linalg.inv(pictures["pose"]["corner4"].astype(np.float64))
    visible = np.isin(pictures["segmentation"]["corner4"], handle)
    rows, columns = np.nonzero(visible)
    x, y, z, _ = world_to_camera @ np.append(drawer.data.geom_xpos[handle].mean(0), 1)
    focal = 48 / np.tan(np.radians(fovy / 2))
    column, row = 48 + focal * x / -z, 48 - focal * y / -z
    assert rows.min() - 8 < row < rows.max() + 8 and columns.min() - 8 < column < columns.max() + 8
    assert abs(float(np.median(pictures["depth"]["corner4"][visible])) + z) < 0.2


def test_corner_cameras_stand_upright(drawer):
    ours = open_renderer(drawer, ("corner", "corner2", "corner3", "corner4"), (32, 32))
    for name, pose in ours.render()["pose"].items():
        assert pose[2, 1] > 0.5, name  # the picture's up axis points up in the world
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-5)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1, abs=1e-5)  # turned, not mirrored
    ours.close()


def test_rendering_leaves_the_model_alone(drawer):
    vis = drawer.model.vis
    before = vis.quality.offsamples, vis.quality.shadowsize, vis.global_.offwidth
    Renderer(drawer.model, drawer.data, ("topview",), (32, 32)).close()
    assert before == (vis.quality.offsamples, vis.quality.shadowsize, vis.global_.offwidth) and before[0] > 0


def test_unknown_camera_lists_all(drawer):
    with pytest.raises(MmsslError, match=r"unknown camera 'corner5'.*corner2.*table.*topview"):
        open_renderer(drawer, ("corner5",), (32, 32))


def test_no_backend_says_what_to_install(monkeypatch):
    monkeypatch.setattr(rendering, "_CONTEXT", {})
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr("mujoco.egl.GLContext", lambda *_: (_ for _ in ()).throw(RuntimeError("no display")))
    with pytest.raises(MmsslError, match="apt-get install libegl1 libgl1-mesa-dri"):
        opengl_context()


def looks(env, config, seed, camera="corner4"):
    renderer = open_renderer(env, (camera,), (48, 48))
    randomizer = VisualRandomizer(renderer, config)
    randomizer.apply(np.random.SeedSequence(seed))
    pictures = renderer.render()
    randomizer.restore()
    after = renderer.render()["rgb"][camera]
    renderer.close()
    return pictures["rgb"][camera].astype(int), pictures["pose"][camera], after.astype(int)


def test_randomisation_is_reproducible_and_undone(drawer):
    plain, _, _ = looks(drawer, RandomizeConfig(), 0)
    one, pose_one, after = looks(drawer, RandomizeConfig(0.5), 1)
    same, pose_same, _ = looks(drawer, RandomizeConfig(0.5), 1)
    other, _, _ = looks(drawer, RandomizeConfig(0.5), 2)
    np.testing.assert_array_equal(one, same)
    np.testing.assert_array_equal(pose_one, pose_same)
    np.testing.assert_array_equal(after, plain)
    assert np.abs(one - plain).mean() > 5 and np.abs(one - other).mean() > 5


@pytest.mark.parametrize("component", ["camera", "color", "light"])
def test_components_alone(drawer, component):
    plain, pose, _ = looks(drawer, RandomizeConfig(), 0)
    changed, moved, _ = looks(drawer, RandomizeConfig(0.0, **{component: 0.6}), 3)
    assert np.abs(changed - plain).mean() > 2
    assert np.allclose(pose, moved) == (component != "camera")
    _, moved_whole, _ = looks(drawer, RandomizeConfig(0.6), 3)
    assert np.allclose(moved, moved_whole) == (component == "camera")  # each has a stream of its own


def test_camera_offset_stays_within_its_range(drawer):
    _, pose, _ = looks(drawer, RandomizeConfig(), 0)
    for seed in range(8):
        _, moved, _ = looks(drawer, RandomizeConfig(0.0, camera=0.5), seed)
        angle = np.degrees(np.arccos(np.clip(pose[:3, 2] @ moved[:3, 2], -1, 1)))
        assert 0 < angle < np.hypot(8, 5) + 0.1  # half of the full ranges of azimuth and elevation
        assert np.linalg.norm(pose[:3, 3] - moved[:3, 3]) < 0.6


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_strength_out_of_range(value):
    with pytest.raises(MmsslError, match="from 0 to 1"):
        RandomizeConfig(light=value)


def test_make_env_observations():
    env = make_env("gym/HalfCheetah-v5", ("track",), (32, 40), True, True, RandomizeConfig(0.5))
    first, _ = env.reset(seed=3)
    assert first in env.observation_space and first["rgb"]["track"].shape == (32, 40, 3)
    env.step(env.action_space.sample())
    again, _ = env.reset(seed=3)
    np.testing.assert_array_equal(first["rgb"]["track"], again["rgb"]["track"])
    assert set(make_env("gym/HalfCheetah-v5", None).reset(seed=0)[0]) == {"proprio", "state"}
    env.close()
