"""What R3M reads annotations with: a small text tower of its own, or a frozen language model of transformers."""

import os
import re
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.tokenizers.text import TextReader, TextTokenizerConfig

OWN = "own"
TextMean = Literal["all", "real"]


class OwnLanguage(nn.Module):
    """A transformer over the bytes of a text, trained with the rest; the mean of its real tokens stands for the text.

    Attributes:
        dim: width of what it gives.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.tower = Encoder(config)
        self.dim = config.dim

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """int64 (B, L) and bool (B, L), True = real token -> (B, dim)."""
        return self.tower({"text": ids, "text_mask": mask}).pooled("mean")

    def check(self, ids: Tensor) -> None:
        self.tower.check({"text": ids})


class FrozenLanguage(TextReader):
    """A model of transformers that is never trained, whatever mode it is set to.

    Args:
        model: gives `last_hidden_state` (B, L, dim) of `input_ids` and `attention_mask`, e.g. DistilBERT.
        name: of its vocabulary, by which data find it.
        length: tokens of a row.
        mean: over all places up to the longest text of the batch, padding included ("all", R3M's code), so that a
            text's vector depends on the batch that it is in; or over a text's own tokens ("real").
    """

    def __init__(self, model: nn.Module, name: str, length: int, mean: TextMean = "all"):
        super().__init__()
        self.model, self.mean, self.dim = model.requires_grad_(False).eval(), mean, model.config.hidden_size
        self.config = TextTokenizerConfig("text", name, model.config.vocab_size, length, special=True)

    def train(self, mode: bool = True) -> "FrozenLanguage":
        """Stays in evaluation mode: its dropout is off."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As `OwnLanguage.forward`, float32."""
        tokens = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()  # (B, L, dim)
        counted = mask
        if self.mean == "all":  # what stands at a place of padding does not depend on how many there are
            longest = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax()
            counted = (torch.arange(mask.shape[1], device=mask.device) < longest).expand_as(mask)
        weight = counted[..., None].to(tokens.dtype)
        return (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)

    def check(self, ids: Tensor) -> None:
        """Raise an `MmsslError` for ids that are not in its vocabulary, or too many of them."""
        if ids.dtype != torch.int64 or ids.ndim != 2 or ids.shape[1] > self.config.length:
            raise MmsslError(
                f"'text' must be int64 ids of the shape (batch, 1 to {self.config.length} tokens), got {ids.dtype} "
                f"{tuple(ids.shape)}; cut longer texts (data.text.length)."
            )
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.vocab_size:
            raise MmsslError(
                f"'text' holds ids from {int(ids.min())} to {int(ids.max())}, and {self.config.vocabulary!r} has "
                f"{self.config.vocab_size}; encode texts with that vocabulary."
            )


def load_language(name: str) -> Any:
    """A model of transformers with its weights, by name or folder; what is there already needs no network.

    Raises:
        MmsslError: transformers, or a model of that name, cannot be had.
    """
    try:
        from transformers import AutoModel
    except ImportError:
        raise MmsslError(
            f'the language model {name!r} needs transformers; install it with `pip install "mmssl[hub]"`, or set '
            "method.language to own, which needs nothing."
        ) from None
    where = os.path.expanduser(name)
    for options in ({"local_files_only": True}, {}):
        try:
            return AutoModel.from_pretrained(where, **options)
        except Exception as error:  # a library of many kinds of errors: no network, no such name, a damaged file
            said = re.split(r"\n|(?<=\w)\. ", str(error).strip())[0].rstrip(".")
            reason = f"{type(error).__name__}: {said}"
    raise MmsslError(
        f"there is no language model {name!r} of transformers ({reason}); give the folder of one, or set "
        "method.language to own, which needs no download."
    )
