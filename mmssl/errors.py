"""The one exception that users are meant to read, and the words for a name that does not exist."""

import difflib
from collections.abc import Iterable


class MmsslError(ValueError):
    """Wrong input, said in one sentence: what was given, what is allowed, what to do."""


def unknown_name(kind: str, given: str, valid: Iterable[str]) -> MmsslError:
    """Error for a name that is not registered, with the nearest valid one and the whole list."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = ", ".join(names) if names else "(none)"
    return MmsslError(f"unknown {kind} {given!r}: {hint}Valid: {listed}.")
