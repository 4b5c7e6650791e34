"""What a command line names, opened: encoders by source and device, and the two splits that judge them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from mmssl.config import from_dict, read_yaml, to_dict
from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.cards import load_card
from mmssl.data.clips import ClipSampling
from mmssl.data.loading import DataConfig, open_dataset
from mmssl.errors import MmsslError, unknown_name
from mmssl.evaluation.features import Splits
from mmssl.evaluation.finetune_audio import set_to_sound
from mmssl.evaluation.frames import check_frames, frames_of
from mmssl.evaluation.modalities import ChosenEncoder, choose
from mmssl.evaluation.views import views_at_test
from mmssl.paths import list_resources
from mmssl.tokenizers.audio import audio_tokenizer
from mmssl.weights.load import load


def choose_device(name: str) -> torch.device:
    """The device called auto (the best there is), cpu, cuda or mps.

    Raises:
        MmsslError: an unknown name, or a device that this machine does not have.
    """
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if found["cuda"] else "cpu")
    if name.split(":")[0] not in found:
        raise unknown_name("device", name, ["auto", *found])
    if not found[name.split(":")[0]]:
        raise MmsslError(f"this machine has no usable {name!r} device; use auto or cpu, and see `mmssl doctor`.")
    return torch.device(name)


def load_encoder(source: str | Path, device: str = "auto") -> nn.Module:
    """A frozen encoder in eval mode from anything that `mmssl.load` reads."""
    return load(source).to(choose_device(device)).requires_grad_(False).eval()


def image_size_of(encoder: nn.Module) -> tuple[int, int]:
    """(H, W) of the images that an encoder takes."""
    for tokenizer in encoder.tokenizers.values():
        if getattr(tokenizer.config, "image_size", None) is not None:
            return tuple(tokenizer.config.image_size)
    raise MmsslError(f"this encoder takes no images; it reads {', '.join(encoder.modalities)}.")


def own_data(source: str | Path) -> dict[str, Any]:
    """The `data` section of a run's config.yaml, {} where there is none."""
    config = Path(source) / "config.yaml"
    return (read_yaml(config).get("data") or {}) if config.is_file() else {}


def own_clip(source: str | Path) -> ClipSampling | None:
    """How a run samples clips, None for images and for anything that is no run."""
    section = own_data(source).get("clip")
    return None if section is None else from_dict(ClipSampling, section, f"{source}: data.clip")


def own_audio(source: str | Path) -> AudioSampling | None:
    """How a run samples sounds, None for a run of pictures and for anything that is no run."""
    section = own_data(source).get("audio")
    return None if section is None else from_dict(AudioSampling, section, f"{source}: data.audio")


def choose_audio(
    source: str | Path, encoder: nn.Module, options: Sequence[str] = (), data: Sequence[str] = ()
) -> AudioSampling:
    """How the sounds that judge an encoder are sampled: as the card of the data says, else as its run did, else as long
    as its spectrogram.

    Where that is another length or rate than the encoder's, the encoder is set to it, in place, as fine-tuning does.

    Args:
        options: changes, e.g. ("seconds=5", "test_clips=3").
        data: what it is judged on; of one card the lengths are taken, not the rate.

    Raises:
        MmsslError: an unknown or wrong setting, or an encoder that hears nothing.
    """
    tokenizer = audio_tokenizer(encoder)
    if tokenizer is None:
        raise MmsslError(f"this encoder hears no sound; it reads {', '.join(encoder.modalities)}.")
    heard = own_audio(source)
    if heard is None:
        config = tokenizer.config
        heard = AudioSampling(
            config.input_rate or config.sample_rate, config.log_mel.samples(config.frames) / config.sample_rate
        )
    card = load_card(data[0])[0].audio if len(data) == 1 and data[0] in list_resources("data") else None
    asked = heard if card is None else dataclasses.replace(card, sample_rate=heard.sample_rate)
    asked = from_dict(AudioSampling, {**to_dict(asked), **_settings(options, "seconds=5 test_clips=3")}, "--clip")
    if (asked.sample_rate, asked.seconds) != (heard.sample_rate, heard.seconds):
        set_to_sound(encoder, DataConfig(audio=asked))
    return asked


