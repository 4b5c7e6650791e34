"""Texts <-> tokens: ids of a vocabulary, each with a learned vector. Strings become ids where data are read."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.nn.gather import gather_tokens
from mmssl.nn.positions import sincos_1d
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, Tokenizer, TokenizerConfig

BYTES, BYTE_VOCABULARY = "bytes", 259  # 0 is padding, byte b is b + 1, then beginning and end


@dataclass(frozen=True)
class TextTokenizerConfig(TokenizerConfig):
    """Rows of token ids, `text` int64 (B, L) with `text_mask` bool (B, L), True = real token."""

    name: str = "text"
    vocabulary: str = BYTES
    """What ids mean: the bytes of UTF-8, or a tokenizer of transformers by name or folder."""
    vocab_size: int = BYTE_VOCABULARY
    """Ids lie below it."""
    length: int = 64
    """Tokens of a row; shorter rows are read too."""
    special: bool = False
    """Whether texts have the vocabulary's marks of beginning and end."""
    embed_std: float = 1.0
    """Standard deviation of the vectors at the start."""

    def __post_init__(self) -> None:
        if self.vocab_size < 1 or self.length < 1:
            raise MmsslError(f"vocab_size {self.vocab_size} and length {self.length} must be positive.")
        if self.vocabulary == BYTES and self.vocab_size < BYTE_VOCABULARY:
            raise MmsslError(f"the vocabulary bytes has {BYTE_VOCABULARY} ids, vocab_size is {self.vocab_size}.")
        if self.embed_std < 0:
            raise MmsslError(f"embed_std must be 0 or more, got {self.embed_std}.")


@register_tokenizer("text")
class TextTokenizer(Tokenizer):
    """Ids int64 (B, L) -> tokens (B, L, D), the rows of a learned table; Geng et al. 2022, M3AE (arXiv 2205.14204).

    What a masked model predicts is the id itself: `target` gives (B, N). There are no patches.
    """

    config_class = TextTokenizerConfig

    def __init__(self, config: TextTokenizerConfig, modality: str, embed_dim: int, positions: Positions = "sincos"):
        super().__init__(config, modality, embed_dim)
        self.grid, self.patch_dim = (config.length,), 1
        self.build(positions)

    def build(self, positions: Positions) -> None:
        """Make the table of vectors, N(0, embed_std), and that of positions."""
        self.embedding = nn.Embedding(self.config.vocab_size, self.embed_dim)
        nn.init.normal_(self.embedding.weight, std=self.config.embed_std)
        self.scheme = positions
        self.set_positions(self.position_table(self.embed_dim, positions), positions == "learned")

    def grid_of(self, x: Tensor) -> tuple[int, ...]:
        """(L,) of an input: its tokens are the first ones of the lattice."""
        return (x.shape[1],)

    def padding(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The batch's `text_mask`; None without one: every token is real."""
        name = f"{self.modality}_mask"
        mask, text = batch.get(name), batch[self.modality]
        if mask is not None and (mask.dtype != torch.bool or mask.shape != text.shape):
            raise MmsslError(
                f"{name!r} must be bool with the shape {tuple(text.shape)} of {self.modality!r} (True = real token), "
                f"got {mask.dtype} {tuple(mask.shape)}."
            )
        return mask

    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Tokens with their positions: all of them (B, L, D), or those at the places `index` (B, n) -> (B, n, D)."""
        positions = self.positions[:, : x.shape[1]] if index is None else gather_tokens(self.positions, index)
        return self.embed(self.target(x, index)) + positions

    def target(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        """What a masked model predicts: the ids (B, L), or those at `index` (B, n)."""
        ids = self.prepare(x)
        return ids if index is None else ids.gather(1, index)

    def embed(self, patches: Tensor) -> Tensor:
        """Ids (B, L) -> tokens (B, L, D), without positions."""
        return self.embedding(patches)

    def prepare(self, x: Tensor) -> Tensor:
        """The ids as they are."""
        self.check_shape(x)
        return x

    def picture(self, values: Tensor) -> Tensor:
        """The ids (B, L) as they are; a `TextEncoder` decodes them."""
        return values

    def restore(self, prepared: Tensor) -> Tensor:
        raise self._no_patches("restore")

    def patchify(self, prepared: Tensor) -> Tensor:
        raise self._no_patches("patchify")

    def unpatchify(self, patches: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        raise self._no_patches("unpatchify")

    def _no_patches(self, what: str) -> MmsslError:
        return MmsslError(f"{self.modality!r} is made of ids and has no patches to {what}; use target and embed.")

    def position_table(self, dim: int, positions: Positions) -> Tensor:
        if positions == "separable":
            raise MmsslError("positions 'separable' are of times and places; texts have 'sincos' or 'learned' ones.")
        if positions in ("sincos", "sincos_row", "sincos_swapped"):  # there is but one axis
            return sincos_1d(dim, self.config.length)[None]
        return super().position_table(dim, positions)

    def check_shape(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise MmsslError(
                f"{self.modality!r} must be a torch tensor of ids, got {type(x).__name__}; encode strings."
            )
        if x.dtype != torch.int64:
            raise MmsslError(f"{self.modality!r} must be int64 ids, got {x.dtype}; convert it.")
        if x.ndim != 2 or not 1 <= x.shape[1] <= self.config.length:
            raise MmsslError(
                f"{self.modality!r} must have the shape (batch, 1 to {self.config.length} tokens), got "
                f"{tuple(x.shape)}; cut longer texts (data.text.length)."
            )

    def check(self, x: Tensor) -> None:
        self.check_shape(x)
        if x.numel() == 0:
            return
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= self.config.vocab_size:
            raise MmsslError(
                f"{self.modality!r} holds ids from {low} to {high}, but the vocabulary {self.config.vocabulary!r} has "
                f"the ids 0 to {self.config.vocab_size - 1}; encode texts with that vocabulary, or set vocab_size."
            )


class TextReader(nn.Module):
    """Base of what reads ids of a vocabulary and is no tokenizer of ours: a language model of others.

    Attributes:
        config: what ids mean, and how many a row may have.
    """

    config: TextTokenizerConfig


def text_tokenizer(model: nn.Module) -> TextTokenizer | TextReader | None:
    """What reads texts in an encoder or a method, with its `config`; None in one that reads none."""
    return next((module for module in model.modules() if isinstance(module, (TextTokenizer, TextReader))), None)
