"""What fine-tuning trains: an encoder, its tokens pooled, and a linear head (He et al. 2022, appendix A.1).

Patch tokens (of a clip: of all its times) are averaged, normalised by a new LayerNorm (the encoder's final norm is
dropped, as in MAE and VideoMAE) and read by the head; or the cls token after the final norm is; or a learned query
attends to them.
"""

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmssl.data.audio_mixing import WaveformMix
from mmssl.data.mixing import Mix
from mmssl.data.spec_augment import SpecAugment
from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.evaluation.features import Splits, device_of, groups_of, in_order, labels_of
from mmssl.evaluation.finetune_audio import SoundTransform
from mmssl.evaluation.fitting import TargetScaler, linear_probe_head
from mmssl.evaluation.frames import FrameEncoder, clip_key, encode_frames, is_image, is_video
from mmssl.evaluation.modalities import ChosenEncoder, bare, only
from mmssl.evaluation.views import average_views
from mmssl.masking import TimeFrequencyMask
from mmssl.nn.heads import AttentiveHead, LinearHead
from mmssl.tokenizers.audio import audio_tokenizer


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """What is put on the encoder, and what keeps it from learning by heart."""

    pooling: Literal["mean", "cls", "attentive"] = "mean"
    """of the patch tokens; attentive: a learned query attends to them, after the encoder's final norm"""
    freeze: bool = False
    """linear probe: the encoder stays as it is, and the head is a batch norm without affine and a linear layer; with
    attentive pooling the attentive probe"""
    dropout: float = 0.0
    """before the last linear layer; VideoMAE's fine-tuning on UCF101 and of ViT-H has .5"""
    drop_path: float = 0.1
    """drop path of the last block; it grows linearly from 0 at the first"""
    std: float | None = None
    """of the head's first weights; null for MAE's 2e-5, and .01 where the encoder is frozen"""
    train_positions: bool = True
    """let the position tables learn too, as MAE does; VideoMAE's stay as they are"""
    mixup: float = 0.0
    """parameter of the Beta distribution; 0 for none; MAE's is .8 (single_label only)"""
    cutmix: float = 0.0
    """parameter of the Beta distribution; 0 for none; MAE's is 1 (single_label only)"""
    mix_prob: float = 1.0
    """share of the samples that are mixed"""
    mix_switch: float = 0.5
    """share of cutmix where both are on"""
    label_smoothing: float = 0.0
    """MAE's is .1 (single_label only)"""
    loss: Literal["task", "bce"] = "task"
    """task: cross-entropy for single_label, binary cross-entropy for multi_label, squared error for regression; bce:
    binary cross-entropy of each class for single_label too (Audio-MAE on SpeechCommands)"""
    token_drop: tuple[float, float] | None = None
    """sound: share of the times and of the frequencies whose tokens are left out in training, drawn for each sample;
    Audio-MAE's is [.2, .2], which keeps 51 x 6 of 64 x 8"""
    wave_mix: float = 0.0
    """sound: share of the samples whose waveform is mixed with another; Audio-MAE's is .5 (not for regression)"""
    wave_mix_alpha: float = 10.0
    """parameter of the Beta distribution of that mix"""
    spec_augment: tuple[int, int] | None = None
    """sound: mel bins and frames of the two bands that are blanked in training, these numbers excluded; Audio-MAE's are
    [48, 192]"""

    def __post_init__(self) -> None:
        for name in ("drop_path", "label_smoothing", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise MmsslError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        if min(self.mixup, self.cutmix) < 0:
            raise MmsslError(f"mixup and cutmix must be 0 or more, got {self.mixup} and {self.cutmix}.")
        if not 0 <= self.wave_mix <= 1 or not self.wave_mix_alpha > 0:
            raise MmsslError(
                f"wave_mix must lie in [0, 1] and wave_mix_alpha above 0, got {self.wave_mix} and "
                f"{self.wave_mix_alpha}."
            )
        if self.token_drop is not None:
            TimeFrequencyMask(*self.token_drop)  # says what is wrong with it

    @property
    def mixes_pictures(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def hears(self) -> list[str]:
        """The settings in use that are for sound."""
        return [name for name in ("token_drop", "wave_mix", "spec_augment") if getattr(self, name)]


class FinetuneModel(nn.Module):
    """An encoder, pooled, with a linear head; `forward` gives the loss as the training loop wants it.

    Args:
        encoder: taken apart for its weights; the given one is not changed. A `FrameEncoder` reads clips frame by frame,
            a `ChosenEncoder` some of its modalities.
        outputs: classes or target dimensions.
        labels: the training labels, for the scale of regression targets.
    """

    def __init__(self, encoder: Encoder, task: str, outputs: int, labels: Tensor, config: HeadConfig):
        super().__init__()
        self.task, self.config = task, config
        own_norm = config.pooling == "mean" and not config.freeze
        self.by_frame = isinstance(encoder, FrameEncoder)
        encoder = encoder.encoder if self.by_frame else encoder
        self.reads = tuple(encoder.modalities)
        encoder = bare(encoder)
        self.encoder = _adapt(encoder, config, final_norm=encoder.config.final_norm and not own_norm)
        self.head = _head(encoder, outputs, task, config)
        smoothing = 0.0 if config.mixes_pictures else config.label_smoothing
        self.scaler = TargetScaler(task, labels, smoothing, bce=config.loss == "bce")
        self.drop = None if config.token_drop is None else _token_drop(self.encoder, config.token_drop)

    def output(self, batch: dict[str, Tensor], keys: Tensor | None = None) -> Tensor:
        """Raw head outputs (B, K). In training, tokens are dropped by `keys` (B,) where the head is told to."""
        dropped = self._dropped(keys) if self.training and self.drop is not None else {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze):
            if self.by_frame:
                features = encode_frames(self.encoder, batch, modality=self.reads[0])
            else:
                features = self.encoder(only(batch, self.reads), **dropped)
        if self.config.pooling == "attentive":
            return self.head(features.tokens, features.valid)
        return self.head(features.pooled(self.config.pooling))

    def _dropped(self, keys: Tensor | None) -> dict[str, Any]:
        """The masks of the tokens to leave out, and how many stay, as the encoder takes them."""
        if keys is None:
            raise MmsslError("token_drop draws what it leaves out from keys: give the model the batch's keys.")
        grids = self.encoder.grids
        return {"masks": self.drop(grids, keys), "visible": self.drop.visible(grids)}

    def check(self, batch: dict[str, Tensor]) -> None:
        """Raise an `MmsslError` for anything wrong with a batch, its values included; called on the first sample."""
        reader = ChosenEncoder(self.encoder, self.reads)
        (FrameEncoder(reader) if self.by_frame else reader).check(batch)

    def train(self, mode: bool = True) -> "FinetuneModel":
        """As `nn.Module.train`; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze:
            self.encoder.eval()
        return self

    def forward(
        self, batch: dict[str, Tensor], masks: dict[str, Tensor] | None = None, keys: Tensor | None = None
    ) -> dict[str, Any]:
        """Loss (sum, count) over a batch with `label`; `keys` draw the tokens to drop, `masks` are not used."""
        losses = self.scaler.losses(self.output(batch, keys).float(), batch["label"])
        return {"loss": (losses.sum(), torch.full_like(losses.sum(), len(losses)))}

    @torch.no_grad()
    def predict(self, dataset: Any, batch_size: int, workers: int = 0) -> tuple[Tensor, Tensor]:
        """Predictions (N, K) in the labels' units and the labels, of every readable sample, in eval mode.

        Where the dataset has several views of a video (clips x crops), one row a video: the mean of its views'
        predictions, for classes as probabilities.

        Args:
            batch_size: images, or frames of clips, in one pass.
        """
        self.eval()
        device = device_of(self.head)
        reads = (clip_key(self.reads[0]),) if self.by_frame else self.reads
        rows: dict[str, list[Tensor]] = {"index": [], "label": [], "prediction": []}
        for batch in in_order(dataset, batch_size, workers):
            output = self.output({k: x.to(device) for k, x in only(batch, reads).items()})
            batch["prediction"] = self.scaler.restore(output.float()).cpu()
            for name, parts in rows.items():
                parts.append(batch[name])
        index, labels, predictions = (torch.cat(parts) for parts in rows.values())
        own = index == torch.arange(len(index))  # an unreadable sample was replaced by the next, which is there already
        index, labels, predictions = index[own], labels[own], predictions[own]
        if getattr(dataset, "views", 1) > 1:
            return average_views(self.task, predictions, labels, groups_of(dataset)[index])
        return predictions, labels

    def no_decay(self) -> set[str]:
        """cls token and positions do not decay in fine-tuning."""
        return {n for n, _ in self.named_parameters() if n.endswith("cls_token") or _is_position(n)}


def _is_position(name: str) -> bool:
    """Whether a parameter is a position table: `pos_embed`, or one of a clip's two learned ones."""
    return name.rpartition(".")[2].startswith("pos_embed")


def _token_drop(encoder: Encoder, shares: tuple[float, float]) -> TimeFrequencyMask:
    """The sampler of the tokens to leave out of this encoder's sound; an `MmsslError` where none would be left."""
    sampler = TimeFrequencyMask(*shares)
    for name, left in sampler.visible(encoder.grids).items():
        if left == 0:
            raise MmsslError(
                f"token_drop {list(shares)} leaves no token of the lattice {encoder.grids[name]}; lower it."
            )
    return sampler


def _adapt(encoder: Encoder, config: HeadConfig, final_norm: bool) -> Encoder:
    """A copy with drop path, trainable or frozen, its final norm gone if the head brings its own."""
    drop_path = 0.0 if config.freeze else config.drop_path
    fresh = type(encoder)(dataclasses.replace(encoder.config, drop_path=drop_path, final_norm=final_norm))
    state = {k: v.detach().cpu() for k, v in encoder.state_dict().items() if final_norm or not k.startswith("norm.")}
    fresh.load_state_dict(state)
    for name, parameter in fresh.named_parameters():
        trained = config.train_positions if _is_position(name) else True
        parameter.requires_grad_(trained and not config.freeze)
    return fresh


def _head(encoder: Encoder, outputs: int, task: str, config: HeadConfig) -> nn.Module:
    dim = encoder.embed_dim
    if config.pooling == "attentive":
        return AttentiveHead(dim, outputs, heads=encoder.config.heads)
    if not config.freeze:
        return LinearHead(dim, outputs, config.std or 2e-5, config.pooling == "mean", config.dropout)
    return linear_probe_head(dim, outputs, task, config.std or 0.01)


def build_model(encoder: Encoder, train: Any, config: HeadConfig, seed: int) -> FinetuneModel:
    """A model for the target of a training set; its head's weights depend on the seed alone."""
    labels = labels_of(train)
    if labels is None:
        raise MmsslError(f"the data {train.name!r} has no labels to fine-tune on: choose a target (data.target).")
    _refuse(encoder, train.task, config)
    outputs = Splits(train, train).classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FinetuneModel(encoder, train.task, outputs, labels, config)


def _refuse(encoder: nn.Module, task: str, config: HeadConfig) -> None:
    """An `MmsslError` where settings of the head do not fit the target or the encoder."""
    if task != "single_label" and (config.mixes_pictures or config.label_smoothing):
        raise MmsslError(f"mixup, cutmix and label smoothing need a single_label target, and this one is {task}.")
    if task == "regression" and (config.wave_mix or config.loss == "bce"):
        raise MmsslError("wave_mix and the loss bce need a target of classes, and this one is a regression.")
    if config.loss == "bce" and config.label_smoothing:
        raise MmsslError("label smoothing is for cross-entropy: set label_smoothing to 0, or loss to task.")
    sound = audio_tokenizer(encoder) is not None
    if config.hears and not sound:
        raise MmsslError(f"{' and '.join(config.hears)} are for sound, and this encoder hears none: leave them out.")
    others = [name for name in encoder.modalities if not (is_image(name) or is_video(name))]
    if config.mixes_pictures and others and not sound:
        raise MmsslError(f"mixup and cutmix mix pictures alone, and {', '.join(others)} would not fit them any more.")
    if config.mixes_pictures and sound:
        raise MmsslError("mixup and cutmix are for pictures; mix sounds with wave_mix.")


def mixer(config: HeadConfig, classes: int, task: str = "single_label", encoder: nn.Module | None = None) -> Any:
    """The batch transform of training, (batch, keys) -> batch, None if everything is off.

    Args:
        task: of the target; what a mix of sounds makes of its labels depends on it.
        encoder: of sound: its tokenizer makes the spectrograms.
    """
    if config.mixes_pictures:
        return Mix(classes, config.mixup, config.cutmix, config.mix_prob, config.mix_switch, config.label_smoothing)
    if not (config.wave_mix or config.spec_augment):
        return None
    mix = WaveformMix(classes, config.wave_mix, config.wave_mix_alpha, task) if config.wave_mix else None
    bands = SpecAugment(*config.spec_augment) if config.spec_augment else None
    return SoundTransform(audio_tokenizer(encoder), mix, bands)
