"""What every test needs: headless rendering is chosen before anything imports mujoco, which looks only once."""

import os
import sys

import pytest

if sys.platform.startswith("linux"):
    os.environ.setdefault("MUJOCO_GL", "egl")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test reads or fills the user's cache."""
    patch = pytest.MonkeyPatch()
    patch.setenv("MMSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.delenv("MINARI_DATASETS_PATH", raising=False)
    yield
    patch.undo()
