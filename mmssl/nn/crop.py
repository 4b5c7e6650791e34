"""Windows of pictures, each sample's own: the random crops of CURL and RAD, and DrQ's shifts."""

import torch
from torch import Tensor

from mmssl.errors import MmsslError


def cut(x: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """The window of each sample whose upper left corner is (top, left), the same in all its channels.

    Args:
        x: (B, C, H, W) of any dtype.
        top, left: int64 (B,). On the CPU they cost nothing but views and one copy (128 stacks of 9 x 100 x 100 bytes:
            2 ms of one core, an index 8 ms), and no wait for a device; elsewhere the window is gathered there.
        size: (height, width) of the window.

    Returns:
        (B, C, height, width).
    """
    height, width = size
    if top.device.type == "cpu" and not torch.compiler.is_compiling():
        corners = enumerate(zip(top.tolist(), left.tolist(), strict=True))
        return torch.stack([x[i, :, t : t + height, s : s + width] for i, (t, s) in corners])
    rows = top[:, None] + torch.arange(height, device=x.device)  # (B, height)
    columns = left[:, None] + torch.arange(width, device=x.device)
    places = (rows[:, :, None] * x.shape[3] + columns[:, None, :]).flatten(1)  # (B, height * width)
    return x.flatten(2).gather(2, places[:, None].expand(-1, x.shape[1], -1)).unflatten(2, size)


def centre(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of (..., H, W), a view (..., height, width); of an odd rest the smaller half is above and left."""
    check_fits(x.shape[-2:], size)
    top, left = ((whole - part) // 2 for whole, part in zip(x.shape[-2:], size, strict=True))
    return x[..., top : top + size[0], left : left + size[1]]


def check_fits(whole: tuple[int, int], part: tuple[int, int]) -> None:
    """Raise an `MmsslError` where a crop is larger than the picture."""
    if part[0] > whole[0] or part[1] > whole[1] or min(part) < 1:
        raise MmsslError(
            f"a crop of {part[0]}x{part[1]} pixels does not fit into pictures of {whole[0]}x{whole[1]}; make the "
            "pictures larger, or the crop smaller."
        )


def places(whole: int, part: int, without_last: bool = False) -> int:
    """How many places a crop has along an axis; the CURL authors' draw leaves out the last of several."""
    return max(1, whole - part + (0 if without_last else 1))
