"""Any picture that Pillow can open -> upright RGB with 8 bits."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Pillow refuses pictures of more than twice this many pixels. Its default (0.18 billion) shuts out satellite and slide
# scans; this one lets half a billion through (1.5 GB as RGB) and still stops a decompression bomb.
Image.MAX_IMAGE_PIXELS = 250_000_000

EXTENSIONS = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pnm",
        ".jfif",
        ".jp2",
        ".avif",
    }
)
# What Pillow is known to raise for a file that is damaged, cut off, too large or not a picture at all.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    MemoryError,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112  # the EXIF tag


def open_picture(source: Path | str | bytes) -> Image.Image:
    """Open a file or its bytes without decoding the pixels yet. Raises what Pillow raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Decoded, upright (EXIF), RGB, 8 bits a channel.

    Transparency is laid on white; 16-bit grey is divided by 257, float grey is read as 0..1 unless it goes beyond.
    """
    picture = upright(picture)
    mode = picture.mode
    if mode == "RGB" and "transparency" not in picture.info:
        picture.load()
        return picture
    if mode.startswith(("I", "F")):
        return _wide_grey(picture)
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation asks; the same object where it asks for nothing."""
    if picture.format == "TIFF":
        picture.load()  # recent Pillow turns a TIFF itself as it decodes, and its `size` knows of it before
    if is_turned(picture):
        return ImageOps.exif_transpose(picture)
    return picture


def is_turned(picture: Image.Image) -> bool:
    """True where EXIF asks for a rotation or a flip."""
    if not any(key in picture.info for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")) and (
        picture.format != "TIFF"
    ):
        return False  # getexif() parses; most pictures have nothing to parse
    return picture.getexif().get(_ORIENTATION, 1) in range(2, 9)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(height, width) as seen after `upright`, without decoding."""
    if picture.format == "TIFF":
        picture = upright(picture)
    width, height = picture.size
    if is_turned(picture) and picture.getexif().get(_ORIENTATION, 1) >= 5:
        return width, height
    return height, width


def _wide_grey(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or of floats as RGB of 8 bits."""
    values = np.asarray(picture).astype(np.float32)
    if picture.mode == "F":
        scaled = values * 255.0 if np.nanmax(values, initial=0.0) <= 1.0 else values
    else:
        scaled = values / 257.0
    grey = np.clip(np.nan_to_num(scaled) + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
