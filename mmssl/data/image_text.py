"""Pictures with captions: what all datasets of them share, wherever a sample may lack the one or the other.

A sample has one caption or several; training draws one by the sample's key, evaluation takes the first.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.folders import PathList
from mmssl.data.memory import PictureCache
from mmssl.data.text import TextEncoding, text_encoder
from mmssl.data.transforms import CAPTION_STREAM, Augmentation
from mmssl.errors import MmsslError
from mmssl.keys import uniform

if TYPE_CHECKING:
    from mmssl.data.loading import DataConfig

Share = Literal["all", "some", "none"]  # of the samples that have a modality


class ImageTexts(Dataset):
    """Base of datasets of pictures and captions. Subclasses write `__len__`, `caption`, `has_picture`, `picture`.

    A batch is {"image": uint8 (B, 3, H, W), "text": int64 (B, L), "text_mask": bool (B, L), "index", "label"?}, with
    `present/image` and `present/text` bool (B,) where some samples lack them, and without what all of them lack.

    Args:
        name: for reports.
        config: image_size, text, cache and so on.
        pictures: "all", "some" or "none" of the samples have a picture.
        texts: likewise a caption.

    Attributes:
        text_encoder: turns captions into ids; None where no sample has any.
    """

    def __init__(self, name: str, config: "DataConfig", pictures: Share = "some", texts: Share = "some"):
        fraction = 0.875 if config.crop_fraction is None else config.crop_fraction
        super().__init__(name, Geometry(config.image_size, fraction), config.max_bad)
        shares = {"image": pictures, "text": texts}
        self.modality = "text" if pictures == "none" else "image"
        self.lacks = tuple(key for key, share in shares.items() if share == "some")
        self.text_encoder = None if texts == "none" else text_encoder(config.text or TextEncoding())
        keep = config.cache == "memory" and pictures != "none"
        self._cache = PictureCache(name, len(self), self._there) if keep else None

    def has_picture(self, place: int) -> bool:
        """Whether a sample has a picture, which may still prove unreadable."""
        raise NotImplementedError

    def picture(self, place: int) -> Image.Image:
        """The picture of a sample that has one, opened. Raises one of `decode.UNREADABLE`."""
        raise NotImplementedError

    def caption(self, place: int) -> list[str]:
        """All captions of a sample, [] for none. Raises one of `decode.UNREADABLE`."""
        raise NotImplementedError

    def _there(self, place: int) -> Image.Image:
        if not self.has_picture(place):
            raise ValueError("the sample has no picture")
        return self.picture(place)

    def read(self, place: int) -> dict:
        """{"image": picture, "text": [captions]}, without what the sample lacks."""
        raw = {}
        if self.has_picture(place):
            raw["image"] = self._cache.read(place) if self._cache else self.picture(place)
        if captions := self.caption(place) if self.text_encoder is not None else []:
            raw["text"] = captions
        return raw

    def arrays(self, place: int, draws: list[float] | None, augmentation: Augmentation | None) -> dict:
        """As `Dataset.arrays`, with the captions as they are."""
        raw = self.read(place)
        if not raw:
            raise ValueError("the sample has neither a picture nor a caption")
        captions = raw.pop("text", [])
        return {**(self.geometry.apply(raw, draws, augmentation) if raw else {}), "text": captions}

    def fetch(
        self, index: Tensor, keys: Tensor | None = None, augmentation: Augmentation | None = None
    ) -> dict[str, Tensor]:
        """A whole batch, as the class says; which caption comes in training is a function of `keys` alone."""
        rows, used = self.read_rows(index, keys, augmentation)
        captions = [row.pop("text") for row in rows]
        batch = self.collate(rows, used)
        if self.text_encoder is None:
            return batch
        draws = [0.0] * len(rows)
        if keys is not None and augmentation is not None:
            draws = uniform(keys, 1, CAPTION_STREAM)[:, 0].tolist()
        chosen = [c[int(draw * len(c))] if c else None for c, draw in zip(captions, draws, strict=True)]
        batch["text"], batch["text_mask"] = self.text_encoder(chosen)
        if "text" in self.lacks:
            batch["present/text"] = torch.tensor([bool(c) for c in captions])
        return batch


class Captions(Sequence):
    """The captions of many samples in one buffer (see `PathList`): a sequence of lists of strings."""

    def __init__(self, captions: Sequence[list[str]]):
        self._ends = np.cumsum([0, *map(len, captions)])
        self._texts = PathList([text for several in captions for text in several])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> list[str]:
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        return [self._texts[k] for k in range(self._ends[place], self._ends[place + 1])]


def clean(text: str) -> str:
    """A caption without white space round it, and without what is no character (half of a surrogate pair)."""
    return text.strip().encode("utf-8", "replace").decode("utf-8")


def share(there: Sequence[bool] | np.ndarray) -> Share:
    """ "all", "some" or "none", of a bool for each sample."""
    n = int(np.count_nonzero(there))
    return "none" if n == 0 else "all" if n == len(there) else "some"


class JoinedImageTexts(ImageTexts):
    """Several datasets of pictures or texts or both, one after the other, in one: pairs are not needed.

    It has no labels; those of the parts need not mean the same.

    Raises:
        MmsslError: a part that holds clips or sounds.
    """

    def __init__(self, parts: list[Dataset], config: "DataConfig"):
        self.parts = parts
        self._ends = np.cumsum([0, *map(len, parts)])
        shares: dict[str, list[Share]] = {"image": [], "text": []}
        for part in parts:
            if part.clip is not None or part.audio is not None:
                raise MmsslError(
                    f"{part.name!r} gives {part.modality}, which cannot be joined with pictures and texts; leave it "
                    "out."
                )
            for key, found in shares.items():
                found.append(_share_of(part, key))
        joint = [found[0] if len(set(found)) == 1 else "some" for found in shares.values()]
        config = dataclasses.replace(config, cache="none")  # the parts have their own
        super().__init__("+".join(part.name for part in parts), config, *joint)
        self.choose_target({}, config.target)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _find(self, place: int) -> tuple[Dataset, int]:
        number = int(np.searchsorted(self._ends, place, "right")) - 1
        return self.parts[number], int(place - self._ends[number])

    def sample_name(self, place: int) -> str:
        part, inside = self._find(place)
        return part.sample_name(inside)

    def caption(self, place: int) -> list[str]:
        part, inside = self._find(place)
        return part.caption(inside)

    def read(self, place: int) -> dict:
        part, inside = self._find(place)
        return part.read(inside)


def _share_of(part: Dataset, key: str) -> Share:
    if key in part.lacks:
        return "some"
    if key == "text":
        return "none" if part.text_encoder is None else "all"
    return "all" if part.modality == "image" else "none"
