"""What the numbers say, in sentences: a win is called a win, and a loss is called a loss."""

from dataclasses import dataclass

from mmssl.report.reading import Probe, RunFiles

REFERENCE_WORDS = {
    "random": "a randomly initialised encoder",
    "pixels": "raw pixels",
    "logmel": "log-mel statistics",
    "spectrogram": "the raw spectrogram",
    "copy": "the first frame's labels held still",
    "chance": "a random order",
}
RAW = ("pixels", "logmel", "spectrogram")
"""The encoders that know nothing but their input: of pictures, and of sounds."""
BESIDE = ("auc", "dprime")
"""Metrics that stand beside another one of the same probe, which then counts once."""
_HELD_OUT = {
    "images": "held-out frames",
    "clips": "held-out clips",
    "pairs": "the second of two held-out frames",
    "sounds": "held-out sounds",
}
_BEST_GUESS = {
    "images": ("the best interpolation", "the best that interpolation from the visible patches can do"),
    "clips": ("the best interpolation", "the best that interpolation in space and time from what is visible can do"),
    "pairs": ("copying or interpolating", "the better of copying the first and interpolating from the visible patches"),
    "sounds": ("the best interpolation", "the best that interpolation in time and frequency can do"),
}
"""What a model has to beat, shortly and at length, by `RunFiles.kind`."""
_MODALITIES = (
    "Held-out samples: of each modality what there was, what the model saw of it (grey is hidden), and what it made of "
    "all that it saw."
)
_SPECTROGRAMS = (
    "Spectrograms of held-out sounds: the model sees only the patches that are not blank and fills in the rest. "
    "All have one colour scale."
)
_PLAYERS = (
    "A spectrogram holds no phase, which Griffin-Lim guesses to make it audible. So the original's own spectrogram "
    "goes the same way: what it lacks beside the recording is lost by that, and only what the last sound lacks beyond "
    "it is lost by the model."
)


@dataclass(frozen=True)
class Verdict:
    """One sentence, its tone ("good", "bad" or "even") and what to do about it."""

    text: str
    tone: str
    advice: str = ""


@dataclass(frozen=True)
class Headline:
    """The first thing a reader sees: a short line, one sentence that explains it, and its tone."""

    title: str
    sentence: str
    tone: str


def number(value: float) -> str:
    """A value as a table shows it: three decimals, fewer of a large one, more where that would show mostly zeros."""
    if abs(value) < 1e-12:  # what rounding left of a zero
        return "0.000"
    if abs(value) >= 0.1:
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.2e}"


def metric(name: str) -> str:
    """A metric as people write it."""
    exact = {"auc": "mAUC", "dprime": "d′"}
    return exact.get(name, name.replace("r2", "R²").replace("map", "mAP").replace("_", " "))


def score(value: float, spread: float | None) -> str:
    """A value with its spread to as many decimals as the value has."""
    shown = number(value)
    if not spread:
        return shown
    decimals = len(shown.partition(".")[2])
    return f"{shown} ± {number(spread) if 'e' in shown else format(spread, f'.{decimals}f')}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "42 s", "5 min 12 s", "1 h 03 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def interpolations(scores: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in scores.items() if k not in ("model", "best_interpolation", "mean_frame")}


def error_ratio(run: RunFiles) -> float | None:
    """The model's squared error on masked patches as a multiple of the best interpolation's, None where one is missing.

    In pixels; for a model of normalised patches (norm-pix), in the space of these: an explained share e of the variance
    is an error of 1 - e.
    """
    errors = {k: 1 - v for k, v in run.explained.items()} if run.norm_pix else run.reconstruction
    model, best = errors.get("model"), errors.get("best_interpolation")
    if best is None and interpolations(errors):
        best = min(interpolations(errors).values())
    return model / best if model is not None and best else None


def best_guess(run: RunFiles) -> str:
    """What a model has to beat."""
    return _BEST_GUESS[run.kind][0]


def shown(run: RunFiles, baseline: bool) -> str:
    """What the pictures of reconstructions show; with `baseline` they hold the best interpolation too."""
    if run.kind == "pairs":
        text = "Held-out pairs of frames: the model sees the past frame whole, and of the future only what is not grey."
        return f"{text} Beside its reconstruction is the better of copying and interpolating." if baseline else text
    if run.modalities is not None:
        return _MODALITIES
    if run.kind == "sounds":
        return _SPECTROGRAMS + (f" {_PLAYERS}" if run.spectrograms and run.spectrograms.sounds else "")
    where = "clips: the model sees" if run.kind == "clips" else "frames: the model sees"
    text = f"Held-out {where} only the patches that are not grey and fills in the rest"
    text += ", in space and time" if run.kind == "clips" else ""
    return f"{text}; the last picture is the best interpolation." if baseline else f"{text}."


