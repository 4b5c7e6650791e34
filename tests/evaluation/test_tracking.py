"""`mmssl track` on videos whose answers are known, in every layout that it reads."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from mmssl.config import to_dict
from mmssl.data.labelled_videos import LabelledVideo
from mmssl.data.loading import DataConfig
from mmssl.encoder import Features
from mmssl.errors import MmsslError
from mmssl.evaluation.frame_maps import EncoderMaps, PixelMaps, frame_maps
from mmssl.evaluation.overlays import LARGEST, SMALLEST, colour, draw_joints, draw_masks, handy, save_mp4, strip
from mmssl.evaluation.segmentation_scores import MaskTally
from mmssl.evaluation.tracker import PRESETS, TrackConfig, carry_through, label_propagation, truths_of, wanted_size
from mmssl.evaluation.tracking import How, Which, track
from mmssl.registry import EVALUATORS

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from labelled_toys import sliding, write_davis, write_jhmdb, write_vip

CPU = torch.device("cpu")


class InMemory(LabelledVideo):
    """Frames uint8 (T, H, W, 3) and labels, as a labelled video."""

    def __init__(self, frames, labels, kind="masks"):
        super().__init__("memory", len(frames))
        self.frames, self.answers, self.kind = frames, labels, kind

    def _frame(self, time):
        return self.frames[time]

    def _labels(self, time):
        return self.answers[time]


@pytest.mark.parametrize("squares", [1, 2])
def test_pixels_follow_a_square_over_noise_and_a_copy_does_not(squares):
    video = InMemory(*sliding(8, (64, 64), step=(0, 4), squares=squares))
    scores = {}
    for name, source in (("pixels", PixelMaps((4, 4), CPU)), ("copy", None)):
        scores[name] = MaskTally().add(truths_of(video), carry_through(source, video, "masks", TrackConfig()))["J"]
    assert scores["pixels"] > 0.9 and scores["copy"] < 0.35


def test_a_jump_farther_than_the_neighbourhood_is_lost():
    video = InMemory(*sliding(3, (32, 96), step=(0, 32)))
    near, far = (
        MaskTally().add(
            truths_of(video),
            carry_through(PixelMaps((4, 4), CPU), video, "masks", TrackConfig(neighbourhood=reach)),
        )["J"]
        for reach in (3, 8)
    )
    assert far > 0.9 and near < 0.1


def test_joints_are_carried_and_those_outside_are_not_seen():
    frames, _ = sliding(6, (64, 96), step=(0, 8), block=1)
    start = np.array([[8, 8], [12, 12], [-40, 5]], np.float32)
    joints = [start + np.array([8 * t, 0]) for t in range(6)]
    found = carry_through(
        PixelMaps((4, 4), CPU), InMemory(frames, joints, "keypoints"), "keypoints", TrackConfig(top_k=1)
    )
    for truth, guess in zip(joints, found, strict=True):
        assert np.abs(guess[:2] - truth[:2]).max() <= 2 and np.isnan(guess[2]).all()
    still = carry_through(None, InMemory(frames, joints, "keypoints"), "keypoints", TrackConfig())
    assert all(np.array_equal(guess, still[0], equal_nan=True) for guess in still)


def test_sizes_of_frames():
    assert wanted_size((480, 854), PRESETS["davis"]) == (480, 880)
    assert wanted_size((480, 854), TrackConfig()) == (480, 854)
    assert wanted_size((96, 96), PRESETS["recorded"]) == (192, 192)
    assert wanted_size((240, 320), TrackConfig(size=(480,))) == (480, 640)
    assert PixelMaps((16, 14), CPU).fit((480, 854)) == (480, 854) and PixelMaps((16, 16), CPU).fit((3, 25)) == (16, 32)


def test_maps_of_an_image_encoder_at_another_size(tiny_encoder):
    frames, ids = sliding(5, (24, 32))
    source = EncoderMaps(tiny_encoder)
    found = torch.stack(list(frame_maps(source, InMemory(frames, ids), (24, 32), batch_size=2)))
    assert found.shape == (5, 6, 8, 32) and torch.allclose(found.norm(dim=-1), torch.ones(5, 6, 8), atol=1e-5)
    assert tiny_encoder.config.tokenizers["image"].image_size == (16, 16)  # the encoder itself stays as it was
    expected = tiny_encoder.resize((24, 32))({"image": torch.tensor(frames).permute(0, 3, 1, 2)}).map()
    torch.testing.assert_close(found, nn.functional.normalize(expected, dim=-1))


class Clips(nn.Module):
    """An encoder of clips of 8 frames in tubelets of 2: a token holds the mean brightness of its tubelet's frames."""

    modalities = ("video",)

    def __init__(self):
        super().__init__()
        config = type("C", (), {"image_size": (8, 8), "patch_size": (4, 4), "frames": 8, "tubelet": 2})
        tokenizer = nn.Identity()
        tokenizer.config, tokenizer.grid = config, (4, 2, 2)
        self.tokenizers = nn.ModuleDict({"video": tokenizer})
        self.seen = []

    def forward(self, batch):
        clip = batch["video"]  # (B, 8, 3, 8, 8)
        self.seen += (clip[:, :, 0, 0, 0] * 255).round().int().tolist()
        tokens = clip.mean(2).unflatten(1, (4, 2)).mean(2)[:, :, ::4, ::4].flatten(1)[..., None]  # (B, 16, 1)
        index = torch.arange(16).expand(len(clip), -1)
        return Features(tokens, index, torch.ones_like(index, dtype=torch.bool), None, {"video": (4, 2, 2)})


