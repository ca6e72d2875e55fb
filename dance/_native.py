"""The only importer of the extension ``dance._core``: its functions, and the number of threads they use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import Any

try:
    import dance._core as _core
except ImportError as error:
    # Mostly a source tree in the current folder that hides the installed package.
    raise ImportError(
        f"dance._core cannot be imported ({error}): {Path(__file__).parent} is not built. "
        "If dance is installed, run Python in another folder; else `pip install -e .` in the source tree"
    ) from error

Spec = _core.Spec
Reduction = _core.Reduction
codecs = _core.codecs
address = _core.address
payload_nbytes = _core.payload_nbytes
payload_bound = _core.payload_bound
num_values = _core.num_values
encode = _core.encode
decode = _core.decode
indices = _core.indices
mix = _core.mix
cuda_scratch_nbytes = _core.cuda_scratch_nbytes
cuda_built = _core.cuda_built
cuda_available = _core.cuda_available
header_write = _core.header_write
header_parse = _core.header_parse
payload_check = _core.payload_check
crc32c = _core.crc32c
version = _core.version

# Fewer elements (of a reduce: times packets) are one thread's work whatever the number of threads is. What
# two threads share is more than half of kGrain (in a reduce, where pieces are as large), and of a sparse
# codec blocks with more than half of kValueGrain values (csrc/cpu/parallel.h).
PARALLEL_NUMEL, PARALLEL_SPARSE_NUMEL = 1 << 17, 1 << 13

_MAX_THREADS = 256  # csrc/cpu/parallel.h: kMaxThreads
_SMALL_GRAINS = 12  # 2^18 elements become 64
_follows_torch = True


def set_num_threads(num_threads: int) -> None:
    """Sets how many CPU threads the core uses from now on, in whatever it does (1 to 256).

    Without this call the number is torch's whenever torch is imported; else that of ``DANCE_NUM_THREADS``,
    ``OMP_NUM_THREADS`` or the CPUs this process may run on. The number never changes a bit of a result.
    """
    global _follows_torch
    try:
        count = index(num_threads)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"set_num_threads: expected an integer of at least 1, got {num_threads!r}")
    if count > _MAX_THREADS:
        raise ValueError(f"set_num_threads: expected 1 to {_MAX_THREADS}, got {num_threads!r}")
    _core.set_num_threads(count)
    _follows_torch = False


def follow_torch() -> None:
    """Takes over torch's number of threads, unless the user has set one; for who may use several."""
    if _follows_torch:
        torch = sys.modules.get("torch")
        if torch is not None:
            _core.set_num_threads(min(torch.get_num_threads(), _MAX_THREADS))


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Within the block the core uses ``count`` threads; afterwards as many as before, torch's if so."""
    global _follows_torch
    kept, followed = _core.get_num_threads(), _follows_torch
    set_num_threads(count)
    try:
        yield
    finally:
        _core.set_num_threads(kept)
        _follows_torch = followed


@contextmanager
def small_grains() -> Iterator[Callable[[], int]]:
    """For tests: within the block arrays of a few blocks use several threads, and each of them has its part.

    What it yields returns how often a thread has begun on a part of an array since the block was entered.
    """
    before = _core.num_begun_together()
    _core.set_grain_shift(_SMALL_GRAINS)
    try:
        yield lambda: _core.num_begun_together() - before
    finally:
        _core.set_grain_shift(0)


def info() -> dict[str, Any]:
    """Returns what this build and this machine offer.

    Keys: version, cpu_targets (built in), cpu_target (active; ``DANCE_CPU`` forces one), threads, cuda_built,
    cuda_available, cuda_architectures.
    """
    follow_torch()
    return {
        "version": _core.version,
        "cpu_targets": list(_core.cpu_targets()),
        "cpu_target": _core.cpu_target(),
        "threads": _core.get_num_threads(),
        "cuda_built": _core.cuda_built(),
        "cuda_available": _core.cuda_available(),
        "cuda_architectures": list(_core.cuda_architectures()),
    }
