"""Measures everything in docs/performance.md, in one command, and writes its tables there.

    python -m benchmarks.performance                 10 minutes or so, on an idle machine; --help for less
    python -m benchmarks.performance --brief         targets and threads alone: 3 minutes or so

Run it from the source tree. On one thread: every codec and operation beside memcpy and the peers that are
installed, in the same rounds. Then input of 16 bits, two threads against one, small calls from Python, and
AVX2 alone (DANCE_CPU=avx2). Writes benchmarks/results/cpu_<name of the CPU>_<target>.json, and the tables
of docs/performance.md: machines whose CPUs have one name may differ in what they can do.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import dance
from benchmarks import tables, targets
from benchmarks.command import command_of
from benchmarks.targets import Row
from dance import _native, bench
from dance.bench import Bed, BenchConfig, Case, Run
from dance.codecs import DTYPES
from dance.roofline import CpuMachine

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
COMMAND = "python -m benchmarks.performance"
_SMALL_CALLS = 1000
_CASE = ("codec", "operation")
_HALVES = ("none", "int8")
_HALVES_OPERATIONS = ("encode", "encode_feedback", "decode", "decode_add")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured; the defaults are those of docs/performance.md."""

    numel: tuple[str, ...] = ("16Mi", "1Mi", "64Ki")
    """Sizes in float32 elements."""
    codec: tuple[str, ...] = ()
    """Codecs; none given: every codec with its defaults."""
    repetitions: int = 11
    """Rounds over all cases of a size; medians and ranges are over rounds."""
    peers: bool = True
    """Measure other libraries too, those that are installed."""
    brief: bool = False
    """Measure what there is a target for, and nothing else."""
    write: bool = True
    """Write the results file and the tables of docs/performance.md; else print only."""


def main() -> int:
    import tyro

    config = tyro.cli(Config, prog=COMMAND, description=__doc__)
    results = measure(config)
    text = tables.document(results)
    print(text)
    if config.write:
        name = re.sub(r"[^A-Za-z0-9]+", "-", cpu_name()).strip("-")
        target = results.machine["cpu_target"]
        path = RESULTS / f"cpu_{name}_{target}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results.entry(), indent=1) + "\n")
        tables.rewrite(DOCUMENT, text)
        print(f"\nwrote {path.relative_to(ROOT)} and {DOCUMENT.relative_to(ROOT)}", file=sys.stderr)
    return 0


def measure(config: Config) -> tables.Results:
    """Everything, one part after another; each part says on stderr that it has begun."""
    base = BenchConfig(
        codec=config.codec,
        numel=config.numel,
        repetitions=config.repetitions,
        peers=config.peers,
    )
    if config.brief:
        codecs, operations = (dict.fromkeys(getattr(t, field) for t in targets.MEMCPY) for field in _CASE)
        base = replace(base, codec=config.codec or tuple(codecs), operation=tuple(operations))
    numels = [bench.elements(text) for text in config.numel]
    _say("one thread, every codec and operation")
    run = bench.measure(base)
    wanted = [_case(target) for target in targets.MEMCPY]
    built = {(r.case.codec, r.case.operation) for r in run.results}
    wanted = [case for case in wanted if (case.codec, case.operation) in built]
    _say("input of 16 bits")
    halves = [] if config.brief else _halves(base)
    _say("two threads")
    threads = [row for numel in numels for row in _two_threads(wanted, numel, config.repetitions)]
    _say("small calls")
    small = [] if config.brief else _small_calls(base, config.repetitions)
    _say("AVX2 alone")
    avx2 = _avx2(wanted, config.repetitions, max(numels), run)
    peers = bench.load_peers() if config.peers else None
    return tables.Results(
        command=command_of([*COMMAND.split(), *sys.argv[1:]]),
        machine=_machine(),
        peers=peers.versions() if peers else {},
        peer_failures=dict(peers.FAILURES) if peers else {},
        config=base,
        run=run,
        halves=halves,
        targets=targets.rows(run.results, numels),
        threads=threads,
        small=small,
        avx2=avx2,
        brief=config.brief,
    )


def _case(target: targets.Target, numel: int = 0) -> Case:
    return Case(codec=str(dance.codec(target.codec)), operation=target.operation, numel=numel)


