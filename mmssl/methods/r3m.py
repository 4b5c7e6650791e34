"""R3M: time contrast, language and sparsity on videos of people or robots (Nair et al. 2022, arXiv 2203.12601)."""

from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.keys import uniform
from mmssl.losses import one_against_others, time_contrast
from mmssl.methods.base import Method, default_keys
from mmssl.methods.r3m_language import OWN, FrozenLanguage, OwnLanguage, load_language
from mmssl.methods.r3m_settings import R3MConfig
from mmssl.nn.linear import Linear
from mmssl.nn.processes import gather_rows, place_among
from mmssl.registry import register_method

FRAMES = 5  # near the start, near the end, and three whose times rise
_START, _END, _EARLY, _MIDDLE, _LATE = range(FRAMES)
_LATER = ((_END, _START), (_MIDDLE, _EARLY), (_LATE, _MIDDLE))  # progress is rewarded at the first, not at the second
_OTHERS = 2100  # stream of `keys.uniform` of the clips that negatives come from
_HIDDEN_LAYERS = 4


class Reward(nn.Module):
    """How far an instruction is carried out from one frame to another: a raw number."""

    def __init__(self, dim: int, text_dim: int, hidden: int):
        super().__init__()
        widths = [2 * dim + text_dim, *[hidden] * _HIDDEN_LAYERS, 1]
        layers = []
        for a, b in pairwise(widths):
            layers += [Linear(a, b), nn.ReLU()]
        self.pred = nn.Sequential(*layers[:-1])

    def forward(self, start: Tensor, now: Tensor, text: Tensor) -> Tensor:
        """Frames (..., D) and text (..., dim) -> (...)."""
        return self.pred(torch.cat([start, now, text], -1)).squeeze(-1)