def test_windows_of_a_clip_encoder_stand_around_their_frame():
    frames = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    encoder = Clips()
    source = EncoderMaps(encoder)
    assert (source.span, source.before) == (8, 4)
    maps = list(frame_maps(source, InMemory(frames, frames[..., 0]), (8, 8), batch_size=4))
    assert len(maps) == 6 and maps[0].shape == (2, 2, 1)
    assert encoder.seen[0] == [0, 0, 0, 0, 0, 1, 2, 3] and encoder.seen[3] == [0, 0, 1, 2, 3, 4, 5, 5]
    assert encoder.seen[5] == [1, 2, 3, 4, 5, 5, 5, 5]
    raw = source(torch.tensor([[0, 0, 1, 2, 3, 4, 5, 5]])[:, :, None, None, None].expand(1, 8, 3, 8, 8) / 255)
    assert torch.allclose(raw, torch.tensor(3.5 / 255))  # the tubelet of frames 3 and 4


def test_maps_of_a_real_clip_encoder_at_another_size(tiny_video_encoder):
    """4 frames in 2 tubelets: the window of frame t is t-2 .. t+1, and its features are those of the second tubelet."""
    frames, ids = sliding(5, (16, 24))
    found = list(frame_maps(EncoderMaps(tiny_video_encoder), InMemory(frames, ids), (16, 24)))
    clip = torch.tensor(frames[[0, 1, 2, 3]]).permute(0, 3, 1, 2)[None]
    expected = tiny_video_encoder.resize((16, 24))({"video": clip}).map()[0, 1]
    assert len(found) == 5 and found[2].shape == (4, 6, 32)
    torch.testing.assert_close(found[2], nn.functional.normalize(expected, dim=-1))


@pytest.mark.parametrize("kind", ["tiny_encoder", "tiny_video_encoder"])
def test_the_batch_size_changes_nothing(kind, request):
    video = InMemory(*sliding(7, (32, 32)))
    source = EncoderMaps(request.getfixturevalue(kind))
    one, many = (carry_through(source, video, "masks", TrackConfig(batch_size=size)) for size in (1, 64))
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))


