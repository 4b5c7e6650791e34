"""Tables and a figure of what `multimodal_study.py` found."""

import statistics
from pathlib import Path


def spread(values: list[float]) -> str:
    """`mean (least .. most)`."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ({min(values):.3f} .. {max(values):.3f})"


def table(found: list[dict]) -> None:
    """Markdown tables: the mean over the seeds and its least and greatest value."""
    runs: dict[tuple[str, str], list[dict]] = {}
    for line in found:
        runs.setdefault((line["run"], line["kind"]), []).append(line)
    print("| learned from | steps | shown, pooling | R2 | R2, few episodes | R2, moved | fall | r | r, moved |")
    print("|---" * 9 + "|")
    for (run, kind), members in runs.items():
        steps = str(round(statistics.mean(line["steps"] for line in members))) if run == "trained" else ""
        for question in members[0]["state"]:
            scores = [line["state"][question] for line in members]
            scores = [{**score, "fall": score["test"] - score["moved"]} for score in scores]
            names = ("test", "few", "moved", "fall", "test_r", "moved_r")
            cells = [spread([score[name] for score in scores]) for name in names]
            print(f"| {kind if run == 'trained' else run} | {steps} | {question} | {' | '.join(cells)} |")
    print("\n| learned from | delta1 | rmse, m | mIoU | pixel accuracy |\n|---|---|---|---|---|")
    for (run, kind), members in runs.items():
        for key in ("dense", "constant"):
            scores = [line[key] for line in members if key in line]
            if scores:
                label = kind if run == "trained" else run if key == "dense" else key
                print(f"| {label} | {' | '.join(spread([get(score) for score in scores]) for get in DENSE)} |")


DENSE = (
    lambda score: score["depth"]["delta1"],
    lambda score: score["depth"]["rmse"],
    lambda score: score["segmentation"]["miou"],
    lambda score: score["segmentation"]["pixel_accuracy"],
)


def plot(found: list[dict], picture: Path) -> None:
    """R2 of the test episodes and of those with moved cameras, a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for axis, shown in zip(axes, ("corner4, ", "image, "), strict=True):
        rows: dict[str, list[dict]] = {}
        for line in found:
            for question, scores in line["state"].items():
                if question.startswith(shown) and not question.endswith("grid4"):
                    rows.setdefault(line["kind"] if line["run"] == "trained" else line["run"], []).append(scores)
        for place, scores in enumerate(rows.values()):
            for name, color in (("test", "C0"), ("moved", "C1")):
                label = {"test": "test episodes", "moved": "cameras moved"}[name] if place == 0 else None
                axis.plot([s[name] for s in scores], [place] * len(scores), "o", color=color, alpha=0.7, label=label)
        axis.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=f"R2 of state, shown {shown.split(',')[0]}")
        axis.invert_yaxis()
    axes[0].legend()
    figure.savefig(picture, dpi=110)
