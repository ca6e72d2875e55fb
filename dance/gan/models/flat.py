"""A module's parameters and gradients as two flat vectors: what nodes send, average and save."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FlatModule:
    """A module whose parameters and gradients are views into two flat float32 vectors, in name order.

    `theta` and `gradient` may be changed in place, but not between a forward pass and its `backward`, which
    would not notice; never rebind them. Raises ValueError for a module with state besides its parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        _check(module)
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

    def move_to(self, place: Tensor) -> None:
        """Go on with parameters in other memory, which holds theta already: a row of many nodes' matrix."""
        self.theta = place
        start = 0
        for _, parameter in sorted(self.module.named_parameters()):
            end = start + parameter.numel()
            parameter.data = place[start:end].view_as(parameter)
            start = end

    def backward(self, loss: Tensor, weight: Tensor | None = None) -> None:
        """Put the gradient of `loss` (times `weight`, of its shape) into `gradient`; the last one goes."""
        self.gradient.zero_()
        torch.autograd.backward(loss, weight)


def _check(module: nn.Module) -> None:
    name = type(module).__name__
    parameters = set(dict(module.named_parameters(remove_duplicate=False)))
    hidden = sorted(set(module.state_dict()) - parameters)
    if hidden:
        # Statistics of batches, or the vectors of torch's spectral_norm: averaging would pass them by.
        raise ValueError(
            f"model {name}: {hidden[0]!r} is state but no parameter, so nodes would neither average nor save "
            "it; use LayerNorm or GroupNorm in place of BatchNorm (or track_running_stats=False), and "
            "dance.gan.models.SpectralLinear and SpectralConv2d in place of torch's spectral_norm"
        )
    for parameter_name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32 or not parameter.requires_grad:
            raise ValueError(
                f"model {name}: parameter {parameter_name!r} is {parameter.dtype}, requires_grad "
                f"{parameter.requires_grad}; every parameter must be float32 and trained"
            )
    if not parameters:
        raise ValueError(f"model {name} has no parameters; there is nothing to train")
