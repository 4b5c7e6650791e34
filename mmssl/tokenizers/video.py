"""Clips <-> tokens of a few frames' patches (tubelets), time slowest."""

from dataclasses import dataclass

from torch import Tensor

from mmssl.errors import MmsslError
from mmssl.nn.positions import sincos_3d
from mmssl.registry import register_tokenizer
from mmssl.tokenizers.base import Positions, TokenizerConfig, learned_table
from mmssl.tokenizers.image import IMAGENET_MEAN, IMAGENET_STD, PixelTokenizer, nearest_multiple, settle_pixels


@dataclass(frozen=True)
class VideoTokenizerConfig(TokenizerConfig):
    """Clips of one length and size, cut into tubelets that do not overlap."""

    name: str = "video"
    frames: int = 16
    """Frames of a clip."""
    image_size: int | tuple[int, int] = 224
    """Height and width in pixels; one number means a square."""
    patch_size: int | tuple[int, int] = 16
    """Height and width of a patch in pixels; must divide the image size."""
    tubelet: int = 2
    """Frames of a token; must divide the frames."""
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, for pixels in [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, for pixels in [0, 1]."""

    def __post_init__(self) -> None:
        settle_pixels(self)
        if self.frames < 1 or self.tubelet < 1:
            raise MmsslError(f"frames {self.frames} and tubelet {self.tubelet} must be 1 or more.")
        if self.frames % self.tubelet:
            raise MmsslError(
                f"tubelet {self.tubelet} does not divide the {self.frames} frames of a clip; the nearest number of "
                f"frames that it divides is {nearest_multiple(self.frames, self.tubelet)}, the nearest tubelet that "
                f"divides {self.frames} is {_nearest_divisor(self.frames, self.tubelet)}."
            )


def _nearest_divisor(frames: int, tubelet: int) -> int:
    return min((n for n in range(1, frames + 1) if frames % n == 0), key=lambda n: abs(n - tubelet))


@register_tokenizer("video")
class VideoTokenizer(PixelTokenizer):
    """Clips (B, T, C, H, W), uint8 or float in [0, 1], <-> patches (B, N, u * p * q * C), u frames of p x q pixels.

    A patch is flattened in the order (time, row, column, channel), channel fastest, as VideoMAE does.
    """

    config_class = VideoTokenizerConfig
    noun = "clips"

    def lay_out(self) -> None:
        config = self.config
        (height, width), (p, q) = config.image_size, config.patch_size
        self.grid = (config.frames // config.tubelet, height // p, width // q)
        self.patch_dim = config.tubelet * p * q * config.channels

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.config.frames, self.config.channels, *self.config.image_size)

    def cut(self, x: Tensor, tubelet: int | None = None) -> Tensor:
        """(B, T, C, H, W) -> (B, N, C, u * p * q); `tubelet` u, any that divides T, instead of the config's."""
        batch, frames, channels, height, width = x.shape
        u, (p, q) = tubelet or self.config.tubelet, self.config.patch_size
        x = x.reshape(batch, frames // u, u, channels, height // p, p, width // q, q)
        return x.permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(batch, -1, channels, u * p * q)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int, int] | None = None) -> Tensor:
        """(B, N, u * p * q * C) -> (B, T, C, H, W), exactly what `patchify` took; u is read from the patches."""
        times, rows, columns = grid or self.grid
        p, q = self.config.patch_size
        x = patches.reshape(patches.shape[0], times, rows, columns, -1, p, q, self.config.channels)
        return x.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(x.shape[0], -1, x.shape[-1], rows * p, columns * q)

    def padding(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The batch's `valid` (B, T) of trajectories: a token is real where any of its frames is."""
        valid = batch.get("valid")
        if valid is None or valid.shape[1] != self.config.frames:
            return None
        real = valid.unflatten(1, (-1, self.config.tubelet)).any(2)
        return real.repeat_interleave(self.grid[1] * self.grid[2], dim=1)

    def position_table(self, dim: int, positions: Positions) -> Tensor | tuple[Tensor, Tensor]:
        times, rows, columns = self.grid
        if positions == "separable":
            return learned_table(rows * columns, dim), learned_table(times, dim)
        if positions in ("sincos", "sincos_half"):
            return sincos_3d(dim, self.grid)[None] / (2 if positions == "sincos_half" else 1)
        if positions == "sincos_row":
            raise MmsslError("positions 'sincos_row' are of images; clips have 'sincos', 'sinusoid' or learned ones.")
        return super().position_table(dim, positions)

    def check_shape(self, x: Tensor) -> None:
        wanted = self.config.frames
        if isinstance(x, Tensor) and x.ndim == 5 and x.shape[1] != wanted and tuple(x.shape[2:]) == self.shape[1:]:
            raise MmsslError(
                f"{self.modality!r} has clips of {x.shape[1]} frames, and this model reads {wanted}; sample {wanted} "
                f"(data.clip.frames), or resize the encoder with encoder.resize(frames={x.shape[1]})."
            )
        super().check_shape(x)
