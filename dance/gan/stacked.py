"""Discriminators of simulated nodes computed together: one network with a row of parameters for each node.

Numbers agree with those of `DNode` up to rounding: matrix products of many nodes are summed in another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from dance.gan.losses import gradient_penalty, r1_penalty
from dance.gan.models import FlatModule
from dance.gan.nodes import DNode
from dance.gan.optimizers import decayed
from dance.gan.stacked_optimizers import stacked_optimizer

# So many nodes at a time: their parameters and gradients stay in cache from the gradient to the step, and
# what autograd makes for them is small enough that the allocator keeps it.
_CHUNK = 8


class StackedNet:
    """`nets`, which are alike, as one; their parameters become rows of `theta` (N, P)."""

    def __init__(self, nets: Sequence[FlatModule]) -> None:
        self.module: nn.Module = nets[0].module
        self.theta = torch.stack([net.theta for net in nets])
        for net, row in zip(nets, self.theta, strict=True):
            net.move_to(row)
        named = sorted(self.module.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in named}

    def parameters(self, first: int, end: int) -> dict[str, Tensor]:
        """Views of rows `first` to `end`, each (n, *shape), as leaves that want a gradient."""
        found: dict[str, Tensor] = {}
        start = 0
        for name, shape in self.shapes.items():
            stop = start + shape.numel()
            found[name] = self.theta[first:end, start:stop].view(end - first, *shape).detach()
            found[name].requires_grad_(True)
            start = stop
        return found

    def __call__(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Images (n, b, c, h, w) -> logits (n, b, 1), row k through parameters k."""
        logits: Tensor = vmap(self._one)(dict(parameters), images)
        return logits

    def _one(self, parameters: dict[str, Tensor], images: Tensor) -> Any:
        with _WeightsFirst():
            return functional_call(self.module, parameters, (images,))


class _WeightsFirst(TorchFunctionMode):
    """Linear layers as (W x^T)^T: gradients of W then have the layout of W, and the optimizer copies nothing.

    The other way round torch's batched product gives it transposed (that of a single layer does not).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is linear and not kwargs and args[0].dim() == 2:
            images, weight, *rest = args
            product = torch.mm(weight, images.t())
            bias = rest[0] if rest else None
            return (product if bias is None else product + bias.unsqueeze(1)).t()
        return func(*args, **(kwargs or {}))


class Stack:
    """D-Nodes of one process; each keeps its place and its state, all compute together.

    Raises ValueError for a network that torch cannot compute so.
    """

    def __init__(self, nodes: Sequence[DNode]) -> None:
        self.nodes = list(nodes)
        self.net = StackedNet([d.net for d in nodes])
        self.solver = stacked_optimizer([d.solver for d in nodes])
        try:
            with torch.no_grad():
                self.net(self.net.parameters(0, 1), nodes[0].batches.batch(0)[None])
        except (RuntimeError, TypeError) as error:
            name = type(self.net.module).__name__
            raise ValueError(
                f"stack: {name} cannot be computed together ({error}); use --stack off"
            ) from error

    def local_update(self, round_index: int, fakes: Mapping[int, Tensor]) -> None:
        """`DNode.local_update` of every node, against its own of `fakes`, all of one shape."""
        for first in range(0, len(self.nodes), _CHUNK):
            nodes = self.nodes[first : first + _CHUNK]
            stacked = torch.stack([fakes[d.node] for d in nodes])
            for step in range(nodes[0].local_steps):
                self._step(nodes, first, (round_index, step), stacked)

    def _step(self, nodes: Sequence[DNode], first: int, when: tuple[int, int], fakes: Tensor) -> None:
        (round_index, step), like = when, nodes[0]
        number = round_index * like.local_steps + step
        reals = torch.stack([d.batches.batch(number) for d in nodes])
        parameters = self.net.parameters(first, first + len(nodes))
        logits = self.net(parameters, torch.cat([reals, fakes], 1))
        real_logits, fake_logits = torch.split(logits, [reals.shape[1], fakes.shape[1]], 1)
        loss = vmap(like.loss.real)(real_logits) + vmap(like.loss.fake)(fake_logits)
        for d, value in zip(nodes, loss.tolist(), strict=True):
            d.d_loss = value
        total = loss.sum()
        # Penalties are means over the images of all nodes, which are as many at each.
        discriminate = partial(self._flat, parameters)
        if like.r1 and round_index % like.r1_every == 0:
            penalty = r1_penalty(discriminate, reals.flatten(0, 1))
            total = total + len(nodes) * like.r1 * like.r1_every * penalty
        if like.gradient_penalty:
            pairs = reals[:, torch.arange(fakes.shape[1]) % reals.shape[1]].flatten(0, 1)
            mix = torch.cat([d.mix(number, fakes.shape[1]) for d in nodes])
            penalty = gradient_penalty(discriminate, pairs, fakes.flatten(0, 1), mix)
            total = total + len(nodes) * like.gradient_penalty * penalty
        gradients = torch.autograd.grad(total, list(parameters.values()))
        scale = decayed(round_index, like.decay_rounds)
        self.solver.step(self.net.theta, first, gradients, scale)

    def _flat(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Images (n * b, c, h, w), by node -> logits (n * b, 1)."""
        num_nodes = len(next(iter(parameters.values())))
        return self.net(parameters, images.view(num_nodes, -1, *images.shape[1:])).flatten(0, 1)

    def feedback(self, images: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """`DNode.feedback` of every node at its own of `images`, all of one shape."""
        found: dict[int, Tensor] = {}
        for first in range(0, len(self.nodes), _CHUNK):
            nodes = self.nodes[first : first + _CHUNK]
            parameters = self.net.parameters(first, first + len(nodes))
            points = torch.stack([images[d.node] for d in nodes]).requires_grad_(True)
            loss = vmap(nodes[0].loss.generator)(self.net(parameters, points))
            (gradients,) = torch.autograd.grad(loss.sum(), points)
            for d, value, gradient in zip(nodes, loss.tolist(), gradients, strict=True):
                d.g_loss = value / len(gradient)
                found[d.node] = gradient
        return found
