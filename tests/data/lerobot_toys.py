"""A LeRobot v3 data set of a few numbered frames, as its documentation describes the layout."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from video_toys import numbered_frames, write_video

FPS, TASKS = 10, ("reach the cube", "push the cube")
CAMERA = "observation.images.top"


def write_lerobot(root: Path, lengths=(7, 3, 5), cameras: bool = True, version: str = "v3.0", **columns) -> Path:
    """Episodes of these lengths, the last one in files of its own; state (episode, step), action = state + 0.5.

    A frame spells its number, counted over all episodes: `row` of `numbered_frames`.
    """
    root.mkdir(parents=True)
    number = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(n) for n in lengths])
    state = np.stack([number, step], 1).astype(np.float32)
    rows = {
        "observation.state": list(state),
        "action": list(state + 0.5),
        "next.reward": step.astype(np.float32),
        "next.success": (number == 1) & (step == 2),
        "timestamp": (step / FPS).astype(np.float32),
        "frame_index": step,
        "episode_index": number,
        "index": np.arange(len(number)),
        "task_index": number % 2,
        **columns,
    }
    last = number == len(lengths) - 1
    for k, part in enumerate((~last, last)):
        file = root / f"data/chunk-000/file-{k:03d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        chosen = {name: [values[i] for i in np.flatnonzero(part)] for name, values in rows.items()}
        pq.write_table(pa.table({n: [v.tolist() for v in values] for n, values in chosen.items()}), file)
        if cameras:
            video = root / f"videos/{CAMERA}/chunk-000/file-{k:03d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            write_video(video, numbered_frames(len(number))[part], fps=FPS)
    _write_meta(root, lengths, rows, cameras, version)
    return root


def _write_meta(root: Path, lengths, rows, cameras, version) -> None:
    about = []
    for e, n in enumerate(lengths):
        final, before = e == len(lengths) - 1, sum(lengths[:e])
        row = {"episode_index": e, "tasks": [TASKS[e % 2]], "length": n, "stats/action/mean": [0.0, 0.0]}
        row |= {"data/chunk_index": 0, "data/file_index": int(final)}
        row |= {"dataset_from_index": before, "dataset_to_index": before + n}
        if cameras:
            begin = 0 if final else before
            row |= {f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": int(final)}
            row |= {f"videos/{CAMERA}/from_timestamp": begin / FPS, f"videos/{CAMERA}/to_timestamp": (begin + n) / FPS}
        about.append(row)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(about), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0, 1], "__index_level_0__": list(TASKS)}), root / "meta/tasks.parquet")
    features = {name: {"dtype": "float32", "shape": [np.asarray(x[0]).size], "names": None} for name, x in rows.items()}
    if cameras:
        features[CAMERA] = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    info = {"codebase_version": version, "robot_type": "toy", "fps": FPS, "features": features}
    info |= {"total_episodes": len(lengths), "total_frames": sum(lengths), "splits": {"train": f"0:{len(lengths)}"}}
    info |= {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
    info |= {"video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if cameras else None}
    (root / "meta/info.json").write_text(json.dumps(info))
    mean = np.mean(rows["action"], 0)
    (root / "meta/stats.json").write_text(json.dumps({"action": {"mean": mean.tolist(), "std": [1.0, 1.0]}}))
