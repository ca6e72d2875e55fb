"""The cases of `dance bench` as a pytest-benchmark suite, one group a codec and size, memcpy in each group.

    pytest benchmarks/bench_codecs.py --benchmark-group-by=group --benchmark-columns=median,iqr,rounds
    pytest benchmarks/bench_codecs.py -k "int8 and 16Mi" --benchmark-json=int8.json

DANCE_BENCH_NUMEL (say 64Ki,1Mi) chooses other sizes. extra_info holds GB/s of float32 input, as `dance bench`
counts it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest

import dance
from dance.bench import Bed, BenchConfig, Case, CpuMachine, cases, elements, sized

SIZES = tuple(os.environ.get("DANCE_BENCH_NUMEL", "64Ki,1Mi,16Mi").split(","))
CASES = cases(BenchConfig(numel=SIZES))


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


def measure(benchmark: Any, numel: int, work: Callable[[], object]) -> None:
    bed = bed_of(numel)
    if numel >= 1 << 20:
        benchmark.pedantic(work, setup=bed.reset, rounds=9, iterations=1, warmup_rounds=2)
    else:
        benchmark(work)
    if benchmark.stats is not None:  # None with --benchmark-disable
        benchmark.extra_info["gb_s"] = 4e-9 * numel / benchmark.stats.stats.median


def name_of(case: Case) -> str:
    return f"{case.operation}-{case.codec}-{sized(case.numel)}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_codec(benchmark: Any, case: Case) -> None:
    benchmark.group = f"{sized(case.numel)} {case.codec}"
    bed = bed_of(case.numel)
    bed.reset()
    measure(benchmark, case.numel, bed.work(case))


@pytest.mark.parametrize(
    ("codec", "numel"), list(dict.fromkeys((case.codec, case.numel) for case in CASES)), ids=str
)
def test_memcpy(benchmark: Any, codec: str, numel: int) -> None:
    """libc's copy of the input, measured in every group, in the same run."""
    benchmark.group = f"{sized(numel)} {codec}"
    measure(benchmark, numel, bed_of(numel).memcpy())


def test_sizes_are_understood() -> None:
    assert [elements(size) for size in SIZES]
