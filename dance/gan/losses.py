"""GAN losses as pure functions of logits, and the penalties on a discriminator's gradient: R1 and WGAN-GP.

Discriminator's losses are means over images. Generator's losses are SUMS over images, so that the feedback of
an image does not depend on its batch; a G-Node divides by the number of all images of a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

# A discriminator with its parameters: images (n, c, h, w) -> logits (n, 1).
Discriminate = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One game between G and D; every function takes logits of shape (n, 1) and gives a scalar."""

    real: Callable[[Tensor], Tensor]
    """What D pays for real images: a mean."""
    fake: Callable[[Tensor], Tensor]
    """What D pays for generated images: a mean."""
    generator: Callable[[Tensor], Tensor]
    """What G pays: a sum."""
    penalised: bool = False
    """Whether WGAN-GP's penalty takes the place of R1."""


LOSSES: dict[str, Loss] = {
    # Goodfellow et al. 2014, section 3: -log D(G(z)) gives G a gradient where D is sure.
    "non-saturating": Loss(
        real=lambda logits: softplus(-logits).mean(),
        fake=lambda logits: softplus(logits).mean(),
        generator=lambda logits: softplus(-logits).sum(),
    ),
    # Goodfellow et al. 2014, eq. 1: both play for the same value, log(1 - D(G(z))).
    "minimax": Loss(
        real=lambda logits: softplus(-logits).mean(),
        fake=lambda logits: softplus(logits).mean(),
        generator=lambda logits: -softplus(logits).sum(),
    ),
    # Mao et al. 2017, eq. 9: least squares towards 1 for real and 0 for fake.
    "lsgan": Loss(
        real=lambda logits: (logits - 1).square().mean() / 2,
        fake=lambda logits: logits.square().mean() / 2,
        generator=lambda logits: (logits - 1).square().sum() / 2,
    ),
    # Miyato et al. 2018, eqs. 16 and 17.
    "hinge": Loss(
        real=lambda logits: relu(1 - logits).mean(),
        fake=lambda logits: relu(1 + logits).mean(),
        generator=lambda logits: -logits.sum(),
    ),
    # Gulrajani et al. 2017, eq. 3, without the penalty's term.
    "wgan-gp": Loss(
        real=lambda logits: -logits.mean(),
        fake=lambda logits: logits.mean(),
        generator=lambda logits: -logits.sum(),
        penalised=True,
    ),
}


def loss_named(name: str) -> Loss:
    """The loss of that name. Raises ValueError naming those there are."""
    if name not in LOSSES:
        raise ValueError(f"loss: unknown {name!r}; choose from {', '.join(LOSSES)}")
    return LOSSES[name]


def r1_penalty(discriminate: Discriminate, images: Tensor) -> Tensor:
    """Mean over real images of |gradient of D at the image|^2 / 2, differentiable in D's parameters.

    Mescheder et al. 2018, eq. 9.
    """
    return _gradient_at(discriminate, images).square().sum(1).mean() / 2


def gradient_penalty(discriminate: Discriminate, reals: Tensor, fakes: Tensor, mix: Tensor) -> Tensor:
    """Mean of (|gradient of D| - 1)^2 between real and generated images (Gulrajani et al. 2017, eq. 3).

    reals and fakes: (n, c, h, w), pairs; mix: (n, 1, 1, 1) in [0, 1], the share of the real one in each pair.
    """
    points = reals + (1 - mix) * (fakes - reals)
    # sqrt has no derivative at 0, where a dead D would be.
    norm = (_gradient_at(discriminate, points).square().sum(1) + 1e-12).sqrt()
    return (norm - 1).square().mean()


def _gradient_at(discriminate: Discriminate, images: Tensor) -> Tensor:
    """Gradient of each image's own logit, flat: (n, c * h * w)."""
    points = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminate(points).sum(), points, create_graph=True)
    return gradient.flatten(1)
