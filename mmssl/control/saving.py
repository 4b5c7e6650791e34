"""Checkpoints of a run of reinforcement learning, and policies for users.

A policy is a folder with `policy.safetensors`, `policy.yaml` (the run's config and the spaces that the policy was
trained in) and, where it looks through a frozen encoder, `encoder/`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from gymnasium.vector import VectorEnv
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmssl.config import from_dict, read_yaml, to_dict
from mmssl.control.base import Spaces
from mmssl.control.rl_config import RLConfig
from mmssl.control.worlds import make_algorithm, make_world
from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.training import atomic
from mmssl.training.checkpoint import Checkpoint, model_tensors, restore_model

STAGES = "policies"
_ARRAY = "numpy"
_SMALL = 2**24  # bytes; what is larger stays in the file until it is read


def pack(tree: Any) -> Any:
    """A state as torch writes it: arrays become marked tensors that share their memory, numpy's numbers Python's."""
    if isinstance(tree, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(tree))}
    if isinstance(tree, np.generic):
        return tree.item()
    if isinstance(tree, dict):
        return {key: pack(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [pack(value) for value in tree]
    return tree.detach() if isinstance(tree, Tensor) else tree


def unpack(tree: Any) -> Any:
    """What `pack` was given, lists in place of tuples."""
    if isinstance(tree, dict) and tree.keys() == {_ARRAY}:
        array = tree[_ARRAY].numpy()
        return array.copy() if array.nbytes < _SMALL else array
    if isinstance(tree, dict):
        return {key: unpack(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unpack(value) for value in tree]
    return tree.clone() if isinstance(tree, Tensor) else tree


def read_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state in a checkpoint; large arrays are mapped from the file, so that a replay is not in memory twice."""
    return unpack(torch.load(checkpoint.path / "state.pt", weights_only=True, map_location="cpu", mmap=True))


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy and the world that it was trained in.

    Attributes:
        policy: `act(obs) -> actions`.
        config: of its run.
        spaces: what it sees and does.
        encoder: the frozen one that it looks through, or None.
        steps: environment steps that it was trained for.
    """

    policy: nn.Module
    config: RLConfig
    spaces: Spaces
    encoder: nn.Module | None
    steps: int

    def make_world(self, n: int, seed: int = 0) -> VectorEnv:
        """n environments as the policy knows them."""
        return make_world(self.config, n, seed, self.encoder)


def save_policy(
    folder: Path | str, policy: nn.Module, config: RLConfig, spaces: Spaces, encoder: nn.Module | None, steps: int
) -> None:
    """Write a policy for users, as one act; `config` is resolved."""
    seen = {name: {"shape": list(shape), "dtype": str(np.dtype(kind))} for name, (shape, kind) in _items(spaces)}
    about = {"steps": steps, "spaces": {"observations": seen, **_plain(spaces)}, "config": to_dict(config)}
    with atomic.atomic_folder(Path(folder)) as partial:
        save_file(model_tensors(policy), partial / "policy.safetensors", metadata={"format": "pt"})
        (partial / "policy.yaml").write_text(yaml.safe_dump(about, sort_keys=False, width=120))
        if encoder is not None:
            encoder.save_pretrained(partial / "encoder")


def stage_folder(seed: Path, steps: int) -> Path:
    """Where a seed's run keeps the policy that it had after so many steps."""
    return seed / STAGES / f"{steps:08d}"


def load_policy(path: Path | str, device: str = "cpu") -> LoadedPolicy:
    """The policy of a run, a seed of a run (`seed-0`) or an export; of a run the seed of the lowest number.

    RUN@STEPS is the policy that a run kept at that many steps (its setting `policies_every`).

    Raises:
        MmsslError: nothing of the kind there.
    """
    folder = find_policy_folder(Path(path))
    about = read_yaml(folder / "policy.yaml")
    config = from_dict(RLConfig, about["config"])
    spaces = _spaces(about["spaces"])
    encoder = Encoder.from_pretrained(folder / "encoder").to(device) if (folder / "encoder").is_dir() else None
    policy = make_algorithm(replace(config, device=device), spaces, encoder).policy()
    restore_model(policy, load_file(folder / "policy.safetensors"), folder)
    return LoadedPolicy(policy.eval(), config, spaces, encoder, int(about["steps"]))


def find_policy_folder(path: Path) -> Path:
    """The folder of the policy that `load_policy` would load; an `MmsslError` where there is none."""
    run, at, steps = str(path).rpartition("@")
    if at and steps.isdigit() and not path.exists():
        return _find_stage(Path(run), int(steps))
    for folder in (path, path / "export", *(seed / "export" for seed in seed_folders(path))):
        if (folder / "policy.yaml").is_file():
            return folder
    raise MmsslError(f"{path} holds no policy; give a run of `mmssl rl`, one of its seed folders, or an export folder.")


def _find_stage(run: Path, steps: int) -> Path:
    kept: dict[int, Path] = {}
    for seed in reversed([run, *seed_folders(run)]):
        kept |= {int(p.name): p for p in (seed / STAGES).glob("*") if p.name.isdigit()}
    if steps not in kept:
        there = f"those of {', '.join(map(str, sorted(kept)))} steps" if kept else "none; set policies_every"
        raise MmsslError(f"{run} kept no policy of {steps} steps: it has {there}.")
    return kept[steps]


def seed_folders(run: Path) -> list[Path]:
    """`seed-<s>/` below a run, by number."""
    found = {p: p.name.removeprefix("seed-") for p in run.glob("seed-*") if p.is_dir()}
    return sorted((p for p, number in found.items() if number.isdigit()), key=lambda p: int(found[p]))


def _items(spaces: Spaces) -> Any:
    return spaces.observations.items()


def _plain(spaces: Spaces) -> dict[str, Any]:
    return {"action_dim": int(spaces.action_dim), "discrete": bool(spaces.discrete), "n_envs": int(spaces.n_envs)}


def _spaces(about: dict[str, Any]) -> Spaces:
    seen = {name: (tuple(v["shape"]), np.dtype(v["dtype"])) for name, v in about.pop("observations").items()}
    return Spaces(seen, **about)
