"""Curves over rounds, bytes and seconds: the mean over seeds with the band from least to greatest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dance.compare.folder import Finished
from dance.compare.table import by_label

# A point that costs a little more than a mark still counts for it: rounds and averages come whole.
TOLERANCE = 0.03


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What a curve goes over; `scale` turns the figure in metrics.jsonl into `title`'s unit."""

    key: str
    title: str
    short: str
    scale: float = 1.0


ROUNDS = Axis(key="round", title="rounds", short="rounds")
MEGABYTES = Axis(key="bytes_per_node", title="MB a D-Node, sent and received", short="bytes", scale=1e-6)
VIRTUAL = Axis(key="virtual_s", title="seconds on the links (virtual clock)", short="seconds")
WALL = Axis(key="wall_s", title="seconds of training on this machine", short="seconds")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One method: the same number of points in each list."""

    label: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int


def points(run: Finished, metric: str, axis: Axis) -> list[tuple[float, float]]:
    """(x, y) of a run's evaluations, in order of x; of equal x the last, since a round may cost no byte."""
    found: dict[float, float] = {}
    for line in run.lines:
        x, y = line.get(axis.key), line.get(metric)
        if x is not None and y is not None and math.isfinite(x) and math.isfinite(y):
            found[float(x) * axis.scale] = float(y)
    return sorted(found.items())


def curves_of(runs: Sequence[Finished], metric: str, axis: Axis) -> list[Curve]:
    """A curve for each label that has points; where seeds differ in x, interpolated between their points."""
    curves = []
    for label, own in by_label(runs).items():
        series = [found for found in (points(run, metric, axis) for run in own) if found]
        if not series:
            continue
        first, last = max(s[0][0] for s in series), min(s[-1][0] for s in series)
        grid = [x for x, _ in max(series, key=len) if first <= x <= last]
        if not grid:  # they have no part in common, or one point each
            grid = [last]
        values = np.array([np.interp(grid, [x for x, _ in s], [y for _, y in s]) for s in series])
        curves.append(
            Curve(
                label=label,
                x=tuple(grid),
                mean=tuple(values.mean(0).tolist()),
                low=tuple(values.min(0).tolist()),
                high=tuple(values.max(0).tolist()),
                seeds=len(series),
            )
        )
    return curves


def at_most(lines: Sequence[Mapping[str, Any]], metric: str, axis: Axis, limit: float) -> float | None:
    """The metric of the last evaluation that cost at most `limit` (in the axis' unit, and 3 % more).

    None before the first, or where the run ended far from there: at less than 0.8 of the limit.
    """
    before = [
        (float(line[axis.key]) * axis.scale, line[metric])
        for line in lines
        if line.get(axis.key) is not None and line.get(metric) is not None
    ]
    within = [pair for pair in before if 0 < pair[0] <= limit * (1 + TOLERANCE)]
    if not within or before[-1][0] < 0.8 * limit:
        return None
    return float(within[-1][1])


def marks_of(runs: Sequence[Finished], axis: Axis, most: int = 8) -> list[float]:
    """Round numbers (1, 2, 5, 10, ...) within what at least two methods have reached, two decades at most.

    Before those there are but control messages of methods that have sent nothing yet.
    """
    ends: dict[str, float] = {}
    begins: list[float] = []
    for run in runs:
        found = [x for x, _ in points(run, "fid", axis) if x > 0]
        if found:
            ends[run.label] = max(ends.get(run.label, 0.0), found[-1])
            begins.append(found[0])
    if len(ends) < 2:
        return []
    upper = sorted(ends.values())[-2]
    lower = max(min(begins), upper / 100)
    marks: list[float] = []
    for exponent in range(math.floor(math.log10(lower)), math.ceil(math.log10(upper)) + 1):
        marks += [m * 10.0**exponent for m in (1, 2, 5) if lower <= m * 10.0**exponent <= upper]
    return marks[-most:]
