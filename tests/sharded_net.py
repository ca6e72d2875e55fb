"""A model sharded by FSDP2, and its unsharded copy; who imports it is skipped where torch is too old."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dance
import dance.fsdp

fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(getattr(fsdp, "FSDPModule", None), "set_custom_reduce_scatter"):
    pytest.skip("this torch has no custom collectives in FSDP", allow_module_level=True)

LR = 0.1


class Net(nn.Module):
    """Sizes that no world size divides, a parameter of the root's own, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 33)
        self.second = nn.Linear(33, 5)
        self.scale = nn.Parameter(torch.ones(5))
        self.second.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))) * self.scale


def plain() -> Net:
    torch.manual_seed(0)
    return Net()


def sharded(world: int, **options: Any) -> Net:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (world,))
    model = plain()
    for module in (model.first, model.second, model):
        fsdp.fully_shard(module, mesh=mesh, **options)
    return model


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(8, 10, generator=torch.Generator().manual_seed(100 * rank + step)) + rank


def backward(model: nn.Module, rank: int, step: int) -> float:
    model.zero_grad()
    loss = (model(batch(rank, step)) - 1).square().mean()
    loss.backward()
    return float(loss.detach())


def descend(model: nn.Module) -> None:
    with torch.no_grad():
        for each in model.parameters():
            if each.grad is not None:
                each -= LR * each.grad


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the parameters of a sharded model, unsharded, in exact bits; all ranks call it."""
    return {name: each.full_tensor().detach().clone() for name, each in model.named_parameters()}


def gradients(weights: dict[str, torch.Tensor], rank: int, step: int) -> dict[str, torch.Tensor]:
    """Those of one rank's loss, by an unsharded copy."""
    copy = plain()
    copy.load_state_dict(weights)
    backward(copy, rank, step)
    return {name: each.grad.clone() for name, each in copy.named_parameters() if each.grad is not None}


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: each.detach().numpy().copy() for name, each in tensors.items()}


def train(rank: int, world: int, codec: str | None, steps: int = 4, **options: Any) -> dict[str, np.ndarray]:
    model = sharded(world)
    if codec is not None:
        dance.fsdp.attach(model, codec, min_bytes=0, **options)
    for step in range(steps):
        backward(model, rank, step)
        descend(model)
    return arrays(whole(model))


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)
