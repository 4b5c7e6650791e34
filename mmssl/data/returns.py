"""Returns-to-go: what an episode still brings from each step on."""

from typing import Literal

import numpy as np

ReturnKind = Literal["average", "discounted", "sum"]


def returns_to_go(reward: np.ndarray, kind: ReturnKind, discount: float = 0.99, horizon: int = 1000) -> np.ndarray:
    """Return from each step of one episode on, its own reward included: float32 (T, 1) of rewards (T, 1).

    Args:
        kind: `sum` of the rewards that are left; their `discounted` sum; or `average`, as MTM has it for D4RL: the sum
            over the steps that are left until the horizon, so that it does not shrink as the episode goes on.
        discount: gamma, of the discounted one.
        horizon: steps of a whole episode, of the average one.
    """
    reward = reward[:, 0].astype(np.float64)
    if kind == "discounted":
        out, total = np.empty_like(reward), 0.0
        for t in range(len(reward) - 1, -1, -1):
            total = out[t] = reward[t] + discount * total
    else:
        out = reward[::-1].cumsum()[::-1]
        if kind == "average":
            out = out / np.maximum(horizon - np.arange(len(reward)), 1)
    return out.astype(np.float32)[:, None]
