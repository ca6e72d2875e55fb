"""Multilayer perceptrons for images of any size, and parameters as one flat vector.

No network here normalises over the batch: its statistics are not parameters, and averaging nodes breaks them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Noise (n, latent) -> images (n, channels, height, width) in [-1, 1]."""

    def __init__(self, latent: int, widths: Sequence[int], image_shape: Sequence[int]) -> None:
        super().__init__()
        self.latent = latent
        self.image_shape = tuple(image_shape)
        sizes = (latent, *widths)
        layers: list[nn.Module] = []
        for size, width in zip(sizes, widths, strict=False):
            layers += [nn.Linear(size, width), nn.ReLU()]
        layers += [nn.Linear(sizes[-1], math.prod(image_shape)), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, noise: Tensor) -> Tensor:
        images: Tensor = self.layers(noise)
        return images.view(-1, *self.image_shape)


class Discriminator(nn.Module):
    """Images (n, channels, height, width) -> one logit an image, (n, 1)."""

    def __init__(self, image_shape: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        sizes = (math.prod(image_shape), *widths)
        layers: list[nn.Module] = [nn.Flatten()]
        for size, width in zip(sizes, widths, strict=False):
            layers += [nn.Linear(size, width), nn.LeakyReLU(0.2)]
        layers.append(nn.Linear(sizes[-1], 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


class FlatModule:
    """A module whose parameters and gradients are views into two flat float32 vectors, in name order.

    `theta` and `gradient` may be changed in place, but not between a forward pass and its `backward`, which
    would not notice; never rebind them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        named = sorted(module.named_parameters())
        self.sizes = [parameter.numel() for _, parameter in named]
        self.theta = torch.cat([parameter.detach().reshape(-1) for _, parameter in named])
        self.gradient = torch.zeros_like(self.theta)
        start = 0
        for _, parameter in named:
            end = start + parameter.numel()
            parameter.data = self.theta[start:end].view_as(parameter)
            parameter.grad = self.gradient[start:end].view_as(parameter)
            start = end

    def backward(self, loss: Tensor, weight: Tensor | None = None) -> None:
        """Put the gradient of `loss` (times `weight`, of its shape) into `gradient`; the last one goes."""
        self.gradient.zero_()
        torch.autograd.backward(loss, weight)


def seeded_generator(seed: int, latent: int, widths: Sequence[int], image_shape: Sequence[int]) -> FlatModule:
    """A generator whose first weights follow from `seed`; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FlatModule(Generator(latent, widths, image_shape))


def seeded_discriminator(seed: int, widths: Sequence[int], image_shape: Sequence[int]) -> FlatModule:
    """A discriminator whose first weights follow from `seed`; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FlatModule(Discriminator(image_shape, widths))
