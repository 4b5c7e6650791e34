"""What every test needs, set before anything imports mujoco or torch, which look only once."""

import os
import sys

import pytest

# The tensors of tests are small: more threads only wait for each other, all the more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
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
