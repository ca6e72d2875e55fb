"""Traces from files: lines 'seconds mbps', Mahimahi's packet opportunities, CSV."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from dance.bandwidth.trace import Trace
from dance.bandwidth.units import BYTES_A_MEGABIT

_FORMATS = (
    "lines 'seconds mbps', Mahimahi (a millisecond a line) or CSV with a header such as seconds,mbps or "
    "ms,kbps"
)
_PACKET_NBYTES = 1500
_BIN_S = 0.1
_MOST_BINS = 10**7

# Units by the last word of a column's name; times in seconds, rates in Mbit/s.
_TIMES_S = {
    **dict.fromkeys(("time", "t", "s", "sec", "secs", "second", "seconds", "timestamp"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), 1e-3),
    **dict.fromkeys(("us", "usec", "microseconds"), 1e-6),
}
_RATES_MBPS = {
    unit + suffix: factor
    for unit, factor in (("", 1e-6), ("k", 1e-3), ("m", 1.0), ("g", 1e3))
    for suffix in ("bps", "bit/s", "bits/s", "b/s")
}

_Row = tuple[int, str]  # the line's number and its text, without a comment


def read_trace(path: str | Path, *, bin_s: float = _BIN_S) -> Trace:
    """Returns the trace of a file, which may be one of three kinds; empty lines and # comments are skipped.

    - Lines 'seconds mbps'.
    - Mahimahi (Netravali et al., USENIX ATC 2015): one number a line, the millisecond of an opportunity to
      deliver 1,500 bytes, never falling, repeated from the last one on. Opportunities are gathered in bins of
      about ``bin_s`` seconds.
    - CSV with a header: a column of times and one of rates, whose names end with their unit (seconds, ms, us;
      bps, kbps, mbps, gbps); other columns are ignored.

    ValueError names the file and line of what is none of these.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"trace {path}: cannot be read ({error}); expected {_FORMATS}") from error
    rows = [
        (number, stripped)
        for number, line in enumerate(text.splitlines(), start=1)
        if (stripped := line.split("#", 1)[0].strip())
    ]
    if not rows:
        raise ValueError(f"trace {path}: found none; expected {_FORMATS}")
    try:
        return _reader(rows[0])(rows, bin_s)
    except ValueError as error:
        raise ValueError(f"trace {path}{error}") from None


def _reader(first: _Row) -> Callable[[Sequence[_Row], float], Trace]:
    if "," in first[1]:
        return _csv
    return _mahimahi if len(first[1].split()) == 1 else _seconds_mbps


def _seconds_mbps(rows: Sequence[_Row], bin_s: float) -> Trace:
    times: list[float] = []
    mbps: list[float] = []
    for row in rows:
        words = row[1].split()
        if len(words) != 2:
            _refuse(row, "'seconds mbps'" if times else _FORMATS)
        times.append(_number(row, words[0], "'seconds mbps'"))
        mbps.append(_number(row, words[1], "'seconds mbps'"))
    return _trace(times, mbps, rows)


def _mahimahi(rows: Sequence[_Row], bin_s: float) -> Trace:
    if not bin_s > 0.0:
        raise ValueError(f": expected bin_s above 0, got {bin_s}")
    last_ms = 0
    for row in rows:
        if not re.fullmatch("[0-9]{1,15}", row[1]):
            _refuse(row, "a whole millisecond (Mahimahi)")
        if int(row[1]) < last_ms:
            _refuse(row, f"no millisecond before {last_ms} (Mahimahi)")
        last_ms = int(row[1])
    if last_ms == 0:
        raise ValueError(": expected a last millisecond above 0 (Mahimahi), after which the trace repeats")
    times_s = np.array([int(text) for _, text in rows]) / 1e3
    if times_s[-1] > _MOST_BINS * bin_s:
        raise ValueError(
            f": expected at most {_MOST_BINS} bins of {bin_s:g} s, got {last_ms} ms; raise bin_s"
        )
    bins = max(2, round(times_s[-1] / bin_s))  # two: the last one is as long as the one before
    width_s = times_s[-1] / bins
    # What is delivered at the end of a bin was carried in it.
    into = np.clip(np.ceil(times_s / width_s - 1e-9).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(into, minlength=bins)
    rates = counts * (_PACKET_NBYTES / BYTES_A_MEGABIT) / width_s
    return Trace(times_s=width_s * np.arange(bins, dtype=np.float64), mbps=rates)


def _csv(rows: Sequence[_Row], bin_s: float) -> Trace:
    names = _cells(rows[0])
    times = [(k, _TIMES_S[unit]) for k, unit in enumerate(map(_unit, names)) if unit in _TIMES_S]
    rates = [(k, _RATES_MBPS[unit]) for k, unit in enumerate(map(_unit, names)) if unit in _RATES_MBPS]
    if len(times) != 1 or len(rates) != 1:
        _refuse(rows[0], "a header with a column of times and one of rates, such as seconds,mbps or ms,kbps")
    (time_at, to_s), (rate_at, to_mbps) = times[0], rates[0]
    seconds, mbps = [], []
    for row in rows[1:]:
        cells = _cells(row)
        if len(cells) != len(names):
            _refuse(row, f"{len(names)} columns, as in the header")
        seconds.append(_number(row, cells[time_at], "numbers") * to_s)
        mbps.append(_number(row, cells[rate_at], "numbers") * to_mbps)
    if not seconds:
        raise ValueError(": found a header and no lines after it")
    return _trace(seconds, mbps, rows[1:])


def _cells(row: _Row) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([row[1]]))]


def _unit(name: str) -> str:
    words = re.split(r"[\s_()\[\]]+", name.strip(" )]").lower())
    return words[-1]


def _number(row: _Row, text: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        _refuse(row, expected)


def _refuse(row: _Row, expected: str) -> NoReturn:
    raise ValueError(f", line {row[0]}: expected {expected}, got {row[1][:80]!r}")


def _trace(times_s: Sequence[float], mbps: Sequence[float], rows: Sequence[_Row]) -> Trace:
    for before, time, row in zip(times_s, times_s[1:], rows[1:], strict=False):
        if not time > before:
            _refuse(row, f"strictly rising times, above {before:g} s")
    try:
        return Trace(times_s=np.array(times_s), mbps=np.array(mbps))
    except ValueError as error:
        raise ValueError(f": {error}") from None
