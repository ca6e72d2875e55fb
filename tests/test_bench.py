"""`dance bench`: every case is measured, the figures mean what they say, errors are clear."""

from __future__ import annotations

import json

import numpy as np
import pytest

import dance
from dance import bench
from dance.bench import BenchConfig, Case
from dance.codecs import CODECS
from dance.errors import UnavailableError

QUICK = BenchConfig(numel=("100", "4Ki"), repetitions=2)


def test_every_codec_and_operation_is_measured() -> None:
    threads = dance.info()["threads"]
    seen: list[Case] = []
    results = bench.measure(QUICK, seen.append)
    assert dance.info()["threads"] == threads
    names = {kind.name for kind in CODECS}
    assert {result.codec.partition(":")[0] for result in results} == names | {"-"}
    assert len(results) == len(seen) == 2 * (5 * len(names) + 1)
    for result in results:
        assert result.median_s > 0
        assert result.gb_s == pytest.approx(4e-9 * result.numel / result.median_s)
        assert result.memcpy_ratio > 0
    json.dumps(bench.report(QUICK, results), allow_nan=False)


def test_bytes_and_error_are_those_of_the_packet() -> None:
    codecs = ("int8", "topk:ratio=0.1", "none")
    config = BenchConfig(codec=codecs, operation=("encode", "decode"), numel=("1000",), repetitions=1)
    results = bench.measure(config)
    x = np.random.default_rng(0).standard_normal(1000, dtype=np.float32)
    for result in results:
        packet = dance.encode(x, result.codec)
        assert result.bytes_per_element == packet.nbytes / 1000
        if result.operation == "encode":
            error = np.linalg.norm(dance.decode(packet) - x) / np.linalg.norm(x)
            assert result.relative_error == pytest.approx(error, rel=1e-5)
        else:
            assert result.relative_error is None


def test_a_copy_measured_against_itself_is_near_one() -> None:
    """The codec none encodes by copying, so its ratio to memcpy is of the order of 1."""
    config = BenchConfig(codec=("none",), operation=("encode",), numel=("1Mi",), repetitions=5)
    (result,) = bench.measure(config)
    assert 0.1 < result.memcpy_ratio < 10


@pytest.mark.parametrize("operation", bench.OPERATIONS)
def test_work_does_what_its_name_says(operation: str) -> None:
    bed = bench.Bed(bench.CpuMachine(), 777)
    state, target = bed.state.copy(), bed.target.copy()
    bed.work(Case(codec="int8", operation=operation, numel=777))()
    assert (bed.state != state).any() == (operation in ("encode_feedback", "encode_difference", "mix"))
    assert (bed.target != target).any() == operation.startswith("decode")
    bed.reset()
    assert (bed.state == state).all()


@pytest.mark.parametrize(("text", "numel"), [("1", 1), ("4096", 4096), ("64Ki", 65536), ("1Mi", 1 << 20)])
def test_sizes(text: str, numel: int) -> None:
    assert bench.elements(text) == numel
    assert bench.elements(bench.sized(numel)) == numel


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BenchConfig(numel=("0",)), "1 to 1Gi elements"),
        (BenchConfig(numel=("-4",)), "1 to 1Gi elements"),
        (BenchConfig(numel=("many",)), "'many'"),
        (BenchConfig(numel=("2Gi",)), "1 to 1Gi elements"),
        (BenchConfig(codec=("int9",)), "unknown codec"),
        (BenchConfig(operation=("squeeze",)), "unknown operation 'squeeze'"),
        (BenchConfig(repetitions=0), "at least 1"),
        (BenchConfig(threads=0), "at least 1"),
    ],
)
def test_errors(config: BenchConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench.measure(config)


def test_cuda_without_a_gpu_says_what_to_do() -> None:
    if dance.info()["cuda_available"]:
        pytest.skip("this machine has a GPU")
    with pytest.raises(UnavailableError, match="--device cpu"):
        bench.measure(BenchConfig(device="cuda", numel=("1Ki",)))


@pytest.mark.cuda
def test_cuda() -> None:
    results = bench.measure(BenchConfig(device="cuda", numel=("64Ki",), repetitions=2))
    assert all(result.gb_s > 0 for result in results)
