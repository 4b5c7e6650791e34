"""Several labels a sample, packed: AudioSet's two million clips of 527 classes are 4 GB as a table of 0 and 1."""

from collections.abc import Sequence

import torch
from torch import Tensor


class LabelSets:
    """The class ids of each sample; `sets[index]` gives rows of 0 and 1.

    Args:
        sets: class ids of each sample, none to many.
        classes: how many classes there are.
    """

    def __init__(self, sets: Sequence[Sequence[int]], classes: int):
        self.classes = classes
        counts = torch.tensor([len(ids) for ids in sets], dtype=torch.int64)
        self.ends = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])  # (N + 1,)
        self.ids = torch.tensor([k for ids in sets for k in ids], dtype=torch.int32)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: Tensor) -> Tensor:
        """float32 (B, K) for places int64 (B,)."""
        rows = torch.zeros(len(index), self.classes)
        for row, place in zip(rows, index.tolist(), strict=True):
            row[self.ids[self.ends[place] : self.ends[place + 1]].long()] = 1.0
        return rows

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(place, class id), int64 both, of every label; one that a sample has twice counts once."""
        places = torch.repeat_interleave(torch.arange(len(self)), self.ends.diff())
        return torch.unique(torch.stack([places, self.ids.long()]), dim=1).unbind(0)


def balanced_weights(places: Tensor, ids: Tensor, samples: int) -> Tensor:
    """float64 (N,): the sum over a sample's labels of 1 / (how many samples have that label).

    As the authors of AST and Audio-MAE draw AudioSet; a sample without a label is never drawn.

    Args:
        places: int64, the sample of each label.
        ids: int64, the class of each label.
        samples: N.
    """
    count = torch.bincount(ids).double()
    return torch.zeros(samples, dtype=torch.float64).index_add(0, places, 1.0 / count[ids])
