"""`dance compare`: methods x seeds under one budget, or runs that are there already, and their report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dance.compare import report
from dance.compare.folder import Finished, read_run, state_of, without_limits
from dance.compare.method import parse_methods
from dance.compare.plan import Plan, PlannedRun, growing, plan
from dance.compare.running import execute
from dance.compare.table import text_of
from dance.errors import DanceError
from dance.gan.config import RunConfig, under_torchrun

DESCRIPTION = """Train several methods over several seeds under one budget and write a report to look at:
report.html (one file, no network), report.md and compare.json, in --out. A method is an algorithm, perhaps
with settings of its own and a name; every other flag is common to all. Runs that are done are kept: after
Ctrl-C, or with further methods or seeds, the same command goes on where it stopped.

The budget is --rounds, or --megabytes a D-Node may send and receive, or --virtual-seconds of a simulation on
--links: with one of the last two, rounds are limited only if you give them too.

examples:
  dance compare --simulate --rounds 1500
  dance compare --simulate --methods ac-gan md-gan "fl-gan:flgan.epochs=2" --seeds 0 1 2 --jobs 2
  dance compare --simulate --methods "ac-gan:gossip_codec=int4,label=AC-GAN int4" ac-gan --megabytes 30
  dance compare --simulate --links 10mbit,5ms --virtual-seconds 600 --partition classes:2
  dance compare --simulate --methods methods.toml --out runs/mine
  dance compare runs/a runs/b                runs of `dance train` side by side; nothing is trained"""

FOLDERS = """Put finished runs side by side: report.html, report.md and compare.json in --out. Runs that
differ in nothing but their seed are one method.

example:
  dance compare runs/a runs/b"""

_MOST_ROUNDS = 1_000_000
_GIVEN = RunConfig()


@dataclass(frozen=True, kw_only=True)
class FoldersConfig:
    folders: tuple[str, ...]
    """Folders of runs (what was --out of `dance train`)."""
    out: str = "runs/compare"
    """Folder of the report."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    methods: tuple[str, ...] = ("ac-gan", "md-gan", "fl-gan", "standalone")
    """Algorithms, each perhaps with settings: ac-gan:gossip_codec=int4,label=NAME; or a TOML or JSON file."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to run every method with."""
    jobs: int = 1
    """Runs at a time, each in a process of its own."""
    run: RunConfig = field(default_factory=RunConfig)
    """The settings of every run."""


def compare(config: CompareConfig, words: Sequence[str]) -> bool:
    """Run what is not done, write the report after every run, print the table.

    words: the command line, for the report. Returns whether Ctrl-C came. Raises ValueError for
    what cannot be compared, before anything runs, and DanceError where runs failed, after all others.
    """
    planned = planned_of(config)
    out = Path(config.run.out or "runs/compare")
    command = shlex.join(["dance", "compare", *words])
    known: dict[tuple[str, int], Finished] = {}

    def after(one: PlannedRun, fresh: bool) -> None:
        known[one.method.label, one.seed] = read_run(one.folder, one.method.label)
        if fresh:
            _write(planned, known, command, out)

    ended = execute(planned.runs, jobs=config.jobs, after=after)
    if not known:  # not one run to its end: what the first have left behind
        for one in planned.runs:
            if state_of(one.folder, one.config) == "begun":
                after(one, False)
    if known:
        print_table(_write(planned, known, command, out), out)
    if ended.interrupted:
        left = len(planned.runs) - len(known)
        print(f"stopped; {left} of {len(planned.runs)} runs are left; the same command goes on")
    if ended.failures:
        first, words_of = next(iter(ended.failures.items()))
        raise DanceError(f"compare: {len(ended.failures)} runs failed; {first}: {words_of}")
    return ended.interrupted


def planned_of(config: CompareConfig) -> Plan:
    """The plan of a config. Raises ValueError for what cannot be compared."""
    common = config.run
    if common.algorithm != _GIVEN.algorithm:
        raise ValueError(f"compare: --algorithm {common.algorithm} has no use here; name all in --methods")
    if common.seed != _GIVEN.seed:
        raise ValueError(f"compare: --seed {common.seed} has no use here; name all in --seeds")
    if common.resume is not None:
        raise ValueError("compare: --resume goes on with one run; use dance train --resume FOLDER")
    if under_torchrun() and not common.simulate:
        raise ValueError("compare: its runs need different numbers of processes; call it without torchrun")
    limited = common.megabytes is not None or common.virtual_seconds is not None
    if limited and common.rounds == _GIVEN.rounds:
        common = replace(common, rounds=_MOST_ROUNDS)
    if common.evaluate_every == _GIVEN.evaluate_every and not common.evaluate_at:
        common = replace(common, evaluate_every=0, evaluate_at=growing(common.rounds))
        if limited:
            common = replace(common, evaluate_at=growing(20_000, growth=1.4))
    return plan(parse_methods(config.methods), config.seeds, common, Path(common.out or "runs/compare"))


def compare_folders(config: FoldersConfig) -> None:
    """The report of runs that are there. Raises DanceError for a folder without one."""
    runs = labelled([read_run(Path(folder)) for folder in config.folders])
    command = shlex.join(["dance", "compare", *config.folders, "--out", config.out])
    contents = report.contents_of(runs, command)
    report.write(contents, Path(config.out))
    print_table(contents, Path(config.out))


def print_table(contents: report.Contents, out: Path) -> None:
    """The table, for a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=contents.lead, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for column in contents.columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for row in contents.rows:
        cells = [text_of(cell, column.form) for cell, column in zip(row.cells, contents.columns, strict=True)]
        styled = [
            f"[bold]{text}[/bold]" if cell.best else text for cell, text in zip(row.cells, cells, strict=True)
        ]
        table.add_row(row.label, *styled)
    # Wider than a narrow terminal rather than cut: figures that end in dots are no figures.
    console = Console(width=1000)
    console.print(table, crop=False, soft_wrap=True)
    print(f"report: {out / 'report.html'} (look at it), {out / 'report.md'}")


def _write(planned: Plan, known: dict[tuple[str, int], Finished], command: str, out: Path) -> report.Contents:
    order = [(method.label, seed) for method in planned.methods for seed in planned.seeds]
    contents = report.contents_of([known[key] for key in order if key in known], command)
    report.write(contents, out)
    return contents


def labelled(runs: Sequence[Finished]) -> list[Finished]:
    """Runs under the names of their algorithms; of their folders where one algorithm has several settings."""
    alike: dict[str, list[str]] = {}
    for run in runs:
        key = _settings(run)
        of_algorithm = alike.setdefault(run.config.algorithm, [])
        if key not in of_algorithm:
            of_algorithm.append(key)
    above = os.path.commonpath([run.folder.resolve().parent for run in runs])
    named = []
    names: dict[str, str] = {}
    for run in runs:
        name: str = run.config.algorithm
        if len(alike[name]) > 1:
            name = names.setdefault(_settings(run), f"{name} ({os.path.relpath(run.folder, above)})")
        named.append(replace(run, label=name))
    return named


def _settings(run: Finished) -> str:
    return repr(replace(without_limits(run.config), seed=0))
