"""What went over the links: bytes, counted where they are sent and received, and the meters of links."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from dance.bandwidth import LinkMeter
from dance.codecs import Uncompressed

_UNCOMPRESSED = Uncompressed()


@lru_cache(maxsize=256)
def raw_nbytes(numel: int, dtype: str) -> int:
    """Returns what a message of ``numel`` elements costs with codec none, its header included."""
    return _UNCOMPRESSED.packet_nbytes(numel, dtype)


@dataclass(kw_only=True)
class Count:
    """Bytes and messages of one node and kind, headers included; raw: what they would be uncompressed."""

    sent_bytes: int = 0
    received_bytes: int = 0
    raw_sent_bytes: int = 0
    raw_received_bytes: int = 0
    sent_messages: int = 0
    received_messages: int = 0

    def add(self, other: Count) -> None:
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))


class Traffic:
    """Counts per (node, kind); ``bytes_sent`` and ``raw_bytes`` are totals over the nodes of this process."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, str], Count] = {}

    def of(self, node: int | None = None, kind: str | None = None) -> Count:
        """Returns the sum over the entries of ``node`` (None: all here) and ``kind`` (None: all)."""
        total = Count()
        for (entry_node, entry_kind), count in self._counts.items():
            if node in (None, entry_node) and kind in (None, entry_kind):
                total.add(count)
        return total

    @property
    def bytes_sent(self) -> int:
        return self.of().sent_bytes

    @property
    def raw_bytes(self) -> int:
        """What the messages sent would have been uncompressed."""
        return self.of().raw_sent_bytes

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(sorted({kind for _, kind in self._counts}))

    def items(self) -> Iterator[tuple[tuple[int, str], Count]]:
        """Yields ((node, kind), count), in order."""
        yield from sorted(self._counts.items(), key=lambda item: item[0])

    def sent(self, node: int, kind: str, num_bytes: int, raw_bytes: int) -> None:
        count = self._counts.setdefault((node, kind), Count())
        count.sent_bytes += num_bytes
        count.raw_sent_bytes += raw_bytes
        count.sent_messages += 1

    def received(self, node: int, kind: str, num_bytes: int, raw_bytes: int) -> None:
        count = self._counts.setdefault((node, kind), Count())
        count.received_bytes += num_bytes
        count.raw_received_bytes += raw_bytes
        count.received_messages += 1

    def state_dict(self) -> dict[str, Any]:
        names = [entry.name for entry in fields(Count)]
        return {
            "columns": ["node", "kind", *names],
            "rows": [
                [node, kind, *(getattr(count, name) for name in names)]
                for (node, kind), count in self.items()
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        columns = state["columns"]
        self._counts.clear()
        for row in state["rows"]:
            entry = dict(zip(columns, row, strict=True))
            node, kind = int(entry.pop("node")), str(entry.pop("kind"))
            self._counts[node, kind] = Count(**{name: int(value) for name, value in entry.items()})


class Meters(dict[tuple[int, int], LinkMeter]):
    """A meter for each link (source, target), kept at its receiving end.

    It is fed the bytes of a payload and the seconds that the payload took: what waits before it, the header
    and the messages ahead, is no matter of the link. ``backlog``: as that of a `LinkMeter`.
    """

    def __init__(self, backlog: int = 0) -> None:
        super().__init__()
        self._backlog = backlog

    def observe(self, source: int, target: int, num_bytes: int, seconds: float) -> None:
        meter = self.get((source, target))
        if meter is None:
            meter = self[source, target] = LinkMeter(backlog=self._backlog)
        meter.observe(num_bytes, seconds)

    def state_dict(self, node: int) -> list[dict[str, Any]]:
        """Returns the meters of the links to ``node``."""
        return [
            {"source": source, "target": target, "meter": meter.state_dict()}
            for (source, target), meter in sorted(self.items(), key=lambda item: item[0])
            if target == node
        ]

    def load_state_dict(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Takes over the meters in ``state`` and leaves those of other links as they are."""
        for entry in state:
            meter = LinkMeter(backlog=self._backlog)
            self[int(entry["source"]), int(entry["target"])] = meter
            meter.load_state_dict(entry["meter"])
