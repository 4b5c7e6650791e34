"""Small datasets on disk: class folders of pictures, and a recording in the layout that `mmssl record` writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # video_toys is imported by its neighbours


def write_pictures(root: Path, classes: tuple[str, ...] = ("ant", "bee"), each: int = 10, seed: int = 0) -> Path:
    """`each` noisy JPEGs of different sizes in every class folder."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(each):
            pixels = rng.integers(0, 256, (40 + k, 56, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k:02d}.jpg")
    return root


def write_recording(
    root: Path, task: str = "metaworld/reach", episodes: int = 6, length: int = 7, size: int = 16, first=0
) -> Path:
    """Frames whose first pixel spells (episode, time), a state of 4 numbers of which the last never changes."""
    import h5py

    data = root / f"mmssl/{task}-v0" / "data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for e in range(episodes):
            frames = np.random.default_rng(e).integers(0, 256, (length, size, size, 3), dtype=np.uint8)
            frames[:, 0, 0, 0], frames[:, 0, 0, 1], frames[:, 0, 0, 2] = first + e, np.arange(length), 1
            group = file.create_group(f"episode_{e}")
            for camera, values in {"front": frames, "side": 255 - frames}.items():
                group.create_dataset(
                    f"observations/rgb/{camera}", data=values, chunks=(1, size, size, 3), compression=1
                )
            depth = frames[..., 0].astype(np.float16) / 100
            group.create_dataset("observations/depth/front", data=depth, chunks=(1, size, size))
            ids = frames[..., 0].astype(np.int16) - 1
            group.create_dataset("observations/segmentation/front", data=ids, chunks=(1, size, size))
            state = np.stack([np.full(length, e), np.arange(length), np.full(length, first), np.full(length, 7)], 1)
            group["observations/state"] = state.astype(np.float32)
            group["observations/proprio"] = state[:, :2].astype(np.float32)
            group["actions"] = np.zeros((length - 1, 2), np.float32)
            group["rewards"] = np.arange(1, length, dtype=np.float32)
            group["infos/success"] = np.arange(length) == length - 1
    own = {"instruction": f"do {task}", "cameras": {"side": {}, "front": {}}, "has_success": True}
    (data / "metadata.json").write_text(json.dumps({"dataset_id": f"mmssl/{task}-v0", "mmssl": own}))
    return data.parent


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`record(task, episodes=...)` -> folder, below the folder that ids are looked up in; see `write_recording`."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return lambda *args, **kwargs: write_recording(tmp_path / "datasets", *args, **kwargs)
