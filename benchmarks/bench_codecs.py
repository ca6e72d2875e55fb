"""The cases of `dance bench` for pytest-benchmark; a group is a codec and a size, with memcpy and peers.

    pytest benchmarks/bench_codecs.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_codecs.py -k "int8 and 16Mi" --benchmark-json=int8.json

DANCE_BENCH_NUMEL (say 64Ki,1Mi) chooses other sizes. Peers are the libraries of benchmarks/peers that are
installed. extra_info holds GB/s of float32 input, as `dance bench` counts it. pytest-benchmark runs one case
after another; ratios are better taken from `dance bench`, which takes turns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest

import dance
from dance.bench import Bed, BenchConfig, Case, CpuMachine, Work, cases, elements, load_peers, sized
from dance.errors import UnavailableError

SIZES = tuple(os.environ.get("DANCE_BENCH_NUMEL", "64Ki,1Mi,16Mi").split(","))
CASES = cases(BenchConfig(numel=SIZES))


def peer_cases() -> list[tuple[str, Case]]:
    """Every peer by name, with the case that it stands beside."""
    try:
        peers = load_peers()
    except UnavailableError:
        return []
    found = []
    for case in CASES:
        ours = case.codec.partition(":")[0], case.operation
        fit = [p for p in peers.PEERS if (p.codec, p.operation) == ours and "cpu" in p.devices]
        found += [(p.name, case) for p in fit]
    return found


@lru_cache(maxsize=1)
def bed_of(numel: int) -> Bed:
    """The arrays of one size at a time: four of 64 MiB each are enough."""
    return Bed(CpuMachine(), numel)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    kept = dance.info()["threads"]
    dance.set_num_threads(1)
    yield
    dance.set_num_threads(kept)


def measure(benchmark: Any, numel: int, work: Work) -> None:
    if work.before is not None or numel >= 1 << 20:
        benchmark.pedantic(work.call, setup=work.before, rounds=max(9, (1 << 22) // numel), warmup_rounds=2)
    else:
        benchmark(work.call)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["gb_s"] = 4e-9 * numel / benchmark.stats.stats.median


def name_of(value: object) -> str:
    if isinstance(value, Case):
        return f"{value.operation}-{value.codec}-{sized(value.numel)}"
    return str(value)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_codec(benchmark: Any, case: Case) -> None:
    benchmark.group = f"{sized(case.numel)} {case.codec}"
    try:
        work = bed_of(case.numel).work(case)
    except UnavailableError as error:
        pytest.skip(f"not built: {error}")
    measure(benchmark, case.numel, work)


@pytest.mark.parametrize(("peer", "case"), peer_cases(), ids=name_of)
def test_peer(benchmark: Any, peer: str, case: Case) -> None:
    benchmark.group = f"{sized(case.numel)} {case.codec}"
    peers = load_peers()
    peers.set_num_threads(1)
    for ready in peers.prepared(case.codec, case.operation, bed_of(case.numel), only=peer):
        return measure(benchmark, case.numel, ready.work)
    pytest.skip(f"{peer} is not installed, does not work, or has no such size")


@pytest.mark.parametrize(
    ("codec", "numel"), list(dict.fromkeys((case.codec, case.numel) for case in CASES)), ids=str
)
def test_memcpy(benchmark: Any, codec: str, numel: int) -> None:
    """libc's copy of the input, measured in every group, in the same run."""
    benchmark.group = f"{sized(numel)} {codec}"
    measure(benchmark, numel, bed_of(numel).memcpy())


def test_sizes_are_understood() -> None:
    assert [elements(size) for size in SIZES]
