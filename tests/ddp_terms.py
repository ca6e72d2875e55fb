"""A model whose gradients are what a test says: the loss is the sum of parameters times coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

# Used in another order than made, so that DDP's buckets are others after the first step.
_ORDER = ("conv.weight", "first.bias", "norm.weight", "last.weight", "first.weight", "last.bias", "norm.bias")

# Every step rounds a few sums of float32, of up to 16 times the largest gradient where sign owes much.
ROUNDING = 10 * 4 * 16 * 2.0**-24


class Terms(torch.nn.Module):
    """Its parameters' gradients are the coefficients that it is called with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(60, 50)
        self.conv = torch.nn.Conv2d(16, 24, 3, bias=False)
        self.norm = torch.nn.LayerNorm(70)
        self.last = torch.nn.Linear(90, 40)

    def forward(self, coefficients: Mapping[str, torch.Tensor]) -> torch.Tensor:
        named = dict(self.named_parameters())
        total = torch.zeros(())
        for name in _ORDER:
            if name in coefficients:
                total = total + (named[name] * coefficients[name]).sum().float()
        return total


def coefficients(rank: int, step: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The gradients of a rank in a step; scales differ by parameter."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return {
        name: (torch.randn(p.shape, generator=generator) * 10.0 ** (len(name) % 3 - 1)).to(dtype)
        for name, p in Terms().named_parameters()
    }


def wrap(model: torch.nn.Module, **options: Any) -> DistributedDataParallel:
    """DDP with buckets of about one matrix after the first step, when DDP rebuilds them."""
    return DistributedDataParallel(model, **{"bucket_cap_mb": 0.008, **options})


def backward(ddp: DistributedDataParallel, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the gradients of one step, copies by name."""
    ddp.zero_grad()
    ddp(given).backward()
    return {name: p.grad.clone() for name, p in ddp.module.named_parameters() if p.grad is not None}


def owed(state: Any, group: dist.ProcessGroup | None = None) -> dict[str, torch.Tensor]:
    """The residuals of all ranks, added up: float64, by name."""
    totals = {}
    for name, p in sorted(Terms().named_parameters()):
        residual = state.residuals.residual(name)
        total = torch.zeros(p.shape, dtype=torch.float64)
        if residual is not None:
            total += residual.view(p.shape)
        dist.all_reduce(total, group=group)
        totals[name] = total
    return totals


class Ledger:
    """Books what was due (the mean gradients) and what was applied: the rest must be owed."""

    def __init__(self) -> None:
        self._open: dict[str, torch.Tensor] = {}
        self._largest: dict[str, float] = {}

    def book(self, rank: int, world: int, step: int, applied: Mapping[str, torch.Tensor]) -> None:
        for each in range(world):
            for name, given in coefficients(each, step).items():
                due = given.double() / world
                self._open[name] = self._open.get(name, torch.zeros_like(due)) + due
                self._largest[name] = max(self._largest.get(name, 0.0), float(given.abs().max()))
        for name, gradient in applied.items():
            self._open[name] -= gradient.double()

    def gap(self, totals: Mapping[str, torch.Tensor]) -> float:
        """The largest difference between what is open and ``totals``, in units of the largest gradient."""
        return max(float((self._open[n] - totals[n]).abs().max()) / self._largest[n] for n in self._open)


def equal_at_all_ranks(tensors: Mapping[str, torch.Tensor], group: dist.ProcessGroup | None = None) -> bool:
    flat = torch.cat([tensor.reshape(-1).float() for _, tensor in sorted(tensors.items())])
    others = [torch.empty_like(flat) for _ in range(dist.get_world_size(group))]
    dist.all_gather(others, flat, group=group)
    return all(torch.equal(flat, other) for other in others)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
