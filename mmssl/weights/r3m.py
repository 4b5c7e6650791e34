"""R3M's files, and the ResNets of torchvision and timm, whose names these are -> our encoder, and our R3M.

    [convnet.]{conv1, bn1, layerK.N.{conv1, bn1, ..., downsample.{0, 1}}}        fc of a classifier is left out
    lang_enc.model.<DistilBERT>   lang_rew.pred.{0,2,4,6,8}.{weight, bias}       R3M's language, where the file has it

R3M's own code takes pixels in 0..255 and normalises them; our encoder takes uint8, or floats in [0, 1], and does so.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmssl.encoder import Encoder, EncoderConfig, load_strictly
from mmssl.errors import MmsslError
from mmssl.methods.r3m import R3M
from mmssl.methods.r3m_settings import R3MConfig
from mmssl.nn.resnets import RESNETS
from mmssl.weights.files import State
from mmssl.weights.layout import Published, require
from mmssl.weights.naming import listed

LANGUAGE = "distilbert-base-uncased"
_NET, _LANGUAGE, _REWARD = "convnet.", "lang_enc.model.", "lang_rew."
_PARTS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
_SIZE = (224, 224)
_OURS = ("image.pos_embed", "image.mean", "image.std")


def is_resnet_layout(state: State) -> bool:
    """Whether these are tensors of a ResNet as torchvision has it, with or without R3M's language beside it."""
    names = {name.removeprefix(_NET) for name in state}
    return {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer4.0.conv1.weight"} <= names


def read_file(state: State, arguments: dict[str, Any], path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors as they are; a file tells nothing else."""
    return state, {}


def build_encoder(published: Published) -> Encoder:
    """The ResNet as an encoder in evaluation mode, of pictures of 224 x 224 pixels where nothing else is said.

    Raises an `MmsslError` for what is missing, or has no place here.
    """
    encoder = Encoder(EncoderConfig.of_resnet(**_shape(published)))
    load_strictly(encoder, _own(encoder, *_OURS) | _encoder_state(published), published.source)
    return encoder.eval()


def build_r3m(published: Published) -> R3M:
    """Our R3M, language and reward included, with published weights; it is in evaluation mode.

    Raises:
        MmsslError: the file holds no reward, as a plain ResNet's; parts are missing or have no place here.
    """
    state, source = published.state, published.source
    if not any(name.startswith(_REWARD) for name in state):
        raise MmsslError(f"{source} holds the encoder alone, no language reward; read it with mmssl.load.")
    require(state, [f"{_REWARD}pred.0.weight"], source)
    shape = {**_shape(published), "reward_dim": len(state[f"{_REWARD}pred.0.weight"]), "language": LANGUAGE}
    language = _distilbert(published)
    method = R3M(R3MConfig(**shape), language)
    ours = {f"encoder.{name}": value for name, value in _encoder_state(published).items()}
    for name, value in state.items():
        for theirs, own in ((_REWARD, "reward."), (_LANGUAGE, "language.model.")):
            if name.startswith(theirs) and not name.endswith("position_ids"):
                ours[own + name.removeprefix(theirs)] = value.float()
    kept = _own(method, *_OURS) if language is not None else _own(method, *_OURS, "language.")
    load_strictly(method, kept | ours, source)
    return method.eval()


def _shape(published: Published) -> dict[str, Any]:
    """Settings of the ResNet, read from the shapes of its weights."""
    net, source = _net(published), published.source
    numbers = (re.match(r"layer(\d)\.(\d+)\.", name) for name in net)
    found = {(int(m[1]), int(m[2])) for m in numbers if m}
    blocks = tuple(1 + max((k for s, k in found if s == stage), default=-1) for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in net
    names = [name for name, count in RESNETS.items() if count == blocks and (name == "resnet50") == bottleneck]
    if not names:
        kind = "bottlenecks" if bottleneck else "plain blocks"
        raise MmsslError(f"{source} is a ResNet of {blocks} {kind}; readable are {', '.join(RESNETS)}.")
    width, channels = net["conv1.weight"].shape[:2]
    size = published.facts.image_size_guess or _SIZE
    values = {name: getattr(published.facts, name) for name in ("mean", "std")}
    if channels != 3:
        values = {name: (sum(value) / len(value),) * channels for name, value in values.items()}
    return {"network": names[0], "width": width, "channels": channels, "image_size": size, **values}


def _net(published: Published) -> State:
    """The ResNet's tensors under torchvision's names, without a classifier; an `MmsslError` for what has no place."""
    net, extra = {}, []
    for name, value in published.state.items():
        if name.startswith((_LANGUAGE, _REWARD, "fc.")):
            continue
        bare = name.removeprefix(_NET)
        if bare.startswith(_PARTS):
            net[bare] = value
        else:
            extra.append(name)
    if extra:
        raise MmsslError(f"{published.source} is not a plain ResNet: there is no place for {listed(extra)}.")
    return net


def _encoder_state(published: Published) -> State:
    state = {name: value if name.endswith("num_batches_tracked") else value.float()
             for name, value in _net(published).items()}  # fmt: skip
    for name in [n for n in state if n.endswith("running_mean")]:  # files of old have no count
        state.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.zeros((), dtype=torch.int64))
    return {f"tokenizers.image.net.{name}": value for name, value in state.items()}


def _own(module: nn.Module, *parts: str) -> State:
    """The tensors of a fresh model that no file has, by a part of their names."""
    return {name: value for name, value in module.state_dict().items() if any(part in name for part in parts)}


def _distilbert(published: Published) -> nn.Module | None:
    """The language model of the file's shapes, without its weights; None where the file has none."""
    state = {k.removeprefix(_LANGUAGE): v for k, v in published.state.items() if k.startswith(_LANGUAGE)}
    if not state:
        return None
    words, places = "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
    require(state, [words, places, "transformer.layer.0.ffn.lin1.weight"], published.source)
    try:
        from transformers import DistilBertConfig, DistilBertModel
    except ImportError:
        raise MmsslError(
            f"{published.source} holds a DistilBERT, which needs transformers: install it with `pip install "
            '"mmssl[hub]"`, or read the encoder alone with mmssl.load.'
        ) from None
    layers = 1 + max(int(m[1]) for name in state if (m := re.match(r"transformer\.layer\.(\d+)\.", name)))
    (vocabulary, dim), length = state[words].shape, len(state[places])
    hidden = len(state["transformer.layer.0.ffn.lin1.weight"])
    shape = {"vocab_size": vocabulary, "dim": dim, "n_layers": layers, "hidden_dim": hidden}
    return DistilBertModel(DistilBertConfig(**shape, n_heads=max(1, dim // 64), max_position_embeddings=length))