@register_method("r3m")
class R3M(Method):
    """Frames of a clip that are near in time are alike, what an annotation says is done more and more along it.

    The batch has `video` (B, 5, C, H, W) of `data.clip.how: r3m`, and `text` with `text_mask`: rows without a text
    count nothing for the language term. The encoder is one of single images; it takes uint8, or floats in [0, 1], and
    normalises them itself.

    Attributes:
        encoder: its pooled features are R3M's representation.
        language: reads the annotations; None without a language term.
        reward: scores them; None without a language term.
    """

    config_class = R3MConfig

    def __init__(self, config: R3MConfig, language: nn.Module | None = None):
        """`language` is a model of transformers in place of the one that `config.language` names."""
        super().__init__(config)
        self.encoder = Encoder(config.encoder_config())
        self.language = self.reward = None
        if config.language_weight:
            self.language = self._language(language)
            self.reward = Reward(self.encoder.embed_dim, self.language.dim, config.reward_dim)

    def _language(self, model: nn.Module | None) -> OwnLanguage | FrozenLanguage:
        config = self.config
        if config.language == OWN and model is None:
            return OwnLanguage(config.text_config())
        model = load_language(config.language) if model is None else model
        return FrozenLanguage(model, config.language, config.text_length, config.language_mean)

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        """As `Method.forward`; `keys` choose the clips that negatives come from, and there are no masks.

        Returns:
            beside the loss the mean of each term, `tcn`, `language` (0 for clips without a text), `l1` and `l2`; and of
            how many clips the order of frames (`tcn_right`) and the progress (`language_right`) are told rightly.

        Raises:
            MmsslError: masks, no clips of five frames or no texts, one clip in all processes together.
        """
        if masks is not None:
            raise MmsslError("R3M masks nothing; leave out the masks.")
        frames = self.embed_frames(batch)  # (B, 5, D)
        keys = default_keys(batch, [self.config.modality]) if keys is None else keys
        others, there = self._others(batch, frames, keys)
        terms = {
            "l1": frames.abs().sum(-1).mean(1),
            "l2": torch.linalg.vector_norm(frames, dim=-1).mean(1),
        }  # each (B,)
        right = {}
        if self.config.tcn_weight:
            terms["tcn"], right["tcn"] = self._time_contrast(frames, others)
        if self.reward is not None:
            terms["language"], right["language"] = self._language_contrast(batch, frames, others)
        count = there.sum().clamp(min=1)
        means = {name: (term * there).sum() / count for name, term in terms.items()}
        total = sum(getattr(self.config, f"{name}_weight") * (term * there).sum() for name, term in terms.items())
        logged = {name: mean.detach() for name, mean in means.items()}
        logged |= {f"{name}_right": (told * there).sum() / count for name, told in right.items()}
        return {"loss": (total, there.sum()), **logged}

    def embed_frames(self, batch: dict[str, Tensor]) -> Tensor:
        """The vector of each of the five frames, float32 (B, 5, D)."""
        x = self._frames(batch)
        pooled = self.encoder({"image": x.flatten(0, 1)}).pooled(self.config.pooling)
        return pooled.float().unflatten(0, (len(x), FRAMES))

    def _others(self, batch: dict[str, Tensor], frames: Tensor, keys: Tensor) -> tuple["Others", Tensor]:
        """Frames of other clips, of all processes together; and which rows have a clip, float32 (B,)."""
        first, total = place_among(len(frames))
        if total < 2:
            raise MmsslError(
                "R3M tells the clips of a batch apart and learns nothing from one alone; raise loop.batch_size."
            )
        present = batch.get(f"present/{self.config.modality}")
        there = torch.ones(len(frames), device=frames.device) if present is None else present.float()
        count = self.config.negatives * (len(_LATER) + 2)
        rows = strangers(gather_rows(keys), count, self.config.negatives_from)[first : first + len(frames)]
        return Others(gather_rows(frames), rows, None if present is None else gather_rows(there) > 0), there

    def _time_contrast(self, frames: Tensor, others: "Others") -> tuple[Tensor, Tensor]:
        """Loss of each clip (B,), and whether the order of its three frames is told, bool (B,)."""
        begin, k = len(_LATER) * self.config.negatives, self.config.negatives
        first, middle, last = frames[:, _EARLY:].unbind(1)
        with torch.autocast(frames.device.type, enabled=False):
            away = []
            for own, frame, start in ((first, _EARLY, begin), (last, _LATE, begin + k)):
                place = slice(start, start + k)
                away.append(others.without_missing(self._similar(own[:, None], others.of(frame, place)), place))
            near, apart = (self._similar(middle, first), self._similar(last, middle)), self._similar(last, first)
            loss = time_contrast(*near, apart, *away)
        return loss, (near[0] > apart) & (near[1] > apart)

    def _language_contrast(self, batch: dict[str, Tensor], frames: Tensor, others: "Others") -> tuple[Tensor, Tensor]:
        """Loss of each clip (B,), 0 without a text; and whether each later frame is scored highest, float (B,)."""
        ids, mask = self._text(batch)
        text, k = self.language(ids, mask), self.config.negatives
        starts, ends = [], []
        for n, (later, earlier) in enumerate(_LATER):
            place = slice(n * k, (n + 1) * k)
            starts += [frames[:, [_START, _START]], others.of(_START, place)]
            ends += [frames[:, [later, earlier]], others.of(later, place)]
        starts, ends = torch.cat(starts, 1), torch.cat(ends, 1)  # (B, 3 * (2 + K), D)
        scores = self.reward(starts, ends, text[:, None].expand(-1, starts.shape[1], -1)).float()
        told, losses = [], []
        for n, score in enumerate(scores.unflatten(1, (len(_LATER), 2 + k)).unbind(1)):
            negatives = torch.cat([score[:, 1:2], others.without_missing(score[:, 2:], slice(n * k, (n + 1) * k))], 1)
            losses.append(one_against_others(score[:, 0], negatives))
            told.append(score[:, 0] > negatives.amax(1))
        return torch.stack(losses).mean(0) * mask.any(1), torch.stack(told).float().mean(0)

    def _similar(self, a: Tensor, b: Tensor) -> Tensor:
        if self.config.similarity == "cosine":
            return F.cosine_similarity(a, b, dim=-1)
        return -torch.linalg.vector_norm(a - b, dim=-1)

    def score(self, start: Tensor, now: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        """How far instructions are carried out, raw numbers (B,): pictures (B, C, H, W) at the start and now."""
        if self.reward is None:
            raise MmsslError("this R3M was trained without language (language_weight 0) and scores nothing.")
        vectors = [self.encoder({"image": x}).pooled(self.config.pooling) for x in (start, now)]
        return self.reward(*vectors, self.language(text, text_mask))

    def _text(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        if "text" not in batch:
            raise MmsslError(
                f"the batch lacks 'text', the annotations of its clips: it has {sorted(batch)}; give data with "
                "annotations, or set method.language_weight to 0."
            )
        ids = batch["text"]
        mask = batch.get("text_mask")
        return ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask

    def _frames(self, batch: dict[str, Tensor]) -> Tensor:
        """The clips of a batch, their shape checked."""
        name, x = self.config.modality, batch.get(self.config.modality)
        wanted = (FRAMES, self.config.channels, *self.config.image_size)
        if not isinstance(x, Tensor) or tuple(x.shape[1:]) != wanted:
            found = f"{tuple(x.shape)}" if isinstance(x, Tensor) else f"a batch of {sorted(batch)}"
            raise MmsslError(
                f"{name!r} must have the shape (batch, {', '.join(map(str, wanted))}), got {found}; set data.clip to "
                "{how: r3m, frames: 5} and data.image_size to method.image_size."
            )
        return x

    def check(self, batch: dict[str, Tensor]) -> None:
        self.encoder.check({"image": self._frames(batch).flatten(0, 1)})
        if self.language is not None:
            self.language.check(self._text(batch)[0])

    def no_decay(self) -> set[str]:
        return {"cls_token"}


class Others:
    """Frames of other clips, by which a clip is told apart.

    Args:
        frames: (M, 5, D) of all clips.
        rows: int64 (B, N), the clips that each own clip is told from.
        there: bool (M,), which clips there are; None = all.
    """

    def __init__(self, frames: Tensor, rows: Tensor, there: Tensor | None):
        self._frames, self._rows, self._there = frames, rows, there

    def of(self, frame: int, place: slice) -> Tensor:
        """One frame of those at `place` among the N: (B, K, D)."""
        return self._frames[:, frame][self._rows[:, place]]

    def without_missing(self, logits: Tensor, place: slice) -> Tensor:
        """Logits (B, K) of those at `place`, -inf for clips that are not there."""
        return logits if self._there is None else logits.masked_fill(~self._there[self._rows[:, place]], -torch.inf)


def strangers(keys: Tensor, count: int, how: Literal["permutations", "others"]) -> Tensor:
    """Rows that negatives come from, int64 (B, count): a function of the keys (B,) alone.

    Args:
        how: each column a permutation of the rows, which may leave some in place; or any row but the own one.
    """
    n, noise = len(keys), uniform(keys, count, _OTHERS)
    if how == "permutations":
        return noise.argsort(0)
    own = torch.arange(n, device=keys.device)[:, None]
    return (own + 1 + (noise * (n - 1)).long()) % n
