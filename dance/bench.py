"""`dance bench`: how fast codecs are here, beside libc's memcpy of the same input and the machine's roof."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import dance
from dance import _native
from dance.bench_bed import Bed, Case
from dance.codecs import CODECS, Codec
from dance.errors import UnavailableError
from dance.roofline import (
    CpuMachine,
    CudaMachine,
    Machine,
    Probe,
    Work,
    bytes_moved,
    element_nbytes,
)

OPERATIONS = ("encode", "encode_feedback", "encode_difference", "decode", "decode_add", "reduce", "mix")
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
# One timing lasts at least so long: many calls are timed together where one is too short for the clock.
_MIN_TIMING_S = 1e-3
# Codecs that have no default for an option: on Gaussian data this sends about 1 % of the elements.
_EXAMPLES = {"threshold": "threshold:value=2.5758"}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is measured; its fields are the flags of `dance bench`."""

    codec: tuple[str, ...] = ()
    """Codecs, for example int8 sign:block=64 topk:ratio=0.01; none given: every codec with its defaults."""
    operation: tuple[str, ...] = OPERATIONS
    """Operations: encode, encode_feedback, encode_difference, decode, decode_add, reduce (4 packets into one
    of the same codec; GB/s are those of one array), and mix (of no codec)."""
    numel: tuple[str, ...] = ("64Ki", "1Mi", "16Mi")
    """Sizes in elements; 64Ki, 1Mi and plain numbers are understood."""
    threads: int = 1
    """CPU threads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure; cuda needs a GPU and torch."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What is encoded; residuals and references are float32 always."""
    repetitions: int = 9
    """Rounds over all cases; the median of a case counts."""
    peers: bool = False
    """Measure other libraries, those that are installed, in the same rounds (needs the source tree)."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A case, or what a peer does in its place, in every round; figures are medians over rounds.

    bytes_moved: bytes an element that must move (`roofline.bytes_moved`), None for peers; bytes_per_element
    counts the packet's header; relative_error is that of Gaussian data, None for all operations but encode.
    """

    case: Case
    peer: str | None
    rounds_s: tuple[float, ...]
    copies_s: tuple[float, ...]  # memcpy of the input, just before each of rounds_s
    input_nbytes: int
    roof_gb_s: float
    bytes_moved: float | None = None
    bytes_per_element: float | None = None
    relative_error: float | None = None

    @property
    def median_s(self) -> float:
        return statistics.median(self.rounds_s)

    @property
    def gb_s(self) -> float:
        """1e9 bytes of input a second."""
        return 1e-9 * self.input_nbytes / self.median_s

    @property
    def memcpy_ratios(self) -> list[float]:
        """memcpy's time over ours in each round, sorted; above 1 is faster than a copy."""
        return sorted(copy / own for copy, own in zip(self.copies_s, self.rounds_s, strict=True))

    @property
    def roof_share(self) -> float | None:
        """The rate of the bytes that must move over the roof's; 1 is as fast as memory allows."""
        if self.bytes_moved is None:
            return None
        return 1e-9 * self.bytes_moved * self.case.numel / self.median_s / self.roof_gb_s

    def entry(self) -> dict[str, Any]:
        """The measurement as JSON has it."""
        ratios = self.memcpy_ratios
        return {
            **asdict(self.case),
            "peer": self.peer,
            "median_s": self.median_s,
            "min_s": min(self.rounds_s),
            "max_s": max(self.rounds_s),
            "gb_s": self.gb_s,
            "memcpy_ratio": statistics.median(ratios),
            "memcpy_ratio_min": ratios[0],
            "memcpy_ratio_max": ratios[-1],
            "roof_share": self.roof_share,
            "bytes_moved": self.bytes_moved,
            "bytes_per_element": self.bytes_per_element,
            "relative_error": self.relative_error,
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one call of `measure` found: measurements, roofs (numel -> probe -> GB/s), and the cases that are
    not built, with the reason.
    """

    results: list[Measurement] = field(default_factory=list)
    roofs: dict[int, dict[str, float]] = field(default_factory=dict)
    not_built: list[tuple[Case, str]] = field(default_factory=list)


def cases(config: BenchConfig) -> list[Case]:
    """What a config measures, in order; raises ValueError for what is unknown."""
    for operation in config.operation:
        if operation not in OPERATIONS:
            raise ValueError(
                f"bench: --operation: unknown operation {operation!r}; choose from {', '.join(OPERATIONS)}"
            )
    for name in ("threads", "repetitions"):
        if getattr(config, name) < 1:
            raise ValueError(f"bench: --{name}: expected at least 1, got {getattr(config, name)}")
    element_nbytes(config.dtype)
    codecs = [str(codec_of(text)) for text in config.codec or default_codecs()]
    found = []
    for numel in (elements(text) for text in config.numel):
        for codec in codecs:
            found += [Case(codec=codec, operation=o, numel=numel) for o in config.operation if o != "mix"]
        if "mix" in config.operation:
            found.append(Case(codec="-", operation="mix", numel=numel))
    if not found:
        raise ValueError("bench: nothing to measure; name at least one size, operation and codec")
    return found


def default_codecs() -> tuple[str, ...]:
    """Every codec with its defaults, as text."""
    return tuple(_EXAMPLES.get(kind.name, kind.name) for kind in CODECS)


def codec_of(text: str, command: str = "bench") -> Codec:
    """The codec that --codec of ``command`` names."""
    try:
        return dance.codec(text)
    except ValueError as error:
        raise ValueError(f"{command}: --codec: {error}") from None


def elements(text: str, command: str = "bench") -> int:
    """A number of elements, --numel of ``command``: "4096", "64Ki", "16Mi"."""
    digits, factor = (text[:-2], _UNITS[text[-2:]]) if text[-2:] in _UNITS else (text, 1)
    if not digits.isdecimal() or not 0 < int(digits) * factor <= 1 << 30:
        raise ValueError(
            f"{command}: --numel: expected 1 to 1Gi elements, say 4096, 64Ki or 16Mi, got {text!r}"
        )
    return int(digits) * factor


def measure(
    config: BenchConfig,
    on_case: Callable[[Case], None] | None = None,
    *,
    chosen: Sequence[Case] | None = None,
) -> Run:
    """Measure every case (or those chosen): rounds over all cases of a size, memcpy beside each of them."""
    wanted = cases(config) if chosen is None else list(chosen)
    machine: Machine = CudaMachine() if config.device == "cuda" else CpuMachine()
    peers = load_peers() if config.peers else None
    run = Run()
    try:
        with _native.num_threads(config.threads):
            if peers is not None:
                peers.set_num_threads(config.threads)
            for numel in dict.fromkeys(case.numel for case in wanted):
                bed = Bed(machine, numel, config.dtype)
                same = [case for case in wanted if case.numel == numel]
                _measure_size(_Round(config, bed, peers, on_case), same, run)
    finally:
        machine.close()
    if not run.results:
        raise UnavailableError(f"bench: nothing could be measured; the first reason: {run.not_built[0][1]}")
    return run


@dataclass(frozen=True)
class _Round:
    """What the candidates of one size have in common."""

    config: BenchConfig
    bed: Bed
    peers: Any
    on_case: Callable[[Case], None] | None


@dataclass(kw_only=True)
class _Candidate:
    case: Case
    work: Work
    peer: Any = None
    calls: int = 1
    rounds_s: list[float] = field(default_factory=list)
    copies_s: list[float] = field(default_factory=list)


def _measure_size(shared: _Round, same: Sequence[Case], run: Run) -> None:
    bed, machine = shared.bed, shared.bed.machine
    candidates: list[_Candidate] = []
    for case in same:
        if shared.on_case is not None:
            shared.on_case(case)
        try:
            candidates.append(_Candidate(case=case, work=bed.work(case)))
        except UnavailableError as error:
            run.not_built.append((case, str(error)))
            continue
        if shared.peers is not None:
            found = shared.peers.prepared(case.codec, case.operation, bed, shared.config.device)
            candidates += [_Candidate(case=case, work=peer.work, peer=peer) for peer in found]
    memcpy = bed.memcpy()
    copies = _calls(machine, memcpy)
    for candidate in candidates:
        candidate.calls = _calls(machine, candidate.work)
    probes = [
        (probe, _calls(machine, probe.work)) for probe in machine.probes(bed.numel, shared.config.threads)
    ]
    rates: dict[str, list[float]] = {probe.name: [] for probe, _ in probes}
    for _ in range(shared.config.repetitions):
        for probe, calls in probes:
            rates[probe.name].append(_rate(machine, probe, calls))
        for candidate in candidates:
            # A copy beside every case: the machine's mood changes within one round.
            candidate.copies_s.append(machine.seconds(memcpy, copies))
            candidate.rounds_s.append(machine.seconds(candidate.work, candidate.calls))
    roof = {name: statistics.median(found) for name, found in rates.items()}
    run.roofs[bed.numel] = roof
    run.results.extend(_measurements(bed, candidates, max(roof.values())))


def _rate(machine: Machine, probe: Probe, calls: int) -> float:
    return 1e-9 * probe.num_bytes / machine.seconds(probe.work, calls)


def _calls(machine: Machine, work: Work) -> int:
    """How many calls one timing needs; also the warm-up."""
    machine.seconds(work, 1)
    once = machine.seconds(work, 1)
    if once < _MIN_TIMING_S:
        once = max(machine.seconds(work, 3), 1e-8)
    return max(1, min(10_000, int(_MIN_TIMING_S / once)))


def _measurements(bed: Bed, candidates: Sequence[_Candidate], roof_gb_s: float) -> Iterator[Measurement]:
    qualities = {
        text: bed.quality(text) for text in dict.fromkeys(c.case.codec for c in candidates) if text != "-"
    }
    for candidate in candidates:
        case, peer = candidate.case, candidate.peer
        own = qualities.get(case.codec)
        size = None if own is None else own.bytes_per_element
        error = None if own is None else own.relative_error
        moved = None
        element_nbytes = bed.input_nbytes // bed.numel
        if peer is not None:
            size = None if peer.nbytes is None else peer.nbytes / bed.numel
            decoded = peer.decoded() if case.operation == "encode" and peer.decoded is not None else None
            error = None if decoded is None else bed.relative_error(decoded)
        elif own is None:
            moved = bytes_moved(None, case.operation, payload=0.0, element_nbytes=element_nbytes)
        else:
            moved = bytes_moved(
                dance.codec(case.codec),
                case.operation,
                payload=own.payload,
                kept=own.kept,
                element_nbytes=element_nbytes,
            )
        yield Measurement(
            case=case,
            peer=None if peer is None else peer.name,
            rounds_s=tuple(candidate.rounds_s),
            copies_s=tuple(candidate.copies_s),
            input_nbytes=bed.input_nbytes,
            roof_gb_s=roof_gb_s,
            bytes_moved=moved,
            bytes_per_element=size,
            relative_error=error if case.operation == "encode" else None,
        )


@lru_cache(maxsize=1)
def load_peers() -> Any:
    """Returns the package benchmarks/peers of the source tree; UnavailableError where there is none."""
    places = [Path.cwd(), Path(__file__).resolve().parents[1]]
    for folder in (place / "benchmarks" / "peers" for place in places):
        # Not by import: other distributions bring modules named benchmarks, too.
        init = folder / "__init__.py"
        if init.is_file():
            spec = importlib.util.spec_from_file_location(
                "dance_peers", init, submodule_search_locations=[str(folder)]
            )
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise UnavailableError(
        f"bench: --peers: no benchmarks/peers in {places[0]}; run from the source tree, or without --peers"
    )


def report(config: BenchConfig, run: Run) -> dict[str, Any]:
    """What `dance bench --json` prints: the machine's part, the roofs, and one object a case."""
    info = dance.info()
    return {
        "version": info["version"],
        "device": config.device,
        "dtype": config.dtype,
        "cpu_target": info["cpu_target"],
        "threads": config.threads,
        "repetitions": config.repetitions,
        "roof": [
            {"numel": numel, "gb_s": max(rates.values()), "probes": rates}
            for numel, rates in run.roofs.items()
        ],
        "results": [result.entry() for result in run.results],
        "not_built": [{**asdict(case), "reason": reason} for case, reason in run.not_built],
    }


def print_table(config: BenchConfig, run: Run) -> None:
    """Print the measurements as one table a size."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    info = dance.info()
    where = (
        "this GPU" if config.device == "cuda" else f"CPU, {info['cpu_target']}, {config.threads} thread(s)"
    )
    for numel, roof in run.roofs.items():
        best = max(roof, key=roof.__getitem__)
        table = Table(
            title=f"{sized(numel)} {config.dtype} elements - {where}",
            title_justify="left",
            caption=f"roof: {roof[best]:.1f} GB/s of traffic ({best})",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        table.add_column("", min_width=19, overflow="fold")
        for column in ("GB/s", "x memcpy", "min..max", "roof", "B/elem.", "error"):
            table.add_column(column, justify="right", no_wrap=True)
        last = None
        for result in (r for r in run.results if r.case.numel == numel):
            if result.case.codec != last:
                last = result.case.codec
                table.add_row("no codec" if last == "-" else last)
            ratios = result.memcpy_ratios
            table.add_row(
                f"  {result.case.operation}" if result.peer is None else f"    {result.peer}",
                f"{result.gb_s:.2f}",
                f"{statistics.median(ratios):.2f}",
                f"{ratios[0]:.2f}..{ratios[-1]:.2f}",
                "" if result.roof_share is None else f"{result.roof_share:.0%}",
                "" if result.bytes_per_element is None else f"{result.bytes_per_element:.3f}",
                "" if result.relative_error is None else f"{result.relative_error:.1e}",
            )
        console.print(table)
    if config.peers and all(result.peer is None for result in run.results):
        console.print(
            "no peers: they need torch (others: docs/performance.md), float32 of a multiple of 256 elements, "
            "and the codec's default options"
        )
    for reason in dict.fromkeys(reason for _, reason in run.not_built):
        without = dict.fromkeys(f"{c.codec} {c.operation}" for c, found in run.not_built if found == reason)
        console.print(f"not built: {', '.join(without)}: {reason}", markup=False)


def sized(numel: int) -> str:
    """16777216 as "16Mi"."""
    for unit, size in reversed(_UNITS.items()):
        if numel % size == 0:
            return f"{numel // size}{unit}"
    return str(numel)
