"""The speeds we aim at on one CPU thread, and what became of them in a run of `benchmarks.performance`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dance.bench import Measurement

DRAM, CACHE = 1 << 24, (1 << 20, 1 << 16)  # numel: beyond every cache; within it
AVX2_SHARE = 0.9  # of the ratios to memcpy, with DANCE_CPU=avx2
TWO_THREADS = 1.6  # times the speed of one, in cache
SMALL_NUMEL, SMALL_S = 1 << 12, 5e-6  # encoding so many elements from Python, all in
NOTHING_SENT = "torch e.add_(g), nothing sent"
COMPILED = "torch.compile"
BEST = "best peer"


@dataclass(frozen=True, kw_only=True)
class Target:
    """At least so many times as fast as something else, or with ``most`` at most so many times its time.

    other: None is memcpy of the input; the name of a peer; or BEST, the fastest library. torch.compile of our
    own formulas is no library: it has rows of its own. None for dram or cache: no target there.
    """

    codec: str
    operation: str
    other: str | None = None
    dram: float | None = None
    cache: float | None = None
    most: bool = False

    def at(self, numel: int) -> float | None:
        return self.dram if numel == DRAM else self.cache if numel in CACHE else None


MEMCPY = (
    Target(codec="int8", operation="encode_feedback", dram=0.85),
    Target(codec="int8", operation="encode", dram=1.4),
    Target(codec="int4", operation="encode", dram=1.3),
    Target(codec="sign", operation="encode_feedback", dram=0.9),
    Target(codec="qsgd", operation="encode", dram=1.0),
    Target(codec="qsgd", operation="encode_feedback", dram=0.65),
    Target(codec="topk", operation="encode", dram=1.0),
    Target(codec="topk", operation="encode_feedback", dram=0.65),
    Target(codec="int8", operation="decode_add", dram=1.3),
)
PEERS = (
    Target(codec="int8", operation="encode_feedback", other=NOTHING_SENT, dram=1.15, most=True),
    Target(codec="int8", operation="encode_feedback", other=BEST, dram=5.0, cache=3.5),
    Target(codec="int8", operation="encode_feedback", other=COMPILED),
    Target(codec="int8", operation="encode", other=BEST, dram=1.25, cache=2.2),
    Target(codec="int4", operation="encode", other=BEST, dram=1.4, cache=3.0),
    Target(
        codec="sign", operation="encode_feedback", other="efsignsgd in torch, as GRACE", dram=50.0, cache=20.0
    ),
    Target(codec="qsgd", operation="encode", other="piquant uint8 stochastic", dram=15.0, cache=10.0),
    Target(codec="topk", operation="encode", other="torch.topk", dram=70.0, cache=12.0),
    Target(codec="topk", operation="encode", other="numpy argpartition", dram=10.0, cache=10.0),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: the ratio of every round, in order of size; empty where there is none."""

    what: str
    size: int
    wanted: float | None
    unit: str
    values: tuple[float, ...] = ()
    most: bool = False
    missing: str = ""

    @property
    def verdict(self) -> str:
        """ok, falls short, why there is no figure, or nothing where there is no target."""
        if not self.values:
            return self.missing
        if self.wanted is None:
            return ""
        value = statistics.median(self.values)
        return "ok" if (value <= self.wanted if self.most else value >= self.wanted) else "falls short"


def rows(results: Sequence[Measurement], numels: Iterable[int]) -> list[Row]:
    """Every target at every size that was measured."""
    found = []
    for target in (*MEMCPY, *PEERS):
        found += [
            _row(target, results, numel) for numel in numels if target.other is None or target.at(numel)
        ]
    return found


def _row(target: Target, results: Sequence[Measurement], numel: int) -> Row:
    name = operation_name(target.codec, target.operation)
    here = [r for r in results if is_case(r, target.codec, target.operation, numel)]
    own = next((r for r in here if r.peer is None), None)
    others = [r for r in here if r.peer not in (None, NOTHING_SENT, COMPILED)]
    other = None
    if target.other == BEST:
        other = min(others, key=lambda r: r.median_s, default=None)
    elif target.other is not None:
        other = next((r for r in here if r.peer == target.other), None)
    label = "memcpy" if target.other is None else target.other if other is None else str(other.peer)
    if target.other == BEST and other is not None:
        label = f"the best peer ({label})"
    unit = f"x the time of {label}" if target.most else f"x {label}"
    values: list[float] = []
    if own is not None and target.other is None:
        values = own.memcpy_ratios
    elif own is not None and other is not None:
        pairs = zip(other.rounds_s, own.rounds_s, strict=True)
        values = [mine / theirs if target.most else theirs / mine for theirs, mine in pairs]
    return Row(
        what=name,
        size=numel,
        wanted=target.at(numel),
        unit=unit,
        values=tuple(sorted(values)),
        most=target.most,
        missing="not measured" if own is None else "peer not installed",
    )


def is_case(result: Measurement, codec: str, operation: str, numel: int) -> bool:
    """Whether a measurement is of that codec (by name), operation and size."""
    case = result.case
    return (case.codec.partition(":")[0], case.operation, case.numel) == (codec, operation, numel)


def operation_name(codec: str, operation: str) -> str:
    """The codec and the operation in words, "int8 + feedback"."""
    words = {
        "encode": "",
        "encode_feedback": " + feedback",
        "encode_difference": " of a difference",
        "decode": " decode",
        "decode_add": " decode + add",
        "reduce": " reduce",
    }
    return f"{codec}{words[operation]}"
