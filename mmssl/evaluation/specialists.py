"""Specialists: a plain network for each question that a trajectory model is asked, as MTM's paper compares it with.

Each sees exactly what the mask shows the trajectory model, is trained on the same windows for as many steps, and can do
nothing else.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmssl.data.trajectories import TrajectoryWindows
from mmssl.errors import MmsslError
from mmssl.evaluation.trajectory_questions import Question, Scale, usable


@dataclass(frozen=True)
class SpecialistConfig:
    """How specialists are trained: Adam with a cosine to zero, on the mean squared error in standard deviations."""

    steps: int = 2000
    batch_size: int = 256
    hidden: tuple[int, ...] = (512, 512)
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, *self.hidden) < 1 or self.lr <= 0:
            raise MmsslError(
                f"steps, batch_size, hidden and lr of specialists must be positive, got {self.steps}, "
                f"{self.batch_size}, {list(self.hidden)} and {self.lr}."
            )


class Specialist(nn.Module):
    """A multilayer perceptron from all that is known of a window to the one vector that is asked.

    Args:
        question: what it answers.
        scales: modality -> mean and standard deviation.
        hidden: widths of its layers.
    """

    def __init__(self, question: Question, scales: dict[str, Scale], hidden: tuple[int, ...]):
        super().__init__()
        self.question, self.scales = question, scales
        shown = {name: int(steps.sum()) for name, steps in question.known.items() if steps.any()}
        width = sum(count * len(scales[name].mean) for name, count in shown.items())
        layers: list[nn.Module] = []
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.ReLU()]
            width = wide
        self.net = nn.Sequential(*layers, nn.Linear(width, len(scales[question.target].mean)))

    def inputs(self, batch: dict[str, Tensor]) -> Tensor:
        """All that is known, standardised, side by side: (B, K)."""
        parts = []
        for name, steps in self.question.known.items():
            if steps.any():
                parts.append(self.scales[name].standardised(batch[name][:, steps]).flatten(1))
        return torch.cat(parts, 1)

    def goal(self, batch: dict[str, Tensor]) -> Tensor:
        """What is asked, standardised: (B, D)."""
        return self.scales[self.question.target].standardised(batch[self.question.target][:, self.question.place])

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """What is asked, standardised: (B, D)."""
        return self.net(self.inputs(batch))

    @torch.no_grad()
    def answer(self, batch: dict[str, Tensor]) -> Tensor:
        """What is asked, in raw units: (B, D)."""
        scale = self.scales[self.question.target]
        return (self(batch).double() * scale.std + scale.mean).float()


def train_specialist(
    question: Question, dataset: TrajectoryWindows, scales: dict[str, Scale], config: SpecialistConfig
) -> Specialist:
    """Train a specialist on windows of a dataset; padded ones and those that lack a modality are left out.

    Raises:
        MmsslError: no window has all that is needed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        specialist = Specialist(question, scales, config.hidden)
    generator, names = torch.Generator().manual_seed(config.seed), question.needed()
    optimizer = torch.optim.Adam(specialist.parameters(), config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    places = _usable_windows(dataset, names)
    for _ in range(config.steps):
        chosen = places[torch.randint(len(places), (config.batch_size,), generator=generator)]
        batch = dataset.fetch(chosen)
        loss = (specialist(batch) - specialist.goal(batch)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return specialist


def _usable_windows(dataset: TrajectoryWindows, names: list[str], rows: int = 16384) -> Tensor:
    """Places of the windows that can be trained on, int64 (N,)."""
    parts = torch.arange(len(dataset)).split(rows)
    places = torch.cat([part[usable(dataset.fetch(part), names)] for part in parts])
    if not len(places):
        raise MmsslError(f"{dataset.name!r} has no whole window with {', '.join(names)} to train a specialist on.")
    return places
