"""Our MultiMAE -> the authors' layout of weights (multimae.py)."""

from mmssl.errors import MmsslError
from mmssl.methods.multimae import MultiMAE
from mmssl.weights.files import State
from mmssl.weights.multimae import NAMES, PARTS, cell_of, part
from mmssl.weights.naming import listed, rename


def multimae_to_authors(method: MultiMAE) -> State:
    """Weights of a whole MultiMAE under the authors' names.

    Raises an `MmsslError` where it has modalities that the layout has no name for.
    """
    strange = [name for name in (*method.encoder.modalities, *method.decoders) if name not in NAMES]
    if strange:
        raise MmsslError(f"the MultiMAE authors' layout has no name for {listed(strange)}; use format 'mmssl'.")
    state = {k: v.detach().cpu().float() for k, v in method.state_dict().items()}
    theirs = {"global_tokens": state["encoder.cls_token"]}
    for name in method.encoder.modalities:
        theirs |= _adapter_to_authors(method, name, state)
    blocks = {k: v for k, v in state.items() if k.startswith("encoder.blocks.")}
    theirs |= rename(blocks, [(r"^encoder\.blocks\.", "encoder.")])
    for name in method.decoders:
        theirs |= _decoder_to_authors(method, name, state)
    return {k: v.contiguous() for k, v in theirs.items()}


def _adapter_to_authors(method: MultiMAE, name: str, state: State) -> State:
    ours, theirs = f"encoder.tokenizers.{name}", f"input_adapters.{NAMES[name]}"
    tokenizer = method.encoder.tokenizer(name)
    out = {
        f"{theirs}.pos_emb": state[f"{ours}.pos_embed"].mT.unflatten(2, tokenizer.grid),
        f"{theirs}.proj.weight": state[f"{ours}.proj.weight"].unflatten(1, (*tokenizer.cell, -1)).movedim(-1, 1),
        f"{theirs}.proj.bias": state[f"{ours}.proj.bias"],
    }
    return out | ({f"{theirs}.class_emb.weight": state[f"{ours}.embedding.weight"]} if name == "segmentation" else {})


def _decoder_to_authors(method: MultiMAE, name: str, state: State) -> State:
    prefix, cell = f"decoders.{name}.", cell_of(method, name)
    ours = part(state, prefix)
    ours["pos_emb"] = ours.pop("pos_embed").mT.unflatten(2, method.decoders[name].grid)
    for kind in ("weight", "bias"):
        ours[f"pred.{kind}"] = ours[f"pred.{kind}"].unflatten(0, (*cell, -1)).movedim(2, 0).flatten(0, 2)
    tasks = [(rf"^task_embed\.{a}$", f"task_embed.{b}") for a, b in NAMES.items()]
    names = [(rf"^{a}\.", f"{b}.") for a, b in PARTS.items()]
    return {f"output_adapters.{NAMES[name]}.{k}": v for k, v in rename(ours, tasks, names).items()}
