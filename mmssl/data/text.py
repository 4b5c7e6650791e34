"""Texts to token ids, in the reading process: the bytes of UTF-8, or a tokenizer of transformers by name or folder."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import MmsslError

log = logging.getLogger("mmssl.data")

BYTES = "bytes"
PAD, BOS, EOS, BYTE_VOCABULARY = 0, 257, 258, 259  # byte b is b + 1
_TOLD: set["TextEncoding"] = set()  # those of which the log has said that texts are cut
_SLOTS = 1024  # a process counts in the slot of its id, so that no two write to the same one


@dataclass(frozen=True)
class TextEncoding:
    """How a text becomes a row of token ids, `text` int64 (B, L) with `text_mask` bool (B, L), True = real token.

    Args:
        vocabulary: "bytes" (UTF-8: 0 is padding, byte b is b + 1), or a tokenizer of transformers: its name, or a
            folder that holds it.
        length: L; longer texts are cut.
        special: put the vocabulary's marks of beginning and end round each text (bytes: 257 and 258).
    """

    vocabulary: str = BYTES
    length: int = 64
    special: bool = False

    def __post_init__(self) -> None:
        if not self.vocabulary:
            raise MmsslError("text.vocabulary must be bytes, or the name or folder of a transformers tokenizer.")
        least = 3 if self.special else 1
        if self.length < least:
            raise MmsslError(f"text.length must be {least} tokens or more, got {self.length}.")


def text_encoder(encoding: TextEncoding) -> "TextEncoder":
    """The encoder that an encoding asks for.

    Raises:
        MmsslError: transformers, or its tokenizer of that name, cannot be had.
    """
    return ByteEncoder(encoding) if encoding.vocabulary == BYTES else TransformersEncoder(encoding)


class TextEncoder:
    """Texts <-> rows of ids. `encoder(texts) -> (ids int64 (B, L), mask bool (B, L))`.

    A text that is longer than L is cut and counted, in memory that worker processes share with the one that made them;
    the log says so once for an encoding (`tell`).

    Attributes:
        vocab_size: ids lie in 0 .. vocab_size - 1.
        pad: the id behind the end of a text.
    """

    vocab_size: int
    pad: int = PAD

    def __init__(self, encoding: TextEncoding):
        self.encoding = encoding
        self._cut = multiprocessing.RawArray(ctypes.c_int64, _SLOTS)

    def __call__(self, texts: Sequence[str | None]) -> tuple[Tensor, Tensor]:
        """Ids and mask of each text; None is no text at all, a row of padding."""
        flat, lengths, cut = self._encode(texts)
        if cut:
            self._cut[os.getpid() % _SLOTS] += cut
            self.tell()
        mask = np.arange(self.encoding.length) < lengths[:, None]  # (B, L)
        ids = np.full(mask.shape, self.pad, np.int64)
        ids[mask] = flat
        ids[lengths == 0] = 0  # as all that is not there
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def _encode(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray, int]:
        """The ids of all texts, one after the other; the length of each, at most L; and how many texts were cut."""
        raise NotImplementedError

    def decode(self, ids: Tensor) -> list[str]:
        """The text of each row of (B, L); what is no text (padding, marks, half a character) is left out or shown so.

        Raises:
            MmsslError: an id that is not in the vocabulary.
        """
        ids = torch.as_tensor(ids)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise MmsslError(
                f"the ids {int(ids.min())} to {int(ids.max())} do not lie in 0..{self.vocab_size - 1}, the vocabulary "
                f"{self.encoding.vocabulary!r}."
            )
        return self._decode(ids.reshape(-1, ids.shape[-1]).tolist())

    def _decode(self, rows: list[list[int]]) -> list[str]:
        raise NotImplementedError

    @property
    def cut(self) -> int:
        """How many texts were cut so far, in this process and those that it started."""
        return int(np.frombuffer(self._cut, np.int64).sum())

    def tell(self) -> None:
        """Say in the log, once, that texts are cut. The log of a worker is silent; the loader asks its own process."""
        if self.encoding not in _TOLD and self.cut:
            _TOLD.add(self.encoding)
            log.warning(
                "texts of more than %d tokens are cut there (%d so far); a larger text.length keeps more",
                *(self.encoding.length, self.cut),
            )


class ByteEncoder(TextEncoder):
    """UTF-8: byte b is the id b + 1. A cut never splits a character."""

    vocab_size = BYTE_VOCABULARY

    def _encode(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray, int]:
        room = self.encoding.length - 2 * self.encoding.special
        # A character is a byte or more, so that of a long text only its beginning is encoded.
        parts = [(text or "")[: room + 1].encode("utf-8", "replace") for text in texts]
        long = [k for k, part in enumerate(parts) if len(part) > room]
        for k in long:
            parts[k] = parts[k][:room].decode("utf-8", "ignore").encode()
        flat = np.frombuffer(b"".join(parts), np.uint8) + np.int64(1)
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        if self.encoding.special:
            flat, lengths = _marked(flat, lengths, np.array([text is not None for text in texts], bool))
        return flat, lengths, len(long)

    def _decode(self, rows: list[list[int]]) -> list[str]:
        ended = [row[: row.index(EOS)] if EOS in row else row for row in rows]
        return [bytes(i - 1 for i in row if PAD < i < BOS).decode("utf-8", "replace") for row in ended]


def _marked(flat: np.ndarray, lengths: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and lengths with BOS before and EOS behind each text that is `there` (B,)."""
    lengths = lengths + 2 * there
    ends = lengths.cumsum()[there]
    out = np.zeros(lengths.sum(), np.int64)
    out[ends - lengths[there]], out[ends - 1] = BOS, EOS
    out[out == 0] = flat
    return out, lengths


