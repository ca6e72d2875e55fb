"""Tables of studies in Markdown: means and spreads over seeds, read off the curves that results hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.markdown import table
from benchmarks.studies.frame import Results
from dance.compare.curves import MEGABYTES, at_most
from dance.compare.table import Cell, best_of, cell_of, short, text_of
from dance.report import megabytes

Run = Mapping[str, Any]
_DRAWN_SHARE = 0.02


def finals(results: Results, group: str, labels: Sequence[str]) -> str:
    """The last evaluation of each method."""
    columns: list[tuple[str, Callable[[Run], float | None], Callable[[float], str], bool | None]] = [
        ("FID", summary_of("fid"), short, True),
        ("FID, raw G", summary_of("fid_raw"), short, True),
        ("score", summary_of("score"), lambda x: f"{x:.2f}", False),
        ("classes", _classes, short, False),
        ("a D-Node", summary_of("bytes_per_node"), megabytes, None),
        ("rounds", summary_of("rounds"), lambda x: f"{x:.0f}", None),
    ]
    columns = [
        c for c in columns if any(c[1](r) is not None for label in labels for r in results.of(group, label))
    ]
    cells = [
        [cell_of([figure(run) for run in good(results, group, label)]) for _, figure, _, _ in columns]
        for label in labels
    ]
    lines = []
    marked = [best_of([row[k] for row in cells], least) for k, (*_, least) in enumerate(columns)]
    for at, label in enumerate(labels):
        own = results.of(group, label)
        diverged = sum(run["diverged"] is not None for run in own)
        seeds = f"{len(own)}" + (f", {diverged} to NaN" if diverged else "")
        texts = [_bold(cells[at][k], form, at in marked[k]) for k, (_, _, form, _) in enumerate(columns)]
        lines.append([label, seeds, *texts])
    return table(["method", "seeds", *(name for name, *_ in columns)], lines, 1)


def at_bytes(results: Results, group: str, labels: Sequence[str], marks: Sequence[float]) -> str:
    """The raw generator's FID for so many MB a D-Node; in brackets the seeds, where not all got there.

    Of the raw one, since the running average comes late where there were few rounds.

    Beyond a method's end stands, in square brackets, the best FID of its whole runs.
    """
    cells: dict[str, list[Cell]] = {}
    counts: dict[str, list[int]] = {}
    for label in labels:
        runs = good(results, group, label)
        there = [[at_most(run["curve"], "fid_raw", MEGABYTES, mark) for run in runs] for mark in marks]
        if any(value is not None for column in there for value in column):
            cells[label] = [cell_of([at_mark(run, mark) for run in runs]) for mark in marks]
            counts[label] = [sum(value is not None for value in column) for column in there]
    names = list(cells)
    marked = [best_of([cells[name][k] for name in names], True) for k in range(len(marks))]
    lines = []
    for at, name in enumerate(names):
        most = max(counts[name])
        texts = []
        for k in range(len(marks)):
            text, count = text_of(cells[name][k], short), counts[name][k]
            if cells[name][k].mean is not None and not count:
                text = f"[{text}]"
            text = f"**{text}**" if at in marked[k] else text
            texts.append(text if count in (0, most) else f"{text} ({count})")
        lines.append([name, *texts])
    return table(["method", *(f"{mark:g}" for mark in marks)], lines, 1)


def factors(results: Results, group: str, ours: Sequence[str], rivals: Sequence[str]) -> str:
    """Our FID over each rival's, at the end, and how many times fewer bytes for the rival's last FID."""
    lines = []
    for label in ours:
        for rival in rivals:
            own, other = good(results, group, label), good(results, group, rival)
            mine, theirs = (cell_of([summary_of("fid")(run) for run in runs]).mean for runs in (own, other))
            if not mine or not theirs:
                continue
            spent, sent = (
                cell_of([summary_of("bytes_per_node")(run) for run in runs]).mean for runs in (own, other)
            )
            reached = [bytes_to(run, theirs) for run in own]
            known = [value for value in reached if value is not None]
            saved = (
                "not reached" if len(known) < len(own) else f"{(sent or 0) / (sum(known) / len(known)):.1f}x"
            )
            share = f"{spent / sent:.2f}" if spent and sent else "-"
            lines.append([label, rival, f"{mine / theirs:.2f}", share, saved])
    if not lines:
        return ""
    heads = ["ours", "rival", "FID / its FID", "bytes / its bytes", "fewer bytes to its last FID"]
    return table(heads, lines, 2)


def bytes_to(run: Run, fid: float) -> float | None:
    """Bytes a D-Node had spent when an evaluation was at or below that FID."""
    for point in run["curve"]:
        if point.get("fid") is not None and point["fid"] <= fid and point.get("bytes_per_node"):
            return float(point["bytes_per_node"])
    return None


def at_mark(run: Run, mark: float) -> float | None:
    """The raw generator's FID for so many MB a D-Node; beyond the run's end its best."""
    found = at_most(run["curve"], "fid_raw", MEGABYTES, mark)
    ended = run["curve"][-1]["bytes_per_node"] * MEGABYTES.scale < 0.8 * mark
    return _least(run) if found is None and ended else found


def _least(run: Run) -> float | None:
    return min((point["fid_raw"] for point in run["curve"] if point.get("fid_raw") is not None), default=None)


def good(results: Results, group: str, label: str) -> list[dict[str, Any]]:
    """The runs that did not diverge, by seed."""
    return [run for run in results.of(group, label) if run["diverged"] is None]


def summary_of(name: str) -> Callable[[Run], float | None]:
    """Reads that figure at a run's end."""

    def figure(run: Run) -> float | None:
        value = run["summary"].get(name)
        return None if value is None else float(value)

    return figure


def _classes(run: Run) -> float | None:
    shares = run["summary"].get("class_histogram")
    return None if shares is None else float(sum(share > _DRAWN_SHARE for share in shares))


def _bold(cell: Cell, form: Callable[[float], str], best: bool) -> str:
    text = text_of(cell, form)
    return f"**{text}**" if best else text
