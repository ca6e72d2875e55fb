"""Compressed gossip of a model's parameters over a process group, one line in a training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist

from dance.codecs import Codec, Like
from dance.exchange import ProcessGroupExchange
from dance.gossip.node import GossipNode
from dance.gossip.options import GossipOptions
from dance.gossip.pace import AGREE_EVERY
from dance.topology import Topology

Parameters = Iterable[tuple[str, torch.Tensor]] | Mapping[str, torch.Tensor]


class ChocoGossip:
    """Averages ``parameters`` with the neighbours in ``topology``, one compressed packet to each a `step`.

    ``parameters``: ``module.named_parameters()``, or a mapping of names to float32 CPU tensors of equal names
    and shapes at all ranks; they are gossiped as one vector in the order of their names, and changed in
    place. The rank in ``group`` is the position in ``topology``. ``step_size`` "auto" is a value known to
    work for codec and graph. Nodes that start equal (the usual case) start from that common value, others
    from zero.

        gossip = dance.ChocoGossip(model.named_parameters(), dance.topology.ring(8), "sign")
        for batch in data:
            ...; optimizer.step()
            gossip.step()

    Raises ValueError for a directed topology. `codec` may be set before any step.
    """

    def __init__(
        self,
        parameters: Parameters,
        topology: Topology,
        codec: Like,
        step_size: float | str = "auto",
        group: dist.ProcessGroup | None = None,
        *,
        options: GossipOptions | None = None,
    ) -> None:
        items = parameters.items() if isinstance(parameters, Mapping) else parameters
        self._parameters = dict(sorted(items, key=lambda item: item[0]))
        if not self._parameters:
            raise ValueError("gossip: expected at least one parameter, got none")
        for name, parameter in self._parameters.items():
            if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
                place = f"{parameter.dtype} on {parameter.device}"
                raise ValueError(f"gossip: expected float32 on the CPU, got {place} for {name!r}; cast first")
        self.exchange = ProcessGroupExchange(group)
        if topology.num_nodes != self.exchange.num_nodes:
            raise ValueError(
                f"gossip: {topology} needs as many ranks, the group has {self.exchange.num_nodes}"
            )
        defaults = GossipOptions() if options is None else options
        chosen = {**vars(defaults), "codec": codec, "step_size": step_size}
        numel = sum(parameter.numel() for parameter in self._parameters.values())
        theta = torch.empty(numel, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
        self._views = self._split(theta)
        self._gather()
        reference = theta if _equal_everywhere(theta, group) else torch.zeros_like(theta)
        self._node = GossipNode(
            theta, topology, self.exchange.nodes[0], GossipOptions(**chosen), reference=reference
        )

    @property
    def codec(self) -> Codec:
        return self._node.codec

    @codec.setter
    def codec(self, codec: Like) -> None:
        self._node.codec = codec

    @property
    def step_size(self) -> float:
        return self._node.step_size

    @property
    def round(self) -> int:
        return self._node.round

    def step(self) -> None:
        """Exchanges one round of packets and moves the parameters, in place; all ranks call it together."""
        self._gather()
        received = self.exchange.deliver(self._node.messages(), self._node.expected())
        self._node.in_({message.source: message.packet for message in received})
        self._scatter()
        if (
            self._node.options.guard
            and self._node.round % AGREE_EVERY == 0
            and self.exchange.any(self._node.alarm)
        ):
            self._node.halve()

    def state_dict(self) -> dict[str, Any]:
        """Returns the gossip's memory, vectors by parameter name; the parameters are the module's."""
        state = self._node.state_dict()
        numel = self._node.theta.numel()
        flat = {key: value for key, value in state.items() if _is_flat(value, numel) and "guard" not in key}
        rest = {key: value for key, value in state.items() if key not in flat}
        vectors = {
            f"{key}/{name}": view.clone()
            for key, value in flat.items()
            for name, view in self._split(value).items()
        }
        return {**rest, **vectors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = self._node.state_dict()
        numel = self._node.theta.numel()
        loaded = {key: value for key, value in state.items() if "/" not in key}
        for key, value in own.items():
            if not _is_flat(value, numel) or "guard" in key:
                continue
            for name, view in self._split(value).items():
                stored = state.get(f"{key}/{name}")
                if stored is None or stored.shape != view.shape:
                    raise ValueError(
                        f"gossip: the state has no {key} of {name!r} with shape {tuple(view.shape)}"
                    )
                view.copy_(stored)
            loaded[key] = value
        self._node.load_state_dict(loaded)

    def _split(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        views, start = {}, 0
        for name, parameter in self._parameters.items():
            views[name] = flat[start : start + parameter.numel()].view(parameter.shape)
            start += parameter.numel()
        return views

    def _gather(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._views[name].copy_(parameter)

    def _scatter(self) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._views[name])


def _is_flat(value: Any, numel: int) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == (numel,)


def _equal_everywhere(theta: torch.Tensor, group: dist.ProcessGroup | None) -> bool:
    digest = int.from_bytes(blake2b(theta.numpy().data, digest_size=7).digest(), "little")
    bounds = torch.tensor([digest, -digest], dtype=torch.int64)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX, group=group)
    return int(bounds[0]) == -int(bounds[1])
