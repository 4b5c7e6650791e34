"""A frozen encoder of vectors in front of a world: states in, features out.

A trajectory model's state encoder (MTM) reads states, actions and more over several steps; given the state of one step
alone it encodes a trajectory of that length.
"""

from typing import Any, Literal

import numpy as np

from mmssl.envs.window import Window
from mmssl.errors import MmsslError, unknown_name

Pooling = Literal["mean", "cls", "max", "flat"]
POOLINGS = ("mean", "cls", "max", "flat")
_VECTORS = ("state", "proprio")  # what worlds show
_ROWS = 4096  # encoded at once of a recording


class FrozenStates:
    """An encoder that is only looked through: vectors of n environments in, one vector an environment out.

    Args:
        encoder: it is put into evaluation mode; its device is where it works.
        layout: name -> (shape, dtype) of what one environment shows.
        n: environments.
        pooling: of the tokens, one for each vector that the encoder reads; `flat`: side by side.
        stack: features of so many steps stand side by side, the oldest first.

    Attributes:
        names: which vectors it reads.
        width: F, numbers of one environment.
        memory: steps after which nothing of what was before is left in the windows.

    Raises:
        MmsslError: no vector that the encoder reads, or one of another width.
    """

    def __init__(
        self, encoder: Any, layout: dict[str, tuple[tuple[int, ...], Any]], n: int, pooling: Pooling = "mean",
        stack: int = 1,
    ):  # fmt: skip
        if pooling not in POOLINGS:
            raise unknown_name("pooling", pooling, POOLINGS)
        if stack < 1:
            raise MmsslError(f"stack must be at least 1, got {stack}.")
        self.encoder, self.pooling, self.n, self.stack = encoder.eval(), pooling, n, stack
        self.names = read_vectors(encoder, {name: shape[0] for name, (shape, _) in layout.items() if len(shape) == 1})
        probe = {name: np.zeros((1, *layout[name][0]), np.float32) for name in self.names}
        one = self._forward(probe).shape[1]
        self.vectors, self._now = Window(n, stack, (one,), np.dtype(np.float32)), np.zeros((n, one), np.float32)
        self.width, self.memory = one * stack, stack

    def __call__(self, obs: dict[str, np.ndarray], begins: np.ndarray, moved: np.ndarray | None = None) -> np.ndarray:
        """Features float32 (n, F) of what is seen now.

        Args:
            obs: name -> float32 (n, D) of each vector.
            begins: bool (n,), whose episode begins with it, so that nothing from before counts.
            moved: bool (n,), who is looked at at all; None for all.
        """
        seen = {name: obs[name] for name in self.names}
        if moved is None:
            self._now = self._forward(seen)
        elif moved.any():
            self._now[moved] = self._forward({name: value[moved] for name, value in seen.items()})
        return self.vectors.push(self._now, begins, moved).copy()

    def sequence(self, episode: dict[str, np.ndarray]) -> np.ndarray:
        """Features float32 (T, F) of the steps of one episode, name -> float32 (T, D), as the world would show them."""
        length = len(episode[self.names[0]])
        starts = range(0, length, _ROWS)
        parts = [self._forward({name: episode[name][t : t + _ROWS] for name in self.names}) for t in starts]
        features, steps = np.concatenate(parts), np.arange(length)
        back = range(self.stack - 1, -1, -1)
        return np.concatenate([features[np.maximum(steps - k, 0)] for k in back], axis=1)

    def _forward(self, vectors: dict[str, np.ndarray]) -> np.ndarray:
        """float32 (n, D) of each vector -> float32 (n, width of one step)."""
        import torch

        parameter = next(self.encoder.parameters(), None)
        device = "cpu" if parameter is None else parameter.device
        with torch.inference_mode():
            batch = {k: torch.from_numpy(np.asarray(v, np.float32)).to(device)[:, None] for k, v in vectors.items()}
            features = self.encoder(batch)  # of trajectories of one step, (n, 1, D) each
            x = features.tokens.flatten(1) if self.pooling == "flat" else features.pooled(self.pooling)
            return x.float().cpu().numpy()


def reads_vectors(encoder: Any) -> bool:
    """Whether an encoder reads vectors that worlds show, and no pictures."""
    kinds = {name.partition("/")[0] for name in encoder.modalities}
    return bool(kinds & set(_VECTORS)) and not kinds & {"image", "video"}


def read_vectors(encoder: Any, shown: dict[str, int]) -> tuple[str, ...]:
    """Which of the vectors that a world shows, name -> width, an encoder reads, in its order.

    Raises:
        MmsslError: none, or one of another width.
    """
    names = tuple(name for name in encoder.modalities if name in shown)
    if not names:
        seen = ", ".join(shown) or "no vector"
        raise MmsslError(
            f"this encoder reads {', '.join(encoder.modalities)}, and this world shows {seen}; take an encoder of one "
            "of these, or show what it reads (observe='state', proprio=True)."
        )
    tokenizers = getattr(getattr(encoder, "config", None), "tokenizers", None) or {}
    for name in names:
        wanted = getattr(tokenizers.get(name), "width", None)
        if wanted not in (None, shown[name]):
            raise MmsslError(
                f"the encoder reads a {name!r} of {wanted} numbers and this world shows one of {shown[name]}; take an "
                "encoder that was trained on data of this task."
            )
    return names
