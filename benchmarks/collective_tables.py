"""The tables of docs/collective_results.md, from what the benchmarks of the collectives found."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.auto_tables import auto_links_with_plot
from benchmarks.findings import RESULTS, Findings, load
from benchmarks.markdown import heading, seconds_of, spread, table
from benchmarks.tables import rewrite
from benchmarks.testbed.trial import LOOPBACK
from dance.bandwidth import parse_link

DOCUMENT = Path(__file__).parents[1] / "docs" / "collective_results.md"
FLOAT32 = "torch float32"
# Times the speed of float32, from the bytes that they save: at least so many over links of <= 100 Mbit/s ...
_SLOW_TARGETS = {"int8": 2.5, "int4": 5.0, "sign": 12.0, "topk": 10.0}
_SIGN_RANKS = 4  # ... sign only with so many ranks
_GIGABIT_TARGETS = {"int8": 2.4}
NO_HOOK = "no hook"
_ACCURACY_LOSS = 0.005  # against no hook, at most, on the mean over seeds
# Of an all_reduce at 100 Mbit/s, at most; of the default codec, for those that send a tenth of its bytes and
# less are through before the tensor can be read often.
_CODING_SHARE, _CODED = 0.02, "int8"


def ratios(base: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """How many times as fast ``other`` is as ``base``, round by round, in order of size."""
    return sorted(slow / fast for slow, fast in zip(base["seconds"], other["seconds"], strict=True))


def target_of(codec: str, link: str, ranks: int) -> float | None:
    """At least how many times as fast as float32 a codec is to be on a link."""
    if link == LOOPBACK:
        return None
    name, rate_mbps = codec.partition(":")[0], parse_link(link).rate_mbps
    if rate_mbps > 100.0:
        return _GIGABIT_TARGETS.get(name) if rate_mbps == 1000.0 else None
    return None if name == "sign" and ranks < _SIGN_RANKS else _SLOW_TARGETS.get(name)


def collectives(found: Findings) -> str:
    """What `benchmarks.collectives` found."""
    parts = [heading(found)]
    for ranks in found.values("ranks"):
        rows = []
        for link in found.values("link"):
            here = found.of(ranks=ranks, link=link)
            base = next((record for record in here if record["codec"] == FLOAT32), None)
            rows += [_collective(record, base) for record in here if base is not None]
        columns = [
            "link",
            "MB",
            "codec",
            "time",
            "x float32",
            "target",
            "",
            "coding",
            "checks",
            "MB sent",
            "rel. error",
        ]
        parts.append(f"### {ranks} ranks\n\n" + table(columns, rows, left=3))
    parts.append(
        f"Coding: seconds in encoders and decoders at the slowest rank, of the time; of {_CODED} at 100 "
        f"Mbit/s at most {_CODING_SHARE:.0%} (else: coding). Checks: checksums, headers, and the checking of "
        "what came. Both go on beside the wire. MB sent: counted at the busiest rank, headers included; for "
        "torch, which does not count, 2 (N - 1) / N of the tensor, the formula of its ring of N ranks."
    )
    return "\n\n".join(parts)


def _collective(record: dict[str, Any], base: dict[str, Any]) -> list[str]:
    link, codec = record["link"], record["codec"]
    seconds = statistics.median(record["seconds"])
    speed = ratios(base, record)
    coding, checking = (statistics.median(record[name]) / seconds for name in ("coding_s", "checking_s"))
    target = target_of(codec, link, record["ranks"])
    good = [target is None or statistics.median(speed) >= target]
    if codec == _CODED and link == "100mbit":
        good.append(coding <= _CODING_SHARE)
    verdict = "" if target is None else "ok" if all(good) else "slow" if not good[0] else "coding"
    own = codec == FLOAT32
    return [
        link,
        f"{record['numel'] * 4 / 1e6:.3g}",
        codec,
        seconds_of(seconds),
        "" if own else spread(speed),
        "" if target is None else f">= {target:g}",
        verdict,
        "" if own else f"{coding:.1%}",
        "" if own else f"{checking:.1%}",
        f"{record['bytes_sent'] / 1e6:.3g}",
        "" if own else f"{record['relative_error']:.2g}",
    ]


def write_document() -> None:
    """Writes the generated part of docs/collective_results.md from all JSON that there is."""
    parts = []
    for name, title, text in _SECTIONS:
        found = load(RESULTS / f"{name}.json")
        if found is not None:
            parts.append(f"## {title}\n\n{text(found)}")
    rewrite(DOCUMENT, "\n\n".join(parts))


def ddp(found: Findings) -> str:
    """What `benchmarks.ddp` found."""
    parts = [heading(found)]
    for ranks in dict.fromkeys(record["ranks"] for record in found.of(what="time")):
        here, alone = found.of(what="time", ranks=ranks), found.of(what="time alone", ranks=ranks)
        rows = [_step(record, here[0]) for record in here]
        rows += [_step(record, alone[0]) for record in alone[1:]]
        rows += [[r["hook"], r["how"], "", ""] for r in found.of(what="failure", ranks=ranks)]
        title = f"### Seconds a step over {here[0]['link']}, {ranks} ranks"
        columns = ["hook", "step", "x no hook", "MB sent a step"]
        size = f"{here[0]['parameters']:,} parameters, {4e-6 * here[0]['parameters']:.2f} MB of gradients."
        parts.append(f"{title}\n\n{size}\n\n{table(columns, rows, left=1)}")
    return "\n\n".join(parts)


def _step(record: dict[str, Any], base: dict[str, Any]) -> list[str]:
    sent = record["bytes_a_step"]
    return [
        record["hook"],
        seconds_of(statistics.median(record["seconds"])),
        "" if record is base else spread(ratios(base, record)),
        "" if sent is None else f"{sent / 1e6:.3g}",
    ]


def accuracy(found: Findings) -> str:
    """What `benchmarks.ddp_accuracy` found."""
    records = found.records
    by_hook: dict[str, list[float]] = {}
    for record in records:
        by_hook.setdefault(record["hook"], []).append(record["accuracy"])
    base = statistics.mean(by_hook[NO_HOOK])
    rows = []
    for hook, values in by_hook.items():
        mean = statistics.mean(values)
        verdict = "" if hook == NO_HOOK else "ok" if mean >= base - _ACCURACY_LOSS else "worse"
        each = " ".join(f"{value:.2%}" for value in values)
        rows.append([hook, f"{mean:.2%}", f"{100 * (mean - base):+.2f}", verdict, each])
    columns = ["hook", "accuracy", "points from no hook", f">= -{100 * _ACCURACY_LOSS:g}", "each seed"]
    steps, ranks = records[0]["steps"], records[0]["ranks"]
    shown = table(columns, rows, left=1)
    return f"{heading(found)}\n\n### Digits after {steps} steps, {ranks} ranks\n\n{shown}"


_SECTIONS = (
    ("collectives", "all_reduce", collectives),
    ("auto_links", "auto against fixed codecs", auto_links_with_plot),
    ("ddp", "DistributedDataParallel: time", ddp),
    ("ddp_accuracy", "DistributedDataParallel: accuracy", accuracy),
)
