"""What the collectives of a group have done at this rank, added up."""

from __future__ import annotations

import threading
from typing import Any

from dance.distributed.work import CallStats

_SUMS = ("bytes_sent", "bytes_received", "raw_bytes", "seconds", "encode_s", "decode_s", "check_s")


class Totals:
    """Adds up the stats of calls; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("calls", "compressed", "direct", "failed", "nonfinite"), 0)
        self._sums: dict[str, float] = dict.fromkeys(_SUMS, 0)
        self._wire_s = 0.0
        self._agreements = 0
        self._by: dict[str, dict[str, int]] = {"reason": {}, "codec": {}, "collective": {}}

    def add(self, call: CallStats, *, failed: bool) -> None:
        direct = call.algorithm == "direct"
        with self._lock:
            counts = self._counts
            counts["calls"] += 1
            counts["direct" if direct else "compressed"] += 1
            counts["failed"] += failed
            counts["nonfinite"] += bool(call.nonfinite)
            for name in _SUMS:
                self._sums[name] += getattr(call, name)
            self._wire_s += call.wire_s or 0.0
            for name, text in (
                ("reason", call.reason),
                ("codec", call.codec),
                ("collective", call.collective),
            ):
                if text:
                    self._by[name][text] = self._by[name].get(text, 0) + 1

    def agreed(self) -> None:
        """Counts one small all-reduce by which ranks agree on figures."""
        with self._lock:
            self._agreements += 1

    def read(self) -> dict[str, Any]:
        with self._lock:
            return {
                **self._counts,
                **self._sums,
                "wire_s": self._wire_s,
                "agreements": self._agreements,
                "under_min_bytes": self._by["reason"].get("under min_bytes", 0),
                "by_reason": dict(self._by["reason"]),
                "by_codec": dict(self._by["codec"]),
                "by_collective": dict(self._by["collective"]),
            }