def write_recording(root: Path, episodes: int = 3, segmentation: bool = True) -> Path:
    """A Minari dataset of sliding squares: geoms 1 and 2 on a floor 0."""
    import h5py

    data = root / "mmssl/toys/squares-v0/data"
    data.mkdir(parents=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for e in range(episodes):
            frames, ids = sliding(6, (32, 48), squares=2, seed=e, block=1)
            group = file.create_group(f"episode_{e}/observations")
            group.create_dataset("rgb/front", data=frames, chunks=(1, 32, 48, 3))
            if segmentation:
                group.create_dataset("segmentation/front", data=ids.astype(np.int16), chunks=(1, 32, 48))
            file[f"episode_{e}/rewards"] = np.zeros(5, np.float32)
    own = {"cameras": {"front": {}}, "geoms": ["floor", "red", "blue"]}
    (data / "metadata.json").write_text(json.dumps({"dataset_id": "mmssl/toys/squares-v0", "mmssl": own}))
    return data.parent


@pytest.fixture
def recorded_run(run_folder, tmp_path):
    """A run folder of a tiny MAE that learned from a recording with segmentation."""
    data = to_dict(DataConfig(source=(str(write_recording(tmp_path / "sets")),), image_size=(16, 16), test_every=3))
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    (run_folder / "config.yaml").write_text(yaml.safe_dump({**config, "data": data}))
    return run_folder


def test_a_run_is_tracked_on_its_own_recording(recorded_run, capsys):
    rows = track(str(recorded_run), how=How(size=(32,)), random_seeds=2, device="cpu")
    out = capsys.readouterr().out
    assert "1/1 toys/squares/2: J&F pretrained" in out and "J&F of each sequence" in out
    held = json.loads((recorded_run / "scores.json").read_text())["rows"]
    assert len(held) == len(rows) == 12 and {r["metric"] for r in held} == {"J&F", "J", "F"}
    assert [r["encoder"] for r in held[::3]] == ["pretrained", "random", "pixels", "copy"]
    assert all((r["spread"] is None) == (r["encoder"] != "random") for r in held)
    assert {(r["evaluator"], r["target"]) for r in held} == {("track, size 32", "squares-v0")}
    value = {(r.encoder, r.metric): r.value for r in rows}
    assert value["pixels", "J"] > 0.8 > value["copy", "J"] > 0.2 and value["pretrained", "J"] > value["copy", "J"]
    folder = recorded_run / "track/squares-v0"
    found = json.loads((folder / "scores.json").read_text())
    assert found["objects"] == {"toys/squares/2": ["red", "blue"]} and found["settings"]["neighbourhood"] == 6
    assert found["sequences"]["toys/squares/2"]["pixels"]["J recall"] == 1
    assert found["total"]["random"]["J&F/spread"] >= 0
    check_pictures(folder / "toys_squares_2", rows=4, frames=6)


def check_pictures(stem: Path, rows: int, frames: int) -> None:
    """A strip with `rows` answers, an animation and a film with all frames."""
    page = Image.open(stem.with_suffix(".png"))
    assert page.height > rows * SMALLEST and page.width > 6 * SMALLEST
    assert Image.open(stem.with_suffix(".webp")).n_frames == frames
    av = pytest.importorskip("av")
    with av.open(str(stem.with_suffix(".mp4"))) as film:
        assert sum(1 for _ in film.decode(video=0)) == frames
        assert film.streams.video[0].codec_context.name == "h264"
    assert not list(stem.parent.glob(".tmp*"))


LAYOUTS = {
    "davis": (write_davis, How(size=(32, 48)), ["J&F", "J", "F"], "bear"),
    "vip": (write_vip, How(size=(32, 48)), ["mIoU", "pixel accuracy"], "videos7"),
    "jhmdb": (
        partial(write_jhmdb, frames=6),
        How(size=(64, 96), top_k=1),
        ["PCK@.1", "PCK@.2", "lost"],
        "golf_golf_video_(np2)",
    ),
}
WORDS = {
    "davis": "track, limit 1, size 32x48",
    "vip": "track, limit 1, size 32x48",
    "jhmdb": "track, limit 1, top-k 1, size 64x96",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_from_folder_to_pictures(layout, run_folder, tmp_path):
    write, how, metrics, first = LAYOUTS[layout]
    out, data = tmp_path / "out", (str(write(tmp_path / layout)),)
    rows = track(str(run_folder / "export"), data=data, how=how, which=Which(limit=1), out=out, quiet=True)
    assert [r.metric for r in rows] == 4 * metrics and {r.evaluator for r in rows} == {WORDS[layout]}
    value = {(r.encoder, r.metric): r.value for r in rows}
    best = "PCK@.2" if layout == "jhmdb" else metrics[0]
    assert value["pixels", best] > value["copy", best] + 0.1
    assert {r.metric for r in rows if not r.higher_is_better} == set(metrics) & {"lost"}
    assert (out / layout / f"{first}.png").is_file() and (out / layout / "scores.json").is_file()
    assert not (run_folder / "export/scores.json").exists() and not (run_folder / "export/track").exists()


def test_parts_may_be_judged_as_masks(run_folder, tmp_path):
    data = (str(write_vip(tmp_path / "vip")),)
    rows = track(str(run_folder), data=data, protocol="masks", overlays=False, quiet=True, how=How(size=(32, 48)))
    assert {r.metric for r in rows} == {"J&F", "J", "F"} and rows[0].evaluator == "track masks, size 32x48"
    assert not list((run_folder / "track/vip").glob("*.png"))


def test_the_evaluator_stands_in_the_registry(tiny_encoder, classification, tmp_path):
    from mmssl.data.sequences import open_sequences

    assert EVALUATORS.get("track") is label_propagation
    data = open_sequences(write_davis(tmp_path, frames=4))
    found = label_propagation(tiny_encoder, data, TrackConfig(size=(32, 48), top_k=3))
    assert 0 < found["J&F"] == pytest.approx((found["J"] + found["F"]) / 2)
    with pytest.raises(MmsslError, match="mmssl track WEIGHTS"):
        label_propagation(tiny_encoder, classification, TrackConfig())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": "boxes"}, "unknown protocol 'boxes'"),
        ({"protocol": "keypoints"}, "kind 'masks', which cannot be judged as 'keypoints'; valid: auto, masks"),
        ({"how": How(top_k=0)}, "top_k must be at least 1"),
        ({"how": How(temperature=-1.0)}, "temperature"),
        ({"how": How(size=(1, 2, 3))}, "size"),
        ({"which": Which(limit=0)}, "limit"),
        ({"which": Which(stride=0)}, "stride"),
        ({"which": Which(split="dev")}, "split 'dev'"),
        ({"which": Which(camera="back")}, "camera"),
        ({"which": Which(max_objects=0)}, "object"),
        ({"random_seeds": 0}, "random_seeds"),
        ({"device": "tpu"}, "device"),
        ({"data": ("nowhere",)}, "no folder and no dataset card 'nowhere'"),
    ],
)
def test_wrong_input_is_one_sentence(recorded_run, change, words):
    options = {"quiet": True, "overlays": False, **change}
    with pytest.raises(MmsslError, match=words):
        track(str(recorded_run), **options)


