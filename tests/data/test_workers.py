"""Workers that are stuck, crash, are killed or fail: the epoch goes on without the sample, and nothing is left over."""

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from mmssl import open_dataset
from mmssl.data import transport, workers
from mmssl.data.child import in_child
from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.loader import Loader, _Reader
from mmssl.data.workers import WorkerPool
from mmssl.errors import MmsslError

TIMEOUT = 0.8
HARMS = {
    "sleep": lambda: time.sleep(1000),
    "hold": lambda: ctypes.PyDLL(None).sleep(1000),  # a decoder that never lets Python run
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "abort": lambda: os.kill(os.getpid(), signal.SIGABRT),
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


class Harmful(Dataset):
    """n tiny pictures of which some do harm to who reads them; notes every read in a file."""

    def __init__(self, n: int, harm: dict[int, str], log: Path | None = None, max_bad: float = 0.5):
        self.n, self.harm, self.log = n, harm, log
        super().__init__("harmful", Geometry(), max_bad)

    def __len__(self) -> int:
        return self.n

    def read(self, place: int) -> dict:
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{place}\n")
        kind = self.harm.get(place)
        if kind == "raise":
            raise ValueError("no video stream")
        if kind == "bug":
            raise RuntimeError("a bug in a dataset")
        if kind == "sentence":
            raise MmsslError("give image_size.")
        if kind is not None:
            faulthandler.disable()
            HARMS[kind]()
        return {"image": np.full((2, 2, 3), place, np.uint8)}


def children() -> set[int]:
    """Process ids, zombies' too; not that of multiprocessing's own helper of spawned processes."""
    return {p.pid for p in psutil.Process().children() if "resource_tracker" not in "".join(p.cmdline())}


@pytest.fixture(autouse=True)
def nothing_left():
    before = children()
    yield
    assert children() <= before


def places(loader: Loader, epoch: int = 0) -> list[int]:
    return [place for batch in loader.epoch(epoch) for place in batch["index"].tolist()]


def harmful_loader(dataset: Dataset, batch: int = 2, workers: int = 2, **settings) -> Loader:
    return Loader(dataset, batch, workers=workers, timeout=TIMEOUT, shuffle=False, **settings)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("sleep", "took longer than 0.8 s"),
        ("hold", "took longer than 0.8 s"),
        ("segv", "the decoder crashed (SIGSEGV)"),
        ("abort", "the decoder crashed (SIGABRT)"),
        ("exit", "the decoder crashed (exit code 3)"),
        ("kill", "its reader was killed twice (SIGKILL)"),
        ("raise", "ValueError: no video stream"),
    ],
)
def test_the_epoch_goes_on_without_the_sample(harm, reason):
    dataset = Harmful(12, {5: harm})
    loader = harmful_loader(dataset)
    assert places(loader) == [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11]
    assert dataset.bad.names == {"harmful[5]": reason}
    before = loader._pool.pids()
    assert places(loader, 1) == [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11]
    assert loader._pool.pids() == before and dataset.bad.count == 1  # everybody knows it now
    loader.close()


def test_what_comes_out_does_not_depend_on_the_workers():
    harm = {3: "segv", 4: "sleep", 9: "exit", 14: "raise"}
    batches = []
    for count in (1, 3):
        loader = Loader(Harmful(20, harm), 4, seed=7, workers=count, timeout=TIMEOUT)
        batches.append(list(loader.epoch(0)) + list(loader.epoch(1)))
        loader.close()
    alone = Harmful(20, dict.fromkeys(harm, "raise"))
    reader = Loader(alone, 4, seed=7)
    batches.append(list(reader.epoch(0)) + list(reader.epoch(1)))
    for one, three, none in zip(*batches, strict=True):
        assert all(torch.equal(one[key], three[key]) and torch.equal(one[key], none[key]) for key in none)


def test_a_bad_sample_costs_one_worker_and_all_learn_of_it(tmp_path):
    loader = harmful_loader(Harmful(12, {5: "segv", 6: "raise"}, tmp_path / "log"), workers=3, repeats=2)
    for epoch in range(3):
        places(loader, epoch)
    loader.close()
    reads = (tmp_path / "log").read_text().split()
    assert reads.count("5") == 1 and reads.count("6") <= 3 and reads.count("7") == 18


