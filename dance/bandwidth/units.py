"""Units of links: rates in 10^6 bits a second, times in seconds, and their texts."""

from __future__ import annotations

import math
import re

BYTES_A_MEGABIT = 1e6 / 8.0

_RATE = re.compile(r"([0-9.]+)(k|m|g)bit")
_SECONDS = re.compile(r"([0-9.]+)(us|ms|s)")
_MBPS = {"k": 1e-3, "m": 1.0, "g": 1e3}
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def seconds_a_byte(mbps: float) -> float:
    return 1.0 / (mbps * BYTES_A_MEGABIT)


def mbps_of(seconds_a_byte: float) -> float:
    return 1.0 / (seconds_a_byte * BYTES_A_MEGABIT) if seconds_a_byte > 0.0 else math.inf


def parse_mbps(text: str) -> float | None:
    """Returns the rate of a text such as ``500kbit``, ``10mbit`` or ``1.5gbit``; None if it is none."""
    match = _RATE.fullmatch(text.strip())
    return _number(match[1], _MBPS[match[2]]) if match else None


def parse_seconds(text: str) -> float | None:
    """Returns the seconds of a text such as ``5ms`` or ``30s``; None if it is none."""
    match = _SECONDS.fullmatch(text.strip())
    return _number(match[1], _UNITS_S[match[2]]) if match else None


def _number(digits: str, unit: float) -> float | None:
    try:
        return float(digits) * unit
    except ValueError:  # 1.2.3
        return None
