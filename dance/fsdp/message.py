"""How FSDP lays out the gradients of a group of parameters that it reduce-scatters in one message."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter; FSDP cuts its gradient along ``dim`` in equal parts, one a rank; the last are padded."""

    name: str
    shape: tuple[int, ...]
    dim: int

    def stacked(self, world: int) -> tuple[int, ...]:
        """The shape of all parts one behind the other, along dimension 0."""
        shape = list(self.shape)
        part = -(-shape[self.dim] // world)
        shape[self.dim] = part
        shape[0] *= world
        return tuple(shape)


@dataclass(frozen=True)
class Message:
    """The gradients of ``parameters``, those that are trained, for ``world`` ranks: all parts of rank 0, then
    of rank 1, and so on. ``key`` is the path of the first of the FSDP modules that share it.
    """

    key: str
    modules: tuple[Any, ...]
    parameters: tuple[Parameter, ...]
    world: int

    @cached_property
    def _sizes(self) -> list[int]:
        return [math.prod(each.stacked(self.world)) // self.world for each in self.parameters]

    @property
    def numel(self) -> int:
        return self.world * sum(self._sizes)

    def split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns what the message holds of each parameter, in its own shape; copies."""
        parts = torch.split(flat.view(self.world, -1), self._sizes, dim=1)
        whole = {}
        for each, part in zip(self.parameters, parts, strict=True):
            stack = part.reshape(each.stacked(self.world))
            if each.dim:
                stack = torch.cat(stack.chunk(self.world), dim=each.dim)
            whole[each.name] = stack.narrow(0, 0, each.shape[0]).clone()
        return whole

    def join(self, whole: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The inverse of `split`; padding is zero."""
        parts = []
        for each in self.parameters:
            value = whole[each.name]
            if each.dim:
                value = torch.cat(value.chunk(self.world, dim=each.dim))
            stack = value.new_zeros(each.stacked(self.world))
            stack[: value.shape[0]] = value
            parts.append(stack.reshape(self.world, -1))
        return torch.cat(parts, dim=1).flatten()

    def clear_padding(self, flat: torch.Tensor) -> None:
        """Zeroes what lies between parameters, in place."""
        rows, first = flat.view(self.world, -1), 0
        for each, size in zip(self.parameters, self._sizes, strict=True):
            used = math.prod(each.shape)
            for rank in range(used // size if size else self.world, self.world):
                rows[rank, first + max(0, used - rank * size) : first + size] = 0.0
            first += size


def messages_of(module: torch.nn.Module) -> tuple[Message, ...]:
    """Returns the messages of all FSDP modules in ``module``; ValueError where there are none.

    Which parameters share a message, and in which order, FSDP's public face does not tell: this reads
    `_get_fsdp_state`, `fsdp_params`, `_orig_size`, `fsdp_placement` and `mesh_info` (torch 2.9 to 2.13).
    """
    from torch.distributed.fsdp import FSDPModule

    names = {id(each): name for name, each in module.named_parameters()}
    found: dict[int, tuple[str, list[Any], Any]] = {}
    for path, each in module.named_modules():
        if not isinstance(each, FSDPModule):
            continue
        state = each._get_fsdp_state()
        several = getattr(state, "_fsdp_param_groups", None)
        groups = [state._fsdp_param_group] if several is None else several
        if len(groups) > 1:
            raise ValueError(
                f"fsdp: {path!r} is sharded over several meshes; torch takes custom collectives for one only"
            )
        for group in groups:
            if group is not None:
                found.setdefault(id(group), (path, [], group))[1].append(each)
    if not found:
        raise ValueError("fsdp: no module is sharded; call torch.distributed.fsdp.fully_shard first")
    return tuple(
        Message(
            key=path,
            modules=tuple(modules),
            parameters=tuple(
                Parameter(
                    name=names[id(each.sharded_param)],
                    shape=tuple(each._orig_size),
                    dim=each.fsdp_placement.dim,
                )
                for each in group.fsdp_params
                if each.sharded_param.requires_grad
            ),
            world=group.mesh_info.shard_mesh_size,
        )
        for path, modules, group in found.values()
    )
