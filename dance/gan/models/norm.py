"""Layers whose weight is divided by its largest singular value (spectral normalisation, Miyato et al. 2018).

The paper keeps a vector u from step to step. Here there is none to keep, average or save: every forward pass
runs the power iteration anew from one fixed start, so a layer is a function of its parameters alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

# The value found is up to 6 % too small for weights as drawn at the start of a run, and exact to 0.1 % once
# one direction leads (tests/test_gan_models.py).
STEPS = 16
_START_SEED = 0x5EED


class _Start(nn.Module):
    """The fixed unit vector that the power iteration of a weight with `rows` rows begins with."""

    start: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(_START_SEED)
        self.register_buffer(
            "start", F.normalize(torch.randn(rows, generator=generator), dim=0), persistent=False
        )

    def forward(self, weight: Tensor) -> Tensor:
        """`weight` (rows, ...) over its largest singular value as a matrix of `rows` rows."""
        matrix = weight.flatten(1)
        with torch.no_grad():  # u and v are constants to the gradient, as in the paper
            u = self.start
            for _ in range(STEPS):
                v = F.normalize(matrix.mT @ u, dim=0)
                u = F.normalize(matrix @ v, dim=0)
        return weight / (u @ (matrix @ v)).clamp_min(1e-12)


class SpectralLinear(nn.Linear):
    """nn.Linear with a weight of spectral norm 1."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.normalised = _Start(out_features)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.normalised(self.weight), self.bias)


class SpectralConv2d(nn.Conv2d):
    """nn.Conv2d whose weight, as a matrix with a row for each output channel, has spectral norm 1."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.normalised = _Start(out_channels)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.normalised(self.weight), self.bias, self.stride, self.padding)


def linear(norm: str, in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer for the norm "spectral", else a plain one."""
    kind = SpectralLinear if norm == "spectral" else nn.Linear
    return kind(in_features, out_features, bias)


def conv(norm: str, channels: tuple[int, int], kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution from channels[0] to channels[1] that keeps the size (times 1 / stride)."""
    kind = SpectralConv2d if norm == "spectral" else nn.Conv2d
    return kind(*channels, kernel, stride, (kernel - 1) // 2)


def after(norm: str, features: int) -> nn.Module:
    """What follows a layer with `features` outputs or channels: layer normalisation, or nothing.

    One group over all channels of an image is layer normalisation for images and for vectors alike.
    """
    return nn.GroupNorm(1, features) if norm == "layer" else nn.Identity()
