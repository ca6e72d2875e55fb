"""The non-saturating GAN loss (Goodfellow et al. 2014) and the R1 penalty (Mescheder et al. 2018, eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus


def real_loss(logits: Tensor) -> Tensor:
    """Mean over images of -log sigmoid(D(x)); `logits` has shape (n, 1)."""
    return softplus(-logits).mean()


def fake_loss(logits: Tensor) -> Tensor:
    """Mean over images of -log(1 - sigmoid(D(G(z)))); `logits` has shape (n, 1)."""
    return softplus(logits).mean()


def generator_loss(logits: Tensor) -> Tensor:
    """SUM over images of -log sigmoid(D(G(z))): an image's gradient does not depend on its batch."""
    return softplus(-logits).sum()


def r1_penalty(discriminator: nn.Module, images: Tensor) -> Tensor:
    """Mean over real images of |gradient of D at the image|^2 / 2, differentiable in D's parameters."""
    points = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(points).sum(), points, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean() / 2
