"""A GAN of three D-Nodes whose rounds take a moment, noise for them to train on, and autograd's gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dance.gan.config import RunConfig
from dance.gan.models import FlatModule

SHAPE = (1, 4, 8)
BASE = RunConfig(layout="model-parallel", d_nodes=3, batch_size=5, latent=6, g_widths=(9,), d_widths=(8, 7))


def noise_images(counts: Iterable[int], shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    """So many for each node in turn, in [-1, 1)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand((count, *shape), generator=generator) * 2 - 1 for count in counts]


def parts(config: RunConfig, count: int = 20, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    """Equally many for each node that trains a discriminator; 20 are an epoch of four rounds of BASE."""
    number = 1 if config.algorithm == "standalone" else config.d_nodes
    return noise_images([count] * number, shape)


def gradient_of(loss: Tensor, net: FlatModule) -> Tensor:
    """By autograd, laid out as ``net.gradient``."""
    parameters = [parameter for _, parameter in sorted(net.module.named_parameters())]
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
