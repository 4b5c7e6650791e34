"""Frames of video files: exact against PyAV's own decoding of everything, on every kind of file, by every backend."""

import multiprocessing
import os
import pickle

import av
import numpy as np
import psutil
import pytest
import torch
import video_toys as toys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmssl.data import video, video_index
from mmssl.data.video import VideoFacts, VideoUnreadable, probe, read_clips

# name: (settings of write_video, whether frames are found by an index; else they are counted)
FILES = {
    "plain.mp4": ({}, True),
    "long_groups.mp4": ({"n": 70, "gop": 250, "bframes": 8}, True),
    "no_b_frames.mov": ({"bframes": 0}, True),
    "intra.mp4": ({"gop": 1}, True),
    "variable_rate.mp4": ({"vfr": True, "audio": True}, True),
    "odd.mp4": ({"size": (47, 63)}, True),
    "small.mp4": ({"size": (16, 16)}, True),
    "one_frame.mp4": ({"n": 1}, True),
    "open_groups.mp4": ({"open_gop": True, "bframes": 3, "n": 50}, True),
    "open_groups_variable.mkv": ({"open_gop": True, "bframes": 3, "n": 50, "vfr": True, "audio": True}, True),
    "index_first.mp4": ({"index_first": True}, True),
    "fragments.mp4": ({"fragments": True}, True),
    "hevc.mp4": ({"codec": "libx265", "n": 40}, True),  # open groups, and frames of several temporal layers
    "mpeg4.mp4": ({"codec": "mpeg4"}, True),
    "plain.mkv": ({}, True),
    "vp9.webm": ({"vfr": True, "audio": True, "size": (47, 63)}, True),
    "av1.mp4": ({"codec": "libsvtav1", "n": 20}, True),
    "vp8.webm": ({"codec": "libvpx"}, False),
    "mpeg4.avi": ({"audio": True, "size": (47, 63)}, False),
    "no_b_frames.avi": ({"bframes": 0}, True),
    "h264.avi": ({"codec": "libx264"}, False),
    "plain.ts": ({}, True),
    "plain.flv": ({}, True),
    "mpeg2.mpg": ({"codec": "mpeg2video"}, False),
}
try:
    import decord
except ImportError:  # there is no wheel for ARM
    decord = None
BACKENDS = ["pyav", "decord"] if decord else ["pyav"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    return use(request.param, monkeypatch)


def use(name: str, monkeypatch) -> str:
    monkeypatch.setenv("MMSSL_VIDEO_BACKEND", name)
    video._indices.clear()
    return name


def toy(folder, name: str):
    path = folder / name
    return path if path.exists() else toys.write_video(path, **FILES[name][0])


def spy(monkeypatch, owner, name: str, note) -> list:
    """Calls of `owner.name` from now on, as `note(*args)` has them."""
    seen, call = [], getattr(owner, name)

    def noted(*args, **kw):
        seen.append(note(*args))
        return call(*args, **kw)

    monkeypatch.setattr(owner, name, noted)
    return seen


def read(path, numbers, size=None) -> np.ndarray:
    return read_clips(path, lambda facts: [numbers], size)[0][0]


@pytest.mark.parametrize("name", FILES)
def test_frames_are_exact(name, folder, backend):
    path = toy(folder, name)
    every = toys.every_frame(path)
    assert [toys.frame_number(frame) for frame in every] == list(range(FILES[name][0].get("n", 30)))
    assert probe(path).frames == len(every) and probe(path)[1:3] == every.shape[1:3]

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(0, len(every) - 1), min_size=1, max_size=9), st.booleans())  # unsorted, with repeats
    def exact(numbers, first_visit):
        if first_visit:
            video._indices.clear()
        assert np.array_equal(read(path, numbers), every[numbers])

    exact()
    assert np.array_equal(read(path, range(len(every))), every)
    assert np.array_equal(read(path, range(0, len(every), 4)), every[::4])
    index = video._indices.get(video_index.IndexCache.key(str(path)))
    assert bool(len(index.ranks)) is FILES[name][1] and index.counted is (name in ("vp8.webm", "mpeg2.mpg"))


