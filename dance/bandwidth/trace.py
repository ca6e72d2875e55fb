"""A rate that changes with time: when bytes that start at some time have been carried."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dance.bandwidth.units import BYTES_A_MEGABIT


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """A rate that changes with time: ``mbps[k]`` from ``times_s[k]`` on, repeated for ever.

    The last rate holds for as long as the one before it. Once made, ``times_s`` begins at 0 and has one entry
    more than ``mbps``: the end.
    """

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
        sent = np.concatenate(([0.0], np.cumsum(np.diff(edges) * rates * BYTES_A_MEGABIT)))
        object.__setattr__(self, "_sent", sent)

    @property
    def period_s(self) -> float:
        return float(self.times_s[-1])

    def rate_mbps(self, time_s: float) -> float:
        """Returns the rate at ``time_s`` in 10^6 bits a second."""
        return float(self.mbps[self._at(time_s)[1]])

    def mean_mbps(self, start_s: float, end_s: float) -> float:
        """Returns the mean rate from ``start_s`` to ``end_s``, which must be later."""
        if not end_s > start_s:
            raise ValueError(f"trace: expected an end after {start_s} s, got {end_s}")
        carried = self._carried(end_s) - self._carried(start_s)
        return carried / BYTES_A_MEGABIT / (end_s - start_s)

    def save(self, path: str | Path) -> None:
        """Writes the trace as lines 'seconds mbps', from which `read_trace` makes an equal one."""
        lines = (
            f"{float(time)!r} {float(rate)!r}\n"
            for time, rate in zip(self.times_s[:-1], self.mbps, strict=True)
        )
        Path(path).write_text("# seconds mbps\n" + "".join(lines), encoding="utf-8")

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
        seconds = (rest - float(self._sent[k])) / BYTES_A_MEGABIT / float(self.mbps[k])
        return float(max(start_s, periods * self.period_s + float(self.times_s[k]) + seconds))

    def _carried(self, time_s: float) -> float:
        periods, k, since_s = self._at(time_s)
        part = since_s * float(self.mbps[k]) * BYTES_A_MEGABIT
        return periods * float(self._sent[-1]) + float(self._sent[k]) + part

    def _at(self, time_s: float) -> tuple[int, int, float]:
        """Returns how many periods have passed, which rate holds, and since how many seconds."""
        periods = math.floor(time_s / self.period_s)
        within = time_s - periods * self.period_s
        k = min(int(np.searchsorted(self.times_s, within, side="right")) - 1, len(self.mbps) - 1)
        return periods, k, within - float(self.times_s[k])
