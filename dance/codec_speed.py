"""How fast codecs are on this device: measured at start, in milliseconds, and corrected while running."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from dance.codecs import Codec, Uncompressed
from dance.coding import decode, encode, encode_feedback

_NUMEL = 1 << 18  # a megabyte: in cache; from DRAM codecs are slower, which running calls tell soon enough
_REPEATS, _LEAST_REPEATS = 5, 3  # on a busy machine any one may have been descheduled for long
_PATIENCE_S = 5e-3  # a slow codec is measured the least times
_WEIGHT = 0.3  # of the latest call
_JUMP = 4.0  # a call that faults pages or was descheduled counts for no more than this factor


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds an element that a codec takes here."""

    encode_s: float
    decode_s: float


def measure_speed(codec: Codec, *, feedback: bool = False, device: str = "cpu", numel: int = _NUMEL) -> Speed:
    """Times ``codec`` on normal float32 data: the best of three to five calls each way, after one.

    ``feedback``: with a residual. ``device`` "cuda" needs torch. A codec none takes no time: it is not run.
    """
    if isinstance(codec, Uncompressed):
        return Speed(encode_s=0.0, decode_s=0.0)
    x, total, residual, finish = _arrays(_normal(numel), device)
    packet = encode(x, codec)

    def encode_once() -> None:
        if feedback:
            encode_feedback(x, residual, codec, out=packet)
        else:
            encode(x, codec, out=packet)

    def decode_once() -> None:
        decode(packet, out=total, add=True)

    return Speed(encode_s=_best_s(encode_once, finish) / numel, decode_s=_best_s(decode_once, finish) / numel)


@lru_cache(maxsize=1)
def _normal(numel: int) -> np.ndarray[Any, Any]:
    """Normal data, kept for the next codec: it takes longer to make than to encode."""
    return np.random.default_rng(0).standard_normal(numel, dtype=np.float32)


def _arrays(values: np.ndarray[Any, Any], device: str) -> tuple[Any, Any, Any, Callable[[], None]]:
    """Returns data, zeros twice, and what waits until the device has done what was asked of it."""
    if device == "cpu":
        return values, np.zeros_like(values), np.zeros_like(values), lambda: None
    import torch

    x = torch.from_numpy(values).to(device)
    return x, torch.zeros_like(x), torch.zeros_like(x), lambda: torch.cuda.synchronize(x.device)


def _best_s(work: Callable[[], None], finish: Callable[[], None]) -> float:
    work()
    finish()
    best, spent = float("inf"), 0.0
    for number in range(_REPEATS):
        start = time.perf_counter()
        work()
        finish()
        took = time.perf_counter() - start
        best, spent = min(best, took), spent + took
        if spent > _PATIENCE_S and number + 1 >= _LEAST_REPEATS:
            break
    return best


class CodecSpeeds:
    """The speeds of the codecs in use here: each is measured when it is first asked for."""

    def __init__(self) -> None:
        self._speeds: dict[tuple[Codec, bool, str], Speed] = {}

    def of(self, codec: Codec, *, feedback: bool = False, device: str = "cpu") -> Speed:
        key = (codec, feedback, device)
        speed = self._speeds.get(key)
        if speed is None:
            speed = measure_speed(codec, feedback=feedback, device=device)
            self._speeds[key] = speed
        return speed

    def observe(self, codec: Codec, speed: Speed, *, feedback: bool = False, device: str = "cpu") -> None:
        """Takes in what a call took an element; 0 where nothing was coded that way."""
        now = self.of(codec, feedback=feedback, device=device)
        self._speeds[codec, feedback, device] = Speed(
            encode_s=_towards(now.encode_s, speed.encode_s), decode_s=_towards(now.decode_s, speed.decode_s)
        )


def _towards(now: float, latest: float) -> float:
    if latest <= 0.0 or now <= 0.0:
        return now
    return now + _WEIGHT * (min(max(latest, now / _JUMP), now * _JUMP) - now)
