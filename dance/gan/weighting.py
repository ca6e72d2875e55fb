"""How a G-Node weighs what several discriminators say of the same images: one joined objective a scheme.

With l_i the logits of discriminator i at the images x, the generator descends phi(l_1 ... l_N). A D-Node
sends the gradient of its logits and, beside it, the logits; the chain rule at the G-Node,
    d phi / dx = sum_i (d phi / d l_i) (d l_i / dx),
is then the gradient of the joined objective itself, up to what a codec loses of d l_i / dx.
The schemes, with L the generator's loss of one image:
    mean   mean_i L(l_i)
    f2u    L(max_i l_i): the most forgiving discriminator alone (Yonetani et al. 2019, F2U)
    f2a    L of D = sum_i softmax_i(lambda D_i) D_i with D_i = sigmoid(l_i) (Yonetani et al. 2019, F2A; there
           lambda is learnt, here it is given)
    gman   sum_i softmax_i(lambda V_i) V_i, V_i the batch's mean loss: the harsher, the heavier (Durugkar et
           al. 2017, GMAN)
    ua     L(logsumexp_i(log pi_i + l_i)): the odds of the mixture, pi_i the share of all images at i (Zhang
           et al. 2021, UA-GAN); without R1 it collapsed to one mode
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dance.gan.settings import SCHEMES


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """One scheme. `sharpness` is lambda; `shares` are pi_i; `loss` sums L over logits of any shape."""

    scheme: str
    loss: Callable[[Tensor], Tensor]
    sharpness: float = 1.0
    shares: Sequence[float] = ()

    def objective(self, logits: Tensor) -> Tensor:
        """The joined objective, summed over images; `logits` (N, n): one row a discriminator."""
        if self.scheme == "mean":
            return self.loss(logits) / len(logits)
        if self.scheme == "f2u":
            return self.loss(logits.max(0).values)
        if self.scheme == "f2a":
            log_weights = torch.log_softmax(self.sharpness * torch.sigmoid(logits), 0)
            log_real = torch.logsumexp(log_weights + logsigmoid(logits), 0)
            log_fake = torch.logsumexp(log_weights + logsigmoid(-logits), 0)
            return self.loss(log_real - log_fake)
        if self.scheme == "gman":
            values = torch.stack([self.loss(row) for row in logits]) / logits.shape[1]
            return logits.shape[1] * (torch.softmax(self.sharpness * values, 0) * values).sum()
        if self.scheme == "ua":
            prior = torch.tensor(self.shares, dtype=logits.dtype).log()
            return self.loss(torch.logsumexp(prior[:, None] + logits, 0))
        raise ValueError(f"feedback weights: unknown {self.scheme!r}; choose from {', '.join(SCHEMES)}")

    def joined(self, gradients: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
        """The gradient of the objective at the images (n, ...): one entry of both lists a discriminator.

        `gradients`: of its logits at the images, (n, ...); `logits`: (n,).
        """
        rows = torch.stack(list(logits)).requires_grad_(True)
        (slopes,) = torch.autograd.grad(self.objective(rows), rows)
        total = torch.zeros_like(gradients[0])
        for slope, gradient in zip(slopes, gradients, strict=True):
            total += slope.view(-1, *[1] * (gradient.dim() - 1)) * gradient
        return total
