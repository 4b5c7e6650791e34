"""Batches from one process to another: a message through a pipe, and large tensors in memory that both share.

A large tensor is written into a nameless file in memory, whose handle goes through the pipe right behind the message;
the receiver maps it, so nothing is copied there. The system frees the memory with its last user, whichever process
dies and when, and the size of /dev/shm, small in containers, does not matter.
"""

import mmap
import os
import pickle
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch import Tensor

if hasattr(os, "memfd_create"):  # Linux
    from multiprocessing.reduction import recv_handle, send_handle

    SHARES = True
else:  # elsewhere every tensor travels through the pipe: one copy more
    SHARES = False

# Bytes up to which a tensor travels in the message itself. Two pieces of work must fit into a pipe that nobody reads,
# which holds 208 kB on Linux.
SMALL = 16384


class Parcel(NamedTuple):
    """Tensors made ready to be sent: (key, dtype, shape, bytes or None) of each, and a file for each None."""

    layout: list[tuple[str, torch.dtype, torch.Size, bytes | None]]
    files: list[int]


def pack(tensors: dict[str, Tensor]) -> Parcel:
    """Copy tensors out of this process. Raises OSError where there is no memory for it."""
    parcel = Parcel([], [])
    for key, tensor in tensors.items():
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
        small = flat.nbytes <= SMALL or not SHARES
        parcel.layout.append((key, tensor.dtype, tensor.shape, flat.tobytes() if small else None))
        if not small:
            parcel.files.append(_write(memoryview(flat)))
    return parcel


def _write(content: memoryview) -> int:
    """A new file in memory. Written and not mapped: that spares a page fault for every 4 kB."""
    file = os.memfd_create("mmssl-batch")
    done = 0
    while done < len(content):  # a single call writes 2 GB at most
        done += os.pwrite(file, content[done:], done)
    return file


def send(pipe: Connection, message: Any, parcel: Parcel | None = None) -> None:
    """Send anything that pickles, and a parcel, whose files this side then closes. Raises OSError at a closed pipe."""
    layout, files = parcel or Parcel([], [])
    try:
        pipe.send_bytes(pickle.dumps((message, layout)))
        for file in files:
            send_handle(pipe, file, None)
    finally:
        for file in files:
            os.close(file)


def receive(pipe: Connection) -> tuple[Any, dict[str, Tensor]]:
    """(message, tensors) of one `send`. Raises EOFError or OSError where the sender has gone."""
    message, layout = pickle.loads(pipe.recv_bytes())
    tensors = {}
    for key, dtype, shape, small in layout:
        memory = _map(recv_handle(pipe)) if small is None else bytearray(small)
        flat = torch.frombuffer(memory, dtype=dtype) if len(memory) else torch.empty(0, dtype=dtype)
        tensors[key] = flat.view(shape)
    return message, tensors


def _map(file: int) -> mmap.mmap:
    try:
        return mmap.mmap(file, 0)
    finally:
        os.close(file)
