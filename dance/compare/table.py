"""The table of a comparison: a row a method, mean and spread over seeds in every cell, the best marked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dance.compare.folder import Finished
from dance.report import megabytes

Figure = Callable[[Finished], float | None]
_DRAWN_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Column:
    """What is compared: `figure` of a run; `least` says whether less is better, None: neither."""

    name: str
    figure: Figure
    form: Callable[[float], str]
    least: bool | None

    @property
    def heading(self) -> str:
        """The name, with an arrow to where it is better."""
        return self.name if self.least is None else f"{self.name} {'↓' if self.least else '↑'}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Mean and standard deviation over the seeds (None: one seed); mean None: not measured."""

    mean: float | None
    deviation: float | None
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    label: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    diverged: tuple[int, ...]


def of_summary(name: str) -> Figure:
    """The figure of that name in summary.json."""

    def figure(run: Finished) -> float | None:
        value = run.summary.get(name)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    return figure


def classes_drawn(run: Finished) -> float | None:
    """How many classes make up over 2 % of the generated images."""
    histogram = run.summary.get("class_histogram")
    return None if histogram is None else float(sum(share > _DRAWN_SHARE for share in histogram))


def columns_of(runs: Sequence[Finished]) -> tuple[Column, ...]:
    """The columns that these runs have figures for."""
    virtual = any(run.has_clock for run in runs)
    seconds = "seconds (links)" if virtual else "seconds (wall)"
    every = (
        Column(name="FID", figure=of_summary("fid"), form=short, least=True),
        Column(name="FID of raw G", figure=of_summary("fid_raw"), form=short, least=True),
        Column(name="score", figure=of_summary("score"), form=lambda x: f"{x:.2f}", least=False),
        Column(name="classes", figure=classes_drawn, form=short, least=False),
        Column(name="bytes a D-Node", figure=_bytes, form=megabytes, least=True),
        Column(name="uncompressed / sent", figure=_factor, form=lambda x: f"{x:.1f}x", least=None),
        Column(name="rounds", figure=of_summary("rounds"), form=lambda x: f"{x:.0f}", least=None),
        Column(
            name=seconds,
            figure=of_summary("virtual_s" if virtual else "seconds"),
            form=lambda x: f"{x:.0f}",
            least=True if virtual else None,
        ),
    )
    return tuple(column for column in every if any(column.figure(run) is not None for run in runs))


def rows_of(runs: Sequence[Finished], columns: Sequence[Column]) -> list[Row]:
    """A row for each label, in the order in which labels come."""
    rows = []
    for label, own in by_label(runs).items():
        good = [run for run in own if run.diverged is None]
        rows.append(
            Row(
                label=label,
                cells=tuple(cell_of([column.figure(run) for run in good]) for column in columns),
                seeds=tuple(run.seed for run in own),
                diverged=tuple(run.seed for run in own if run.diverged is not None),
            )
        )
    return _with_best(rows, [column.least for column in columns])


def cell_of(values: Sequence[float | None]) -> Cell:
    """Mean and sample deviation of those that were measured."""
    known = [value for value in values if value is not None]
    if not known:
        return Cell(mean=None, deviation=None)
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Cell(mean=statistics.fmean(known), deviation=deviation)


def by_label(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    """The runs of each method, in order."""
    found: dict[str, list[Finished]] = {}
    for run in runs:
        found.setdefault(run.label, []).append(run)
    return found


def text_of(cell: Cell, form: Callable[[float], str]) -> str:
    """116 ± 13; a dash where nothing was measured."""
    if cell.mean is None:
        return "-"
    text = form(cell.mean)
    number, _, unit = text.partition(" ")
    digits = number.rstrip("x%")
    decimals = len(digits.partition(".")[2])
    scale = cell.mean / float(digits) if float(digits) else 1.0  # 2,000,000 is 2 MB
    if cell.deviation is None or round(cell.deviation / scale, decimals) == 0.0:
        return text
    spread = f"{number} ± {cell.deviation / scale:.{decimals}f}"
    return f"{spread} {unit}" if unit else spread


def short(value: float) -> str:
    """Three digits where there are three: 116, 41.2, 8.66."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def best_of(cells: Sequence[Cell], least: bool | None) -> set[int]:
    """Which cells hold the best mean, if one is better than another; nothing sent is no achievement."""
    known = {
        k: cell.mean for k, cell in enumerate(cells) if cell.mean is not None and (cell.mean or not least)
    }
    if least is None or len(known) < 2 or len(set(known.values())) < 2:
        return set()
    best = min(known.values()) if least else max(known.values())
    return {k for k, mean in known.items() if mean == best}


def _with_best(rows: Sequence[Row], senses: Sequence[bool | None]) -> list[Row]:
    best = [best_of([row.cells[k] for row in rows], least) for k, least in enumerate(senses)]
    return [
        Row(
            label=row.label,
            seeds=row.seeds,
            diverged=row.diverged,
            cells=tuple(
                Cell(mean=cell.mean, deviation=cell.deviation, best=at in best[k])
                for k, cell in enumerate(row.cells)
            ),
        )
        for at, row in enumerate(rows)
    ]


def _bytes(run: Finished) -> float | None:
    value = of_summary("bytes_per_node")(run)
    return None if run.config.algorithm == "standalone" else value


def _factor(run: Finished) -> float | None:
    summary: Mapping[str, Any] = run.summary
    sent = summary.get("bytes_sent")
    return summary["raw_bytes"] / sent if sent and summary.get("raw_bytes") else None
