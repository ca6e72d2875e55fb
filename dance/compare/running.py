"""Running what is planned: one run after another here, or several at a time in processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dance.compare.estimate import Estimate, in_words
from dance.compare.folder import State, clear_marks, mark_diverged, state_of
from dance.compare.plan import PlannedRun
from dance.errors import DanceError, NonFiniteError
from dance.files import write_atomic, writing
from dance.gan.config import RunConfig
from dance.launch import INTERRUPTED

# How a process of `python -m dance.compare` says that training ended in NaN.
DIVERGED = 3
_LOG = "log.txt"
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How it all ended: whether Ctrl-C came, and the runs that failed with what they said."""

    interrupted: bool = False
    failures: dict[str, str] = field(default_factory=dict)


def execute(
    runs: Sequence[PlannedRun],
    *,
    jobs: int = 1,
    after: Callable[[PlannedRun, bool], None] = lambda _, fresh: None,
) -> Ended:
    """Do all runs that are not done; each goes on from its last checkpoint where it has one.

    after: called here for every run that has ended; True with it unless it was done before. A run that ends
    in NaN has ended; one that fails for another reason does not stop the others, and is tried again the next
    time. Ctrl-C and SIGTERM let the runs under way save themselves. Raises ValueError for jobs below 1.
    """
    if jobs < 1:
        raise ValueError(f"compare: --jobs: expected at least 1, got {jobs}")
    waiting = []
    for one in runs:
        state = state_of(one.folder, one.config)
        if state in ("done", "diverged"):
            after(one, False)
        else:
            waiting.append(one)
    if len(waiting) < len(runs):
        print(f"{len(runs) - len(waiting)} of {len(runs)} runs are done already", flush=True)
    if not waiting:
        return Ended()
    return _one_by_one(waiting, after) if jobs == 1 else _several(waiting, jobs, after)


def do(config: RunConfig) -> State:
    """Bring the run of `config` to its end, or to Ctrl-C; returns done, diverged, or begun after Ctrl-C."""
    from dance.gan.engine import run

    folder = config.folder
    try:
        # Twice at most: a run that had fewer rounds first ends where it was to end then.
        while (state := state_of(folder, config)) not in ("done", "diverged"):
            if state == "begun":
                result = run(dataclasses.replace(config, resume=str(folder)))
            else:
                clear_marks(folder)
                result = run(config)
            if result.interrupted:
                return "begun"
    except NonFiniteError as error:
        mark_diverged(folder, str(error))
        return "diverged"
    return state


def _one_by_one(runs: Sequence[PlannedRun], after: Callable[[PlannedRun, bool], None]) -> Ended:
    estimate = Estimate(runs, 1)
    failures: dict[str, str] = {}
    for number, one in enumerate(runs, start=1):
        left = estimate.left_s()
        about = "" if left is None else f"; {in_words(left)} left for all"
        print(f"\nrun {number} of {len(runs)}: {one.name}{about}", flush=True)
        estimate.begin(one)
        try:
            state = do(one.config)
        except KeyboardInterrupt:
            return Ended(interrupted=True, failures=failures)
        except DanceError as error:
            failures[one.name] = str(error)
            print(f"failed: {error}", flush=True)
            continue
        if state == "begun":
            return Ended(interrupted=True, failures=failures)
        if state == "diverged":
            print("diverged: training ended in NaN or infinity", flush=True)
        estimate.end(one)
        after(one, True)
    return Ended(failures=failures)


