"""ResNet-18, an image to the scores of 1000 classes.

Follows "Deep Residual Learning for Image Recognition" (arXiv 1512.03385). Parameter names are those of the widely used
PyTorch checkpoints, so that these load as they are.
"""

from __future__ import annotations

import torch
from torch import nn

WIDTHS = (64, 128, 256, 512)
BLOCKS = 2
CLASSES = 1000


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to the input, brought to the same shape where it differs."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map [batch, inside, height, width] to [batch, outside, height / stride, width / stride]."""
        hidden = torch.relu(self.bn1(self.conv1(image)))
        straight = image if self.downsample is None else self.downsample(image)
        return torch.relu(self.bn2(self.conv2(hidden)) + straight)


class ResNet18(nn.Module):
    """Stem, four stages of two blocks, mean over the image, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        width = WIDTHS[0]
        for number, outside in enumerate(WIDTHS, start=1):
            stride = 1 if number == 1 else 2
            blocks = [BasicBlock(width, outside, stride), *(BasicBlock(outside, outside, 1) for _ in range(BLOCKS - 1))]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            width = outside
        self.fc = nn.Linear(width, CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map [batch, 3, 224, 224] to [batch, 1000]."""
        hidden = self.maxpool(torch.relu(self.bn1(self.conv1(image))))
        for number in range(1, len(WIDTHS) + 1):
            hidden = self.get_submodule(f"layer{number}")(hidden)
        return self.fc(hidden.mean((2, 3)))


def build() -> nn.Module:
    """Make the model with random weights."""
    return ResNet18()