def test_no_file_is_left_open():
    counts = []
    for _ in range(3):
        loader = harmful_loader(Harmful(12, {5: "segv", 7: "kill"}))
        places(loader)
        loader.close()
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[1] == counts[2]


def test_subset_replaces_inside_itself():
    parent = Harmful(12, {5: "segv"})
    loader = harmful_loader(parent.subset([2, 5, 9, 11]))
    assert places(loader) == [0, 2, 2, 3]
    assert parent.bad.names.keys() == {"harmful[5]"}
    loader.close()


@pytest.mark.parametrize("harm", ["sleep", "segv"])
def test_too_many_stop_the_run(harm):
    dataset = Harmful(12, {3: harm, 4: harm}, max_bad=0.1)
    with pytest.raises(MmsslError, match=r"2 of 12 samples cannot be read.*harmful\[[34]\]"):
        places(harmful_loader(dataset, workers=1))


def test_a_worker_that_is_killed_once_is_replaced_and_nothing_is_blamed():
    dataset = Harmful(40, {})
    loader = harmful_loader(dataset)
    batches = loader.epoch(0)
    next(batches)
    before = loader._pool.pids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert len(list(batches)) == 19 and dataset.bad.count == 0
    assert not set(before) & set(loader._pool.pids())
    loader.close()


class Dying(Harmful):
    """Ends its process before any sample is read."""

    def fetch(self, index, keys=None, augmentation=None):
        HARMS[self.harm[0]]()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("kill", r"ended by itself 3 times at the same piece of work \(SIGKILL\).*memory; use fewer workers"),
        ("sleep", r"took longer than 0.8 s at no sample in particular, 3 times"),
    ],
)
def test_workers_that_keep_dying_end_the_run(harm, words):
    with pytest.raises(MmsslError, match=words):
        places(harmful_loader(Dying(12, {0: harm}), workers=1))


def test_failures_come_through():
    with pytest.raises(MmsslError, match=r"^give image_size\.$"):
        places(harmful_loader(Harmful(12, {5: "sentence"})))
    loader = harmful_loader(Harmful(12, {5: "bug"}))
    with pytest.raises(RuntimeError, match=r"(?s)data worker failed.*in read.*a bug in a dataset"):
        places(loader)
    loader.dataset.harm.clear()
    assert places(loader) == list(range(12))  # with new workers
    loader.close()


def test_no_time_limit():
    loader = Loader(Harmful(4, {}), 2, workers=1, timeout=0)
    assert loader.epoch(0) and len(places(loader)) == 4
    loader.close()


def test_late_is_seen_on_two_looks_with_time_between():
    pool = WorkerPool(_Reader(Harmful(4, {}), None), 1, TIMEOUT)
    (worker,) = pool._workers
    assert not pool._is_stuck(worker)  # it has nothing to do
    worker.pieces[0], worker.given = {}, time.monotonic()
    assert not pool._is_stuck(worker)  # it has only just been given it
    worker.given = time.monotonic() - 2 * TIMEOUT
    assert not pool._is_stuck(worker) and not pool._is_stuck(worker)
    time.sleep(TIMEOUT / 10 + 0.01)
    assert pool._is_stuck(worker)
    worker.given += TIMEOUT  # it went on meanwhile, and is late anew
    assert not pool._is_stuck(worker)
    pool.close()


def test_an_epoch_at_a_time():
    loader = harmful_loader(Harmful(12, {}))
    first = loader.epoch(0)
    next(first)
    second = loader.epoch(1)
    next(second)
    with pytest.raises(MmsslError, match="one epoch at a time"):
        next(first)
    assert len(list(second)) == 5
    third = loader.epoch(2)
    next(third)
    loader.close()
    with pytest.raises(MmsslError, match="ended while an epoch was under way"):
        next(third)


