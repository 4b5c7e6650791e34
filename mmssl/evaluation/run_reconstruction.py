"""What a run's method reconstructs, judged on the data of a probe and saved for the report."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from mmssl.errors import MmsslError
from mmssl.evaluation.baselines import random_like
from mmssl.evaluation.clip_reconstruction import judge_clips
from mmssl.evaluation.cross_modal import judge_cross_modal, predicted_by
from mmssl.evaluation.features import Splits
from mmssl.evaluation.frames import is_video
from mmssl.evaluation.modalities import given
from mmssl.evaluation.pictures import feature_pictures, save_arrays
from mmssl.evaluation.reconstruction import Reconstruction, judge_reconstruction
from mmssl.evaluation.scores import table, write_scores
from mmssl.evaluation.sources import DataChoice, choose_device, own_audio, own_clip
from mmssl.evaluation.spectrogram_reconstruction import judge_spectrograms
from mmssl.methods.joint import JointAutoencoder
from mmssl.weights.load import load_method


def reconstruct_and_draw(
    run: Path, encoder: nn.Module, choice: DataChoice, splits: Splits, device: str, quiet: bool
) -> None:
    """Save what the report draws, judge the reconstructions and print a table, or a sentence where there are none."""
    if pictures := feature_pictures(encoder, random_like(encoder), splits.test):
        save_arrays(run, "features", pictures)
    try:
        method = load_method(run).to(choose_device(device)).eval()
        if len(method.encoder.modalities) > 1 or isinstance(method, JointAutoencoder):
            _cross_modal(run, choice, method, quiet)
            return
        train, test = _as_in_training(run, choice, splits)
        found = _judge_of(train.modality)(method, train, test)
    except MmsslError as error:  # a fine-tuned run, or a method that reconstructs nothing
        if not quiet:
            print(f"no reconstructions to judge: {error}")
        return
    if found.pictures:
        save_arrays(run, "reconstruction", found.pictures)
    write_scores(run, [], found.mse, found.explained)
    if not quiet:
        print(reconstruction_table(found, "dB squared" if _is_sound(test.modality) else "MSE in [0, 1]"))


def _cross_modal(run: Path, choice: DataChoice, method: nn.Module, quiet: bool) -> None:
    """Judge the predictions of each modality from each other one, on all that the data have."""
    whole = choice.showing_all(method.encoder, own_clip(run))
    test = whole.part("test")
    lacking = [name for name in predicted_by(method, test) if name not in given(test)]  # predicted, and not read
    whole = whole.giving(lacking)
    rows = judge_cross_modal(method, whole.part("train"), whole.part("test"))
    write_scores(run, rows)
    if not quiet:
        print(table(rows))


def _judge_of(modality: str) -> Callable[..., Reconstruction]:
    if _is_sound(modality):
        return judge_spectrograms
    return judge_clips if is_video(modality) else judge_reconstruction


def _is_sound(modality: str) -> bool:
    return modality.split("/")[0] == "audio"


def _as_in_training(run: Path, choice: DataChoice, splits: Splits) -> tuple[Any, Any]:
    """Both parts with the clips and cameras that the run learned from: a run of pairs is probed on images, say."""
    clip, audio = own_clip(run), own_audio(run) or choice.audio
    if (clip, audio) == (choice.clip, choice.audio) and getattr(splits.test, "views", 1) == 1:
        return splits.train, splits.test
    choice = dataclasses.replace(choice, clip=clip, audio=audio, several=True)
    return choice.part("train"), choice.part("test")


def reconstruction_table(found: Reconstruction, unit: str = "MSE in [0, 1]") -> str:
    """Aligned text: the error of the model and of each baseline on masked patches."""
    width = max(map(len, found.mse))
    lines = [f"{'masked patches':<{width}}  {unit:>13}  variance explained (norm-pix)"]
    for name, value in sorted(found.mse.items(), key=lambda item: item[1]):
        note = f"  = {found.best}" if name == "best_interpolation" else ""
        lines.append(f"{name:<{width}}  {value:13.6f}  {found.explained[name]:28.3f}{note}")
    return "\n".join(lines)