class TransformersEncoder(TextEncoder):
    """A tokenizer of transformers; its padding is 0 where it has none."""

    def __init__(self, encoding: TextEncoding):
        super().__init__(encoding)
        self._tokenizer = _load(encoding.vocabulary)
        self._tokenizer.model_max_length = int(1e9)  # the limit is ours, and so is what is said about it
        self.vocab_size = len(self._tokenizer)
        self.pad = PAD if self._tokenizer.pad_token_id is None else self._tokenizer.pad_token_id

    def _encode(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray, int]:
        there = [k for k, text in enumerate(texts) if text is not None]
        found = self._ids([texts[k] for k in there])
        long = [k for k, ids in enumerate(found) if len(ids) > self.encoding.length]
        shorter = self._ids([texts[there[k]] for k in long], truncation=True, max_length=self.encoding.length)
        for k, ids in zip(long, shorter, strict=True):
            found[k] = ids
        lengths = np.zeros(len(texts), np.int64)
        lengths[there] = [len(ids) for ids in found]
        return np.array([i for ids in found for i in ids], np.int64), lengths, len(long)

    def _ids(self, texts: list[str], **options) -> list[list[int]]:
        if not texts:
            return []
        return self._tokenizer(texts, add_special_tokens=self.encoding.special, **options)["input_ids"]

    def _decode(self, rows: list[list[int]]) -> list[str]:
        if self._tokenizer.pad_token_id is None:  # then 0 is a word too, and only at the end padding
            rows = [row[: max((k + 1 for k, i in enumerate(row) if i != PAD), default=0)] for row in rows]
        return self._tokenizer.batch_decode(rows, skip_special_tokens=True)


@lru_cache(maxsize=4)
def _load(vocabulary: str) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not outlive the fork of a worker
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MmsslError(
            f"the text vocabulary {vocabulary!r} needs transformers; install it with "
            '`pip install "mmssl[hub]"`, or take the vocabulary bytes, which needs nothing.'
        ) from None
    name = os.path.expanduser(vocabulary)
    with contextlib.suppress(Exception):  # what is there already needs no network, and asks for none
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a library of many kinds of errors: no network, no such name, a damaged file
        reason = re.split(r"\n|(?<=\w)\. ", str(error).strip())[0].rstrip(".")
        raise MmsslError(
            f"there is no transformers tokenizer {vocabulary!r} ({type(error).__name__}: {reason}); give bytes, or a "
            "folder with its files."
        ) from None