def test_bad_samples_of_an_epoch_that_was_given_up_are_not_forgotten():
    dataset = Harmful(12, {2: "raise", 3: "raise"})
    loader = harmful_loader(dataset, workers=1)
    next(loader.epoch(0))
    assert places(loader, 1)[:4] == [0, 1, 4, 4] and dataset.bad.count == 2
    loader.close()


def test_started_afresh_as_on_other_systems(pictures):
    dataset = open_dataset(pictures, image_size=24, split="all")
    pool = WorkerPool(_Reader(dataset, None), 1, method="spawn")
    index = torch.arange(20)
    (batch,) = pool.run([{"index": index, "keys": index}])
    pool.close()
    assert torch.equal(batch["image"], dataset.fetch(index)["image"])


def test_pinned_in_a_thread(monkeypatch):
    import threading

    threads = set()
    monkeypatch.setattr(workers, "_pin", lambda piece: threads.add(threading.current_thread().name) or piece)
    loader = harmful_loader(Harmful(12, {5: "segv"}), pin_memory=True)
    assert places(loader) == [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11]
    assert threads == {"mmssl-pin_0"}
    loader.close()


# The ends of a main process.


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def main_process(how: str, pipe) -> None:
    """A process with a worker that is stuck for good, and another one."""
    loader = Loader(Harmful(12, {5: "hold"}), 2, workers=2, shuffle=False, timeout=None)
    batches = loader.epoch(0)
    next(batches)
    pipe.send(loader._pool.pids())
    if how == "interrupt":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(KeyboardInterrupt):
            list(batches)
    if how == "kill":
        list(batches)


@pytest.mark.parametrize("how", ["return", "interrupt", "kill"])
def test_no_worker_outlives_the_main_process(how):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=main_process, args=(how, theirs))
    process.start()
    theirs.close()
    pids = ours.recv()
    time.sleep(0.1)
    if how != "return":
        os.kill(process.pid, {"interrupt": signal.SIGINT, "kill": signal.SIGKILL}[how])
    process.join(5)
    assert process.exitcode == (-signal.SIGKILL if how == "kill" else 0)
    end = time.monotonic() + 2
    while any(map(lives, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(lives, pids))
    ours.close()
    process.close()


# How tensors travel.


def tensors() -> dict[str, torch.Tensor]:
    big = torch.arange(2 * transport.SMALL).view(2, -1)
    return {
        "small": torch.arange(6).view(2, 3),
        "big": big,
        "turned": big.T,
        "half": torch.randn(9000).bfloat16(),
        "bool": torch.rand(70_000) > 0.5,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
    }


@pytest.mark.parametrize("shares", [True, False])
def test_tensors_arrive_as_they_were(monkeypatch, shares):
    if shares and not transport.SHARES:
        pytest.skip("no memory files on this system")
    monkeypatch.setattr(transport, "SHARES", shares)
    ours, theirs = multiprocessing.Pipe()
    sent = tensors()
    for _ in range(2):
        child = multiprocessing.get_context("fork").Process(
            target=lambda: transport.send(theirs, "words", transport.pack(sent))
        )
        child.start()
        message, got = transport.receive(ours)
        child.join()
        child.close()
        assert message == "words" and got.keys() == sent.keys()
        for key, tensor in got.items():
            assert tensor.dtype == sent[key].dtype and torch.equal(tensor, sent[key])
            tensor.zero_()  # it is the receiver's own
    storages = {got[key].untyped_storage().data_ptr() for key in sent if key != "empty"}
    assert len(storages) == len(sent) - 1  # so that keeping the labels of a batch does not keep its pictures
    ours.close()
    theirs.close()


# A question to one file.


@pytest.mark.parametrize("harm", ["hold", "segv", "exit"])
def test_a_question_is_survived(harm):
    faulthandler_off = faulthandler.disable
    assert in_child(lambda: (faulthandler_off(), HARMS[harm]()), 0.3) is None


def test_a_question_is_answered():
    def wrong() -> None:
        raise MmsslError("give image_size.")

    assert in_child(lambda: [os.getpid()], 20.0) != [os.getpid()]
    with pytest.raises(MmsslError, match=r"give image_size\."):
        in_child(wrong, 20.0)
