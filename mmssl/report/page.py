"""What all pages share: templates, their filters, media inside the page, writing it as one act, and names of runs."""

import base64
import os
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from mmssl.report import words
from mmssl.report.figures import png_bytes, webp_bytes

_TEMPLATES = Path(__file__).parent / "templates"


def environment() -> jinja2.Environment:
    """Templates with what every page needs; a page adds filters of its own."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"picture": picture_uri, "file": file_uri, "number": words.number, "duration": words.duration}
    made.globals["style"] = Markup((_TEMPLATES / "style.css").read_text())
    return made


def write_page(path: Path, page: str) -> Path:
    """Write a page so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def picture_uri(image: np.ndarray) -> str:
    """A picture (H, W, 3) as PNG, a clip (T, H, W, 3) as animated WebP."""
    return _uri("png", png_bytes(image)) if image.ndim == 3 else _uri("webp", webp_bytes(image))


def file_uri(path: Path) -> str:
    """A picture in a file, as it is."""
    return _uri(path.suffix.removeprefix("."), path.read_bytes())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def by_name(runs: list[Any]) -> dict[str, Any]:
    """Runs under their folder's name; the whole path where two folders have one name."""
    names = [run.name for run in runs]
    return {run.name if names.count(run.name) == 1 else str(run.path): run for run in runs}


def config_differences(configs: dict[str, dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """The dotted configuration keys in which runs differ, with each run's value."""
    flat = [_flatten(config) for config in configs.values()]
    keys = dict.fromkeys(key for mapping in flat for key in mapping)
    rows = [(key, [mapping.get(key, "–") for mapping in flat]) for key in keys]
    return [(key, values) for key, values in rows if any(v != values[0] for v in values)]


def _flatten(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in mapping.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
