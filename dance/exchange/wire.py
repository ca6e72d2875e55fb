"""This rank's end of a gloo group: messages posted point to point, waited for until a deadline; meters."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from dance.errors import PeerError
from dance.exchange.arena import Arena
from dance.exchange.traffic import Meters
from dance.exchange.waiting import lost, wait_until, why_lost
from dance.exchange.worker import Worker

_MOST_DELIVERIES = 256  # that wait for somebody to look at the meters, which remember 24 of a link
_MOST_KEPT = 16  # calls whose memory may be kept: who refuses more of them will not stop


class Wire:
    """The peers of this rank, the group's timeout, memory, and meters of what came in."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank = group.rank()
        self.world = group.size()
        self._group = weakref.ref(group)
        self.timeout_s = timeout_s(group)
        self.broken: str | None = None
        self._links = Meters()
        self._deliveries: deque[tuple[int, int, float]] = deque(maxlen=_MOST_DELIVERIES)
        self.sending, self.receiving = Arena(), Arena()
        self._receivers: dict[int, Worker] = {}
        self._kept: dict[int, list[Any]] = {}  # by call: what a peer may never take; gloo must not lose it

    @property
    def links(self) -> Meters:
        """The meters of the links to this rank; deliveries are taken in here, so that only who looks pays."""
        while self._deliveries:
            source, num_bytes, seconds = self._deliveries.popleft()
            self._links.observe(source, self.rank, num_bytes, seconds)
        return self._links

    def observe(self, source: int, num_bytes: int, seconds: float) -> None:
        """Notes that ``num_bytes`` from ``source`` were on their way for ``seconds``."""
        self._deliveries.append((source, num_bytes, seconds))

    def send(self, buffer: torch.Tensor, target: int, tag: int) -> Any:
        return self._post("send", buffer, target, tag)

    def receive(self, buffer: torch.Tensor, source: int, tag: int) -> Any:
        return self._post("recv", buffer, source, tag)

    def _post(self, what: str, buffer: torch.Tensor, peer: int, tag: int) -> Any:
        group = self._group()
        if group is None:
            raise PeerError("collective: the process group is gone; do not destroy it before all is done")
        try:
            return getattr(group, what)([buffer], peer, tag)
        except RuntimeError as error:
            raise self.breaks(f"rank {peer}", error) from error

    def wait(self, work: Any, deadline_s: float, what: str) -> None:
        """Waits for ``work``; PeerError after a timeout or when the peer is gone: the group is of no use."""
        try:
            wait_until(work, deadline_s)
        except RuntimeError as error:
            raise self.breaks(what, error) from error

    def breaks(self, what: str, error: BaseException) -> PeerError:
        if self.broken is None:
            why = why_lost(error)
            self.broken = lost(what, error) + (f"; {why}" if why else "")
        return PeerError(self.broken)

    def keep(self, number: int, what: Sequence[Any]) -> None:
        """Keeps works and memory of call ``number`` for good; the group is of no more use after too many."""
        self._kept.setdefault(number, []).extend(what)
        if len(self._kept) >= _MOST_KEPT and self.broken is None:
            self.broken = (
                f"{len(self._kept)} calls were refused, here or by a peer, and their memory cannot be used "
                "again; the process group is of no more use; do all ranks use the same codecs and sizes?"
            )

    def receiver(self, source: int) -> Worker:
        if source not in self._receivers:
            self._receivers[source] = Worker(f"dance-from-{source}")
        return self._receivers[source]

    def close(self) -> None:
        for receiver in self._receivers.values():
            receiver.close()


def timeout_s(group: dist.ProcessGroup) -> float:
    """Returns the timeout of the group's operations on the CPU."""
    options = getattr(group._get_backend(torch.device("cpu")), "options", None)
    timeout = getattr(options, "_timeout", None) or dist.default_pg_timeout
    return float(timeout.total_seconds())
