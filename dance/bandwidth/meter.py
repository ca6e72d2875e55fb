"""A meter that estimates rate and latency of a link from the deliveries it has seen, and notices changes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from dance.bandwidth.changes import ChangeDetector
from dance.bandwidth.drift import drift
from dance.bandwidth.line import Line, fit, median, spread
from dance.bandwidth.units import mbps_of, seconds_a_byte

_WINDOW = 24  # deliveries that a fit sees: more would hardly be better and follow drifts later
_REVIEW = 8  # every so many deliveries, and in the beginning after these, new sizes may have bent the line
_REVIEWS = (2, 3, 4, 6)
_CHANGE = 7.0  # minus the log odds of a change, as dance.bandwidth.changes has them
_OUTLIER = 5.0  # and of an outlier
_TICK_S = 1e-9
_GRAIN_S = 1e-4  # differences below the scheduler's are no matter of the link
_BENT = 0.1  # how far, in logs, a better line may bend away before deliveries are judged anew


class Measured(Protocol):
    """What is known of a link: by a meter at its receiving end, or what that end reported."""

    def estimate(self) -> LinkEstimate | None: ...

    def predict_s(self, num_bytes: int) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class LinkEstimate:
    """What a meter believes about its link, and how sure it is.

    A delivery takes ``latency_s`` and the time of its bytes at ``rate_mbps``, but for ``burst_bytes``, which
    a token bucket lets through at once; and never less than its bytes take at ``peak_mbps``.
    """

    rate_mbps: float
    """10^6 bits a second."""
    latency_s: float
    """The time of a delivery without bytes, 0 where it cannot be told from the rate."""
    rate_deviation_mbps: float = 0.0
    """Standard deviation of ``rate_mbps``."""
    deviation: float = 0.0
    """Standard deviation of one delivery's seconds around the line, as a share of them."""
    burst_bytes: float = 0.0
    peak_mbps: float = math.inf
    """The fastest delivery's."""
    center_bytes: float = 0.0
    """The size at which the line is known best ..."""
    center_deviation_s: float = 0.0
    """... and its standard deviation there."""

    def estimate(self) -> LinkEstimate:
        """Returns itself: where a meter counts, what a meter believed counts as well."""
        return self

    def predict_s(self, num_bytes: int) -> float:
        """Returns how long a delivery of ``num_bytes`` will take, in seconds."""
        line_s = self.latency_s + (num_bytes - self.burst_bytes) * seconds_a_byte(self.rate_mbps)
        return max(line_s, num_bytes * seconds_a_byte(self.peak_mbps))

    def predict_deviation_s(self, num_bytes: int) -> float:
        """Returns the standard deviation of one delivery of ``num_bytes`` from `predict_s`, in seconds.

        The noise of deliveries, and how uncertain the line is at that size.
        """
        slope = seconds_a_byte(self.rate_mbps) * self.rate_deviation_mbps / self.rate_mbps
        return math.hypot(
            self.deviation * self.predict_s(num_bytes),
            self.center_deviation_s,
            (num_bytes - self.center_bytes) * slope,
        )


