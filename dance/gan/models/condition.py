"""How labels enter a GAN: beside the noise of G, and as a projection at the end of D.

G is given the label's one-hot vector beside its noise (Mirza and Osindero 2014). D adds the inner product of
its features with an embedding of the label to its logit (Miyato and Koyama 2018, eq. 5).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dance.gan.models.norm import linear
from dance.gan.models.shape import NetShape, one_hot


def beside(noise: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """Noise (n, latent), with the one-hot labels (n, classes) to its right where there are classes."""
    if not classes:
        return noise
    assert labels is not None
    return torch.cat([noise, one_hot(labels, classes)], dim=1)


def noise_width(shape: NetShape) -> int:
    """What `beside` makes of the latent length."""
    return shape.latent + shape.classes


class Logit(nn.Module):
    """The last layer of a discriminator: features (n, features), labels (n,) or None -> logits (n, 1)."""

    def __init__(self, norm: str, features: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.layer = linear(norm, features, 1)
        self.embedding = linear(norm, features, classes, bias=False) if classes else None

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        logits: Tensor = self.layer(features)
        if self.embedding is None:
            return logits
        assert labels is not None
        projected: Tensor = self.embedding(features) * one_hot(labels, self.classes)
        return logits + projected.sum(1, keepdim=True)
