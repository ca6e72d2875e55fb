"""What other libraries offer in the place of our codecs, each only where it is installed.

    pip install torch numpy pypiquant==4.1.0 bitsandbytes==0.50.2 torchao==0.18.0 hivemind==1.1.12
    pip install --no-deps fbgemm-gpu-cpu==1.8.0

A peer works on the same arrays as we do, its outputs allocated beforehand where it allows that; where it does
not, `recycle_memory` keeps its outputs from touching fresh pages. A peer's residual is reset as ours is.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

import dance
from dance.roofline import Work

from . import cupy_formulas, formulas, libraries, papers, rows
from .peer import BLOCK, PEERS, Arrays, Peer, Step

__all__ = [
    "FAILURES",
    "PEERS",
    "Ready",
    "cupy_formulas",
    "formulas",
    "installed",
    "libraries",
    "papers",
    "prepared",
    "rows",
    "set_num_threads",
    "versions",
]

# Name of the distribution -> the module it brings.
PACKAGES = {
    "torch": "torch",
    "numpy": "numpy",
    "fbgemm-gpu-cpu": "fbgemm_gpu",
    "pypiquant": "piquant",
    "bitsandbytes": "bitsandbytes",
    "hivemind": "hivemind",
    "torchao": "torchao",
    "cupy": "cupy",
}
FAILURES: dict[str, str] = {}  # what is installed and yet does not work -> why
_threads = 1


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A peer that has run once on the arrays at hand; nbytes is what it would send."""

    name: str
    work: Work
    nbytes: float | None
    decoded: Callable[[], Any] | None


def set_num_threads(num_threads: int) -> None:
    """Sets how many CPU threads the peers use from now on."""
    global _threads
    _threads = num_threads
    if installed("torch"):
        import torch

        torch.set_num_threads(num_threads)


@cache
def installed(package: str) -> str | None:
    """The version of a package that can be imported, else None; FAILURES has the reason if it is there."""
    if package == "torch.compile":  # compiles C++
        return installed("torch") if shutil.which("c++") or shutil.which("g++") else None
    if importlib.util.find_spec(PACKAGES[package]) is None:
        return None
    try:
        with _quiet():
            module = importlib.import_module(PACKAGES[package])
        if package == "cupy":  # the distribution is named after a version of CUDA
            return str(module.__version__)
        return importlib.metadata.version(package)
    except Exception as error:  # an extension built for another torch, say
        FAILURES[package] = _reason(error)
        return None


def versions() -> dict[str, str | None]:
    """Every package and the version that is installed, or None."""
    return {package: installed(package) for package in PACKAGES}


def prepared(
    codec: str, operation: str, bed: Any, device: str = "cpu", *, only: str | None = None
) -> list[Ready]:
    """Returns the peers of an operation of a codec (as text), ready to run on the arrays of a bench.Bed.

    Only the one of that name, if ``only`` is given; none where the input is not float32, not a multiple of
    256 elements, or the codec's options are not those of the peers.
    """
    if codec == "-" or bed.numel % BLOCK or bed.input_nbytes != 4 * bed.numel or installed("torch") is None:
        return []
    ours = dance.codec(codec)
    fits = [p for p in PEERS if (p.codec, p.operation) == (ours.name, operation) and device in p.devices]
    fits = [p for p in fits if only is None or p.name == only]
    if not fits or not _comparable(ours):
        return []
    _recycle_memory()
    arrays = _arrays(bed, ours)
    before = bed.reset if operation == "encode_feedback" else None
    found = []
    for one in fits:
        if installed(one.package) is None:
            continue
        try:
            with _quiet():
                step = one.make(arrays)
                step.call()
        except Exception as error:  # whatever a library raises concerns this peer alone
            FAILURES[f"{one.name}: {one.codec} {one.operation}"] = _reason(error)
            continue
        decoded = None if step.decoded is None else _decoding(one, step)
        work = Work(call=step.call, before=before)
        found.append(Ready(name=one.name, work=work, nbytes=step.nbytes, decoded=decoded))
    return found


def _comparable(codec: Any) -> bool:
    """Peers have our default options, but for ratio and value, which they take from the codec."""
    options = {key: getattr(codec, key) for key in ("ratio", "value") if hasattr(codec, key)}
    return bool(codec == type(codec)(**options))


def _arrays(bed: Any, codec: Any) -> Arrays:
    import torch

    known: Arrays | None = getattr(bed, "peer_arrays", None)
    if known is None:
        x, state, target = (
            a if isinstance(a, torch.Tensor) else torch.from_numpy(a) for a in (bed.x, bed.state, bed.target)
        )
        known = Arrays(x=x, state=state, target=target, codec=codec, threads=_threads, buffers={})
        bed.peer_arrays = known
    return replace(known, codec=codec)


def _decoding(one: Peer, step: Step) -> Callable[[], Any]:
    def decoded() -> Any:
        try:
            step.call()  # its buffers are shared with other peers
            assert step.decoded is not None
            values = step.decoded()
        except Exception as error:
            FAILURES[f"{one.name}: {one.codec} decode"] = _reason(error)
            return None
        return np.asarray(values.cpu() if hasattr(values, "cpu") else values, np.float32).reshape(-1)

    return decoded


@cache
def _recycle_memory() -> None:
    """Makes glibc keep what was freed: a peer that allocates its output gets touched memory again."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(-4, 0)  # M_MMAP_MAX: take everything from the heap
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: give nothing back


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


class _quiet(warnings.catch_warnings):  # noqa: N801
    """Within the block, other libraries neither warn nor log."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *error: object) -> None:
        logging.disable(logging.NOTSET)
        super().__exit__(*error)
