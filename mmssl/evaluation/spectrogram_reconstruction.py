"""Does a masked model of sound reconstruct better than interpolation in time and frequency?

As `reconstruction.py` does for images: masked patches of held-out clips are filled in by the model and by every filler
of `spectrogram_interpolation.py`, from the same visible patches. Two scores: squared error on masked patches in squared
decibels, and the share of the variance of standardised patches (norm-pix) that is explained. A model of norm-pix
targets does not predict a patch's level and contrast, and never reads them from masked patches: both are the method's
own estimate in "model_own_statistics"; in "model" the level is that of the filler that did best on training clips.

Padding is neither shown to the fillers nor judged.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmssl.errors import MmsslError
from mmssl.evaluation.features import device_of, in_order
from mmssl.evaluation.interpolation import Filler, paste
from mmssl.evaluation.reconstruction import Reconstruction, spread_evenly
from mmssl.evaluation.spectrogram_interpolation import spectrogram_fillers
from mmssl.keys import sample_keys
from mmssl.losses import norm_pix_target
from mmssl.report.spectrograms import DECIBELS
from mmssl.tokenizers.audio import AudioTokenizer, audio_tokenizer
from mmssl.training.sounds import sound_frames


class _Filled(NamedTuple):
    """Clips with the model's filling and what hides what; on the CPU."""

    levels: Tensor  # float64 (B, 1, T, M) raw log-mel
    model: Tensor  # the same, masked patches filled in by the model
    visible: Tensor  # bool (B, T, M), of sound
    judged: Tensor  # bool (B, T, M), masked and sound
    masked: Tensor  # bool (B, N), masked patches without padding
    guess: Tensor  # (B, N, P) what the decoder says, in the space of the loss