def choose_clip(source: str | Path, encoder: nn.Module, options: Sequence[str] = ()) -> ClipSampling | None:
    """How the clips that judge an encoder are sampled.

    A video encoder gets its run's own sampling, else dense clips of its length with stride 4. An image encoder gets
    None: single images, and for files of videos the dataset's default clips, whose frames it encodes one by one; so
    does a run that learned from pairs of frames, or from R3M's five.

    Args:
        options: changes, e.g. ("how=segments", "test_clips=5"); ("none",) takes single images in any case.

    Raises:
        MmsslError: an unknown or wrong setting, or clips of another length than a video encoder reads.
    """
    own, frames = own_clip(source), frames_of(encoder)
    if tuple(options) == ("none",):
        if frames is not None:
            raise MmsslError(f"this encoder reads clips of {frames} frames, so --clip none leaves it nothing to read.")
        return None
    if own is not None and own.frame_by_frame:
        own = None
    if own is None and frames is not None:
        own = ClipSampling(frames=frames, stride=4)
    if options:
        settings = _settings(options, "how=dense frames=8 stride=2")
        own = from_dict(ClipSampling, {**(to_dict(own) if own else {}), **settings}, "--clip")
    if own is not None and frames is not None:
        check_frames(frames, own.frames)
    return own


def _settings(options: Sequence[str], example: str) -> dict[str, Any]:
    for option in options:
        if "=" not in option:
            raise MmsslError(f"--clip takes SETTING=VALUE, e.g. --clip {example}; got {option!r}.")
    return {name: yaml.safe_load(value) for name, _, value in (option.partition("=") for option in options)}