def headline(run: RunFiles) -> Headline:
    """The reconstruction score against the best interpolation; where there is none, what the loss did."""
    ratio = error_ratio(run)
    if ratio is None:
        return _loss_headline(run)
    percent = round(abs(1 - ratio) * 100)
    start = f"Filling in masked patches of {_HELD_OUT[run.kind]}, the model"
    best, than = _BEST_GUESS[run.kind]
    space = ", both judged on patches without their own mean and contrast" if run.norm_pix else ""
    numbers = f"(its squared error is {ratio:.2f} times as large{space})"
    if ratio <= 0.995:
        title = f"{percent}% less error than {best}"
        return Headline(title, f"{start} beats {than} {numbers}.", "good")
    if ratio < 1.005:
        return Headline(f"As good as {best}, no better", f"{start} only matches {than} {numbers}.", "even")
    more = f"{percent}% more error than" if ratio < 2 else f"{ratio:.1f} times the error of"
    title = f"Not there yet: {more} {best}"
    return Headline(title, f"{start} is worse than {than} {numbers}. It needs more steps.", "bad")


def _loss_headline(run: RunFiles) -> Headline:
    steps, losses = run.series("loss")
    if not losses:
        return Headline(run.name, "Nothing has been logged yet.", "even")
    if len(losses) == 1:
        return Headline(run.name, f"One entry so far: loss {number(losses[0])} at step {steps[0]:,}.", "even")
    tenth = max(1, len(losses) // 10)
    last = sum(losses[-tenth:]) / tenth
    word = "fell" if last < losses[0] else "did not fall: it went"
    sentence = f"In {steps[-1]:,} steps the training loss {word} from {number(losses[0])} to {number(last)}."
    return Headline(run.name, sentence + " No held-out score has been computed for this run yet.", "even")


def verdict(probe: Probe) -> Verdict | None:
    """Pretrained against random (and raw pixels), in one sentence; None where there is nothing to compare."""
    if "pretrained" not in probe.scores:
        return None
    relations = {over: _relation(probe, over) for over in REFERENCE_WORDS if over in probe.scores}
    if not relations:
        return None
    own = score(probe.scores["pretrained"].value, probe.scores["pretrained"].spread)
    parts = [
        f"{relation} {REFERENCE_WORDS[over]} ({score(probe.scores[over].value, probe.scores[over].spread)})"
        for over, relation in relations.items()
    ]
    text = f"{probe.name}: the pretrained features ({metric(probe.metric)} {own}) are {' and '.join(parts)}."
    first = relations.get("random") or next(iter(relations.values()))
    worst = "below" in relations.values()
    tone = {"above": "even" if worst else "good", "below": "bad"}.get(first, "even")
    return Verdict(text, tone)


def _relation(probe: Probe, over: str) -> str:
    margin = probe.margin(over)
    if margin == 0 or probe.is_tie(over):
        return "level with"
    # "above" and "below" speak of merit, also where a smaller number is the better one
    return "above" if margin > 0 else "below"


def probe_summary(probes: list[Probe]) -> Verdict | None:
    """How many probes the pretrained encoder wins against the random one, and what to make of it."""
    probes = [p for p in probes if p.metric not in BESIDE]
    relations = [_relation(p, "random") for p in probes if p.margin("random") is not None]
    if not relations:
        return None
    advice = "Features take longer to learn than reconstruction does: run a longer recipe."
    wins, losses = relations.count("above"), relations.count("below")
    asked = f"{len(relations)} frozen-feature probes" if len(relations) > 1 else "frozen-feature probe"
    compared = {raw: [p for p in probes if p.margin(raw) is not None] for raw in RAW}
    behind = {raw: sum(_relation(p, raw) == "below" for p in asked_of) for raw, asked_of in compared.items()}
    pixels = " and ".join(f"below {REFERENCE_WORDS[raw]} in {count}" for raw, count in behind.items() if count)
    pixels = f"; it is {pixels}" if pixels else ""
    if wins == len(relations):
        every = "all" if len(relations) > 1 else "the"
        text = f"The pretrained encoder beats a random one in {every} {asked}{pixels}."
        return Verdict(text, "even", advice) if pixels else Verdict(text, "good")
    if wins:
        rest = [f"{word} in {n}" for word, n in (("level", relations.count("level with")), ("below", losses)) if n]
        start = f"The pretrained encoder beats a random one in {wins} of {asked}"
        return Verdict(f"{start} and is {' and '.join(rest)} of them{pixels}.", "even")
    if losses == 0:
        return Verdict("In frozen-feature probes the pretrained encoder is level with a random one.", "even", advice)
    which = f"none of the {asked}" if len(relations) > 1 else "no frozen-feature probe"
    return Verdict(f"The pretrained encoder beats a random one in {which}.", "bad", advice)
