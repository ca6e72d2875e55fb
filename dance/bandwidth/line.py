"""The line seconds = intercept + bytes x slope through deliveries, by a robust regression.

Theil (1950) and Sen (1968) in the weighted form of Sievers (1978): the slope is the weighted median of the
slopes of all pairs, the intercept that of the residuals. What spoils deliveries, and what stands it:

- Stalls of a scheduler lengthen a few: medians.
- Noise grows with the size: a pair weighs |x - y| / sqrt(max(x, y)), between the |x - y| that suits even
  noise and the |x - y| / max(x, y) that suits noise in proportion; a residual weighs 1 / seconds.
- A token bucket lets the first bytes go at line speed: small deliveries lie far below the line of the large
  ones. The larger ones have more weight, the intercept may be negative, and no time is less than at the
  fastest rate seen.
- Sizes that hardly differ: a delivery of no bytes at the latency believed so far is added, so that with one
  size, or two or three deliveries, all of the time but that latency is charged to the rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

_EFFICIENCY = 2.0  # variance of these medians against that of least squares

_BURST = 0.7

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Line:
    """``intercept_s`` is the latency, or below zero minus a burst's bytes times ``slope_s`` (s per byte)."""

    intercept_s: float
    slope_s: float
    least_s: float
    """The least seconds per byte of any delivery."""

    def seconds(self, num_bytes: float) -> float:
        return max(self.intercept_s + num_bytes * self.slope_s, num_bytes * self.least_s)

    def slower(self, factor: float) -> Line:
        """Returns the line of a rate lower by ``factor``; latency and burst stay as they are."""
        return Line(
            intercept_s=self.intercept_s * (factor if self.intercept_s < 0.0 else 1.0),
            slope_s=self.slope_s * factor,
            least_s=self.least_s * min(factor, 1.0),
        )


def fit(sizes: Sequence[int], times: Sequence[float], latency_s: float = 0.0) -> Line:
    """Returns the line of deliveries of ``sizes`` bytes > 0 in ``times`` s > 0, given the latency so far."""
    ratios = [seconds / num_bytes for num_bytes, seconds in zip(sizes, times, strict=True)]
    least_s = min(ratios)
    latency_s = min(latency_s, 0.5 * min(times))
    if len(set(sizes)) == 1:
        slope = (median(times) - latency_s) / sizes[0]
        return Line(intercept_s=latency_s, slope_s=slope, least_s=least_s)
    x, t = np.array((0, *sizes), dtype=np.float64), np.array((latency_s, *times))
    slope = _slope(x, t)
    if slope <= 0.0:
        return Line(intercept_s=0.0, slope_s=median(ratios), least_s=least_s)
    weights = 1.0 / t[1:]
    residuals = t - slope * x
    intercept = _weighted_median(residuals, np.concatenate(((weights.max(),), weights)))
    line = Line(intercept_s=intercept, slope_s=slope, least_s=least_s)
    if intercept >= 0.0:
        return line
    # A burst is believed where it explains much of what a line without it misses.
    plain = Line(intercept_s=0.0, slope_s=median(ratios), least_s=least_s)
    return line if _missed(sizes, times, line) < _BURST * _missed(sizes, times, plain) else plain


def _missed(sizes: Sequence[int], times: Sequence[float], line: Line) -> float:
    """Returns the sum of |log(seconds / the line's)|, a stall counting as 1, weighed by size."""
    misses = _misses(sizes, times, line)
    return sum(min(miss, 1.0) * x for x, miss in zip(sizes, misses, strict=True))


def _misses(sizes: Sequence[int], times: Sequence[float], line: Line) -> list[float]:
    return [abs(math.log(t / line.seconds(x))) for x, t in zip(sizes, times, strict=True)]


def _slope(x: Floats, t: Floats) -> float:
    first, second = _pairs(x.size)
    across = x.take(second) - x.take(first)
    roots = np.sqrt(x)
    weights = np.abs(across) / np.maximum(roots.take(first), roots.take(second))
    across[across == 0.0] = 1.0  # of no weight
    return _weighted_median((t.take(second) - t.take(first)) / across, weights)


@cache
def _pairs(size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    first, second = np.triu_indices(size, k=1)
    return first, second


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = values.argsort()
    total = weights.take(order).cumsum()
    return float(values[order[total.searchsorted(0.5 * total[-1])]])


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How uncertain a line is: standard deviations."""

    share: float
    """Of one delivery's seconds, as a share of the line's."""
    slope_s: float
    center_bytes: float
    """The size at which the line is known best ..."""
    center_s: float
    """... and how well."""


def spread(sizes: Sequence[int], times: Sequence[float], line: Line) -> Spread:
    """Returns how uncertain the ``line`` of deliveries is: least squares' formulas, a robust noise."""
    expected = [line.seconds(num_bytes) for num_bytes in sizes]
    misses = _misses(sizes, times, line)
    # Noise of 15 % is expected, with the say of four deliveries; the line has taken two to fit.
    variance = (len(misses) * (1.4826 * median(misses)) ** 2 + 4 * 0.15**2) / (len(misses) + 2)
    # The delivery of no bytes: what was believed of the latency, better known the more deliveries agree.
    weights = [1.0 / (p * p) for p in expected]
    total = sum(weights)
    root = math.sqrt(len(weights)) * max(weights)
    center = sum(w * x for w, x in zip(weights, sizes, strict=True)) / (total + root)
    across = sum(w * (x - center) ** 2 for w, x in zip(weights, sizes, strict=True)) + root * center * center
    variance_of_medians = _EFFICIENCY * variance
    return Spread(
        share=math.sqrt(variance),
        slope_s=math.sqrt(variance_of_medians / across),
        center_bytes=center,
        center_s=math.sqrt(variance_of_medians / (total + root)),
    )
