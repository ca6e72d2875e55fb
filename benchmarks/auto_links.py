"""Auto against every fixed candidate: on steady links, on links that step, and on traces.

    python -m benchmarks.auto_links          about 10 minutes, as root, on an idle machine; --help for less

Steady links: in every round auto and each candidate run one all_reduce, in an order drawn anew. Links that
change: each candidate does the same number of all_reduces while the same trace is replayed from its start;
auto does so twice, at the beginning and at the end. Traces: five, synthetic or of a folder, drawn with a
seed, one from each of its subfolders and then from all; a tensor is as large as what passes in 0.1 s at the
trace's mean rate. Different candidates are best on different links. Writes
benchmarks/results/auto_links.json, docs/images/auto_links.png and the tables of docs/collective_results.md.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import auto_tables, collective_tables
from benchmarks.auto_tables import AUTO, STEPPING
from benchmarks.findings import RESULTS, Findings, findings, say
from benchmarks.testbed.ranks import end_on_sigterm
from benchmarks.testbed.replay import Replay, parse_steps
from benchmarks.testbed.trial import LOOPBACK, Parent, at_rank, bed_of, trial
from dance.bandwidth import Trace, parse_trace, read_trace
from dance.codecs import Codec
from dance.policy import Auto, Figures, Send

MODULE = "benchmarks.auto_links"
_MI = 1 << 20
# link: (float32 elements, rounds) of each case. Where a call is short, it takes many to tell 3 % from noise.
_STEADY = {
    LOOPBACK: ((16 * _MI, 30), (_MI // 16, 200)),
    "1gbit": ((8 * _MI, 15),),
    "100mbit": ((_MI, 12),),
    "10mbit": ((_MI // 2, 5),),
}
# steps: float32 elements, calls. In each step there is room for 20 calls of auto and more.
STEPS = {
    STEPPING: (_MI // 8, 400),
    "10mbit@3s,100mbit@3s": (_MI // 16, 300),
    "10gbit@2s,100mbit@2s": (_MI // 4, 300),
}
_TRACE_CALL_S, _TRACE_CALLS = 0.1, 50
_TRACE_START_S = 30.0  # the mean rate is that of the trace's beginning, which is what will be replayed
_NUM_TRACES = 5
_FLOOR_SHARE = 0.02  # of the mean rate: what outages are raised to


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is measured; the defaults are those of docs/collective_results.md."""

    rates: tuple[str, ...] = tuple(_STEADY)
    """Steady links: loopback, or rates such as 1gbit."""
    ranks: tuple[int, ...] = (2, 4)
    """Group sizes on steady links; links that change have the first."""
    candidates: tuple[str, ...] = ("none", "bf16", "fp16", "int8")
    """Fixed codecs to compare with: those that auto chooses from without error feedback."""
    traces: Path | None = None
    """A folder with at least five measured traces (dance.bandwidth.read_trace); None: five synthetic ones."""
    seed: int = 0
    """Of the five traces."""
    changing: bool = True
    """Whether links that change are measured, too."""
    quick: bool = False
    """A tenth of the calls, two ranks, one trace: to see that everything runs; writes no document."""
    out: Path | None = None
    """Where the JSON goes; by default to benchmarks/results, and with --quick nowhere."""


@dataclass(frozen=True, kw_only=True)
class _Varying:
    """A link that changes, and the work to be done over it."""

    name: str
    trace: Trace
    numel: int
    calls: int
    mean_mbps: float