def test_videos_that_cannot_be_judged_say_why(run_folder, tmp_path):
    with pytest.raises(MmsslError, match="--data"):
        track(str(run_folder / "export"), quiet=True)
    blind = write_recording(tmp_path / "blind", segmentation=False)
    with pytest.raises(MmsslError, match="no segmentation"):
        track(str(run_folder), data=(str(blind),), quiet=True)
    frames, ids = sliding(3)
    with pytest.raises(MmsslError, match="shows no object"):
        truths_of(InMemory(frames, ids * 0))
    with pytest.raises(MmsslError, match="first frame alone"):
        truths_of(InMemory(frames, [ids[0], None, None]))


def test_drawings():
    frame, ids = np.full((40, 50, 3), 100, np.uint8), np.zeros((40, 50), np.uint8)
    ids[10:20, 10:30], ids[30:, 40:] = 2, 255
    drawn = draw_masks(frame, ids)
    assert drawn.shape == (160, 200, 3) and (drawn[0, 0] == 100).all() and (drawn[-1, -1] == 100).all()
    inside, edge = drawn[60, 60], drawn[79, 60]
    assert (edge == colour(2)).all() and np.allclose(inside, 0.45 * 100 + 0.55 * colour(2).astype(float), atol=1)
    dots = draw_joints(frame, np.array([[10.0, 20.0], [np.nan, 1.0]]))
    assert (dots[80, 40] == colour(1)).all() and (dots[4, :] == 100).all()
    assert handy(np.zeros((720, 1280, 3), np.uint8)).shape == (LARGEST, 640, 3)
    assert set(np.unique(handy(np.tile(np.uint8([3, 3, 9]), (720, 640))))) == {3, 9}  # ids are never averaged
    page = strip({"truth": [drawn, drawn], "a longer name": [drawn, drawn]}, ["0", "1"])
    assert page.height > 320 and page.width > 400


def test_without_pyav_there_is_no_film(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    assert not save_mp4(tmp_path / "x.mp4", [np.zeros((8, 8, 3), np.uint8)]) and not list(tmp_path.iterdir())
