"""`dance bench`: how fast codecs are here, beside libc's memcpy of the same input in the same run."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np

import dance
from dance import _native
from dance.codecs import CODECS
from dance.errors import UnavailableError

OPERATIONS = ("encode", "encode_feedback", "encode_difference", "decode", "decode_add", "mix")
_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
# One timing lasts at least so long: many calls are timed together where one is too short for the clock.
_MIN_TIMING_S = 1e-3


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is measured; its fields are the flags of `dance bench`."""

    codec: tuple[str, ...] = ()
    """Codecs, for example int8 sign:block=64 topk:ratio=0.01; none given: every codec with its defaults."""
    operation: tuple[str, ...] = OPERATIONS
    """Operations: encode, encode_feedback, encode_difference, decode, decode_add, and mix (of no codec)."""
    numel: tuple[str, ...] = ("64Ki", "1Mi", "16Mi")
    """Sizes in float32 elements; 64Ki, 1Mi and plain numbers are understood."""
    threads: int = 1
    """CPU threads."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to measure; cuda needs a GPU and torch."""
    repetitions: int = 9
    """Rounds over all cases; the median of a case counts."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the result: a codec (as text; "-" for mix), an operation, a number of elements."""

    codec: str
    operation: str
    numel: int


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """gb_s: 1e9 bytes of float32 input a second; memcpy_ratio: memcpy's time over ours, above 1 is faster.

    bytes_per_element counts the packet's header; relative_error is ||decoded - x|| / ||x|| on Gaussian data,
    None for all operations but encode.
    """

    codec: str
    operation: str
    numel: int
    median_s: float
    gb_s: float
    memcpy_ratio: float
    bytes_per_element: float | None
    relative_error: float | None


class Machine(Protocol):
    """Where arrays live and how a piece of work on them is timed."""

    def array(self, values: Any) -> Any: ...

    def host(self, values: Any) -> Any: ...

    def copy(self, source: Any, target: Any) -> Callable[[], object]: ...

    def seconds(self, work: Callable[[], object], calls: int) -> float: ...


