"""How often does a 95% interval over seeds hold the truth? Bootstrap intervals of runs drawn from known distributions.

    python benchmarks/interval_coverage.py

`normal` are returns around a mean; in `two outcomes` one seed in five fails, as seeds of reinforcement learning do. The
truth is the statistic of very many seeds.
"""

import numpy as np

from mmssl.statistics import interquartile_mean, learning_curve, mean

RUNS, MANY = 4000, 1_000_000
STATISTICS = {"iqm": interquartile_mean, "mean": mean}


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def two_outcomes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.where(rng.random(shape) < 0.2, rng.normal(0, 0.1, shape), rng.normal(1, 0.1, shape))


def main() -> None:
    columns = [(name, draw) for draw in (normal, two_outcomes) for name in STATISTICS]
    heads = [f"{draw.__name__.replace('_', ' ')}, {name}" for name, draw in columns]
    print("| seeds | " + " | ".join(heads) + " |")
    print("|---" * (len(heads) + 1) + "|")
    for seeds in (3, 5, 10, 20, 50):
        cells = []
        for name, draw in columns:
            truth = STATISTICS[name](draw(np.random.default_rng(0), (MANY,)))
            curve = learning_curve(draw(np.random.default_rng(seeds), (seeds, RUNS)), name, resamples=1000)
            cells.append(f"{np.mean((curve.low <= truth) & (truth <= curve.high)):.0%}")
        print(f"| {seeds} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
