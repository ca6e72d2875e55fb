"""The residual GAN of Miyato et al. 2018 (table 4) for 32 x 32 images, narrower and without BatchNorm.

Other sizes from 8 x 8 pixels get as many doublings as their short side has above 4 to 7 pixels.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from dance.gan.models.condition import Logit, beside, noise_width
from dance.gan.models.norm import after, conv
from dance.gan.models.shape import NetShape, cropped, pyramid


class _Up(nn.Module):
    """Maps (n, c, h, w) -> (n, c, 2 h, 2 w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(1, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = F.interpolate(F.relu(self.norm1(x)), scale_factor=2)
        inner = self.conv2(F.relu(self.norm2(self.conv1(inner))))
        return inner.add(F.interpolate(x, scale_factor=2))


class _Down(nn.Module):
    """Maps (n, c, h, w) -> (n, channels, h / 2, w / 2), or of equal size."""

    def __init__(self, norm: str, widths: tuple[int, int], *, first: bool = False, halve: bool = True):
        super().__init__()
        self.first, self.halve = first, halve
        self.norm1 = after("none" if first else norm, widths[0])
        self.conv1 = conv(norm, widths, 3)
        self.norm2 = after(norm, widths[1])
        self.conv2 = conv(norm, (widths[1], widths[1]), 3)
        self.short = conv(norm, widths, 1) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = x if self.first else F.relu(self.norm1(x))
        inner = self.conv2(F.relu(self.norm2(self.conv1(inner))))
        if self.halve:
            inner, x = F.avg_pool2d(inner, 2), F.avg_pool2d(x, 2)
        short: Tensor = self.short(x)
        return short + inner


class Generator(nn.Module):
    """Noise (n, latent), labels (n,) if conditional -> images (n, channels, height, width) in [-1, 1]."""

    def __init__(self, shape: NetShape, channels: int) -> None:
        super().__init__()
        self.shape = shape
        self.maps = pyramid("sngan", shape.image)
        self.first = nn.Linear(noise_width(shape), channels * self.maps.height * self.maps.width)
        self.blocks = nn.Sequential(*(_Up(channels) for _ in range(self.maps.doublings)))
        self.last = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.ReLU(),
            nn.Conv2d(channels, shape.image[0], 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        first: Tensor = self.first(beside(noise, labels, self.shape.classes))
        maps = first.view(len(first), -1, self.maps.height, self.maps.width)
        return cropped(self.last(self.blocks(maps)), self.shape.image)


class Discriminator(nn.Module):
    """Images (n, channels, height, width), labels (n,) if conditional -> one logit an image, (n, 1)."""

    def __init__(self, shape: NetShape, channels: int, norm: str = "spectral") -> None:
        super().__init__()
        doublings = pyramid("sngan", shape.image).doublings
        wide = (channels, channels)
        self.blocks = nn.Sequential(
            _Down(norm, (shape.image[0], channels), first=True),
            *(_Down(norm, wide) for _ in range(max(0, doublings - 2))),
            _Down(norm, wide, halve=doublings == 2),
            _Down(norm, wide, halve=False),
        )
        self.logit = Logit(norm, channels, shape.classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        features = F.relu(self.blocks(images)).sum((2, 3))
        logits: Tensor = self.logit(features, labels)
        return logits
