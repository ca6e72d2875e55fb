"""Runs studies and writes their tables; runs whose results are there are skipped.

    python -m benchmarks.studies a              one study, and its tables in docs/results.md
    python -m benchmarks.studies all --jobs 2   all of them, the most important first
    python -m benchmarks.studies tables         only the tables, from the results that are there
    python -m benchmarks.studies all --quick    whether every run of every study begins and ends

Results are in benchmarks/results/study_NAME.json, runs in runs/studies. Ctrl-C loses nothing.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import tables
from benchmarks.studies.frame import Results, Study, Wanted, planned
from benchmarks.studies.listing import STUDIES
from dance.compare import PlannedRun, execute
from dance.compare.folder import state_of

DOCUMENT = Path("docs/results.md")


@dataclass(frozen=True, kw_only=True)
class Config:
    study: Annotated[str, tyro.conf.Positional]
    """Its letter (several without a space: abe), or all, or tables."""
    jobs: int = 1
    """Runs at a time."""
    hours: float | None = None
    """Begin no further run after so long."""
    most: int | None = None
    """Do at most so many runs now."""
    only: str | None = None
    """Do only runs whose name (as --list shows it) contains this."""
    quick: bool = False
    """Tiny runs, into files of their own; no tables."""
    list: bool = False
    """Say what would run, and run nothing."""


def main() -> int:
    config = tyro.cli(Config, description=__doc__, prog="python -m benchmarks.studies")
    names = _names(config.study)
    ends_at = None if config.hours is None else time.monotonic() + 3600 * config.hours
    code = 0
    for name in names if config.study != "tables" else ():
        study = STUDIES[name]
        print(f"\n== study {name}: {study.question}", flush=True)
        code = _run(study, Results(name, quick=config.quick), config, ends_at)
        if code:
            break
    if not config.quick and not config.list:
        write_tables(DOCUMENT)
    return code


def write_tables(path: Path) -> None:
    """Put the tables of all studies that have results between the markers of the document."""
    parts = []
    for name, study in STUDIES.items():
        results = Results(name)
        if results.runs:
            parts.append(_section(study, results))
    if parts:
        tables.rewrite(path, "\n\n".join(parts))
        print(f"{path} has the tables of {len(parts)} studies")


def _names(text: str) -> list[str]:
    if text in ("all", "tables"):
        return list(STUDIES)
    if unknown := [letter for letter in text if letter not in STUDIES]:
        raise SystemExit(f"unknown study {unknown[0]!r}; there are {', '.join(STUDIES)}, all, tables")
    return list(text)


def _run(study: Study, results: Results, config: Config, ends_at: float | None) -> int:
    """Ask what is wanted until nothing new is; 0, 1 where runs failed, 130 after Ctrl-C."""
    failed: set[str] = set()
    left = config.most
    while True:
        fresh = [w for w in study.wanted(results) if not results.has(w) and w.key not in failed]
        fresh = [w for w in fresh if config.only is None or config.only in w.key]
        if config.list:
            for wanted in fresh:
                print(f"  {wanted.key}  {wanted.method.changes}")
            return 0
        # A few at a time: what follows from results comes early, and the time limit is kept.
        batch = fresh[: max(2 * config.jobs, 2)] if ends_at or left else fresh[:16]
        if left is not None:
            batch = batch[:left]
        if not batch or (ends_at is not None and time.monotonic() > ends_at):
            return 1 if failed else 0
        runs: dict[str, tuple[Wanted, PlannedRun]] = {}
        for wanted in batch:
            run = planned(wanted, results)
            runs[str(run.folder)] = wanted, run

        def after(run: PlannedRun, fresh: bool, runs: dict[str, tuple[Wanted, PlannedRun]] = runs) -> None:
            diverged = state_of(run.folder, run.config) == "diverged"
            extra = None if study.extra is None or diverged else study.extra(run)
            results.add(runs[str(run.folder)][0], run, extra)

        print(f"{len(fresh)} runs are known to be left", flush=True)
        ended = execute([run for _, run in runs.values()], jobs=config.jobs, after=after)
        for words in ended.failures.items():
            print(f"failed: {words[0]}: {words[1]}", file=sys.stderr)
        failed |= {wanted.key for wanted, run in runs.values() if not results.has(wanted)}
        if ended.interrupted:
            return 130
        if left is not None:
            left -= len(batch)
            if left <= 0:
                return 1 if failed else 0


def _section(study: Study, results: Results) -> str:
    where = "; ".join(", ".join(f"{k} {v}" for k, v in each.items()) for each in results.machines)
    lines = [
        f"### ({study.name}) {study.question}",
        f"`python -m benchmarks.studies {study.name}` ({len(results.runs)} runs; {where}).",
    ]
    lines += [study.cut] if study.cut else []
    return "\n\n".join([*lines, study.tables(results)])


if __name__ == "__main__":
    sys.exit(main())