@dataclasses.dataclass(frozen=True)
class DataChoice:
    """Which data judge an encoder.

    Args:
        source: the run or weights; without `data`, the run's own data are taken.
        data: card's name, folder, or recorded datasets.
        image_size: (H, W) of what comes out; None for sound.
        target: which label; None for the dataset's own.
        camera: which camera of a recording.
        clip: how clips are sampled; None for images and for sound.
        audio: how sounds are sampled; None for pictures.
        limit: at most so many samples (videos) of each part, spread evenly.
        several: the encoder reads several cameras at once, if the run's data have them.
        fold: of data in folds, the one that is the test part; None for the data's own choice.
        modalities: what an encoder of several is shown; () for one that reads a single one.
        asked: the user named these modalities.
        labelled: False where no question needs a label.
        fields: other fields of `DataConfig` with which the data are opened, as these modalities need them.
    """

    source: str | Path
    data: tuple[str, ...]
    image_size: tuple[int, int] | None
    target: str | None = None
    camera: str | None = None
    clip: ClipSampling | None = None
    audio: AudioSampling | None = None
    limit: int | None = None
    several: bool = False
    fold: int | None = None
    modalities: tuple[str, ...] = ()
    asked: bool = False
    labelled: bool = True
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def for_encoder(
        cls,
        encoder: nn.Module,
        source: str | Path,
        data: tuple[str, ...],
        clip: Sequence[str] = (),
        modalities: Sequence[str] = (),
        also: Sequence[str] = (),
        **settings: Any,
    ) -> "DataChoice":
        """As the encoder needs it.

        Args:
            clip: the options of `choose_clip`, or of `choose_audio`.
            modalities: those that it is shown; without any, all that it shares with the data.
            also: planes that the data must give beside them: "depth", "segmentation".

        Raises:
            MmsslError: a modality that the encoder or the data lack.
        """
        if audio_tokenizer(encoder) is not None and len(encoder.modalities) == 1:
            choice = cls(source, data, None, audio=choose_audio(source, encoder, clip, data), **settings)
        else:
            several = any("/" in modality for modality in encoder.modalities)
            sampling = choose_clip(source, encoder, clip)
            choice = cls(source, data, image_size_of(encoder), clip=sampling, several=several, **settings)
        if len(encoder.modalities) == 1 and "/" not in encoder.modalities[0] and not modalities:
            return dataclasses.replace(choice, fields={**choice._classes(), "extras": tuple(also)} if also else {})
        return choice._showing(encoder, modalities, also)

    def _showing(self, encoder: nn.Module, modalities: Sequence[str], also: Sequence[str] = ()) -> "DataChoice":
        trial = dataclasses.replace(self, limit=None, fields=self._classes())
        names, fields = choose(encoder, lambda **fields: trial.part("all", cache="none", **fields), modalities, also)
        fields = self._classes() | fields
        return dataclasses.replace(self, modalities=names, asked=bool(modalities), fields=fields)

    def _classes(self) -> dict[str, Any]:
        """What the ids of a segmentation mean: as the run had them, whatever data it is judged on."""
        kind = own_data(self.source).get("segmentation")
        return {} if kind is None else {"segmentation": kind}

    def showing_all(self, encoder: nn.Module, clip: ClipSampling | None) -> "DataChoice":
        """The same data with all that an encoder shares with them, and clips sampled in another way."""
        return dataclasses.replace(self, clip=clip, several=True)._showing(encoder, ())

    def giving(self, planes: Sequence[str]) -> "DataChoice":
        """The same data with more planes, "depth" or "segmentation", of those that they have."""
        choice = self
        for plane in planes:
            extras = (*choice.fields.get("extras", ()), plane)
            try:
                trial = dataclasses.replace(choice, fields={**choice.fields, "extras": extras})
                trial.part("test", cache="none")
            except MmsslError:  # they have none
                continue
            choice = trial
        return choice

    def reader(self, encoder: nn.Module) -> nn.Module:
        """The encoder as it is shown the chosen modalities alone."""
        return ChosenEncoder(encoder, self.modalities, self.asked) if self.modalities else encoder

    def splits(self) -> Splits:
        """Training and test part; the test part with clips x crops of every video where `clip` asks for them."""
        train, test = self.part("train"), self.part("test", views=views_at_test(self.clip, self.audio) > 1)
        if self.labelled and train.task is None and train.targets:
            raise MmsslError(f"choose what to predict with --target: {', '.join(train.targets)}.")
        return Splits(train, test, self.labelled)

    def part(self, split: str, views: bool = False, **fields: Any) -> Any:
        """One split of the given data, or of the run's own; `fields` of `DataConfig` win over those chosen."""
        wanted = {"split": split, "image_size": self.image_size, "clip": self.clip, "audio": self.audio, "views": views}
        wanted |= {} if self.fold is None else {"fold": self.fold}
        wanted |= self.fields | fields
        if self.data:
            dataset = open_dataset(self.data, target=self.target, camera=self.camera, **wanted)
        else:
            dataset = self._own("cameras" in wanted).open(**wanted)
        return dataset if self.limit is None else thin_out(dataset, self.limit)

    def _own(self, cameras_chosen: bool = False) -> DataConfig:
        section, where = own_data(self.source), Path(self.source) / "config.yaml"
        if not section:
            found = f"{where} names no data" if where.is_file() else "no data to judge on"
            raise MmsslError(f"{found}: give --data a card's name, a folder or a recorded dataset.")
        config = from_dict(DataConfig, section, f"{where}: data")
        camera, cameras = self.camera or config.camera, config.cameras
        if cameras and (self.camera or not self.several):  # the encoder reads one at a time: the first, unless told
            camera, cameras = camera or cameras[0], ()
        if cameras_chosen and self.camera is None:
            camera = None
        return dataclasses.replace(config, camera=camera, cameras=cameras, target=self.target or config.target)


def thin_out(dataset: Any, limit: int) -> Any:
    """At most `limit` samples of a dataset, spread evenly; videos with several views count once and keep them all."""
    if limit < 1:
        raise MmsslError(f"limit must be at least 1, got {limit}.")
    views = getattr(dataset, "views", 1)
    videos = len(dataset) // views
    if videos <= limit:
        return dataset
    picked = torch.linspace(0, videos - 1, limit).round().long()
    return dataset.subset((picked[:, None] * views + torch.arange(views)).flatten())
