"""Small models to train."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Any) -> Any:
        return self.to_out[0](torch.sigmoid(self.to_q(x)) * self.to_k(x))


class ResnetBlock2D(nn.Module):
    def __init__(self, width: int, padding: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, padding_mode=padding)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Any) -> Any:
        return self.depthwise(self.conv2(self.conv1(x)))


class Small(nn.Module):
    """A convolutional stem, two attentions and a head, on `(n, 3, 8, 8)`."""

    def __init__(self, width: int = 12, padding: str = "circular") -> None:
        super().__init__()
        self.stem = ResnetBlock2D(width, padding)
        self.blocks = nn.ModuleList([Attention(width), Attention(width)])
        self.head = nn.Linear(width, 2)

    def forward(self, x: Any) -> Any:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def small(seed: int = 0, width: int = 12, padding: str = "circular") -> Small:
    """The model; frozen, because torch rounds some products otherwise where a gradient is wanted."""
    torch.manual_seed(seed)
    model = Small(width, padding)
    model.requires_grad_(False)
    return model


def images(seed: int = 1) -> Any:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def stirred(model: nn.Module, seed: int = 5) -> None:
    """Give every up values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(".lora.up"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
