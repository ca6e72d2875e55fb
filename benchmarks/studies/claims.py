"""What study a was made to find out, as a table: each aim, what was measured, and whether it was met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.markdown import table
from benchmarks.studies.frame import Results
from benchmarks.studies.text import at_mark, bytes_to, good, summary_of

Run = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Names:
    """The methods that the claims about a group are about; the rivals at their best learning rates in it."""

    group: str
    hub: str
    local: str  # the hub with local Adam
    adaptive: str
    md: str
    fl: str
    ours: str  # what the name of a rival with our codecs ends with


def claims(results: Results, skewed: Names, even: Names) -> str:
    """A row a claim; those that cannot be judged yet are left out."""
    lines = [
        [words, aim, value, "yes" if met else "no"]
        for words, aim, value, met in (*_skewed(results, skewed), *_even(results, even))
    ]
    return table(["claim", "aim", "measured", "met"], lines, 1) if lines else ""


_Row = tuple[str, str, str, bool]


def _skewed(results: Results, names: Names) -> Iterator[_Row]:
    group = names.group
    adaptive, md, fl = (good(results, group, label) for label in (names.adaptive, names.md, names.fl))
    hub, local = (good(results, group, label) for label in (names.hub, names.local))
    for rival, runs, most in ((names.md, md, 0.55), (names.fl, fl, 0.65)):
        yield from _ratio(f"{group}: FID of {names.hub} / {rival}", hub, runs, "fid", most)
    yield from _ratio(f"{group}: bytes of {names.hub} / {names.md}", hub, md, "bytes_per_node", 0.55)
    yield from _ratio(f"{group}: FID of {names.hub} / {names.local}", hub, local, "fid", 0.7)
    for label in (names.hub, names.adaptive):
        runs = good(results, group, label)
        yield from _saved(
            f"{group}: bytes of {names.md} / {label}, until the former's last FID", md, runs, 7.0
        )
    for marks, most in (((5.0, 10.0, 20.0, 30.0), 0.9), ((45.0, 60.0, 120.0), 0.7)):
        ratios = [
            one / other
            for mine, theirs in _by_seed(adaptive, fl)
            for mark in marks
            if (one := at_mark(mine, mark)) and (other := at_mark(theirs, mark))
        ]
        if ratios:
            where = ", ".join(f"{mark:g}" for mark in marks)
            words = f"{group}: FID of {names.adaptive} / {names.fl} at {where} MB, worst seed and mark"
            yield words, f"<= {most:g}", f"{max(ratios):.2f}", max(ratios) <= most
    for rival in (names.md, names.fl):
        same = good(results, group, f"{rival}, {names.ours}")
        yield from _ratio(
            f"{group}: FID of {names.adaptive} / {rival}, {names.ours}", adaptive, same, "fid", 1.0
        )


def _even(results: Results, names: Names) -> Iterator[_Row]:
    group = names.group
    adaptive, md, fl = (good(results, group, label) for label in (names.adaptive, names.md, names.fl))
    if adaptive:
        switched = sum("image" in run["summary"]["bytes_sent_by_kind"] for run in adaptive)
        words = f"{group}: seeds in which {names.adaptive} switches"
        yield words, "0", f"{switched} of {len(adaptive)}", not switched
    same = f"{names.fl}, {names.ours}"
    for rival, runs in ((names.fl, fl), (same, good(results, group, same))):
        ratios = [
            fmean(mine) / fmean(theirs)
            for mark in (5.0, 10.0, 20.0, 30.0)
            if (mine := _present(adaptive, mark)) and (theirs := _present(runs, mark))
        ]
        if ratios:
            at = "5, 10, 20, 30 MB (beyond an end its best), worst mark, mean of seeds"
            words = f"{group}: FID of {names.adaptive} / {rival} at {at}"
            yield words, "<= 1", f"{max(ratios):.2f}", max(ratios) <= 1
    if fl and md and adaptive:
        halves = [_at_half(run) for run in fl]
        target = fmean(halves)
        words = f"{group}: bytes of {names.md} / {names.adaptive}, until {names.fl}'s FID at half its rounds"
        yield from _factor(words, md, adaptive, target, 12.0)
    hub = good(results, group, names.hub)
    yield from _ratio(f"{group}: FID of {names.hub} / {names.md}", hub, md, "fid", 0.92)


def _ratio(words: str, ours: Sequence[Run], theirs: Sequence[Run], name: str, most: float) -> Iterator[_Row]:
    if ours and theirs:
        one, other = (fmean(summary_of(name)(run) or 0.0 for run in runs) for runs in (ours, theirs))
        yield words, f"<= {most:g}", f"{one / other:.2f}", one / other <= most


def _saved(words: str, theirs: Sequence[Run], ours: Sequence[Run], least: float) -> Iterator[_Row]:
    """How many times more bytes they spend, in all, than we do until their last FID."""
    if not theirs or not ours:
        return
    target = fmean(run["summary"]["fid"] for run in theirs)
    sent = fmean(run["summary"]["bytes_per_node"] for run in theirs)
    yield from _over(words, sent, ours, target, least)


def _factor(
    words: str, theirs: Sequence[Run], ours: Sequence[Run], target: float, least: float
) -> Iterator[_Row]:
    """How many times more bytes they need than we do, for one target."""
    spent = _reached(theirs, target)
    if spent is not None:
        yield from _over(words, spent, ours, target, least)


def _over(words: str, sent: float, ours: Sequence[Run], target: float, least: float) -> Iterator[_Row]:
    spent = _reached(ours, target)
    value = "not reached" if spent is None else f"{sent / spent:.1f}x"
    yield words, f">= {least:g}x", value, spent is not None and sent / spent >= least


def _reached(runs: Sequence[Run], target: float) -> float | None:
    """Mean bytes until the target; None where a seed did not get there."""
    needed = [bytes_to(run, target) for run in runs]
    known = [value for value in needed if value is not None]
    return fmean(known) if len(known) == len(needed) else None


def _at_half(run: Run) -> float:
    half = run["summary"]["rounds"] / 2
    last: float = [point["fid"] for point in run["curve"] if point["round"] <= half][-1]
    return last


def _present(runs: Sequence[Run], mark: float) -> list[float]:
    found = [at_mark(run, mark) for run in runs]
    return [value for value in found if value is not None]


def _by_seed(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]]:
    other: Mapping[int, Run] = {run["seed"]: run for run in theirs}
    return [(run, other[run["seed"]]) for run in ours if run["seed"] in other]