class LinkMeter:
    """Estimates the rate and the latency of one link from the deliveries it has seen.

    A robust line (dance.bandwidth.line) through the last 24 deliveries since the link last changed, so that a
    stalled delivery in a few moves nothing; a drift within them (dance.bandwidth.drift) moves its rate. Where
    sizes do not differ, latency cannot be told from rate, and all of the time is charged to the rate. A
    change (dance.bandwidth.changes) shows in log(seconds / predicted), mostly within two or three deliveries
    where it is tenfold, later where it is small or noise is strong; what came before it is dropped.

    With a ``backlog`` deliveries are judged when somebody asks, and of those that came since then only the
    last so many: a simulation has thousands of links that nobody may ever ask for.
    """

    def __init__(self, window: int = _WINDOW, backlog: int = 0) -> None:
        if window < 2:
            raise ValueError(f"LinkMeter: expected a window of at least 2 deliveries, got {window}")
        self._backlog = backlog
        self._waiting: deque[tuple[int, float]] = deque(maxlen=backlog)
        self._sizes: deque[int] = deque(maxlen=window)
        self._times: deque[float] = deque(maxlen=window)
        self._detector = ChangeDetector()
        self._reference: Line | None = None  # the line that the detector's values are relative to
        self._latency_s = 0.0  # what is known of the latency from before the last change
        self._line: Line | None = None  # the fit, where it is up to date, and with the drift
        self._now: Line | None = None
        self._num_observations = 0
        self._num_changes = 0
        self._changed_at = 0

    @property
    def num_observations(self) -> int:
        """How many deliveries were judged."""
        self._catch_up()
        return self._num_observations

    @property
    def num_changes(self) -> int:
        self._catch_up()
        return self._num_changes

    @property
    def changed_at(self) -> int:
        """The first observation, counted from 0, of the link as it is now."""
        self._catch_up()
        return self._changed_at

    def observe(self, num_bytes: int, seconds: float) -> None:
        """Takes in a delivery of ``num_bytes`` that took ``seconds``; one without bytes says nothing."""
        if num_bytes < 0 or not 0.0 <= seconds < math.inf:
            raise ValueError(f"LinkMeter: expected bytes >= 0 in seconds >= 0, got {num_bytes} in {seconds}")
        if num_bytes == 0:
            return
        if self._backlog:
            self._waiting.append((num_bytes, seconds))
        else:
            self._judge(num_bytes, seconds)

    def _catch_up(self) -> None:
        while self._waiting:
            self._judge(*self._waiting.popleft())

    def _judge(self, num_bytes: int, seconds: float) -> None:
        # A simulated link without limit takes no time: fast beyond measure, and yet measured.
        seconds = max(seconds, _TICK_S)
        self._sizes.append(num_bytes)
        self._times.append(seconds)
        self._line = self._now = None
        self._num_observations += 1
        if self._reference is None:
            self._reference = self._fitted()
        before = self._detector.length
        kept = self._detector.observe(_surprise(num_bytes, seconds, self._reference))
        changed = kept <= before
        if changed or len(self._sizes) in _REVIEWS or self._num_observations % _REVIEW == 0:
            line = self._fitted()
            if self._bends(line) and self._explains(line, kept if changed else 0):
                kept = self._replay(line)
                changed = kept < len(self._sizes)
            if changed:
                self._change(kept)

    def estimate(self) -> LinkEstimate | None:
        """Returns all that the meter believes now, or None before the first delivery."""
        self._catch_up()
        if not self._sizes:
            return None
        line = self._present()
        uncertain = spread(self._sizes, self._times, line)
        rate_mbps = mbps_of(line.slope_s)
        return LinkEstimate(
            rate_mbps=rate_mbps,
            latency_s=max(0.0, line.intercept_s),
            rate_deviation_mbps=rate_mbps * uncertain.slope_s / line.slope_s,
            deviation=uncertain.share,
            burst_bytes=max(0.0, -line.intercept_s / line.slope_s),
            peak_mbps=mbps_of(line.least_s),
            center_bytes=uncertain.center_bytes,
            center_deviation_s=uncertain.center_s,
        )

    @property
    def rate_mbps(self) -> float | None:
        """The rate in 10^6 bits a second, or None before the first delivery."""
        self._catch_up()
        return mbps_of(self._present().slope_s) if self._sizes else None

    @property
    def latency_s(self) -> float:
        """The time of a delivery without bytes, 0 where it cannot be told from the rate."""
        self._catch_up()
        return max(0.0, self._present().intercept_s) if self._sizes else 0.0

    def predict_s(self, num_bytes: int) -> float | None:
        """Returns how long ``num_bytes`` will take, or None before the first delivery."""
        self._catch_up()
        return self._present().seconds(num_bytes) if self._sizes else None

    def _fitted(self) -> Line:
        if self._line is None:
            self._line = fit(self._sizes, self._times, self._latency_s)
        return self._line

    def _present(self) -> Line:
        """Returns the fitted line, moved by as much as the rate has drifted within the window."""
        if self._now is None:
            line = self._fitted()
            self._now = line.slower(math.exp(drift(self._surprises(line))))
        return self._now

    def _bends(self, line: Line) -> bool:
        """Whether ``line`` differs from the reference in how time grows with size."""
        assert self._reference is not None
        small, large = min(self._sizes), max(self._sizes)
        if 2.0 * line.intercept_s > line.seconds(large):
            return False  # so much latency is rather a change of rate that came with a change of sizes
        bend = _surprise(large, line.seconds(large), self._reference)
        return abs(bend - _surprise(small, line.seconds(small), self._reference)) > _BENT

    def _explains(self, line: Line, changed: int) -> bool:
        """Whether ``line`` fits all deliveries better than the reference does, with a change if there is one.

        Deliveries of a size not seen before look like a change until the line knows of the latency.
        """
        assert self._reference is not None
        values = self._surprises(self._reference)
        split = max(len(values) - changed, 0)
        levels = [values[:split], values[split:]]
        misfit = sum(_misfit(level) for level in levels if level) + _CHANGE * (changed > 0)
        return _misfit(self._surprises(line)) < misfit

    def _surprises(self, line: Line) -> list[float]:
        return [_surprise(b, seconds, line) for b, seconds in zip(self._sizes, self._times, strict=True)]

    def _replay(self, line: Line) -> int:
        """Judges all deliveries by ``line`` and returns how many of the last are of one link."""
        self._reference = line
        self._detector = ChangeDetector()
        for value in self._surprises(line):
            self._detector.observe(value)
        return self._detector.length

    def _change(self, kept: int) -> None:
        """Drops all but the last ``kept`` deliveries; only the latency is still believed."""
        self._num_changes += 1
        self._changed_at = self._num_observations - kept
        sizes, times = list(self._sizes), list(self._times)
        if kept >= len(sizes):
            return  # a slow one: the fit has forgotten already what came before it
        self._latency_s = max(fit(sizes[:-kept], times[:-kept], self._latency_s).intercept_s, 0.0)
        for _ in range(len(sizes) - kept):
            self._sizes.popleft()
            self._times.popleft()
        self._line = self._now = None
        self._replay(self._fitted())

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the meter remembers, in numbers, strings, lists and dictionaries."""
        self._catch_up()
        reference = self._reference
        return {
            "sizes": list(self._sizes),
            "seconds": list(self._times),
            "reference": None if reference is None else asdict(reference),
            "latency_s": self._latency_s,
            "detector": self._detector.state_dict(),
            "num_observations": self._num_observations,
            "num_changes": self._num_changes,
            "changed_at": self._changed_at,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of another meter, and goes on exactly as it would."""
        self._waiting.clear()
        self._sizes.clear()
        self._sizes.extend(int(num_bytes) for num_bytes in state["sizes"])
        self._times.clear()
        self._times.extend(float(seconds) for seconds in state["seconds"])
        self._reference = None if state["reference"] is None else Line(**state["reference"])
        self._latency_s = float(state["latency_s"])
        self._detector.load_state_dict(state["detector"])
        self._line = self._now = None
        self._num_observations = int(state["num_observations"])
        self._num_changes = int(state["num_changes"])
        self._changed_at = int(state["changed_at"])


def _surprise(num_bytes: int, seconds: float, line: Line) -> float:
    # Of a delivery within a token bucket's burst it depends on the bucket how long it takes, not on the rate.
    grain_s = _GRAIN_S + max(-line.intercept_s, 0.0)
    return math.log((seconds + grain_s) / (line.seconds(num_bytes) + grain_s))


def _misfit(values: list[float]) -> float:
    """Returns minus the log likelihood of one level (to a constant): a Student t of 4 degrees, outliers."""
    level = median(values)
    return sum(min(2.5 * math.log1p((value - level) ** 2 / 0.09), _OUTLIER) for value in values)
