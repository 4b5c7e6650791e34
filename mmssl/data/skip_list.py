"""Skip lists: text files that name the samples to leave out, one a line, `path<TAB>reason`; `#` begins a comment.

A path is absolute, or relative to the folder of the list, so that a list moves with its data; one that is relative to
the current folder, as messages print it, is understood too.
"""

import errno
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from mmssl.data.dataset import Dataset
from mmssl.errors import MmsslError

log = logging.getLogger("mmssl.data")

_HEADER = "# samples to leave out: path<TAB>reason"
# What the disk itself says of a file may be otherwise tomorrow.
_ERRORS = (errno.ENOENT, errno.EACCES, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE)
_OF_THE_DISK = ("[Errno", "there is no such file", "reading it is not permitted", *map(os.strerror, _ERRORS))
_SURROGATES = {"encoding": "utf-8", "errors": "surrogateescape"}  # file names are bytes, and need not be text


def read_skip_list(file: Path) -> dict[str, str]:
    """Absolute path -> reason of every line; nothing where there is no such file yet.

    Raises:
        MmsslError: a folder in its place, or no folder that it could be in.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise MmsslError(f"the skip list {file} must be a text file in a folder that exists.")
    if not file.exists():
        return {}
    listed = {}
    for line in file.read_text(**_SURROGATES).split("\n"):
        name, _, reason = line.rstrip("\r").partition("\t")
        if name and not name.startswith("#"):
            listed[os.path.normpath(os.path.join(file.absolute().parent, name))] = reason
            listed.setdefault(os.path.abspath(name), reason)
    return listed


def exclude(dataset: Dataset, listed: Mapping[str, str]) -> int:
    """Leave out every sample whose name is listed, {absolute path: reason}. Returns how many that are.

    Raises:
        MmsslError: no sample is left.
    """
    root, before = dataset.root, len(dataset.root.bad.places)
    ends = {os.path.basename(path) for path in listed}  # most names need no longer look
    for place in range(len(root)) if listed else ():
        name = root.sample_name(place)
        if os.path.basename(name) in ends and (path := os.path.abspath(name)) in listed:
            root.bad.exclude(place, name, listed[path])
    if len(root.bad.places) == len(root):
        raise MmsslError(root.bad.sentence())
    return len(root.bad.places) - before


def follow_skip_list(dataset: Dataset, file: Path) -> None:
    """Leave out what a list names, and add to it what proves unreadable from now on."""
    if n := exclude(dataset, read_skip_list(file)):
        log.warning("%d of %d samples are left out, as %s says", n, len(dataset.root), file)
    dataset.root.bad.tell.append(partial(add_to_skip_list, file))


def add_to_skip_list(file: Path, name: str, reason: str) -> None:
    """Add one line in a single write, so that several processes may share the list.

    What is the disk's fault and not the file's (not there, no permission, an I/O error) is not listed.
    """
    if any(words in reason for words in _OF_THE_DISK) or os.path.abspath(name) in read_skip_list(file):
        return
    start = "" if file.exists() else _HEADER + "\n"
    if not start and not file.read_bytes().endswith(b"\n"):
        start = "\n"
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (start + _line(file, name, reason)).encode(**_SURROGATES))
    finally:
        os.close(handle)


def write_skip_list(file: Path, listed: Mapping[str, str], comment: str = "") -> None:
    """Write a whole list, {name: reason}, in place of what the file holds."""
    head = _HEADER + (f"\n# {comment}" if comment else "") + "\n"
    partial_file = file.with_name(f".tmp-{file.name}-{os.getpid()}")
    text = head + "".join(_line(file, name, reason) for name, reason in listed.items())
    partial_file.write_text(text, **_SURROGATES)
    os.replace(partial_file, file)


def _line(file: Path, name: str, reason: str) -> str:
    path, folder = os.path.abspath(name), os.path.join(file.absolute().parent, "")
    if path.startswith(folder):
        path = path.removeprefix(folder)
        path = f"./{path}" if path.startswith("#") else path
    return f"{path}\t{' '.join(reason.split())}\n"
