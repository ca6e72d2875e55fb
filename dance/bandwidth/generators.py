"""Synthetic traces, the same for the same seed: steps, Markov states, a random walk, a period, fading."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dance.bandwidth.trace import Trace
from dance.bandwidth.units import parse_mbps, parse_seconds


def steps(mbps: Sequence[float], *, hold_s: float = 30.0) -> Trace:
    """Returns a trace that holds each of the rates for ``hold_s`` seconds, in turn."""
    _positive(hold_s=hold_s)
    return _even(np.array(mbps, dtype=np.float64), hold_s)


def markov(
    mbps: Sequence[float],
    *,
    hold_s: float = 10.0,
    duration_s: float = 600.0,
    step_s: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Returns a trace of a Markov chain whose states are the rates.

    It stays in a state for ``hold_s`` seconds on average and goes on to any of the others with equal
    probability; all states are as frequent in the long run.
    """
    count = _count(duration_s, step_s)
    if len(mbps) < 2 or not hold_s >= step_s:
        raise ValueError(
            f"markov: expected at least 2 rates and hold_s of at least step_s = {step_s:g}, "
            f"got {len(mbps)} and {hold_s:g}"
        )
    random = np.random.default_rng(seed)
    leaves = random.random(count) < step_s / hold_s
    moves = np.where(leaves, random.integers(1, len(mbps), count), 0)
    moves[0] = random.integers(len(mbps))
    return _even(np.array(mbps, dtype=np.float64)[moves.cumsum() % len(mbps)], step_s)


