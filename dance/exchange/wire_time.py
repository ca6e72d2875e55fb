"""How long anything was on the wire: intervals from an announcement to the end of what it announced."""

from __future__ import annotations

import math
from collections.abc import Sequence


def union_s(intervals: Sequence[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals (start, end)."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
