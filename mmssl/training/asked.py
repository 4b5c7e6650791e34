"""What a method's tokenizers ask of the data, where a recipe does not say it, and whether the data fit them."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.loading import DataConfig, Dataset, kinds_of
from mmssl.data.text import TextEncoding
from mmssl.data.trajectories import TrajectoryWindows
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.encoder import PICTURES, Encoder
from mmssl.errors import MmsslError
from mmssl.tokenizers.audio import audio_tokenizer
from mmssl.tokenizers.base import Tokenizer
from mmssl.tokenizers.text import text_tokenizer
from mmssl.tokenizers.vector import VectorTokenizer, vector_tokenizers

EXTRAS = ("depth", "segmentation", "proprio", "state")
"""What recorded data give on demand."""


def as_asked(model: nn.Module, data: DataConfig, tell: Callable[[str], None] = lambda sentence: None) -> DataConfig:
    """How the data are opened for a method or an encoder: as the recipe says, else as its tokenizers need them.

    What they decide: image_size, audio and text, and of recorded data cameras and extras.

    Args:
        tell: told of what the model works with and no recording has.

    Raises:
        MmsslError: the recipe contradicts the method.
    """
    sizes = [getattr(tokenizer.config, "image_size", None) for tokenizer in _tokenizers(model)]
    sizes.insert(0, getattr(model, "picture_size", None))  # of a method that crops them itself
    data = dataclasses.replace(
        data,
        image_size=data.image_size or next((size for size in sizes if size is not None), None),
        audio=sound_sampling(model, data.audio),
        text=text_encoding(model, data.text),
        trajectory=trajectory_sampling(model, data.trajectory),
    )
    if data.trajectory is not None:
        return data
    extras = () if data.extras else tuple(extra for extra in EXTRAS if extra in map(_kind, modalities_of(model)))
    cameras = () if data.cameras or data.camera else cameras_of(model)
    if not (extras or cameras) or kinds_of(data) != ["recorded"]:
        return data
    data = dataclasses.replace(data, cameras=cameras or data.cameras)
    return dataclasses.replace(data, extras=data.extras or _recorded(extras, data, tell))


def _recorded(extras: tuple[str, ...], data: DataConfig, tell: Callable[[str], None]) -> tuple[str, ...]:
    """Those of the extras that any recording has."""
    files = data.open(cache="none").episodes.files if extras else []
    there = tuple(extra for extra in extras if any(file.planes.get(extra) or extra in file.columns for file in files))
    if lacking := [extra for extra in extras if extra not in there]:
        tell(f"the method works with {' and '.join(lacking)}, and no recording has it: going on without.")
    return there


def modalities_of(model: nn.Module) -> tuple[str, ...]:
    """Batch keys that a method or an encoder reads or predicts; of cameras each one."""
    encoders = [module for module in model.modules() if isinstance(module, Encoder)]
    names = [name for encoder in encoders for name in encoder.modalities]
    reading = {tokenizer for encoder in encoders for tokenizer in encoder.tokenizers.values()}
    predicted = [tokenizer.modality for tokenizer in _tokenizers(model) if tokenizer not in reading]
    return tuple(dict.fromkeys([*names, *predicted]))


def cameras_of(model: nn.Module) -> tuple[str, ...]:
    """The cameras that a model names; () where it reads or predicts pictures of one that has no name."""
    names = [name for name in modalities_of(model) if _kind(name) in PICTURES]
    return tuple(dict.fromkeys(name.partition("/")[2] for name in names)) if all("/" in name for name in names) else ()


def _tokenizers(model: nn.Module) -> list[Tokenizer]:
    return [module for module in model.modules() if isinstance(module, Tokenizer)]


def _kind(name: str) -> str:
    return name.partition("/")[0]


def sound_sampling(model: nn.Module, given: AudioSampling | None) -> AudioSampling | None:
    """How sounds are sampled for a model: as the recipe says, else as many seconds as fill its spectrogram.

    As it is given for a model that hears nothing. Raises an `MmsslError` where the recipe's rate is not the model's.
    """
    tokenizer = audio_tokenizer(getattr(model, "encoder", model))
    if tokenizer is None:
        return given
    config = tokenizer.config
    rate = config.input_rate or config.sample_rate
    if given is None:
        samples = math.ceil(config.log_mel.samples(config.frames) * rate / config.sample_rate)
        return AudioSampling(rate, samples / rate)
    if given.sample_rate != rate:
        raise MmsslError(
            f"data.audio.sample_rate is {given.sample_rate} and the method reads {rate} samples a second; set "
            f"data.audio.sample_rate to {rate}, or method.input_rate to {given.sample_rate}."
        )
    return given


def text_encoding(model: nn.Module, given: TextEncoding | None) -> TextEncoding | None:
    """How texts are encoded for a method or an encoder: as the recipe says, else as its tokenizer does.

    As it is given for a model that reads no text. Raises an `MmsslError` where the recipe's ids do not mean what the
    tokenizer's mean, or a row has more of them than it reads.
    """
    tokenizer = text_tokenizer(model)
    if tokenizer is None:
        return given
    config = tokenizer.config
    wanted = TextEncoding(config.vocabulary, config.length, config.special)
    if given is None:
        return wanted
    for name in ("vocabulary", "special"):
        if getattr(given, name) != getattr(wanted, name):
            raise MmsslError(
                f"data.text.{name} is {getattr(given, name)!r} and the method's tokenizer has "
                f"{getattr(wanted, name)!r}; set them alike, or leave out data.text."
            )
    if given.length > wanted.length:
        raise MmsslError(
            f"data.text.length is {given.length} and the method reads {wanted.length} tokens; lower the first, or "
            "raise the second."
        )
    return given


def trajectory_sampling(model: nn.Module, given: TrajectorySampling | None) -> TrajectorySampling | None:
    """Windows as a method of trajectories reads them: its length and its modalities, with what the recipe says beside.

    As it is given for a model of something else. Raises an `MmsslError` where the recipe's windows are longer.
    """
    length = getattr(model, "trajectory_length", None)
    if length is None:
        return given
    if given is None:
        return TrajectorySampling(length, modalities_of(model))
    if given.length > length:
        raise MmsslError(
            f"data.trajectory.length is {given.length} and the method reads {length} steps; lower the first, or raise "
            "method.length."
        )
    return dataclasses.replace(given, modalities=modalities_of(model))


def check_vocabulary(model: nn.Module, dataset: Dataset) -> None:
    """An `MmsslError` where a dataset's ids go beyond the vocabulary of a model."""
    tokenizer, encoder = text_tokenizer(model), dataset.text_encoder
    if tokenizer is None or encoder is None or encoder.vocab_size <= tokenizer.config.vocab_size:
        return
    raise MmsslError(
        f"the vocabulary {encoder.encoding.vocabulary!r} has {encoder.vocab_size} ids and the method's vocab_size is "
        f"{tokenizer.config.vocab_size}; set vocab_size to {encoder.vocab_size}."
    )


