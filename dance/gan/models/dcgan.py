"""A small DCGAN (Radford et al. 2016) for images from 8 x 8 pixels, without its BatchNorm.

The widths are `channels` at the largest map, doubled at each smaller one up to eight times.
"""

from __future__ import annotations

from torch import Tensor, nn

from dance.gan.models.condition import Logit, beside, noise_width
from dance.gan.models.norm import after, conv
from dance.gan.models.shape import NetShape, cropped, pyramid

_WIDEST = 8


def _widths(channels: int, doublings: int) -> list[int]:
    """From the smallest map to the largest but one."""
    return [channels * min(_WIDEST, 2**k) for k in reversed(range(doublings))]


class Generator(nn.Module):
    """Noise (n, latent), labels (n,) if conditional -> images (n, channels, height, width) in [-1, 1]."""

    def __init__(self, shape: NetShape, channels: int) -> None:
        super().__init__()
        self.shape = shape
        self.maps = pyramid("dcgan", shape.image)
        widths = _widths(channels, self.maps.doublings)
        self.first = nn.Linear(noise_width(shape), widths[0] * self.maps.height * self.maps.width)
        layers: list[nn.Module] = [nn.GroupNorm(1, widths[0]), nn.ReLU()]
        for width, wider in zip(widths[1:], widths, strict=False):
            layers += [nn.ConvTranspose2d(wider, width, 4, 2, 1), nn.GroupNorm(1, width), nn.ReLU()]
        layers += [nn.ConvTranspose2d(widths[-1], shape.image[0], 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        first: Tensor = self.first(beside(noise, labels, self.shape.classes))
        maps = first.view(len(first), -1, self.maps.height, self.maps.width)
        return cropped(self.layers(maps), self.shape.image)


class Discriminator(nn.Module):
    """Images (n, channels, height, width), labels (n,) if conditional -> one logit an image, (n, 1)."""

    def __init__(self, shape: NetShape, channels: int, norm: str = "none") -> None:
        super().__init__()
        maps = pyramid("dcgan", shape.image)
        widths = [shape.image[0], *reversed(_widths(channels, maps.doublings))]
        layers: list[nn.Module] = []
        height, width = shape.image[1:]
        for place in range(maps.doublings):
            layers.append(conv(norm, (widths[place], widths[place + 1]), 4, stride=2))
            # The first layer sees the image as it is.
            layers += [after(norm if place else "none", widths[place + 1]), nn.LeakyReLU(0.2)]
            height, width = height // 2, width // 2
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.logit = Logit(norm, widths[-1] * height * width, shape.classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        logits: Tensor = self.logit(self.layers(images), labels)
        return logits
