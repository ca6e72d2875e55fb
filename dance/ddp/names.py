"""The names of the parameters in a bucket: DDP hands its hook tensors alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dance.exchange.group_ref import GroupRef

_COMPILED = "_orig_mod."  # what torch.compile puts before the names of the module that it wraps


class ParameterNames:
    """Names of one module's parameters, as `torch.nn.Module.named_parameters` has them within DDP."""

    def __init__(self) -> None:
        self._group = GroupRef()
        self._named: dict[
            int, tuple[weakref.ref[torch.Tensor], str]
        ] = {}  # by id; neither keeps the other alive
        self._ddp: weakref.ref[DistributedDataParallel] | None = None
        self.sizes: dict[str, int] = {}  # elements, by name

    @property
    def serving(self) -> bool:
        """Whether there is, or was, a DDP module to serve."""
        return self._ddp is not None

    @property
    def group(self) -> dist.ProcessGroup | None:
        """That of the DDP module served."""
        return self._group.get()

    def take(self, ddp: DistributedDataParallel) -> None:
        """Serves ``ddp`` from now on."""
        self._ddp, self._group = weakref.ref(ddp), GroupRef(ddp.process_group)
        named = named_parameters(ddp)
        self._named = {id(each): (weakref.ref(each), name) for name, each in named.items()}
        self.sizes = {name: each.numel() for name, each in named.items()}

    def know(self, parameters: Sequence[torch.Tensor]) -> bool:
        """Returns whether ``parameters`` are those of a DDP module that is served, and still there."""
        return self._ddp is not None and self._ddp() is not None and all(map(self._knows, parameters))

    def of(self, parameters: Sequence[torch.Tensor]) -> list[str]:
        """Returns the names of ``parameters``, which are known."""
        return [self._named[id(parameter)][1] for parameter in parameters]

    def _knows(self, parameter: torch.Tensor) -> bool:
        known = self._named.get(id(parameter))
        return known is not None and known[0]() is parameter

    def owner(self, state: object, parameter: torch.Tensor) -> DistributedDataParallel:
        """Returns the DDP module that has ``parameter`` and has registered ``state``.

        ValueError where another one with it is served already, and both are in use.
        """
        registered: list[DistributedDataParallel] = [
            each
            for each in gc.get_objects()
            if issubclass(type(each), DistributedDataParallel)
            and any(state is other for _, other in getattr(each, "_comm_hooks", ()))
        ]
        served = None if self._ddp is None else self._ddp()
        for ddp in registered:
            if served in (None, ddp) and any(parameter is each for each in ddp.module.parameters()):
                return ddp
        raise ValueError(
            "CompressionState: a gradient came from another module than the one that this state serves; "
            "give each DDP module a state of its own (dance.ddp.attach makes one)"
        )


def named_parameters(ddp: DistributedDataParallel) -> dict[str, torch.Tensor]:
    """The parameters of the module in ``ddp``, by the names that rules and snapshots have."""
    return {name.replace(_COMPILED, ""): each for name, each in ddp.module.named_parameters()}
