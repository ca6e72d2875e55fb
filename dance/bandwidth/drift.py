"""How far a slowly moving level has got at the end of a series: exponential smoothing that proves itself."""

from __future__ import annotations

from collections.abc import Sequence

_GAINS = (0.2, 0.5)
_FEW = 4  # no drift is told from fewer values
_BETTER = 0.95  # smoothing must predict better than the level 0 by this, or noise would look like drift
_MOST = 0.3  # of one value's distance to the level: what is further off is an outlier


def drift(values: Sequence[float]) -> float:
    """Returns where the level of ``values``, which are around 0, is now; 0 where it does not move.

    Each gain of an exponential smoothing is judged by the sum of its one-step errors, none of which counts
    more than 0.3; the best one is taken where it beats no smoothing at all.
    """
    if len(values) < _FEW:
        return 0.0
    least, now = _BETTER * _errors(values, 0.0)[0], 0.0
    for gain in _GAINS:
        errors, level = _errors(values, gain)
        if errors < least:
            least, now = errors, level
    return now


def _errors(values: Sequence[float], gain: float) -> tuple[float, float]:
    """Returns the sum of the absolute errors of a smoothing, and its level after the last value."""
    errors = level = 0.0
    for value in values:
        error = value - level
        if error > _MOST:
            error = _MOST
        elif error < -_MOST:
            error = -_MOST
        errors += error if error > 0.0 else -error
        level += gain * error
    return errors, level
