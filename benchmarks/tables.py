"""The tables of docs/performance.md: from the results of `benchmarks.performance` to Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.targets import Row, operation_name
from dance import bench
from dance.bench import BenchConfig, Measurement, Run


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that one run of `benchmarks.performance` measured; `brief`: targets and threads alone."""

    command: str
    machine: dict[str, Any]
    peers: dict[str, str | None]
    peer_failures: dict[str, str]
    config: BenchConfig
    run: Run
    halves: list[tuple[BenchConfig, Run]]  # input of 16 bits
    targets: list[Row]
    threads: list[Row]
    small: list[Row]
    avx2: list[Row]
    brief: bool = False

    def entry(self) -> dict[str, Any]:
        """The results as JSON has them."""
        parts = {"targets": self.targets, "two_threads": self.threads, "small": self.small, "avx2": self.avx2}
        return {
            "command": self.command,
            "machine": self.machine,
            "peers": self.peers,
            "peer_failures": self.peer_failures,
            **{
                name: [{**asdict(row), "verdict": row.verdict} for row in rows]
                for name, rows in parts.items()
            },
            "bench": bench.report(self.config, self.run),
            "halves": [bench.report(config, run) for config, run in self.halves],
        }


def document(results: Results) -> str:
    """The generated part of docs/performance.md for the CPU target of these results."""
    target = results.machine["cpu_target"]
    forced = "" if target == "avx2" else " (`DANCE_CPU=avx2`)"
    parts = [
        _heading(results),
        f"### Targets, {target}\n\n" + _rows(results.targets, "case"),
        "### Two threads against one\n\n" + _rows(results.threads, "case"),
        f"### AVX2 alone{forced}\n\n{_rows(results.avx2, 'case')}",
    ]
    if results.brief:
        return "\n\n".join(parts)
    parts += [
        "### 4 Ki elements from Python, codec as text, packet reused, microseconds a call\n\n"
        + _rows(results.small, "call"),
        "### Beside peers\n\n" + _peers(results),
        "### Every codec and operation\n\n" + _all(results.run),
        *(f"### Input of {config.dtype}\n\n{_all(run)}" for config, run in results.halves),
    ]
    return "\n\n".join(parts)


def rewrite(path: Path, text: str, mark: str = "measured") -> None:
    """Puts the text between the markers of that name in a document; ValueError where it has none."""
    first, last = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    old = path.read_text()
    head, begin, rest = old.partition(first)
    _, end, tail = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{path}: expected the lines {first} and {last}; add them where the tables belong")
    path.write_text(f"{head}{first}\n\n{text}\n\n{last}{tail}")


def _heading(results: Results) -> str:
    m, rounds = results.machine, results.config.repetitions
    roofs = []
    for numel, rates in results.run.roofs.items():
        best = max(rates, key=rates.__getitem__)
        copy = rates["memcpy"]
        roofs.append(f"{bench.sized(numel)} {rates[best]:.1f} GB/s ({best}; memcpy {copy:.1f})")
    versions = ", ".join(f"{name} {version}" for name, version in results.peers.items() if version) or "none"
    lines = [
        f"`{results.command}` on {m['cpu']}, {m['cpus']} CPUs, {m['date']}, {rounds} rounds; "
        f"dance {m['dance']} with {m['cpu_target']}, Python {m['python']}, NumPy {m['numpy']}.",
        f"Roof, bytes that must move: {'; '.join(roofs)}.",
        f"Peers: {versions}.",
    ]
    if results.peer_failures:
        failed = "; ".join(f"{name} ({why})" for name, why in sorted(results.peer_failures.items()))
        lines.append(f"Installed, but not working: {failed}.")
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    rule = [":--"] * left + ["--:"] * (len(columns) - left)
    lines = [columns, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _rows(rows: Sequence[Row], what: str) -> str:
    if not rows:
        return "not measured"
    cells = []
    for row in rows:
        sense = "<=" if row.most else ">="
        wanted = "" if row.wanted is None else f"{sense} {row.wanted:.3g}"
        values = row.values
        median = f"{statistics.median(values):.3g}" if values else ""
        spread = f"{values[0]:.3g}..{values[-1]:.3g}" if values else ""
        cells.append(
            [row.what, bench.sized(row.size), row.unit, wanted, median, spread, row.verdict],
        )
    return _table([what, "size", "unit", "target", "median", "min..max", "verdict"], cells, left=3)


def _key(result: Measurement) -> tuple[str, str, str]:
    return result.case.codec, result.case.operation, result.peer or ""


def _by_size(run: Run) -> dict[tuple[str, str, str], dict[int, Measurement]]:
    found: dict[tuple[str, str, str], dict[int, Measurement]] = {}
    for result in run.results:
        found.setdefault(_key(result), {})[result.case.numel] = result
    return found


def _gb_s(at: dict[int, Measurement], numels: Iterable[int]) -> list[str]:
    return [f"{at[numel].gb_s:.2f}" if numel in at else "" for numel in numels]


def _peers(results: Results) -> str:
    numels = list(results.run.roofs)
    grouped = _by_size(results.run)
    with_peers = {key[:2] for key in grouped if key[2]}
    cells = []
    for (codec, operation, peer), at in grouped.items():
        if (codec, operation) not in with_peers:
            continue
        one = at[max(at)]
        name = operation_name(codec.partition(":")[0], operation)
        size = "" if one.bytes_per_element is None else f"{one.bytes_per_element:.3f}"
        error = "" if one.relative_error is None else f"{one.relative_error:.2e}"
        cells.append(["" if peer else f"**{name}**", peer or "**dance**", *_gb_s(at, numels), size, error])
    if not cells:
        return "not measured"
    sizes = [f"{bench.sized(numel)} GB/s" for numel in numels]
    return _table(["case", "by", *sizes, "B/elem.", "rel. error"], cells, left=2)


def _all(run: Run) -> str:
    numels = list(run.roofs)
    cells = []
    for (codec, operation, peer), at in _by_size(run).items():
        if peer:
            continue
        one = at[max(at)]
        cells.append(
            [
                "no codec" if codec == "-" else codec,
                operation,
                f"{one.bytes_moved:.2f}",
                *_gb_s(at, numels),
                *(f"{statistics.median(at[n].memcpy_ratios):.2f}" if n in at else "" for n in numels),
                *(f"{at[n].roof_share:.0%}" if n in at else "" for n in numels),
                "" if one.bytes_per_element is None else f"{one.bytes_per_element:.3f}",
                "" if one.relative_error is None else f"{one.relative_error:.2e}",
            ]
        )
    sizes = [bench.sized(numel) for numel in numels]
    columns = ["codec", "operation", "bytes moved"]
    columns += [f"{size} {unit}" for unit in ("GB/s", "x memcpy", "roof") for size in sizes]
    text = _table([*columns, "B/elem.", "rel. error"], cells, left=2)
    without = dict.fromkeys(f"{case.codec} {case.operation}" for case, _ in run.not_built)
    return f"{text}\n\nNot built: {', '.join(without)}." if without else text
