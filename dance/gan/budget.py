"""What ends a run besides its rounds: bytes of the D-Nodes, seconds of the virtual clock; marks in bytes."""

from __future__ import annotations

from dance.exchange import Exchange
from dance.gan.config import RunConfig
from dance.gan.rows import REPORT

_MB = 1e6


class Budget:
    """Follows what the nodes of this process have spent; it holds nothing that a checkpoint would miss."""

    def __init__(self, config: RunConfig, exchange: Exchange) -> None:
        self._exchange = exchange
        self._most_mb = config.megabytes
        self._most_s = config.virtual_seconds
        # Under torchrun no node knows what the others have spent, and all evaluate together.
        self._marks = sorted(config.evaluate_megabytes) if config.simulate else []
        first = 0 if config.algorithm == "standalone" else exchange.num_nodes - config.d_nodes
        self._d_nodes = [node for node in exchange.nodes if node >= first]
        self._next = len([mark for mark in self._marks if mark <= self.spent_mb()])

    @property
    def limited(self) -> bool:
        """Whether anything but the rounds can end the run."""
        return self._most_mb is not None or self._most_s is not None

    def spent_mb(self) -> float:
        """MB sent and received by a D-Node of this process, on average (as `bytes_per_node`)."""
        own = set(self._d_nodes)
        total = sum(
            count.sent_bytes + count.received_bytes
            for (node, kind), count in self._exchange.counts.items()
            if node in own and kind != REPORT
        )
        return total / _MB / max(1, len(own))

    def is_spent(self) -> bool:
        """Whether the nodes of this process have spent what the config allows."""
        if self._most_s is not None and self._virtual_s() >= self._most_s:
            return True
        return self._most_mb is not None and bool(self._d_nodes) and self.spent_mb() >= self._most_mb

    def passes_mark(self) -> bool:
        """Whether one of `evaluate_megabytes` was passed since this was last asked."""
        if self._next == len(self._marks):
            return False
        before, spent = self._next, self.spent_mb()
        while self._next < len(self._marks) and self._marks[self._next] <= spent:
            self._next += 1
        return self._next > before

    def _virtual_s(self) -> float:
        return max(self._exchange.elapsed_s(node) for node in self._exchange.nodes)
