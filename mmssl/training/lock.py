"""One process on one run folder."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mmssl.errors import MmsslError

try:
    import fcntl
except ImportError:  # Windows has no such locks; there the folder is not guarded
    fcntl = None


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`; an `MmsslError` that names the holder if another process has it.

    Of the processes of one distributed run the main one holds it for all; for the others this does nothing.
    The lock is POSIX's record lock: the system drops it when this process ends in whatever way, and loader workers
    forked from this process do not inherit it.
    """
    if not is_main_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        if fcntl is not None:
            _take(file, folder)
        yield


def is_main_process() -> bool:
    """False in all but one process of those that torchrun or Slurm started together."""
    return int(os.environ.get("RANK", 0)) == 0


def _take(file, folder: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise MmsslError(
            f"{folder} is in use by {holder}; wait until it ends, stop it, or choose another folder with --run."
        ) from None
    except OSError:
        return  # some network disks have no locks: going on is better than refusing every run there
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
