"""Every kind of picture comes out upright, RGB, 8 bits."""

import io

import numpy as np
import pytest
from PIL import Image

from mmssl.data.decode import open_picture, to_rgb, upright_size


def stored(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    picture = to_rgb(open_picture(content))
    assert picture.mode == "RGB"
    return np.asarray(picture)


RAMP = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (16, 1))  # (16, 32)


def test_grey_of_8_and_16_bits_and_of_floats_agree():
    eight = decoded(stored(Image.fromarray(RAMP), "PNG"))
    assert eight.shape == (16, 32, 3) and np.array_equal(eight[..., 0], RAMP)
    sixteen = decoded(stored(Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG"))
    assert np.array_equal(sixteen, eight)
    floats = decoded(stored(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"))
    assert np.array_equal(floats, eight)


def test_transparency_is_laid_on_white():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (200, 10, 20, 255)
    out = decoded(stored(Image.fromarray(rgba), "PNG"))
    assert out[0, 0].tolist() == [200, 10, 20] and out[3, 3].tolist() == [255, 255, 255]
    palette = Image.fromarray(rgba[..., 0]).convert("P")
    palette.info["transparency"] = 0
    assert decoded(stored(palette, "PNG", transparency=0))[3, 3].tolist() == [255, 255, 255]


def test_cmyk_and_bilevel():
    cmyk = Image.new("RGB", (8, 8), (250, 0, 0)).convert("CMYK")
    red, green, blue = decoded(stored(cmyk, "JPEG"))[4, 4]
    assert red > 200 and green < 40 and blue < 40
    assert decoded(stored(Image.new("1", (8, 8), 1), "PNG")).min() == 255


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, kind):
    upright = Image.fromarray(np.stack([RAMP, RAMP.T[:16].repeat(2, 1)[:16, :32], RAMP[::-1]], -1))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that a camera of this orientation did
    turned = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = stored(turned, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {"quality": 100}))
    assert upright_size(open_picture(content)) == (16, 32)
    out = decoded(content)
    assert out.shape == (16, 32, 3)
    assert np.abs(out.astype(int) - np.asarray(upright)).mean() < 6


def test_huge_picture_opens_without_a_warning(recwarn):
    content = stored(Image.new("1", (14000, 14000)), "PNG")  # 196 million pixels; Pillow's own limit refuses it
    assert upright_size(open_picture(content)) == (14000, 14000) and not recwarn.list


def test_bomb_is_refused():
    with pytest.raises(Image.DecompressionBombError):
        open_picture(stored(Image.new("1", (23000, 23000)), "PNG"))
