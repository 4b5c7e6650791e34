"""Tiny folders in the very layouts of DAVIS, VIP and JHMDB: textured squares that slide over a textured ground."""

from pathlib import Path

import numpy as np
from PIL import Image


def sliding(frames: int = 5, size=(32, 48), step=(0, 4), squares: int = 1, seed: int = 0, block: int = 2):
    """(frames uint8 (T, H, W, 3), ids uint8 (T, H, W)): 16-pixel squares of noise that move by `step` each frame."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(0, 256, (size[0] // block, size[1] // block, 3), dtype=np.uint8)
    textures = rng.integers(0, 256, (squares, 16 // block, 16 // block, 3), dtype=np.uint8)
    ground, textures = ground.repeat(block, 0).repeat(block, 1), textures.repeat(block, 1).repeat(block, 2)
    video, ids = np.repeat(ground[None], frames, 0), np.zeros((frames, *size), np.uint8)
    for t in range(frames):
        for k in range(squares):
            top, left = k * 16 + t * step[0], 4 + t * step[1]
            seen = video[t, top : top + 16, left : left + 16]  # a square may slide out of the frame
            seen[:] = textures[k][: seen.shape[0], : seen.shape[1]]
            ids[t, top : top + 16, left : left + 16] = k + 1
    return video, ids


def save_palette(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    picture.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0] + [9] * (3 * 253))
    picture.save(path)


def save_frames(folder: Path, frames: np.ndarray, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(
            folder / name, **({"quality": 95, "subsampling": 0} if name.endswith("jpg") else {})
        )


def write_davis(root: Path, sequences=("bear", "camel"), frames: int = 5) -> Path:
    """DAVIS 2017 with two objects a sequence, the last pixel of each frame to be ignored; a train list of one."""
    for number, name in enumerate(sequences):
        video, ids = sliding(frames, squares=2, seed=number)
        ids[:, -1, -1] = 255
        save_frames(root / "JPEGImages/480p" / name, video, [f"{t:05d}.jpg" for t in range(frames)])
        for t in range(frames):
            save_palette(root / "Annotations/480p" / name / f"{t:05d}.png", ids[t])
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("\n".join(sequences) + "\n")
    (root / "ImageSets/2017/train.txt").write_text(f"{sequences[0]}\n")
    return root


def write_vip(root: Path, sequences=("videos7", "videos12"), frames: int = 4) -> Path:
    """VIP with the part 13 (face); the frame before the last has no annotation; the list gives paths."""
    for number, name in enumerate(sequences):
        video, ids = sliding(frames, seed=number)
        names = [f"{1 + 25 * t:012d}" for t in range(frames)]
        save_frames(root / "Images" / name, video, [f"{stem}.jpg" for stem in names])
        for t, stem in enumerate(names):
            if t != frames - 2:
                save_palette(root / "Annotations/Category_ids" / name / f"{stem}.png", ids[t] * 13)
    (root / "lists").mkdir()
    (root / "lists/val_videos.txt").write_text("".join(f"../Images/{name}\n" for name in sequences))
    return root


def write_jhmdb(root: Path, actions=("golf", "kick_ball"), frames: int = 12) -> Path:
    """JHMDB with two videos an action, of which the second is the test part; joints sit on the sliding square."""
    from scipy.io import savemat

    (root / "splits").mkdir(parents=True)
    for number, action in enumerate(actions):
        lines = []
        for k in (1, 2):
            name = f"{action}_video_(np{k})"
            video, _ = sliding(frames, size=(64, 96), seed=2 * number + k, block=1)
            save_frames(root / "Rename_Images" / action / name, video, [f"{t + 1:05d}.png" for t in range(frames)])
            file = root / "joint_positions" / action / name / "joint_positions.mat"
            file.parent.mkdir(parents=True)
            savemat(file, {"pos_img": joints_of(frames) + 1, "scale": np.ones((1, frames))})
            lines.append(f"{name}.avi {k}")
        (root / "splits" / f"{action}_test_split1.txt").write_text("\n".join(lines) + "\n")
        (root / "splits" / f"{action}_test_split2.txt").write_text("nothing.avi 2\n")
    return root


def joints_of(frames: int) -> np.ndarray:
    """float (2, 15, T) joints in pixels, counted from 0: a 5 x 3 lattice on a square that moves 4 pixels a frame."""
    x, y = np.meshgrid(np.arange(4, 20, 3.5), np.arange(1, 16, 6.0))
    start = np.stack([x.ravel(), y.ravel()])[..., None]
    return start + np.stack([4.0 * np.arange(frames), np.zeros(frames)])[:, None]
