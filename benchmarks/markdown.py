"""Tables and figures as text: Markdown that reads well in a terminal too."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.findings import Findings


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """A Markdown table that reads well as text too; the first ``left`` columns are left-aligned."""
    widths = [max(3, *(len(row[k]) for row in (columns, *rows))) for k in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (w - 1) if k < left else "-" * (w - 1) + ":" for k, w in enumerate(widths)]
    return "\n".join([line(columns), line(rule), *(line(row) for row in rows)])


def heading(found: Findings) -> str:
    """Which command ran where, and what of it failed."""
    m = found.machine
    lines = [
        f"`{found.command}` on {m['cpu']}, {m['cpus']} CPUs ({m['cpu_target']}), Linux {m['linux']}, "
        f"torch {m['torch']}, {m['date']}, {found.seconds / 60:.0f} minutes."
    ]
    if found.failures:
        lines.append(f"Not measured: {'; '.join(found.failures)}.")
    elif not found.complete:
        lines.append("Interrupted: not all was measured.")
    return "\n".join(lines)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, and the least and the greatest."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}}..{high:{form}})"


def seconds_of(value: float) -> str:
    return f"{value:.3g} s" if value >= 1.0 else f"{1e3 * value:.3g} ms"