def _say(part: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {part}", file=sys.stderr, flush=True)


def _halves(config: BenchConfig) -> list[tuple[BenchConfig, Run]]:
    """Arrays of float16 and bfloat16, of which no target speaks."""
    codecs = [text for text in config.codec or _HALVES if dance.codec(text).name in _HALVES]
    if not codecs:
        return []
    found = []
    for dtype in DTYPES[1:]:
        one = replace(config, codec=tuple(codecs), operation=_HALVES_OPERATIONS, dtype=dtype, peers=False)
        found.append((one, bench.measure(one)))
    return found


def _two_threads(wanted: Sequence[Case], numel: int, repetitions: int) -> list[Row]:
    """How many times faster two threads are than one, round by round."""
    if len(os.sched_getaffinity(0)) < 2:
        return []
    machine = CpuMachine()
    bed = Bed(machine, numel)
    in_cache = targets.TWO_THREADS if numel == targets.CACHE[0] else None
    found = []
    for case in wanted:
        work = bed.work(replace(case, numel=numel))
        values = []
        for _ in range(repetitions):
            seconds = []
            for count in (1, 2):
                with _native.num_threads(count):
                    calls = max(1, int(2e-3 / max(machine.seconds(work, 1), 1e-7)))
                    seconds.append(machine.seconds(work, calls))
            values.append(seconds[0] / seconds[1])
        name = targets.operation_name(case.codec.partition(":")[0], case.operation)
        row = Row(what=name, size=numel, wanted=in_cache, unit="x one thread", values=tuple(sorted(values)))
        found.append(row)
    return found


def _small_calls(config: BenchConfig, repetitions: int) -> list[Row]:
    """Microseconds of a call from Python with 4 Ki elements, packet reused, codec given as text."""
    bed = Bed(CpuMachine(), targets.SMALL_NUMEL)
    found = []
    for text in config.codec or bench.default_codecs():
        codec = str(dance.codec(text))
        for operation in ("encode", "encode_feedback", "decode"):
            call = _small_call(bed, codec, operation)
            row = Row(
                what=f"{codec} {operation}",
                size=targets.SMALL_NUMEL,
                wanted=1e6 * targets.SMALL_S if operation == "encode" else None,
                unit="us",
                most=True,
                values=tuple(sorted(1e6 * _seconds(call) for _ in range(repetitions))),
            )
            found.append(row)
    return found


def _small_call(bed: Bed, codec: str, operation: str) -> Callable[[], object]:
    x, state, packet = bed.x, bed.state, dance.encode(bed.x, codec)
    calls: dict[str, Callable[[], object]] = {
        "encode": lambda: dance.encode(x, codec, out=packet),
        "encode_feedback": lambda: dance.encode_feedback(x, state, codec, out=packet),
        "decode": lambda: dance.decode(packet, out=bed.target),
    }
    return calls[operation]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(_SMALL_CALLS):
        call()
    return (time.perf_counter() - start) / _SMALL_CALLS


def _avx2(wanted: Sequence[Case], repetitions: int, numel: int, run: Run) -> list[Row]:
    """The ratios to memcpy with AVX2: of this run, or of a process that was told to use it."""
    if "avx2" not in dance.info()["cpu_targets"] or not wanted:
        return []
    if dance.info()["cpu_target"] == "avx2":
        here = [r for r in run.results if r.peer is None and r.case.numel == numel]
        ratios = {(r.case.codec, r.case.operation): tuple(sorted(r.memcpy_ratios)) for r in here}
        return [_avx2_row(case, numel, ratios[case.codec, case.operation]) for case in wanted]
    command = [sys.executable, "-m", "dance", "bench", "--json", "--numel", str(numel)]
    command += ["--repetitions", str(repetitions)]
    command += ["--codec", *dict.fromkeys(case.codec for case in wanted)]
    command += ["--operation", *dict.fromkeys(case.operation for case in wanted)]
    done = subprocess.run(
        command, env={**os.environ, "DANCE_CPU": "avx2"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [Row(what="AVX2", size=numel, wanted=None, unit="", missing=done.stderr.strip()[-200:])]
    report = json.loads(done.stdout)
    assert report["cpu_target"] == "avx2"
    asked = {(case.codec, case.operation) for case in wanted}
    return [
        _avx2_row(
            Case(codec=entry["codec"], operation=entry["operation"], numel=numel),
            numel,
            (entry["memcpy_ratio_min"], entry["memcpy_ratio"], entry["memcpy_ratio_max"]),
        )
        for entry in report["results"]
        if (entry["codec"], entry["operation"]) in asked
    ]


def _avx2_row(case: Case, numel: int, ratios: tuple[float, ...]) -> Row:
    codec = case.codec.partition(":")[0]
    full = next(t.dram for t in targets.MEMCPY if (t.codec, t.operation) == (codec, case.operation))
    wanted = None if full is None or numel != targets.DRAM else targets.AVX2_SHARE * full
    name = targets.operation_name(codec, case.operation)
    return Row(what=name, size=numel, wanted=wanted, unit="x memcpy", values=ratios)


def cpu_name() -> str:
    """The CPU's model name as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _machine() -> dict[str, Any]:
    info = dance.info()
    return {
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu_target": info["cpu_target"],
        "dance": info["version"],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    sys.exit(main())
