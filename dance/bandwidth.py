"""What a link can carry: links with a rate, a delay or a trace, and a meter that estimates it."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_WINDOW = 16  # deliveries a meter remembers: its median follows a change of rate after eight of them
_SPREAD = 2.0  # sizes must differ by this factor before latency and rate can be told apart
_BITS_A_BYTE = 8.0
_TICK_S = 1e-9


class LinkMeter:
    """Estimates the rate and the latency of one link from the deliveries it has seen.

    Medians over the last 16 deliveries, so one stalled delivery in a few changes nothing. Where sizes differ
    by at least a factor of two, the line seconds = latency + bytes / rate is fitted (Theil 1950, Sen 1968);
    where they do not, latency cannot be told from rate, and all of the time is charged to the rate.
    """

    def __init__(self, window: int = _WINDOW) -> None:
        if window < 1:
            raise ValueError(f"LinkMeter: expected a window of at least 1 delivery, got {window}")
        self._recent: deque[tuple[int, float]] = deque(maxlen=window)
        self._fit: tuple[float, float] | None = None
        self.num_observations = 0

    def observe(self, num_bytes: int, seconds: float) -> None:
        """Takes in a delivery of ``num_bytes`` that took ``seconds``; one without bytes says nothing."""
        if num_bytes < 0 or not 0.0 <= seconds < math.inf:
            raise ValueError(f"LinkMeter: expected bytes >= 0 in seconds >= 0, got {num_bytes} in {seconds}")
        if num_bytes == 0:
            return
        # A simulated link without limit takes no time: fast beyond measure, and yet measured.
        self._recent.append((num_bytes, max(seconds, _TICK_S)))
        self._fit = None
        self.num_observations += 1

    @property
    def rate_mbps(self) -> float | None:
        """The rate in 10^6 bits a second, or None before the first delivery."""
        if not self._recent:
            return None
        seconds_a_byte = self._fitted()[1]
        return _BITS_A_BYTE / 1e6 / seconds_a_byte if seconds_a_byte > 0.0 else math.inf

    @property
    def latency_s(self) -> float:
        """The time of a delivery without bytes, 0 where it cannot be told from the rate."""
        return self._fitted()[0] if self._recent else 0.0

    def predict_s(self, num_bytes: int) -> float | None:
        """Returns how long ``num_bytes`` will take, or None before the first delivery."""
        if not self._recent:
            return None
        latency, seconds_a_byte = self._fitted()
        return latency + num_bytes * seconds_a_byte

    def _fitted(self) -> tuple[float, float]:
        if self._fit is None:
            self._fit = _fit(list(self._recent))
        return self._fit

    def state_dict(self) -> dict[str, Any]:
        return {"recent": [list(pair) for pair in self._recent], "num_observations": self.num_observations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._recent.clear()
        self._recent.extend((int(num_bytes), float(seconds)) for num_bytes, seconds in state["recent"])
        self.num_observations = int(state["num_observations"])
        self._fit = None


def _fit(recent: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Returns (latency in s, seconds a byte) of deliveries (bytes, seconds)."""
    sizes = np.array([pair[0] for pair in recent], dtype=np.float64)
    times = np.array([pair[1] for pair in recent])
    if sizes.max() >= _SPREAD * sizes.min():
        first, second = np.triu_indices(len(sizes), k=1)
        # Near equal sizes divide noise by almost nothing: only pairs that differ by the factor have a say.
        apart = np.maximum(sizes[first], sizes[second]) >= _SPREAD * np.minimum(sizes[first], sizes[second])
        first, second = first[apart], second[apart]
        slope = float(np.median((times[second] - times[first]) / (sizes[second] - sizes[first])))
        if slope > 0.0:
            return max(0.0, float(np.median(times - slope * sizes))), slope
    return 0.0, float(np.median(times / sizes))


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A rate that changes with time: ``mbps[k]`` from ``times_s[k]`` on, repeated for ever."""

    times_s: npt.NDArray[np.float64]
    mbps: npt.NDArray[np.float64]
    _sent: npt.NDArray[np.float64] = field(init=False, repr=False)  # bytes carried up to each time

    def __post_init__(self) -> None:
        times = np.asarray(self.times_s, dtype=np.float64)
        rates = np.asarray(self.mbps, dtype=np.float64)
        if times.ndim != 1 or times.shape != rates.shape or times.size == 0:
            raise ValueError(f"trace: expected as many times as rates, got {times.shape} and {rates.shape}")
        if not (np.isfinite(times).all() and np.isfinite(rates).all()) or bool((np.diff(times) <= 0.0).any()):
            raise ValueError("trace: expected finite, strictly rising times and finite rates")
        if bool((rates < 0.0).any()) or not bool((rates > 0.0).any()):
            raise ValueError(
                f"trace: expected rates >= 0 Mbit/s and one > 0, got {rates.min()}..{rates.max()}"
            )
        times = times - times[0]
        last = float(np.diff(times)[-1]) if times.size > 1 else 1.0  # the last rate holds as the one before
        edges = np.append(times, times[-1] + last)
        object.__setattr__(self, "times_s", edges)
        object.__setattr__(self, "mbps", rates)
        sent = np.concatenate(([0.0], np.cumsum(np.diff(edges) * rates * 1e6 / _BITS_A_BYTE)))
        object.__setattr__(self, "_sent", sent)

    @property
    def period_s(self) -> float:
        return float(self.times_s[-1])

    def finish_s(self, start_s: float, num_bytes: float) -> float:
        """Returns when ``num_bytes`` that start at ``start_s`` have been carried."""
        if num_bytes <= 0.0:
            return start_s
        carried = self._carried(start_s) + num_bytes
        periods = math.floor(carried / self._sent[-1])
        rest = carried - periods * self._sent[-1]
        if rest <= 0.0:  # exactly at the end of a period: the last moment at which anything was carried
            periods, rest = periods - 1, float(self._sent[-1])
        k = int(np.searchsorted(self._sent, rest, side="left")) - 1
        seconds = (rest - float(self._sent[k])) * _BITS_A_BYTE / 1e6 / float(self.mbps[k])
        return float(max(start_s, periods * self.period_s + float(self.times_s[k]) + seconds))

    def _carried(self, time_s: float) -> float:
        periods = math.floor(time_s / self.period_s)
        within = time_s - periods * self.period_s
        k = min(int(np.searchsorted(self.times_s, within, side="right")) - 1, len(self.mbps) - 1)
        part = (within - float(self.times_s[k])) * float(self.mbps[k]) * 1e6 / _BITS_A_BYTE
        return periods * float(self._sent[-1]) + float(self._sent[k]) + part


def read_trace(path: str | Path) -> Trace:
    """Reads a trace: lines 'seconds mbps'; empty lines and # comments are skipped."""
    rows: list[tuple[float, float]] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"trace {path}: cannot be read ({error}); expected lines 'seconds mbps'") from error
    for number, line in enumerate(lines, start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            time_s, mbps = (float(word) for word in words)
        except ValueError:
            raise ValueError(f"trace {path}, line {number}: expected 'seconds mbps', got {line!r}") from None
        rows.append((time_s, mbps))
    if not rows:
        raise ValueError(f"trace {path}: expected lines 'seconds mbps', found none")
    try:
        return Trace(times_s=np.array([row[0] for row in rows]), mbps=np.array([row[1] for row in rows]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """The access link of one node: rates up and down in Mbit/s, one-way delay; a trace replaces the rates."""

    rate_mbps: float = math.inf
    down_mbps: float | None = None  # None: as up
    delay_s: float = 0.0
    trace: Trace | None = None

    def __post_init__(self) -> None:
        for what, rate in (("rate_mbps", self.rate_mbps), ("down_mbps", self.down_mbps)):
            if rate is not None and not rate > 0.0:
                raise ValueError(f"link: expected {what} above 0, got {rate}")
        if not 0.0 <= self.delay_s < math.inf:
            raise ValueError(f"link: expected a finite delay_s of at least 0, got {self.delay_s}")

    def sent_s(self, start_s: float, num_bytes: int) -> float:
        """Returns when ``num_bytes`` that start at ``start_s`` have gone up the link, without its delay."""
        return self._finish_s(start_s, num_bytes, self.rate_mbps)

    def received_s(self, start_s: float, num_bytes: int) -> float:
        """Returns when ``num_bytes`` that start at ``start_s`` have come down the link, without its delay."""
        down_mbps = self.rate_mbps if self.down_mbps is None else self.down_mbps
        return self._finish_s(start_s, num_bytes, down_mbps)

    def _finish_s(self, start_s: float, num_bytes: int, rate_mbps: float) -> float:
        if self.trace is not None:
            return self.trace.finish_s(start_s, num_bytes)
        return start_s + num_bytes * _BITS_A_BYTE / 1e6 / rate_mbps


_RATE = re.compile(r"([0-9.]+)(k|m|g)bit")
_DELAY = re.compile(r"([0-9.]+)(us|ms|s)")
_MBPS = {"k": 1e-3, "m": 1.0, "g": 1e3}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_link(text: str) -> Link:
    """Returns the link of a text: ``10mbit``, ``10mbit,5ms``, ``10mbit/50mbit,5ms`` (up/down), or the path of
    a trace, which a delay may follow too."""
    rates, comma, delay = text.strip().partition(",")
    delay_s = 0.0
    if comma:
        match = _DELAY.fullmatch(delay.strip())
        if match is None:
            raise ValueError(f"link {text!r}: expected a delay such as 5ms after the comma, got {delay!r}")
        delay_s = float(match[1]) * _SECONDS[match[2]]
    matches = [_RATE.fullmatch(rate.strip()) for rate in rates.split("/")]
    if len(matches) <= 2 and all(match is not None for match in matches):
        mbps = [float(match[1]) * _MBPS[match[2]] for match in matches if match is not None]
        return Link(rate_mbps=mbps[0], down_mbps=mbps[1] if len(mbps) == 2 else None, delay_s=delay_s)
    if Path(rates).is_file():
        return Link(trace=read_trace(rates), delay_s=delay_s)
    raise ValueError(f"link {text!r}: expected 10mbit,5ms or 10mbit/50mbit,5ms (up/down) or a trace's path")


@dataclass(frozen=True, kw_only=True, eq=False)
class Links:
    """The access links of all nodes: one for everybody, and those of nodes that differ."""

    default: Link = field(default_factory=Link)
    nodes: Mapping[int, Link] = field(default_factory=dict)

    def of(self, node: int) -> Link:
        return self.nodes.get(node, self.default)


def parse_links(text: str | None) -> Links:
    """Returns one link for all nodes from a text (`parse_link`); None is links without limit."""
    return Links() if text is None else Links(default=parse_link(text))