class CpuMachine:
    """NumPy arrays, the monotonic clock, libc's memcpy (ctypes.memmove) into memory that was touched."""

    def array(self, values: Any) -> Any:
        return values.copy()

    def host(self, values: Any) -> Any:
        return values

    def copy(self, source: Any, target: Any) -> Callable[[], object]:
        to, of, num_bytes = target.ctypes.data, source.ctypes.data, source.nbytes
        return lambda: ctypes.memmove(to, of, num_bytes)

    def seconds(self, work: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls


class CudaMachine:
    """torch tensors on the current GPU, CUDA events, a device-to-device copy in the place of memcpy."""

    def __init__(self) -> None:
        if not dance.info()["cuda_available"]:
            built = dance.info()["cuda_built"]
            reason = "no GPU or driver was found" if built else "this build of dance has no CUDA code"
            remedy = (
                "run on a machine with a GPU"
                if built
                else "build with nvcc and --config-settings cmake.define.DANCE_CUDA=ON"
            )
            raise UnavailableError(f"bench: --device cuda: {reason}; {remedy}, or use --device cpu")
        try:
            import torch
        except ImportError as error:
            raise UnavailableError(
                "bench: --device cuda needs torch; pip install 'dance-gan[torch]'"
            ) from error
        if not torch.cuda.is_available():
            raise UnavailableError(
                f"bench: --device cuda: torch {torch.__version__} sees no GPU; "
                "install a CUDA build of torch, or use --device cpu"
            )
        self._torch: Any = torch

    def array(self, values: Any) -> Any:
        return self._torch.from_numpy(values).cuda()

    def host(self, values: Any) -> Any:
        return values.cpu().numpy()

    def copy(self, source: Any, target: Any) -> Callable[[], object]:
        return lambda: target.copy_(source)

    def seconds(self, work: Callable[[], object], calls: int) -> float:
        start, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / calls


class Bed:
    """The arrays of one size, allocated and touched once, and the work of every case on them."""

    def __init__(self, machine: Machine, numel: int, seed: int = 0) -> None:
        values = np.random.default_rng(seed).standard_normal(numel, dtype=np.float32)
        other = np.random.default_rng(seed + 1).standard_normal(numel, dtype=np.float32)
        self.machine = machine
        self.numel = numel
        self.x = machine.array(values)
        self._other = machine.array(other)
        self.state = machine.array(other)
        self.target = machine.array(other)

    def reset(self) -> None:
        """Give residual and reference their first values again; they change with every call."""
        self.machine.copy(self._other, self.state)()

    def memcpy(self) -> Callable[[], object]:
        """The work all others are compared with: a copy of the input."""
        return self.machine.copy(self.x, self.target)

    def work(self, case: Case) -> Callable[[], object]:
        """One call of the case's operation, into memory that is used again."""
        if case.operation == "mix":
            return lambda: dance.mix(self.state, self._other, self.x, 0.5)
        codec = dance.codec(case.codec)
        packet = dance.encode(self.x, codec)
        if case.operation == "encode":
            return lambda: dance.encode(self.x, codec, out=packet)
        if case.operation == "encode_feedback":
            return lambda: dance.encode_feedback(self.x, self.state, codec, out=packet)
        if case.operation == "encode_difference":
            return lambda: dance.encode_difference(self.x, self.state, codec, out=packet)
        if case.operation == "decode":
            return lambda: dance.decode(packet, out=self.target)
        # Weight 1 would let the sum grow over thousands of calls.
        return lambda: dance.decode(packet, out=self.target, add=True, weight=2.0**-20)

    def quality(self, codec: str) -> tuple[float, float]:
        """(bytes an element, relative error) of encoding the input."""
        packet = dance.encode(self.x, codec)
        x = self.machine.host(self.x).astype(np.float64)
        error = np.linalg.norm(self.machine.host(dance.decode(packet)) - x)
        return packet.nbytes / max(1, self.numel), float(error / max(np.linalg.norm(x), 1e-300))


def cases(config: BenchConfig) -> list[Case]:
    """What a config measures, in order; raises ValueError for what is unknown."""
    for operation in config.operation:
        if operation not in OPERATIONS:
            raise ValueError(f"bench: unknown operation {operation!r}; choose from {', '.join(OPERATIONS)}")
    if config.repetitions < 1:
        raise ValueError(f"bench: repetitions: expected at least 1, got {config.repetitions}")
    codecs = [str(dance.codec(text)) for text in config.codec or tuple(kind.name for kind in CODECS)]
    found = []
    for numel in (elements(text) for text in config.numel):
        for codec in codecs:
            found += [Case(codec=codec, operation=o, numel=numel) for o in config.operation if o != "mix"]
        if "mix" in config.operation:
            found.append(Case(codec="-", operation="mix", numel=numel))
    return found


def elements(text: str) -> int:
    """A number of elements: "4096", "64Ki", "16Mi"."""
    digits, factor = (text[:-2], _UNITS[text[-2:]]) if text[-2:] in _UNITS else (text, 1)
    if not digits.isdecimal() or not 0 < int(digits) * factor <= 1 << 30:
        raise ValueError(f"bench: numel: expected 1 to 1Gi elements, say 4096, 64Ki or 16Mi, got {text!r}")
    return int(digits) * factor


def measure(config: BenchConfig, on_case: Callable[[Case], None] | None = None) -> list[Measurement]:
    """Measure every case: repetitions interleaved over all cases of a size, memcpy among them, medians."""
    chosen = cases(config)
    machine: Machine = CudaMachine() if config.device == "cuda" else CpuMachine()
    with _native.num_threads(config.threads):
        results = []
        for numel in dict.fromkeys(case.numel for case in chosen):
            same = [case for case in chosen if case.numel == numel]
            results += _measure_size(Bed(machine, numel), same, config.repetitions, on_case)
        return results


def _measure_size(
    bed: Bed, chosen: Sequence[Case], repetitions: int, on_case: Callable[[Case], None] | None
) -> list[Measurement]:
    memcpy = bed.memcpy()
    works = {case: bed.work(case) for case in chosen}
    times: dict[Case | None, list[float]] = {None: [], **{case: [] for case in chosen}}
    calls: dict[Case | None, int] = {None: _calls(bed, memcpy)}
    calls.update((case, _calls(bed, work)) for case, work in works.items())
    for repetition in range(repetitions):
        for case, work in works.items():
            if on_case is not None and repetition == 0:
                on_case(case)
            # A copy beside every case: the machine's mood changes within one round.
            times[None].append(bed.machine.seconds(memcpy, calls[None]))
            bed.reset()
            times[case].append(bed.machine.seconds(work, calls[case]))
    copy_s = statistics.median(times[None])
    quality = {codec: bed.quality(codec) for codec in dict.fromkeys(c.codec for c in chosen) if codec != "-"}
    return [_measurement(case, statistics.median(times[case]), copy_s, quality) for case in chosen]


def _calls(bed: Bed, work: Callable[[], object]) -> int:
    """How many calls one timing needs; also the warm-up."""
    bed.machine.seconds(work, 1)
    once = max(bed.machine.seconds(work, 3), 1e-8)
    return max(1, min(10_000, int(_MIN_TIMING_S / once)))


def _measurement(
    case: Case, median_s: float, copy_s: float, quality: Mapping[str, tuple[float, float]]
) -> Measurement:
    size, error = quality.get(case.codec, (None, None))
    return Measurement(
        **asdict(case),
        median_s=median_s,
        gb_s=4e-9 * case.numel / median_s,
        memcpy_ratio=copy_s / median_s,
        bytes_per_element=size,
        relative_error=error if case.operation == "encode" else None,
    )


def report(config: BenchConfig, results: Sequence[Measurement]) -> dict[str, Any]:
    """What `dance bench --json` prints: the machine's part and one object a case."""
    info = dance.info()
    return {
        "version": info["version"],
        "device": config.device,
        "cpu_target": info["cpu_target"],
        "threads": config.threads,
        "repetitions": config.repetitions,
        "results": [asdict(result) for result in results],
    }


def print_table(config: BenchConfig, results: Sequence[Measurement]) -> None:
    """Print the measurements as one table a size."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    info = dance.info()
    where = (
        "this GPU" if config.device == "cuda" else f"CPU, {info['cpu_target']}, {config.threads} thread(s)"
    )
    for numel in dict.fromkeys(result.numel for result in results):
        table = Table(
            title=f"{sized(numel)} float32 elements - {where}", title_justify="left", box=box.SIMPLE_HEAD
        )
        table.add_column("codec", no_wrap=True)
        table.add_column("operation", no_wrap=True)
        for column in ("GB/s", "x memcpy", "B/elem.", "rel. error"):
            table.add_column(column, justify="right", no_wrap=True)
        last = None
        for result in (r for r in results if r.numel == numel):
            size = "" if result.bytes_per_element is None else f"{result.bytes_per_element:.3f}"
            error = "" if result.relative_error is None else f"{result.relative_error:.2e}"
            name = "" if result.codec == last else result.codec
            last = result.codec
            table.add_row(
                name, result.operation, f"{result.gb_s:.2f}", f"{result.memcpy_ratio:.2f}", size, error
            )
        Console().print(table)


def sized(numel: int) -> str:
    """16777216 as "16Mi"."""
    for unit, size in reversed(_UNITS.items()):
        if numel % size == 0:
            return f"{numel // size}{unit}"
    return str(numel)
