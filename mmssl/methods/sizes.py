"""What the settings of the masked methods share: the size of the encoder."""

from dataclasses import dataclass
from typing import Literal

from mmssl.encoder import SIZES
from mmssl.errors import MmsslError, unknown_name
from mmssl.methods.base import MethodConfig


@dataclass(frozen=True)
class SizedConfig(MethodConfig):
    """Settings of a method whose encoder has a named size, or one of its own."""

    size: Literal["tiny", "small", "base", "large", "huge", "custom"] = "base"
    """Named encoder size; `custom` takes dim, depth and heads from below."""
    dim: int | None = None
    """Encoder width, in place of the size's."""
    depth: int | None = None
    """Number of encoder blocks, in place of the size's."""
    heads: int | None = None
    """Encoder attention heads, in place of the size's."""

    def __post_init__(self) -> None:
        if self.size != "custom" and self.size not in SIZES:
            raise unknown_name("size", self.size, (*SIZES, "custom"))
        missing = [n for n in ("dim", "depth", "heads") if getattr(self, n) is None]
        if self.size == "custom" and missing:
            raise MmsslError(f"size 'custom' needs dim, depth and heads; {', '.join(missing)} not given.")

    def encoder_shape(self) -> dict[str, int]:
        """dim, depth and heads of the encoder."""
        named = SIZES.get(self.size, (None, None, None))
        names = ("dim", "depth", "heads")
        given = {name: getattr(self, name) for name in names}
        return {name: b if given[name] is None else given[name] for name, b in zip(names, named, strict=True)}