def _several(runs: Sequence[PlannedRun], jobs: int, after: Callable[[PlannedRun, bool], None]) -> Ended:
    estimate = Estimate(runs, jobs)
    waiting, failures = list(runs), {}
    under_way: dict[int, tuple[PlannedRun, subprocess.Popen[bytes]]] = {}
    with contextlib.ExitStack() as stack:
        requests = stack.enter_context(tempfile.TemporaryDirectory(prefix="dance-"))
        signals = stack.enter_context(_signals())
        stack.callback(_interrupt, under_way)  # nobody is left behind, whatever ends this
        passed_on = 0
        with _Shown(estimate, len(runs)) as shown:
            while under_way or (waiting and not signals):
                while waiting and len(under_way) < jobs and not signals:
                    one = waiting.pop(0)
                    process = _start(one, Path(requests))
                    under_way[process.pid] = one, process
                    estimate.begin(one)
                    shown.begun(one)
                time.sleep(_POLL_S)
                if len(signals) > passed_on:  # a terminal tells them itself, a kill does not
                    passed_on = len(signals)
                    for _, process in under_way.values():
                        process.send_signal(signal.SIGINT)
                for pid, (one, process) in list(under_way.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del under_way[pid]
                    if code in (0, DIVERGED):
                        estimate.end(one)
                        after(one, True)
                    elif code != INTERRUPTED and not signals:
                        failures[one.name] = _last_words(one)
                    shown.ended(one, code)
                shown.update([one for one, _ in under_way.values()])
    return Ended(interrupted=bool(signals), failures=failures)


def _interrupt(under_way: Mapping[int, tuple[PlannedRun, subprocess.Popen[bytes]]]) -> None:
    for _, process in under_way.values():
        process.send_signal(signal.SIGINT)


def _start(one: PlannedRun, requests: Path) -> subprocess.Popen[bytes]:
    with writing(one.folder):
        one.folder.mkdir(parents=True, exist_ok=True)
    request = requests / f"{len(list(requests.iterdir()))}.json"  # equal methods and seeds may differ in data
    write_atomic(request, json.dumps(one.config.to_json()).encode())
    # A process of its own, not a thread: torch's threads and Ctrl-C belong to a process.
    threads = {"OMP_NUM_THREADS": str(one.config.threads)}
    with writing(one.folder / _LOG), open(one.folder / _LOG, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dance.compare", str(request)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **threads},
        )


def _last_words(one: PlannedRun) -> str:
    with contextlib.suppress(OSError):
        lines = (one.folder / _LOG).read_text(errors="replace").strip().splitlines()
        if lines:
            return f"{lines[-1]} (all of it in {one.folder / _LOG})"
    return f"no word why; see {one.folder / _LOG}"


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that gets the number of every SIGINT and SIGTERM while the block runs."""
    came: list[int] = []
    kept = {
        number: signal.signal(number, lambda got, _: came.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class _Shown:
    """Progress of several runs: a bar for all and one for each in a terminal, plain lines elsewhere."""

    def __init__(self, estimate: Estimate, total: int) -> None:
        from rich.console import Console

        self._estimate, self._total, self._done = estimate, total, 0
        self._console = Console(highlight=False, soft_wrap=True)
        self._bars: Any = None
        self._tasks: dict[Path | str, Any] = {}

    def __enter__(self) -> _Shown:
        if self._console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._console,
            )
            self._tasks["all"] = self._bars.add_task("all runs", total=self._total, text="")
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begun(self, one: PlannedRun) -> None:
        if self._bars is not None:
            self._tasks[one.folder] = self._bars.add_task(one.name, total=one.config.rounds, text="")

    def ended(self, one: PlannedRun, code: int) -> None:
        self._done += 1
        words = {0: "done", DIVERGED: "diverged: NaN or infinity", INTERRUPTED: "stopped; goes on next time"}
        text = f"{one.name}: {words.get(code, 'failed')}  ({self._done} of {self._total}{self._left()})"
        if self._bars is not None:
            self._bars.remove_task(self._tasks.pop(one.folder))
            self._bars.console.print(text, markup=False)
        else:
            print(text, flush=True)

    def update(self, under_way: Sequence[PlannedRun]) -> None:
        if self._bars is None:
            return
        for one in under_way:
            last = self._estimate.last_line(one)
            fid = last.get("fid")
            text = "" if fid is None else f"FID {fid:.3g}"
            self._bars.update(self._tasks[one.folder], completed=last.get("round", 0), text=text)
        self._bars.update(self._tasks["all"], completed=self._done, text=self._left().removeprefix("; "))

    def _left(self) -> str:
        left = self._estimate.left_s()
        return "" if left is None else f"; {in_words(left)} left"
