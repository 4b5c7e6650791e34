"""Files and folders that are either whole or not there, whatever stops the process, and words for a full disk.

What is being written carries a name that starts with `.tmp-`; it gets its real name by a rename once every byte of it
is on the disk. What is being deleted first gets such a name back. So a real name always stands for something whole.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from mmssl.errors import MmsslError

_PREFIX = ".tmp-"


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it becomes `final`, replacing one of that name, when the block ends well."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.parent / f"{_PREFIX}{final.name}-{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.rglob("*")):
            sync(path)
        sync(partial)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    doomed = _rename_away(final) if final.exists() else None
    os.replace(partial, final)
    sync(final.parent)
    if doomed is not None:
        shutil.rmtree(doomed, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text as one act."""
    partial = path.parent / f"{_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"
    partial.write_text(text)
    sync(partial)
    os.replace(partial, path)


def remove_folder(folder: Path) -> None:
    """Delete a folder; it loses its name at once, so that half of it is never seen under it."""
    shutil.rmtree(_rename_away(folder), ignore_errors=True)


def _rename_away(folder: Path) -> Path:
    doomed = folder.parent / f"{_PREFIX}old-{uuid.uuid4().hex[:8]}"
    os.replace(folder, doomed)
    return doomed


def clean(folder: Path) -> None:
    """Delete what interrupted writers and deleters left in `folder`."""
    for leftover in folder.glob(f"{_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def need_space(folder: Path, size: int, what: str) -> None:
    """Raise an `MmsslError` if fewer than `size` bytes are free where `folder` is."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise no_space(folder, what, size)


def is_no_space(error: BaseException) -> bool:
    """True for the ways in which Python, torch and safetensors say that the disk is full."""
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def no_space(folder: Path, what: str, size: int) -> MmsslError:
    free = shutil.disk_usage(folder).free
    return MmsslError(
        f"no disk space for {what}: it needs {size / 1e6:.1f} MB and {free / 1e6:.1f} MB are free in {folder}; "
        "free some space and give the same command again, or choose another disk with --run."
    )
