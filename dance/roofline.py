"""The roofline of a codec: the bytes an operation must move, and the traffic this machine attains.

`CpuMachine` times work with the monotonic clock, `CudaMachine` with events on torch's current stream.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

import dance
from dance.codecs import DTYPES, Codec
from dance.errors import UnavailableError

REDUCED = 4  # packets in one `reduce`
_LINE_NBYTES = 64
_PARTS = 5
_PROBE_S = 1e-3  # a probe on several threads runs at least so long


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is timed: ``call``; ``before``, if any, runs before every call and is not timed."""

    call: Callable[[], object]
    before: Callable[[], object] | None = None


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A plain loop over memory whose rate is a candidate for the roof; num_bytes must move in one call."""

    name: str
    num_bytes: float
    work: Work


def bytes_moved(
    codec: Codec | None, operation: str, *, payload: float, kept: float = 1.0, element_nbytes: int = 4
) -> float:
    """Returns the bytes that must cross the memory bus for each element, if each array crosses it once.

    ``payload`` is payload bytes an element, ``kept`` the share of elements that a sparse codec sends, and
    ``element_nbytes`` belongs to x and to what is decoded; residuals and references are float32. A store
    counts once (streaming stores need no read). Where single elements are touched, whole lines of 64 bytes
    move.
    """
    s, state = float(element_nbytes), 4.0
    if operation == "mix" or codec is None:  # x and two other vectors in, x out
        return 4.0 * s
    sparse = hasattr(codec, "values")

    def touched(nbytes: float) -> float:
        return nbytes * (1.0 - (1.0 - kept) ** (_LINE_NBYTES / nbytes)) if sparse else nbytes

    if operation == "encode":
        return payload + (touched(s) if codec.name == "randk" else s)
    if operation == "encode_feedback":
        return payload + s + 2.0 * state
    if operation == "encode_difference":  # a sparse packet changes the reference only where it sends
        return payload + s + state + touched(state)
    if operation == "decode":
        return payload + s
    if operation == "decode_add":
        return payload + 2.0 * touched(s)
    if operation == "reduce":  # packets in, one packet of the same codec out
        return (REDUCED + 1) * payload
    raise ValueError(f"roofline: unknown operation {operation!r}")


class Machine(Protocol):
    """Where arrays live, how a piece of work on them is timed, and how fast plain loops move them."""

    def array(self, values: Any, dtype: str = "float32") -> Any:
        """Returns a copy of float32 values, of that dtype, on the machine."""

    def host(self, values: Any) -> Any:
        """Returns the values as a float32 NumPy array."""

    def copy(self, source: Any, target: Any) -> Callable[[], object]:
        """Returns a call that copies the bytes of source to target, as libc or the driver does it."""

    def seconds(self, work: Work, calls: int) -> float:
        """Returns seconds a call, over about so many calls; if several, one more runs untimed before."""

    def probes(self, numel: int, threads: int) -> list[Probe]:
        """Returns the loops among which the fastest is the roof, over arrays of numel float32."""

    def close(self) -> None:
        """Ends the threads of its probes."""


class CpuMachine:
    """NumPy arrays (torch tensors for bfloat16), the monotonic clock, libc's memcpy into touched memory."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def array(self, values: Any, dtype: str = "float32") -> Any:
        if dtype == "bfloat16":  # NumPy has none
            try:
                import torch
            except ImportError as error:
                raise UnavailableError(
                    "bench: --dtype bfloat16 needs torch, since NumPy has no such type; "
                    "pip install 'dance-gan[torch]' or use --dtype float16"
                ) from error
            return torch.from_numpy(values).to(torch.bfloat16)
        # At the start of a cache line, as torch's tensors are.
        raw = np.empty(values.size * element_nbytes(dtype) + _LINE_NBYTES, np.uint8)
        start = -raw.ctypes.data % _LINE_NBYTES
        array = raw[start : raw.size - _LINE_NBYTES + start].view(dtype)
        array[:] = values
        return array

    def host(self, values: Any) -> Any:
        if isinstance(values, np.ndarray):
            return values.astype(np.float32)
        return values.float().numpy()

    def copy(self, source: Any, target: Any) -> Callable[[], object]:
        to, of, num_bytes = _address(target), _address(source), int(source.nbytes)
        return lambda: ctypes.memmove(to, of, num_bytes)

    def seconds(self, work: Work, calls: int) -> float:
        call, before = work.call, work.before
        if calls > 1:
            call()
        # The median of parts: a part in which the system did something else does not count. Work with
        # something before it is timed call by call.
        parts = calls if before is not None else min(calls, _PARTS)
        each = calls // parts
        found = []
        for _ in range(parts):
            if before is not None:
                before()
            start = time.perf_counter()
            for _ in range(each):
                call()
            found.append((time.perf_counter() - start) / each)
        return statistics.median(found)

    def probes(self, numel: int, threads: int) -> list[Probe]:
        x, y = (self.array(np.ones(numel, np.float32)) for _ in range(2))
        if threads == 1:
            found = [(name, num_bytes, Work(call=call), 1) for name, num_bytes, call in self._loops(x, y)]
        else:
            found = self._on_threads(x, y, threads)
        return [Probe(name=n, num_bytes=b * numel * rounds, work=work) for n, b, work, rounds in found]

    def _loops(self, x: Any, y: Any) -> list[tuple[str, int, Callable[[], object]]]:
        return [
            ("memcpy", 8, self.copy(x, y)),
            ("add in place", 12, lambda: np.add(y, x, out=y)),
            ("negate in place", 8, lambda: np.negative(y, out=y)),
        ]

    def _on_threads(self, x: Any, y: Any, threads: int) -> list[tuple[str, int, Work, int]]:
        """Every thread runs over its own part for a while, so that starting threads counts for little."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads)
        pool = self._pool
        halves = zip(np.array_split(x, threads), np.array_split(y, threads), strict=True)
        parts = [self._loops(*half) for half in halves]
        found = []
        for loops in zip(*parts, strict=True):
            name, num_bytes, call = loops[0]
            rounds = max(1, int(_PROBE_S / max(self.seconds(Work(call=call), 3), 1e-7)))
            calls = [loop[2] for loop in loops]
            found.append((name, num_bytes, Work(call=partial(_together, pool, calls, rounds)), rounds))
        return found

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


class CudaMachine:
    """torch tensors on the current GPU, CUDA events on torch's stream, a device-to-device copy as memcpy."""

    def __init__(self) -> None:
        self._torch = torch_with_gpu("bench")

    def array(self, values: Any, dtype: str = "float32") -> Any:
        return self._torch.from_numpy(values).cuda().to(getattr(self._torch, dtype), copy=True)

    def host(self, values: Any) -> Any:
        return values.float().cpu().numpy()

    def copy(self, source: Any, target: Any) -> Callable[[], object]:
        return lambda: target.copy_(source)

    def seconds(self, work: Work, calls: int) -> float:
        event = self._torch.cuda.Event
        if calls > 1:
            if work.before is not None:
                work.before()
            work.call()
        # With work in between that is not timed every call has its own pair of events.
        timed = calls if work.before is not None else 1
        pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(timed)]
        for start, end in pairs:
            if work.before is not None:
                work.before()
            start.record()
            for _ in range(calls // timed):
                work.call()
            end.record()
        pairs[-1][1].synchronize()
        return float(sum(start.elapsed_time(end) for start, end in pairs)) / 1e3 / calls

    def probes(self, numel: int, threads: int) -> list[Probe]:
        x, y = (self._torch.ones(numel, device="cuda") for _ in range(2))
        loops = [
            ("copy on the device", 8, lambda: y.copy_(x)),
            ("add in place", 12, lambda: y.add_(x)),
            ("negate in place", 8, lambda: y.neg_()),
        ]
        return [Probe(name=name, num_bytes=b * numel, work=Work(call=call)) for name, b, call in loops]

    def close(self) -> None:
        pass


def torch_with_gpu(command: str) -> Any:
    """Returns torch where it and this build can use a GPU, else raises UnavailableError, for ``command``."""
    info = dance.info()
    if not info["cuda_available"]:
        built = info["cuda_built"]
        reason = "no GPU or driver was found" if built else "this build of dance has no CUDA code"
        remedy = (
            "run on a machine with a GPU"
            if built
            else "build with nvcc and --config-settings cmake.define.DANCE_CUDA=ON"
        )
        raise UnavailableError(f"{command}: --device cuda: {reason}; {remedy}, or use --device cpu")
    try:
        import torch
    except ImportError as error:
        raise UnavailableError(
            f"{command}: --device cuda needs torch; pip install 'dance-gan[torch]'"
        ) from error
    if not torch.cuda.is_available():
        raise UnavailableError(
            f"{command}: --device cuda: torch {torch.__version__} sees no GPU; "
            "install a CUDA build of torch, or use --device cpu"
        )
    return torch


def element_nbytes(dtype: str) -> int:
    """Returns 4, or 2 for float16 and bfloat16; ValueError for what packets do not carry."""
    if dtype not in DTYPES:
        raise ValueError(f"bench: --dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    return 4 if dtype == "float32" else 2


def _together(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], object]], rounds: int) -> None:
    def repeat(call: Callable[[], object]) -> None:
        for _ in range(rounds):
            call()

    list(pool.map(repeat, calls))


def _address(array: Any) -> int:
    return int(array.ctypes.data) if isinstance(array, np.ndarray) else int(array.data_ptr())