def judge_spectrograms(
    method: nn.Module, train: Any, test: Any, *, clips: int = 24, batch_size: int = 32, seed: int = 0
) -> Reconstruction:
    """Compare a masked model of sound with interpolation on held-out clips.

    Args:
        method: a method with `reconstruct` whose encoder reads sound alone.
        train: dataset on which settings are tuned; a third of `clips` are used, spread evenly.
        test: held-out dataset; `clips` of it are used.
        batch_size: clips in one pass of the model; changes the time, never the score.
        seed: of the masks.

    Returns:
        The scores; squared errors in squared decibels, and no pictures: those of the run were made when it ended.

    Raises:
        MmsslError: a method that does not reconstruct sound, or empty datasets.
    """
    tokenizer = audio_tokenizer(method.encoder)
    if tokenizer is None:
        raise MmsslError(f"sound is judged here; this model reads {', '.join(method.encoder.modalities)}.")
    tuning = _fill(method, spread_evenly(train, max(1, clips // 3)), tokenizer, batch_size, seed)
    held_out = _fill(method, spread_evenly(test, clips), tokenizer, batch_size, seed)
    tuned, fillers = _tune(spectrogram_fillers(tokenizer.config.patch_size), tuning)
    filled = {name: filler(held_out.levels, held_out.visible) for name, filler in fillers.items()}
    norm_pix = bool(getattr(method.config, "norm_pix", False))
    usual = min(fillers, key=lambda name: _mse(tuned[name], tuning))
    for data, fillings in ((tuning, tuned), (held_out, filled)):
        model = fillings["model"] = data.model
        if norm_pix:
            fillings["model_own_statistics"] = model
            fillings["model"] = _relevelled(model, fillings[usual], data, tokenizer)

    mse = {name: _mse(x, held_out) for name, x in filled.items()}
    explained = {}
    for name in filled:
        own = norm_pix and name.startswith("model")  # what the decoder says, before level and contrast
        guesses = [
            data.guess if own else _standardised(fillings[name], tokenizer)
            for data, fillings in ((tuning, tuned), (held_out, filled))
        ]
        explained[name] = _explained(guesses, (tuning, held_out), tokenizer)
    best = min(fillers, key=mse.__getitem__)
    mse["best_interpolation"] = mse[best]
    explained["best_interpolation"] = max(explained[name] for name in fillers)
    return Reconstruction(mse, explained, best, {})


@torch.no_grad()
def _fill(method: nn.Module, dataset: Any, tokenizer: AudioTokenizer, batch_size: int, seed: int) -> _Filled:
    """Run the model over a dataset with masks that depend on the seed and the sample's place alone."""
    device, was_training, name = device_of(method), method.training, tokenizer.modality
    method.eval()
    results: list[dict[str, Tensor]] = []
    for batch in in_order(dataset, batch_size):
        keys = sample_keys(seed, 0, 0, batch["index"]).to(device)
        audio = batch[name].to(device)
        found = method.reconstruct({name: audio}, keys=keys)
        kept = {k: found[k].cpu() for k in ("mask", "target", "prediction", "prediction_patches")}
        results.append({**kept, "frames": sound_frames(tokenizer.spectrogram(audio)).cpu()})
    method.train(was_training)
    joined = {k: torch.cat([r[k] for r in results]) for k in results[0]}
    levels = joined["target"].double()
    sound = torch.arange(levels.shape[2]) < joined["frames"][:, None]  # (B, T)
    sound = sound[..., None].expand(-1, -1, levels.shape[3])
    hidden = tokenizer.unpatchify(joined["mask"][..., None].expand(-1, -1, tokenizer.patch_dim).float())[:, 0].bool()
    whole = tokenizer.patchify(sound[:, None].float()).bool().all(-1)  # (B, N)
    model = paste(levels, joined["prediction"].double(), ~hidden)
    masked = joined["mask"] & whole
    return _Filled(levels, model, sound & ~hidden, sound & hidden, masked, joined["prediction_patches"].double())


def _tune(fillers: dict[str, Filler], data: _Filled) -> tuple[dict[str, Tensor], dict[str, Filler]]:
    """The best setting of each family (the word in front of `@`): its filling of the training clips, and itself."""
    best: dict[str, tuple[float, Tensor, Filler]] = {}
    for name, filler in fillers.items():
        family, filled = name.partition("@")[0], filler(data.levels, data.visible)
        error = _mse(filled, data)
        if family not in best or error < best[family][0]:
            best[family] = (error, filled, filler)
    return {k: v[1] for k, v in best.items()}, {k: v[2] for k, v in best.items()}


def _mse(filled: Tensor, data: _Filled) -> float:
    """Squared decibels."""
    return ((filled - data.levels)[:, 0][data.judged] * DECIBELS).square().mean().item()


def _relevelled(model: Tensor, filled: Tensor, data: _Filled, tokenizer: AudioTokenizer) -> Tensor:
    """The model's filling with the mean of each masked patch taken from another filling."""
    patches, wanted = tokenizer.patchify(model), tokenizer.patchify(filled)  # (B, N, P)
    moved = tokenizer.unpatchify(patches - patches.mean(-1, keepdim=True) + wanted.mean(-1, keepdim=True))
    return paste(model, moved, ~data.judged)


def _standardised(levels: Tensor, tokenizer: AudioTokenizer) -> Tensor:
    """(B, N, P) norm-pix patches of raw log-mel (B, 1, T, M)."""
    return norm_pix_target(tokenizer.patchify((levels - tokenizer.config.mean) / (2 * tokenizer.config.std))).double()


def _explained(guesses: list[Tensor], parts: tuple[_Filled, _Filled], tokenizer: AudioTokenizer) -> float:
    """Share of the variance of masked standardised patches that is explained, scaled as suits the training clips."""
    (tuned, tuned_answer), (guess, answer) = (
        (x[data.masked], _standardised(data.levels, tokenizer)[data.masked])
        for x, data in zip(guesses, parts, strict=True)
    )
    scale = (tuned * tuned_answer).sum() / tuned.square().sum().clamp_min(1e-12)
    return (1 - (scale * guess - answer).square().sum() / answer.square().sum().clamp_min(1e-12)).item()
