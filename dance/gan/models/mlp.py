"""Multilayer perceptrons for images of any size; the default, and fast on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from dance.gan.models.condition import Logit, beside, noise_width
from dance.gan.models.norm import after, linear
from dance.gan.models.shape import NetShape


class Generator(nn.Module):
    """Noise (n, latent), labels (n,) if conditional -> images (n, channels, height, width) in [-1, 1]."""

    def __init__(self, shape: NetShape, widths: Sequence[int]) -> None:
        super().__init__()
        self.shape = shape
        sizes = (noise_width(shape), *widths)
        layers: list[nn.Module] = []
        for size, width in zip(sizes, widths, strict=False):
            layers += [nn.Linear(size, width), nn.ReLU()]
        layers += [nn.Linear(sizes[-1], math.prod(shape.image)), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.layers(beside(noise, labels, self.shape.classes))
        return images.view(-1, *self.shape.image)


class Discriminator(nn.Module):
    """Images (n, channels, height, width), labels (n,) if conditional -> one logit an image, (n, 1)."""

    def __init__(self, shape: NetShape, widths: Sequence[int], norm: str = "none") -> None:
        super().__init__()
        sizes = (math.prod(shape.image), *widths)
        layers: list[nn.Module] = [nn.Flatten()]
        for size, width in zip(sizes, widths, strict=False):
            layers += [linear(norm, size, width), after(norm, width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.logit = Logit(norm, sizes[-1], shape.classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.logit(self.layers(images), labels)
        return logits