def walk(
    mbps: float,
    *,
    volatility: float = 0.1,
    span: float = 10.0,
    duration_s: float = 600.0,
    step_s: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Returns a trace whose log rate is a random walk from ``mbps`` on, between mbps / span and mbps * span.

    ``volatility`` is the standard deviation of the log rate after one second (0.1: about 10 %). At its bounds
    the walk is reflected.
    """
    _positive(mbps=mbps, volatility=volatility)
    if not 1.0 < span < math.inf:
        raise ValueError(f"walk: expected span above 1, got {span:g}")
    count = _count(duration_s, step_s)
    moves = np.random.default_rng(seed).normal(0.0, volatility * math.sqrt(step_s), count)
    moves[0] = 0.0
    wide = 2.0 * math.log(span)
    folded = np.mod(moves.cumsum() + 0.5 * wide, 2.0 * wide)  # a walk between mirrors, unfolded
    return _even(mbps * np.exp(np.minimum(folded, 2.0 * wide - folded) - 0.5 * wide), step_s)


def periodic(mbps: float, *, amplitude: float = 0.5, period_s: float = 60.0, step_s: float = 1.0) -> Trace:
    """Returns one period of mbps * (1 + amplitude * sin(2 pi time / period)), with amplitude in [0, 1]."""
    _positive(mbps=mbps)
    if not 0.0 <= amplitude <= 1.0:
        raise ValueError(f"periodic: expected amplitude in [0, 1], got {amplitude:g}")
    count = _count(period_s, step_s)
    if count < 3:
        raise ValueError(
            f"periodic: expected a period of at least 3 steps of {step_s:g} s, got {period_s:g} s"
        )
    phase = 2.0 * math.pi * (np.arange(count) + 0.5) / count
    return _even(np.maximum(mbps * (1.0 + amplitude * np.sin(phase)), 0.0), period_s / count)


def cellular(
    mbps: float,
    *,
    deviation: float = 0.5,
    correlation_s: float = 10.0,
    duration_s: float = 600.0,
    step_s: float = 1.0,
    seed: int = 0,
) -> Trace:
    """Returns a Gauss-Markov trace of the log rate, as shadow fading is modelled (Gudmundson 1991).

    Rates are lognormal with mean ``mbps`` and standard deviation ``deviation`` * mbps; the correlation of log
    rates falls by a factor e in ``correlation_s`` seconds.
    """
    _positive(mbps=mbps, deviation=deviation, correlation_s=correlation_s)
    noise = np.random.default_rng(seed).normal(size=_count(duration_s, step_s))
    keep = math.exp(-step_s / correlation_s)
    fresh = math.sqrt(1.0 - keep * keep)
    level = float(noise[0])
    levels = [level]
    for each in noise[1:].tolist():
        level = keep * level + fresh * each
        levels.append(level)
    variance = math.log1p(deviation * deviation)
    return _even(mbps * np.exp(math.sqrt(variance) * np.array(levels) - 0.5 * variance), step_s)


_KINDS: dict[str, Callable[..., Trace]] = {
    each.__name__: each for each in (steps, markov, walk, periodic, cellular)
}
_SEVERAL = (steps, markov)  # these take several rates


def is_synthetic(text: str) -> bool:
    """Whether ``text`` names a synthetic trace (`parse_trace`)."""
    return text.partition(":")[0].strip() in _KINDS


def parse_trace(text: str) -> Trace:
    """Returns the synthetic trace of a text: a generator, rates in Mbit/s (or 500kbit, 1gbit), options.

    ``steps:100,10,100@30s``, ``markov:100,10@10s,seed=1``, ``walk:20,volatility=0.2,span=5``,
    ``periodic:50,amplitude=0.8,period=60s``, ``cellular:20,deviation=0.5,correlation=10s,duration=600s``.
    Options are the generator's arguments, times without their ``_s`` and with a unit; ``@30s`` is hold=30s.
    """
    kind, _, rest = text.strip().partition(":")
    make = _KINDS.get(kind.strip())
    if make is None:
        raise ValueError(f"trace {text!r}: unknown generator {kind!r}; expected one of {', '.join(_KINDS)}")
    parameters = inspect.signature(make).parameters.values()
    known = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    rates: list[float] = []
    options: dict[str, Any] = {}
    for item in rest.split(","):
        name, equals, value = item.partition("=")
        if equals:
            options.update(_option(text, name.strip(), value.strip(), known))
            continue
        rate, at, hold = item.partition("@")
        rates.append(_rate(text, rate.strip()))
        if at:
            options.update(_option(text, "hold", hold.strip(), known))
    if make not in _SEVERAL and len(rates) != 1:
        raise ValueError(f"trace {text!r}: expected one rate, got {len(rates)}")
    try:
        return make(rates if make in _SEVERAL else rates[0], **options)
    except ValueError as error:
        raise ValueError(f"trace {text!r}: {error}") from None


def _rate(text: str, word: str) -> float:
    rate = parse_mbps(word)
    if rate is not None:
        return rate
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"trace {text!r}: expected a rate in Mbit/s, got {word!r}") from None


def _option(text: str, name: str, value: str, known: Sequence[str]) -> dict[str, Any]:
    if f"{name}_s" in known:
        seconds = parse_seconds(value)
        if seconds is None:
            raise ValueError(f"trace {text!r}: expected {name} such as 30s or 500ms, got {value!r}")
        return {f"{name}_s": seconds}
    if name not in known:
        names = ", ".join(each.removesuffix("_s") for each in known)
        raise ValueError(f"trace {text!r}: unknown option {name!r}; expected one of {names}")
    try:
        return {name: int(value) if name == "seed" else float(value)}
    except ValueError:
        raise ValueError(f"trace {text!r}: expected a number for {name}, got {value!r}") from None


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"expected {name} above 0, got {value:g}")


def _count(duration_s: float, step_s: float) -> int:
    """Returns how many steps there are in a duration."""
    _positive(duration_s=duration_s, step_s=step_s)
    if not 1 <= duration_s / step_s <= 1e7:
        raise ValueError(f"expected 1 to 10^7 steps, got {duration_s:g} s in steps of {step_s:g} s")
    return round(duration_s / step_s)


def _even(mbps: np.ndarray[Any, np.dtype[np.float64]], step_s: float) -> Trace:
    return Trace(times_s=step_s * np.arange(len(mbps), dtype=np.float64), mbps=mbps)
