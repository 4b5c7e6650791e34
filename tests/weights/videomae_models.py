"""VideoMAE's weights under other names, and what must come out the same: for the tests of the authors' files and of
transformers' folders."""

import re

import torch
import yaml
from safetensors.torch import save_file

from mmssl.config import to_dict

DIM, HEADS, FRAMES, SIZE, N = 64, 4, 4, 32, 32
OWN = {"frames": FRAMES, "image_size": SIZE, "heads": HEADS}
TINY = {"size": "custom", "dim": DIM, "depth": 2, "heads": HEADS, "frames": FRAMES, "image_size": SIZE, "patch_size": 8}
TINY |= {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2, "mask_ratio": 0.75}


def block_of(own, theirs: str, ours: str) -> dict:
    """One block of a transformers VideoMAE under the authors' names."""
    attention = f"{theirs}.attention.attention"
    state = {f"{ours}.attn.qkv.weight": torch.cat([own[f"{attention}.{x}.weight"] for x in ("query", "key", "value")])}
    state |= {f"{ours}.attn.{x[0]}_bias": own[f"{attention}.{x}.bias"] for x in ("query", "value")}
    for kind in ("weight", "bias"):
        state[f"{ours}.attn.proj.{kind}"] = own[f"{theirs}.attention.output.dense.{kind}"]
        state[f"{ours}.norm1.{kind}"] = own[f"{theirs}.layernorm_before.{kind}"]
        state[f"{ours}.norm2.{kind}"] = own[f"{theirs}.layernorm_after.{kind}"]
        state[f"{ours}.mlp.fc1.{kind}"] = own[f"{theirs}.intermediate.dense.{kind}"]
        state[f"{ours}.mlp.fc2.{kind}"] = own[f"{theirs}.output.dense.{kind}"]
    return state


def authors_state(model, prefix: str = "encoder.") -> dict:
    """A transformers VideoMAE's weights under the authors' names, renamed here by hand, not by the code under test."""
    own, state = model.state_dict(), {}
    for kind in ("weight", "bias"):
        embedding = f"videomae.embeddings.patch_embeddings.projection.{kind}"
        state[f"{prefix}patch_embed.proj.{kind}"] = own[embedding]
        for theirs, ours in (
            ("videomae.layernorm", f"{prefix}norm"),
            ("decoder.norm", "decoder.norm"),
            ("decoder.head", "decoder.head"),
            ("fc_norm", "fc_norm"),
            ("classifier", "head"),
        ):
            if f"{theirs}.{kind}" in own:
                state[f"{ours}.{kind}"] = own[f"{theirs}.{kind}"]
    for theirs, ours in (("videomae.encoder.layer", f"{prefix}blocks"), ("decoder.decoder_layers", "decoder.blocks")):
        for k in {int(m[1]) for n in own if (m := re.match(rf"{theirs}\.(\d+)\.", n))}:
            state |= block_of(own, f"{theirs}.{k}", f"{ours}.{k}")
    if "mask_token" in own:
        state |= {"mask_token": own["mask_token"], "encoder_to_decoder.weight": own["encoder_to_decoder.weight"]}
    return state


def save(state, path, key="model", **beside):
    torch.save({key: state, **beside}, path)
    return path


@torch.no_grad()
def assert_same_features(encoder, videomae, clips, mask=None):
    ours = encoder({"video": clips}, None if mask is None else {"video": mask})
    theirs = videomae(encoder.tokenizers["video"].prepare(clips), mask).last_hidden_state
    assert ours.cls is None
    assert (ours.tokens - theirs).abs().max() < 1e-5


@torch.no_grad()
def assert_same_method(method, model, clips, mask):
    """Predictions and loss, under the same mask."""
    theirs = model(method.tokenizer.prepare(clips), mask)
    predicted = method.reconstruct({"video": clips}, {"video": mask})["prediction_patches"]
    assert (predicted[mask].reshape(theirs.logits.shape) - theirs.logits).abs().max() < 1e-5
    total, count = method({"video": clips}, masks={"video": mask})["loss"]
    assert abs(total / count - theirs.loss) < 1e-5


def as_the_authors(model):
    """The two norms that transformers gives torch's own epsilon have the authors' 1e-6."""
    for norm in (getattr(model, "fc_norm", None), getattr(getattr(model, "decoder", None), "norm", None)):
        if norm is not None:
            norm.eps = 1e-6
    return model


def write_run(run, method):
    """A run folder as training leaves it."""
    folder = run / "checkpoints" / "step_00000010"
    folder.mkdir(parents=True)
    save_file(method.state_dict(), folder / "model.safetensors")
    clip = {"how": "dense", "frames": FRAMES, "stride": 4}
    recipe = {"method": to_dict(method.config), "data": {"source": ["kinetics400"], "clip": clip}}
    (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    return run
