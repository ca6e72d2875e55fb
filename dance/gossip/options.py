"""How a node gossips: what its user may choose."""

from __future__ import annotations

from dataclasses import dataclass

from dance.codecs import Like

ORDERS = ("fresh", "overlap")
MEMORIES = ("auto", "copies", "sum")


@dataclass(frozen=True, kw_only=True)
class GossipOptions:
    """How a node gossips; equal at all nodes but for ``codec``, which is each node's own.

    ``step_size``: a number, or "auto" for one that is known to work for codec and graph. Step sizes that
    differ between nodes do not preserve the mean, so nodes with codecs of their own need a number: the least
    `default_step_size` of the codecs that may come. ``order``: "fresh" exchanges and then moves, "overlap"
    moves with the copies of the round before, so that the exchange may run while the node computes.
    ``memory``: "copies", "sum" (fixed graphs only), or "auto": copies while they take no more than 1 GiB.
    ``rebuild_every``: after so many rounds sums are built anew from uncompressed packets (0: never).
    ``guard``: watch for divergence; a guard only raises the node's ``alarm``, for all nodes to ask each other
    every `AGREE_EVERY` rounds and to call ``halve`` together. ``key`` and ``run_seed`` go into the packets'
    seeds.
    """

    codec: Like = "sign"
    step_size: float | str = "auto"
    order: str = "fresh"
    memory: str = "auto"
    rebuild_every: int = 1000
    guard: bool = True
    nonfinite: str = "raise"
    run_seed: int = 0
    key: str = "gossip"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"gossip: expected order {' or '.join(ORDERS)}, got {self.order!r}")
        if self.memory not in MEMORIES:
            raise ValueError(f"gossip: expected memory {', '.join(MEMORIES)}, got {self.memory!r}")
        if self.rebuild_every < 0:
            raise ValueError(f"gossip: expected rebuild_every of at least 0, got {self.rebuild_every}")
        if self.step_size != "auto" and (isinstance(self.step_size, str) or not 0.0 < self.step_size <= 1.0):
            raise ValueError(f"gossip: expected a step size in (0, 1] or 'auto', got {self.step_size!r}")
