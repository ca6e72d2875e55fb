"""What a comparison's report says, and its files: report.html, report.md, compare.json."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dance.compare.curves import MEGABYTES, ROUNDS, VIRTUAL, WALL, Axis, at_most, marks_of
from dance.compare.folder import Finished
from dance.compare.table import (
    Cell,
    Column,
    Row,
    best_of,
    by_label,
    cell_of,
    columns_of,
    rows_of,
    short,
    text_of,
)
from dance.files import write_atomic, writing
from dance.gan.config import RunConfig
from dance.report import plain

# Not settings of a method, or said elsewhere.
_UNTOLD = ("out", "resume", "seed", "algorithm", "data", "partition", "d_nodes", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that both reports show."""

    title: str
    lead: str
    note: str
    runs: tuple[Finished, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    axes: tuple[Axis, ...]
    marks: tuple[float, ...]
    at_marks: Mapping[str, Sequence[Cell]]
    settings: Mapping[str, str]
    machine: Mapping[str, str]
    command: str


def contents_of(runs: Sequence[Finished], command: str) -> Contents:
    """What there is to say of these runs; at least one."""
    first = runs[0].config
    columns = columns_of(runs)
    seeds = sorted({run.seed for run in runs})
    clocked = any(run.has_clock for run in runs)
    axes = (ROUNDS, MEGABYTES, VIRTUAL if clocked else WALL)
    marks = tuple(marks_of(runs, MEGABYTES))
    words = "seed" if len(seeds) == 1 else "seeds"
    lead = (
        f"{len(by_label(runs))} methods, {first.d_nodes} D-Nodes, data split {first.partition}, "
        f"{words} {', '.join(map(str, seeds))}, {_budget(runs)}"
    )
    spread = "Mean ± standard deviation over seeds. " if len(seeds) > 1 else ""
    return Contents(
        title=f"{Path(first.data).name}: {' · '.join(by_label(runs))}",
        lead=f"{lead}.",
        note=f"{spread}Score and FID are of our own classifier: compare them only with each other.",
        runs=tuple(runs),
        columns=columns,
        rows=tuple(rows_of(runs, columns)),
        axes=axes,
        marks=marks,
        at_marks=at_marks(runs, marks) if marks else {},
        settings=_settings(runs),
        machine=machine(),
        command=command,
    )


def write(contents: Contents, out: Path) -> None:
    """Write report.html, report.md and compare.json to `out`. DanceError where the disk refuses."""
    from dance.compare.page import html_of

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "report.html", html_of(contents).encode())
    write_atomic(out / "report.md", markdown_of(contents, out).encode())
    rows = [
        {"label": run.label, "diverged": run.diverged, "folder": _from(out, run.folder), **run.summary}
        for run in contents.runs
    ]
    write_atomic(out / "compare.json", (json.dumps(plain(rows), indent=2) + "\n").encode())


def at_marks(runs: Sequence[Finished], marks: Sequence[float]) -> dict[str, list[Cell]]:
    """The FID of each method at so many MB a D-Node; the best of each mark is marked."""
    cells = {
        label: [cell_of([at_most(run.lines, "fid", MEGABYTES, mark) for run in own]) for mark in marks]
        for label, own in by_label(runs).items()
    }
    cells = {label: own for label, own in cells.items() if any(cell.mean is not None for cell in own)}
    for k in range(len(marks)):
        column = [own[k] for own in cells.values()]
        best = best_of(column, True)
        for at, own in enumerate(cells.values()):
            own[k] = Cell(mean=own[k].mean, deviation=own[k].deviation, best=at in best)
    return cells


def markdown_of(contents: Contents, out: Path) -> str:
    """report.md: the same figures as text."""
    heads = ["method", "seeds", *(column.heading for column in contents.columns)]
    lines = [
        [
            row.label,
            str(len(row.seeds)),
            *(_bold(cell, column) for cell, column in zip(row.cells, contents.columns, strict=True)),
        ]
        for row in contents.rows
    ]
    parts = [f"# {contents.title}", contents.lead, contents.note, _table(heads, lines)]
    failed = [
        f"{row.label} (seeds {', '.join(map(str, row.diverged))})" for row in contents.rows if row.diverged
    ]
    if failed:
        parts.append(f"Ended in NaN or infinity: {'; '.join(failed)}.")
    if contents.at_marks:
        heads = ["FID at most so many MB a D-Node", *(f"{mark:g}" for mark in contents.marks)]
        column = Column(name="FID", figure=lambda _: None, form=short, least=True)
        parts.append("## FID at equal bytes")
        parts.append(
            _table(heads, [[k, *(_bold(c, column) for c in own)] for k, own in contents.at_marks.items()])
        )
    pictures = []
    for label, own in by_label(contents.runs).items():
        if (own[0].folder / "samples.png").exists():
            pictures.append(f'![{label}](<{_from(out, own[0].folder / "samples.png")}> "{label}")')
    if pictures:
        parts += ["## Generated images", "\n".join(pictures)]
    parts += ["## Settings", "\n".join(f"- {name}: {value}" for name, value in contents.settings.items())]
    parts.append("; ".join(f"{name} {value}" for name, value in contents.machine.items()))
    parts += ["## Once more", f"```\n{contents.command}\n```", "Curves and class histograms: report.html."]
    return "\n\n".join(parts) + "\n"


def machine() -> dict[str, str]:
    """Where this was computed: CPU, cores it may use, versions."""
    import torch

    import dance

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "CPU": _cpu(),
        "cores": str(cores),
        "dance": dance.__version__,
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _budget(runs: Sequence[Finished]) -> str:
    first = runs[0].config
    limits = []
    if first.megabytes is not None:
        limits.append(f"{first.megabytes:g} MB a D-Node")
    if first.virtual_seconds is not None:
        limits.append(f"{first.virtual_seconds:g} s of the virtual clock")
    if not limits:
        rounds = sorted({run.config.rounds for run in runs})
        limits.append(f"{'-'.join(map(str, dict.fromkeys((rounds[0], rounds[-1]))))} rounds")
    links = f" on links of {first.links}" if first.links else ""
    return f"budget {' or '.join(limits)}{links}"


def _settings(runs: Sequence[Finished]) -> dict[str, str]:
    """What is not at its default: common settings, then those of each method."""
    flat = {label: _flat(own[0].config) for label, own in by_label(runs).items()}
    default = _flat(RunConfig())
    names = [name for name in default if name not in _UNTOLD]
    same = {
        name: next(iter(flat.values()))[name]
        for name in names
        if len({json.dumps(values.get(name)) for values in flat.values()}) == 1
    }
    first = runs[0].config
    told = {"data": first.data, "partition": first.partition, "D-Nodes": str(first.d_nodes)}
    told |= {name: _word(value) for name, value in same.items() if value != default[name]}
    for label, values in flat.items():
        own = {name: values[name] for name in names if name not in same and values.get(name) != default[name]}
        algorithm = by_label(runs)[label][0].config.algorithm
        told[label] = ", ".join([algorithm, *(f"{name} {_word(value)}" for name, value in own.items())])
    return told


def _flat(config: RunConfig) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in config.to_json().items():
        if isinstance(value, Mapping):
            values |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            values[name] = value
    return values


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _bold(cell: Cell, column: Column) -> str:
    text = text_of(cell, column.form)
    return f"**{text}**" if cell.best else text


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = [":--", *("--:" for _ in heads[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))


def _from(out: Path, path: Path) -> str:
    return os.path.relpath(path, out)
