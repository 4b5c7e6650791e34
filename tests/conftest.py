"""What every test needs, set before anything imports mujoco or torch, which look only once."""

import functools
import os
import sys

import pytest

# The tensors of tests are small: more threads only wait for each other, all the more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.platform.startswith("linux"):
    os.environ.setdefault("MUJOCO_GL", "egl")


def pytest_configure(config):
    config.addinivalue_line("markers", "needs_pictures: skipped where nothing renders")


def pytest_runtest_setup(item):
    if item.get_closest_marker("needs_pictures") and not can_render():
        pytest.skip("nothing renders here")


@functools.cache
def can_render() -> bool:
    """Whether MuJoCo can draw here."""
    from mmssl.envs.rendering import opengl_context
    from mmssl.errors import MmsslError

    try:
        opengl_context()
    except MmsslError:
        return False
    return True


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test reads or fills the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MMSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("MINARI_DATASETS_PATH", raising=False)
    yield
    patch.undo()