def main() -> int:
    import tyro

    config = tyro.cli(Config, prog=f"python -m {MODULE}", description=__doc__)
    end_on_sigterm()
    path = config.out or (None if config.quick else RESULTS / "auto_links.json")
    part = 10 if config.quick else 1
    group_sizes = config.ranks[:1] if config.quick else config.ranks
    with findings(MODULE, path) as found:
        for ranks in group_sizes:
            for link in config.rates:
                for numel, rounds in _STEADY.get(link, ((_MI, 10),)):
                    work = {
                        "candidates": config.candidates,
                        "numel": numel // part,
                        "rounds": max(5, rounds // part),
                    }
                    _steady(found, link, ranks, work)
        changing = [*_stepping(), *_traces(config.traces, config.seed)] if config.changing else []
        for varying in [changing[0], changing[-1]] if config.quick and changing else changing:
            calls = varying.calls // part
            work = {"candidates": config.candidates, "numel": varying.numel, "calls": calls}
            _varying(found, varying, config.ranks[0], work)
    print(auto_tables.auto_links(found))
    if not config.quick and config.out is None:
        auto_tables.plot(found)
        collective_tables.write_document()
    return 0 if found.complete else 1


def _steady(found: Findings, link: str, ranks: int, work: dict[str, Any]) -> None:
    say(f"steady {link}, {ranks} ranks")
    try:
        with bed_of(link, ranks) as bed, trial(MODULE, bed, {"what": "steady", **work}) as records:
            for record in records:
                found.records.append({"what": "steady", "link": link, "ranks": ranks, **record})
    except (RuntimeError, TimeoutError) as error:
        found.failures.append(f"steady {link}, {ranks} ranks: {error}")
        say(found.failures[-1])


def _varying(found: Findings, link: _Varying, ranks: int, work: dict[str, Any]) -> None:
    say(f"{link.name}, {ranks} ranks, {link.mean_mbps:.3g} Mbit/s, {4e-6 * work['numel']:.3g} MB a call")
    about = {"what": "varying", "link": link.name, "ranks": ranks, "mean_mbps": link.mean_mbps}
    floor_mbps = max(0.1, _FLOOR_SHARE * link.mean_mbps)
    try:
        with bed_of("1gbit", ranks) as bed, trial(MODULE, bed, {"what": "varying", **work}) as records:
            for asked in records:  # "begin" before each candidate
                with Replay(bed, link.trace, floor_mbps=floor_mbps) as replay:
                    records.answer()
                    record = next(iter(records), None)
                if record is not None:
                    changes = [[round(change.time_s, 4), change.mbps] for change in replay.changes]
                    record["starts_s"] = [round(start - replay.started, 4) for start in record["starts_s"]]
                    found.records.append({**about, **work, **asked, **record, "changes": changes})
    except (RuntimeError, TimeoutError) as error:
        found.failures.append(f"{link.name}: {error}")
        say(found.failures[-1])


def _stepping() -> Iterator[_Varying]:
    for name, (numel, calls) in STEPS.items():
        trace = parse_steps(name)
        yield _Varying(name=name, trace=trace, numel=numel, calls=calls, mean_mbps=_mean(trace))


def _mean(trace: Trace) -> float:
    return trace.mean_mbps(0.0, min(trace.period_s, _TRACE_START_S))


def _traces(folder: Path | None, seed: int) -> Iterator[_Varying]:
    for name, trace in _drawn(folder, seed):
        mean_mbps = _mean(trace)
        numel = int(mean_mbps * 1e6 / 8 * _TRACE_CALL_S)
        yield _Varying(name=name, trace=trace, numel=numel, calls=_TRACE_CALLS, mean_mbps=mean_mbps)


def _drawn(folder: Path | None, seed: int) -> list[tuple[str, Trace]]:
    """Five traces with different names; of files, which are found by name, that is all that is told."""
    if folder is None:
        texts = ["walk:20", "markov:100,10", "periodic:50", "cellular:20", "cellular:3"]
        texts = [text if text.startswith("periodic") else f"{text},seed={seed}" for text in texts]
        return [(text, parse_trace(text)) for text in texts]
    found = [path for path in folder.glob("**/*.txt") if path.stem.lower() not in ("readme", "license")]
    files = sorted({path.name: path for path in sorted(found)}.values())
    if len(files) < _NUM_TRACES:
        raise SystemExit(f"auto_links: expected a folder with {_NUM_TRACES} traces, got {len(files)}")
    chance = random.Random(seed)
    by_folder = [
        [file for file in files if file.parent == parent] for parent in sorted({f.parent for f in files})
    ]
    chosen = [chance.choice(some) for some in by_folder[:_NUM_TRACES]]
    chosen += chance.sample([file for file in files if file not in chosen], _NUM_TRACES - len(chosen))
    return [(file.name, read_trace(file)) for file in chosen]


def measure(work: dict[str, Any], parent: Parent) -> None:
    """At every rank."""
    if work["what"] == "steady":
        _measure_steady(work, parent)
    else:
        _measure_varying(work, parent)


class _Noted(Auto):
    """Auto that keeps what it chose; ``news``: ranks have agreed on something since that was reset."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[Codec] = []
        self.news = False

    def choose(self, send: Send) -> Codec:
        self.chosen.append(super().choose(send))
        return self.chosen[-1]

    def agree(self, figures: Figures) -> None:
        super().agree(figures)
        self.news = True


class _Caller:
    """All-reduces with one codec, or with an Auto of its own."""

    def __init__(self, name: str) -> None:
        self.auto = _Noted() if name == AUTO else None
        self._codec = name if self.auto is None else self.auto
        self._believed_mbps: list[float | None] = []  # of the link, after each call
        self._believes_mbps: float | None = None

    def __call__(self, t: Any) -> float:
        """Returns the seconds of the call alone: what is noted of it is the benchmark's, not auto's."""
        import dance.distributed as dd

        start = time.perf_counter()
        dd.all_reduce(t, codec=self._codec, min_bytes=0)
        seconds = time.perf_counter() - start
        if self.auto is not None:
            if self.auto.news:
                self.auto.news = False
                estimate = self.auto.link_estimate()
                self._believes_mbps = None if estimate is None else round(estimate.rate_mbps, 4)
            self._believed_mbps.append(self._believes_mbps)
        return seconds

    def told(self) -> dict[str, Any]:
        """What auto chose and believed, call by call."""
        if self.auto is None:
            return {}
        return {"codecs": [str(codec) for codec in self.auto.chosen], "believed_mbps": self._believed_mbps}


def _measure_steady(work: dict[str, Any], parent: Parent) -> None:
    import torch
    import torch.distributed as dist

    x = torch.randn(work["numel"], generator=torch.Generator().manual_seed(dist.get_rank()))
    t = x.clone()
    names = [AUTO, *work["candidates"]]
    callers = {name: _Caller(name) for name in names}
    seconds = torch.zeros(len(names), work["rounds"], dtype=torch.float64)
    for name in work["candidates"]:  # connections; auto's first call is its own
        callers[name](t[: 1 << 14])
    for number in range(work["rounds"]):
        # What went over the link just before counts, so no codec always has the same one before it.
        for k in random.Random(number).sample(range(len(names)), len(names)):
            t.copy_(x)
            dist.barrier()
            seconds[k, number] = callers[names[k]](t)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    for k, name in enumerate(names):
        record = {"codec": name, "numel": work["numel"], "seconds": seconds[k].tolist()}
        parent.tell(record | callers[name].told())


def _measure_varying(work: dict[str, Any], parent: Parent) -> None:
    import torch
    import torch.distributed as dist

    x = torch.randn(work["numel"], generator=torch.Generator().manual_seed(dist.get_rank()))
    t = x.clone()
    for name in work["candidates"]:  # connections
        _Caller(name)(t[: 1 << 14])
    for name in (AUTO, *reversed(work["candidates"]), AUTO):
        caller = _Caller(name)
        starts = []
        parent.ask({"codec": name})
        dist.barrier()
        total = torch.zeros(1, dtype=torch.float64)
        for _ in range(work["calls"]):
            starts.append(time.monotonic())
            t.copy_(x)
            total += caller(t)
        dist.all_reduce(total, dist.ReduceOp.MAX)
        parent.tell({"total_s": float(total), "starts_s": starts} | caller.told())


if __name__ == "__main__":
    sys.exit(0 if at_rank(measure) else main())
