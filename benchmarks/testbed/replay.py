"""Changes the rate of a testbed's links while it is in use: a trace, or a list of steps, over and over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.testbed.namespaces import LOWEST_MBPS, Testbed
from dance.bandwidth import Trace, parse_link

_SECONDS = {"ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, kw_only=True)
class Change:
    """At ``time_s`` after the start the rate became ``mbps``."""

    time_s: float
    mbps: float


class Replay:
    """Replays ``trace`` on the links of ``bed`` for as long as the context lasts, rates below ``floor_mbps``
    raised to it.

    ``changes`` is what was done so far, with the times at which it was done; ``started`` is the
    ``time.monotonic()`` of time 0, a clock that all processes of the machine share.
    """

    def __init__(self, bed: Testbed, trace: Trace, *, floor_mbps: float = 0.1) -> None:
        if floor_mbps < LOWEST_MBPS:
            raise ValueError(f"replay: expected a floor of at least {LOWEST_MBPS} Mbit/s, got {floor_mbps}")
        self._bed = bed
        self._trace = trace
        self._floor_mbps = floor_mbps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="replay")
        self._error: RuntimeError | None = None
        self.changes: list[Change] = []
        self.started = 0.0

    def __enter__(self) -> Replay:
        self._bed.set_rate(self._rate(0))
        self.started = time.monotonic()
        self.changes.append(Change(time_s=0.0, mbps=self._bed.rate_mbps))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def entry(self) -> dict[str, Any]:
        """What was done, as JSON has it."""
        return {
            "started_monotonic_s": self.started,
            "changes": [asdict(change) for change in list(self.changes)],
        }

    def _rate(self, k: int) -> float:
        return max(self._floor_mbps, float(self._trace.mbps[k % len(self._trace.mbps)]))

    def _due(self) -> Iterator[tuple[float, float]]:
        """Every later change: (seconds after the start, rate)."""
        number = 1
        while True:
            periods, k = divmod(number, len(self._trace.mbps))
            yield periods * self._trace.period_s + float(self._trace.times_s[k]), self._rate(k)
            number += 1

    def _run(self) -> None:
        try:
            for due_s, mbps in self._due():
                if self._stop.wait(max(0.0, self.started + due_s - time.monotonic())):
                    return
                if mbps != self._bed.rate_mbps:
                    self._bed.set_rate(mbps)
                    self.changes.append(Change(time_s=time.monotonic() - self.started, mbps=mbps))
        except RuntimeError as error:
            self._error = error


def parse_steps(text: str) -> Trace:
    """Returns the trace of steps such as ``100mbit@10s,10mbit@500ms``: each a rate and how long it lasts."""
    rates, lengths = [], []
    for step in text.split(","):
        rate, _, length = step.strip().partition("@")
        number = length.rstrip("ms")
        unit = length[len(number) :]
        try:
            link = parse_link(rate)
            lengths.append(float(number) * _SECONDS[unit])
        except (KeyError, ValueError):
            raise ValueError(f"steps {text!r}: expected 100mbit@10s,10mbit@500ms, got {step!r}") from None
        rates.append(link.rate_mbps)
    starts = np.cumsum([0.0, *lengths[:-1]])
    # A trace's last rate holds as long as the one before: two halves of the last step say how long that is.
    return Trace(times_s=np.append(starts, starts[-1] + lengths[-1] / 2), mbps=np.array([*rates, rates[-1]]))