@pytest.mark.skipif(decord is None, reason="decord is not here")
def test_plain_decord_is_not_exact_and_is_kept_from_such_files(folder, monkeypatch):
    """Why decord is not the default, and that where it is asked for it decodes the files that it can."""
    path = toy(folder, "open_groups.mp4")
    wrong = [k for k in range(50) if toys.frame_number(decord.VideoReader(str(path))[k].asnumpy()) != k]
    assert wrong, "decord has learned open groups"
    use("decord", monkeypatch)
    opened = spy(monkeypatch, decord, "VideoReader", os.path.basename)
    for name in ("open_groups.mp4", "mpeg4.avi", "plain.mkv", "variable_rate.mp4"):
        read(toy(folder, name), [7])
    assert opened == ["plain.mkv", "variable_rate.mp4"]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_pictures_come_upright(degrees, tmp_path, backend):
    path = toys.rotated(tmp_path / "turned.mp4", degrees, size=(48, 80))
    every = toys.every_frame(path)
    straight = toys.every_frame(toys.write_video(tmp_path / "straight.mp4", size=(48, 80)))
    assert np.array_equal(every, np.rot90(straight, -degrees // 90, (1, 2)))  # clockwise, as the file asks
    for _ in range(2):
        asked = []
        (frames,), facts = read_clips(path, lambda facts: (asked.append(facts), [[9, 2]])[1], lambda facts: facts[1:3])  # noqa: B023
        assert np.array_equal(frames, every[[9, 2]])
        assert facts[1:3] == every.shape[1:3] == asked[-1][1:3]
    assert probe(path).height == every.shape[1]


def test_frames_that_a_player_does_not_show_are_not_counted(tmp_path, backend):
    for first in (3, 13):
        path = toys.trimmed(tmp_path / f"from_{first}.mp4", first, n=40, fps=25)
        every = toys.every_frame(path)
        assert toys.frame_number(every[0]) == first
        assert np.array_equal(read_clips(path, lambda facts: [range(facts.frames)])[0][0], every)
        assert np.array_equal(read(path, [20, 1]), every[[20, 1]])


def test_facts(folder, backend):
    assert probe(toy(folder, "plain.mkv")) == VideoFacts(30, 48, 64, 30.0)
    assert probe(str(toy(folder, "odd.mp4"))) == VideoFacts(30, 47, 63, 30.0)
    assert read_clips(toy(folder, "plain.mkv"), lambda facts: [])[0] == []
    assert read(toy(folder, "plain.mkv"), [], (8, 9)).shape == (0, 8, 9, 3)


def test_several_clips_in_one_pass(folder, backend, monkeypatch):
    path = toy(folder, "open_groups.mp4")
    clips = [[0, 4, 8, 12], [40, 8, 8, 6], list(range(20, 36)), [12]]
    apart = [read(path, clip) for clip in clips]
    opened = spy(monkeypatch, av, "open", str)
    decoded = spy(monkeypatch, video._PyavReader, "_put", lambda reader, number, frame: number)
    together, _ = read_clips(path, lambda facts: clips)
    assert len(opened) == 1 and sorted(decoded) == sorted({k for clip in clips for k in clip})
    assert all(np.array_equal(a, b) for a, b in zip(apart, together, strict=True))
    same = read_clips(path, lambda facts: [[3, 4], [3, 4]])[0]
    assert not np.shares_memory(*same)


def test_decoding_begins_at_the_nearest_key_packet(folder, monkeypatch):
    use("pyav", monkeypatch)
    fed = spy(monkeypatch, video._PyavReader, "_decoded", lambda reader, packets, wanted: len(packets))
    path = toys.write_video(folder / "many_groups.mp4", n=200, gop=20)
    assert [toys.frame_number(f) for f in read(path, [3, 105, 190])] == [3, 105, 190]
    assert len(fed) == 3 and sum(fed) < 30  # 3 + 5 + 10 frames after their key frames, each a packet or two later


def test_the_index_is_made_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    use("pyav", monkeypatch)
    made = spy(monkeypatch, video, "make_index", lambda packets: packets)
    path = toys.write_video(tmp_path / "a.mkv")
    assert [read(path, [k]).shape[0] for k in (1, 25, 3)] == [1, 1, 1] and len(made) == 1
    os.utime(toys.write_video(path, n=12), ns=(1, 1))
    assert probe(path).frames == 12 and len(made) == 2


def test_the_memory_of_indices_is_bounded(monkeypatch):
    monkeypatch.setattr(video_index, "FILES_KEPT", 3)
    monkeypatch.setattr(video_index, "KEYS_KEPT", 10)
    cache = video_index.IndexCache()

    def put(name: str, keys: int) -> list[str]:
        cache.put((name,), video_index.Index(VideoFacts(1, 2, 3, 4.0), *np.zeros((3, keys), np.int64)))
        return [name for (name,) in cache._indices]

    assert put("a", 2) + put("b", 2) == ["a", "a", "b"]
    cache.get(("a",))
    assert put("c", 2) == ["b", "a", "c"] and put("d", 2) == ["a", "c", "d"]  # the one that was asked for longest ago
    assert put("d", 2) == ["a", "c", "d"] and put("e", 7) == ["d", "e"] and put("f", 11) == []
    cache.clear()
    assert put("g", 10) == ["g"]


def test_a_wrong_index_is_found_out(folder, monkeypatch):
    """Where the packets do not keep the promise, frames are counted from then on."""
    use("pyav", monkeypatch)
    path = toy(folder, "plain.mkv")
    probe(path)
    key = video_index.IndexCache.key(str(path))
    index = video._indices.get(key)
    video._indices.put(key, index._replace(facts=index.facts._replace(frames=35)))
    asked = []
    (frames,), facts = read_clips(path, lambda facts: (asked.append(facts.frames), [[facts.frames - 1]])[1])
    assert asked == [35, 30] and facts.frames == 30 and toys.frame_number(frames[0]) == 29
    video._indices.put(key, index._replace(places=index.places + 1))
    with pytest.raises(VideoUnreadable, match="did the file change"):
        read(path, [20])


@pytest.mark.parametrize("size", [(24, 32), (100, 90), (48, 64)])
def test_resize(size, folder, backend):
    path = toy(folder, "plain.mp4")
    plain, resized = read(path, [3, 20, 11]), read(path, [3, 20, 11], size)
    assert resized.shape == (3, *size, 3) and resized.dtype == np.uint8 and resized.flags.c_contiguous
    planes = torch.from_numpy(plain).permute(0, 3, 1, 2).double()
    slow = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    assert np.abs(slow.numpy() - resized).max() <= 1.01
    assert [toys.frame_number(frame) for frame in resized] == [3, 20, 11]
    by_facts = read(path, [3, 20, 11], lambda facts: (facts.height * size[0] // 48, facts.width * size[1] // 64))
    assert np.array_equal(by_facts, resized)


def no_file(path):
    return path


def a_folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (no_file, "gone.mp4", "there is no such file"),
        (a_folder, "folder.mp4", "it is a folder, not a video file"),
        (toys.empty, "empty.mp4", r"the file is empty \(0 bytes\)"),
        (toys.not_a_video, "text.mp4", r"damaged, cut off or not a video \(Invalid data"),
        (toys.audio_only, "sound.mp4", "it has no video stream, only sound"),
        (toys.audio_only, "sound.webm", "it has no video stream, only sound"),
        (toys.sound_with_cover, "music.mp4", "it has no video stream, only sound"),
        (toys.truncated, "cut.mp4", r"damaged, cut off or not a video \(Invalid data"),
        (toys.truncated, "cut.avi", r"damaged, cut off or not a video \(Invalid data"),
        (toys.damaged, "noise.mp4", r"damaged, cut off or not a video \(Invalid data"),
    ],
)
def test_what_cannot_be_read(make, name, reason, tmp_path, backend, capfd):
    path = make(tmp_path / name)
    capfd.readouterr()
    with pytest.raises(VideoUnreadable, match=f"^{reason}") as caught:
        probe(path)
    assert isinstance(caught.value, ValueError) and str(tmp_path) not in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args  # it comes out of worker processes
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


@pytest.mark.parametrize("name", ["cut.mkv", "cut.webm", "cut.ts", "cut_index_first.mp4"])
def test_a_truncated_file_is_as_long_as_what_is_left(name, tmp_path, backend):
    path = toys.truncated(tmp_path / name, 0.8, n=60, index_first="index_first" in name)
    every = toys.every_frame(path)
    assert 10 < len(every) < 60
    with av.open(str(path)) as file:
        assert "index_first" not in name or file.streams.video[0].frames == 60  # the container lies
    facts = probe(path)
    assert np.array_equal(read(path, range(facts.frames))[: len(every)], every[: facts.frames])
    assert (
        abs(facts.frames - len(every)) <= 2
    )  # FFmpeg itself stops at half a packet before it has put out the last ones
    with pytest.raises(VideoUnreadable, match=f"^frame 59 was asked for, it has the frames 0 to {facts.frames - 1}$"):
        read(path, [0, 59])
    with pytest.raises(VideoUnreadable, match=r"^frame -1 was asked for"):
        read(path, [-1])


def test_damage_is_told_and_nothing_is_repeated(tmp_path, backend, capfd):
    path = toys.damaged(tmp_path / "noise.mp4", n=90, index_first=True)
    capfd.readouterr()
    assert [toys.frame_number(f) for f in read(path, [0, 5, 11])] == [0, 5, 11]  # before the damage
    for numbers in ([89], [0, 60], range(90)):
        with pytest.raises(VideoUnreadable, match=r"^damaged, cut off or not a video"):
            read(path, numbers)
    assert capfd.readouterr() == ("", "")


def test_in_other_processes(folder, monkeypatch):
    """After a fork, with the index of the parent; and in a fresh process."""
    use("pyav", monkeypatch)
    path = toy(folder, "plain.mp4")
    here = probe(path)
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply(probe, (path,)) == here
            with pytest.raises(VideoUnreadable, match="no such file"):
                pool.apply(probe, (folder / "gone.mp4",))
    assert read(path, [5]).shape == (1, 48, 64, 3)


def test_memory_stays_flat_over_2000_opens(folder, backend):
    path = toys.write_video(folder / f"tiny_{backend}.mp4", n=8, audio=True)
    broken = toys.not_a_video(folder / "broken.mp4")
    process = psutil.Process()

    def visit(times: int) -> None:
        for k in range(times):
            if k % 2:
                video._indices.clear()
            read(path, [1, 6], (24, 32) if k % 4 else None)
            if k % 20 == 0:
                with pytest.raises(VideoUnreadable):
                    probe(broken)

    visit(200)
    before, files = process.memory_info().rss, process.num_fds()
    visits = 2000 if backend == "pyav" else 500  # decord takes four times as long
    visit(visits)
    assert process.memory_info().rss - before < 1e6 + 500 * visits
    assert process.num_fds() <= files and process.num_threads() < 50


def test_names_of_videos():
    assert all(video.is_video(name) for name in ("a.mp4", "B.MKV", "/x/y.webm", "c.avi"))
    assert not any(video.is_video(name) for name in ("a.mp3", "mp4", "a.mp4.txt", "a.png"))