def check_data(model: nn.Module, dataset: Dataset) -> None:
    """An `MmsslError` where a dataset has other ids, classes or vectors than a method's tokenizers read."""
    check_vocabulary(model, dataset)
    _check_classes(model, dataset)
    _check_widths(model, dataset)


def _check_classes(model: nn.Module, dataset: Dataset) -> None:
    names = dataset.segmentation_classes
    for tokenizer in _tokenizers(model):
        if names is None or _kind(tokenizer.modality) != "segmentation" or tokenizer.config.classes == len(names):
            continue
        raise MmsslError(
            f"the segmentation of dataset {dataset.name!r} has {len(names)} classes and the method has "
            f"{tokenizer.config.classes}; set method.classes to {len(names)}."
        )


def _check_widths(model: nn.Module, dataset: Dataset) -> None:
    for tokenizer, width, _ in _recorded_vectors(model, dataset):
        if width != tokenizer.config.width:
            raise MmsslError(
                f"{tokenizer.modality!r} of dataset {dataset.name!r} has {width} numbers and the method's tokenizer "
                f"reads {tokenizer.config.width}; set its width to {width}."
            )


def settle_statistics(model: nn.Module, dataset: Dataset, tell: Callable[[str], None]) -> None:
    """Standardise vectors, where the settings do not say by what, by their mean and standard deviation in a dataset.

    Every row of the recorded part counts, those of whole episodes, and the variance is that of the population (MTM).

    Args:
        dataset: the training part; where it is not recorded, or gives no vectors, nothing changes.
        tell: told what was done, one sentence for each modality, and of dimensions that never change.
    """
    for tokenizer, _, rows_of in _recorded_vectors(model, dataset):
        if tokenizer.config.mean is None:
            rows = rows_of()  # (N, width)
            if bad := int((~rows.isfinite()).any(1).sum()):
                raise MmsslError(
                    f"{tokenizer.modality!r} of dataset {dataset.name!r} holds NaN or infinite values in {bad} of "
                    f"{len(rows)} frames; mend the recording, or leave {tokenizer.modality} out of the method."
                )
            std = rows.std(0, correction=0)
            tokenizer.set_statistics(rows.mean(0), std)
            still = (std == 0).nonzero().flatten().tolist()
            never = f"; dimensions {still} of it never change, and are not divided by it" if still else ""
            name = tokenizer.modality
            tell(f"{name} is standardised by its mean and std over {len(rows)} frames of {dataset.name}{never}.")


def _recorded_vectors(
    model: nn.Module, dataset: Dataset
) -> Iterator[tuple[VectorTokenizer, int, Callable[[], Tensor]]]:
    """The tokenizers of vectors that recorded episodes give, their width there, and all their rows, float64."""
    root = dataset.root
    episodes = getattr(root, "episodes", None)
    for tokenizer in vector_tokenizers(model):
        name = tokenizer.modality
        if isinstance(root, TrajectoryWindows):
            if name in root.widths:
                yield tokenizer, root.widths[name], partial(root.rows, name)
        elif episodes is not None and name in episodes.config.extras:
            width = episodes.files[0].shape(name)[0][0]
            yield tokenizer, width, lambda name=name: episodes.vectors(name).double()
