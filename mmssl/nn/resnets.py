"""The convolutional part of torchvision's ResNets (He et al. 2015, arXiv 1512.03385): all but the classifier."""

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

ResNetName = Literal["resnet18", "resnet34", "resnet50"]
RESNETS: dict[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
"""Blocks of each of the four stages; those of `resnet50` are bottlenecks."""
STRIDE = 32
"""Pixels of a side that one place of the last map stands for."""


class ResNet(nn.Module):
    """A ResNet up to its last map. The names of its weights, and their start, are torchvision's.

    Args:
        name: one of `RESNETS`.
        channels: of the pictures.
        width: channels of the first stage, 64 as published; each further stage has twice as many.

    Attributes:
        dim: channels of the last map.
    """

    def __init__(self, name: ResNetName, channels: int = 3, width: int = 64):
        from torchvision.models.resnet import BasicBlock, Bottleneck  # a second of import for those who need it alone

        super().__init__()
        block = Bottleneck if name == "resnet50" else BasicBlock
        self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = width
        for stage, count in enumerate(RESNETS[name]):
            inside, stride = width * 2**stage, 1 if stage == 0 else 2
            blocks = []
            for k in range(count):
                shortcut = _shortcut(before, inside * block.expansion, stride) if k == 0 else None
                blocks.append(block(before, inside, stride if k == 0 else 1, shortcut))
                before = inside * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.dim = before
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels (B, C, H, W) -> (B, dim, ceil(H / 32), ceil(W / 32))."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _shortcut(before: int, after: int, stride: int) -> nn.Module | None:
    """The 1 x 1 convolution beside a stage's first block, where it changes the map's size or channels."""
    if stride == 1 and before == after:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


def resnet_dim(name: ResNetName, width: int = 64) -> int:
    """Channels of the last map: 512 of the published ResNet-18 and 34, 2048 of ResNet-50."""
    return 8 * width * (4 if name == "resnet50" else 1)


def resnet_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Lattice of the last map of pictures of (height, width): (7, 7) of 224 x 224."""
    return tuple(math.ceil(side / STRIDE) for side in size)
