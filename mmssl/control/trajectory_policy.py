"""A masked trajectory model as a policy: what it has seen and done is known, the next action is filled in."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmssl.errors import MmsslError, unknown_name
from mmssl.methods.mtm import MTM
from mmssl.trajectory_masking import OBSERVED, kind_of

How = Literal["bc", "rcbc", "goal"]


class TrajectoryPolicy:
    """Acts in n environments at once: one prediction for all of them, from a rolling window of each.

    Wu et al. 2023 (MTM, arXiv 2305.02968): the mask alone decides what it does. `bc` imitates; `rcbc` imitates what had
    the wanted return, which stands at every step of the window; `goal` goes where the last observation of the window is
    the wanted one.

    Args:
        model: the trajectory model; it must predict actions.
        n: environments.
        how: what it does.
        target_return: of `rcbc`, in the units of the model's returns.
        goal: of `goal`: observed modality -> float32 (D,) or (n, D).
        history: steps of the window that are known at most, the present one among them; None for all there is room for.
        past_actions: whether its own earlier actions are known to it. Without them it cannot copy them.

    Raises:
        MmsslError: a model without actions or observations of vectors, an unknown `how`, a missing return or goal.
    """

    def __init__(
        self,
        model: MTM,
        n: int,
        how: How = "bc",
        target_return: float | None = None,
        goal: dict[str, Tensor] | None = None,
        history: int | None = None,
        past_actions: bool = False,
    ):
        if how not in ("bc", "rcbc", "goal"):
            raise unknown_name("how a trajectory model acts", how, ("bc", "rcbc", "goal"))
        widths = model.config.widths
        self.observed = [name for name in widths if kind_of(name) == OBSERVED]
        if "action" not in widths or not self.observed:
            raise MmsslError(f"this model knows {', '.join(widths)}; a policy needs observations and actions.")
        if how == "rcbc" and ("return" not in widths or target_return is None):
            raise MmsslError("acting for a return needs a model of returns, and target_return.")
        if how == "goal" and goal is None:
            raise MmsslError(f"acting for a goal needs goal, a mapping of {', '.join(self.observed)} to vectors.")
        room = model.config.length - (how == "goal")
        self.history = room if history is None else history
        if not 1 <= self.history <= room:
            raise MmsslError(
                f"history must be from 1 to {room} steps for windows of {model.config.length}, got {history}."
            )
        self.model, self.n, self.how, self.goal, self.past_actions = model, n, how, goal, past_actions
        self.target_return, self.length = target_return, model.config.length
        self.device = next(model.parameters()).device
        names = [*self.observed, "action"]
        self.window = {name: torch.zeros(n, self.history, widths[name]) for name in names}
        self.seen = torch.zeros(n, dtype=torch.int64)  # steps of each window that are filled

    def begin(self, rows: np.ndarray) -> None:
        """Forget what was before in the environments `rows`, bool (n,), where an episode begins."""
        self.seen[torch.from_numpy(np.asarray(rows, bool))] = 0

    def act(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        """Actions (n, A), in the units of the recorded ones, from what is seen now: observed modality -> (n, D)."""
        self._see(obs)
        trajectory, known = self._trajectory()
        place = self.seen - 1
        found = self.model.predict(trajectory, known)["action"].cpu()
        action = found[torch.arange(self.n), place]  # (n, A)
        self.window["action"][torch.arange(self.n), place] = action
        return action.numpy()

    def _see(self, obs: dict[str, np.ndarray]) -> None:
        """Put the newest observation behind the others; where the window is full, the oldest goes."""
        full = self.seen == self.history
        if full.any():
            for values in self.window.values():
                values[full] = values[full].roll(-1, dims=1)
        self.seen = (self.seen + 1).clamp(max=self.history)
        rows = torch.arange(self.n)
        for name in self.observed:
            if name not in obs:
                raise MmsslError(f"the model sees {name!r}, and this world shows {', '.join(obs)}.")
            x = torch.as_tensor(np.asarray(obs[name], np.float32))
            width = self.window[name].shape[2]
            if tuple(x.shape) != (self.n, width):
                raise MmsslError(
                    f"{name!r} must have the shape ({self.n}, {width}), as in training, got {tuple(x.shape)}."
                )
            self.window[name][rows, self.seen - 1] = x

    def _trajectory(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Windows as the model reads them, and what is known of them."""
        steps = torch.arange(self.length)[None]  # (1, T)
        past = steps < self.seen[:, None]
        trajectory = {name: self._wide(values) for name, values in self.window.items()}
        known = dict.fromkeys(self.observed, past)
        known["action"] = (steps < self.seen[:, None] - 1) & self.past_actions
        if self.how == "goal":
            for name, goal in self.goal.items():
                trajectory[name][:, -1] = torch.as_tensor(goal)
                known[name] = past | (steps == self.length - 1)
        if self.how == "rcbc":
            trajectory["return"] = torch.full((self.n, self.length, 1), float(self.target_return))
            known["return"] = torch.ones(self.n, self.length, dtype=torch.bool)
        return {name: x.to(self.device) for name, x in trajectory.items()}, known

    def _wide(self, values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, 0, 0, self.length - self.history))
