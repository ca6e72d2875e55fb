"""How long the runs that are left will take, from those that are done and from how far the others are."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dance.compare.plan import PlannedRun
from dance.report import read_metrics


class Estimate:
    """Follows runs by their folders; `left_s` assumes that a method's runs take equal times."""

    def __init__(self, runs: Sequence[PlannedRun], jobs: int) -> None:
        self._left = {one.folder: one for one in runs}
        self._jobs = jobs
        self._began: dict[Path, tuple[float, float]] = {}  # when, and what share was done before
        self._took: dict[str, list[float]] = {}  # seconds a whole run, by method

    def begin(self, one: PlannedRun) -> None:
        self._began[one.folder] = time.monotonic(), self._share(one)

    def end(self, one: PlannedRun) -> None:
        began, before = self._began.pop(one.folder)
        self._left.pop(one.folder, None)
        if before < 0.9:  # what was all but done says little
            seconds = (time.monotonic() - began) / (1 - before)
            self._took.setdefault(one.method.slug, []).append(seconds)

    def left_s(self) -> float | None:
        """Seconds left for all runs; None before anything is known."""
        known = {method: statistics.mean(took) for method, took in self._took.items()}
        shares = {name: self._share(one) for name, one in self._left.items()}
        for name, (began, before) in self._began.items():
            method, gained = self._left[name].method.slug, shares[name] - before
            if method not in known and gained > 0.02:
                known[method] = (time.monotonic() - began) / gained
        if not known:
            return None
        typical = statistics.mean(known.values())
        seconds = [
            known.get(one.method.slug, typical) * (1 - shares[name]) for name, one in self._left.items()
        ]
        # The longest run is not made shorter by more jobs.
        return max(sum(seconds) / self._jobs, max(seconds, default=0.0))

    def last_line(self, one: PlannedRun) -> Mapping[str, Any]:
        """The last line of the run's metrics.jsonl."""
        lines = read_metrics(one.folder / "metrics.jsonl")
        return lines[-1] if lines else {}

    def _share(self, one: PlannedRun) -> float:
        """How much of the run is done, by the part of its budget that is spent the most."""
        last, config = self.last_line(one), one.config
        shares: list[float] = [last.get("round", 0) / config.rounds]
        if config.megabytes is not None:
            shares.append(last.get("bytes_per_node", 0) / 1e6 / config.megabytes)
        if config.virtual_seconds is not None:
            shares.append(last.get("virtual_s", 0) / config.virtual_seconds)
        return min(1.0, max(shares))


def in_words(seconds: float) -> str:
    """40 s, 7 min, 2 h 10 min: about as exact as such a guess is."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
