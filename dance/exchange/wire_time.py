"""How long anything was on the wire: intervals from an announcement to the end of what it announced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

# Phase, source, start and end in seconds, bytes of payload.
Interval: TypeAlias = "tuple[int, int, float, float, int]"


def by_phase(
    intervals: Sequence[Interval],
) -> list[list[Interval]]:
    """Returns the intervals of each phase; of several together where they overlap."""
    phases: dict[int, list[Interval]] = {}
    for interval in intervals:
        phases.setdefault(interval[0], []).append(interval)
    groups: list[list[Interval]] = []
    end_s = -math.inf
    for phase in sorted(phases):
        if groups and min(start for _, _, start, _, _ in phases[phase]) < end_s:
            groups[-1].extend(phases[phase])
        else:
            groups.append(list(phases[phase]))
        end_s = max(end for _, _, _, end, _ in groups[-1])
    return groups


def union_s(intervals: Sequence[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals (start, end)."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
