"""Equal bits: every CPU target and number of threads against the oracle, over awkward sizes and values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import numpy as np
import pytest
import reductions
import reference
import torch

import dance
from dance import _native

TARGETS = dance.info()["cpu_targets"]
EXAMPLES = [str(dance.codec(example)) for kind in dance.codecs.CODECS for example in kind.examples]


Task = cases.Case | reductions.Reduction | reductions.Mix


def tasks() -> list[Task]:
    return [*cases.all_cases(), *reductions.all_cases()]


def module_of(task: Task) -> Any:
    return cases if isinstance(task, cases.Case) else reductions


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """Of every target, two at a time, while this process asks the oracle."""
    with ThreadPoolExecutor(2) as pool:
        yield {target: pool.submit(run_target, target, "1", "2", "7") for target in TARGETS}


@pytest.fixture(scope="module")
def expected(runs: object) -> dict[str, str]:
    return {task.name: cases.digest(module_of(task).through_oracle(task)) for task in tasks()}


def threads_of(task: Task) -> tuple[int, int]:
    """How many loops, at least and at most, have to run on all threads: those of three decodes among them."""
    if isinstance(task, reductions.Mix):
        return 1, 1
    if isinstance(task, reductions.Reduction):
        return 1 + len(task.codecs), 1000
    return (3, 1000) if "ratio=" in task.codec or "value=" in task.codec else (4, 4)


def run_target(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(cases.__file__)), *arguments],
        env={**os.environ, "DANCE_CPU": target},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_and_number_of_threads_equals_the_oracle(
    target: str, runs: dict[str, Future[subprocess.CompletedProcess[str]]], expected: dict[str, str]
) -> None:
    done = runs[target].result()
    if "this CPU lacks these instructions" in done.stderr:
        pytest.skip(f"this CPU lacks {target}")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["target"] == target
    assert len(expected) == len(tasks()) > 15_000
    for num_threads, done in report["done"].items():
        digests = {name: got for name, (got, _) in done.items()}
        assert digests.keys() == expected.keys() or num_threads != "1"
        for task in tasks() if num_threads != "1" else ():
            if task.numel == cases.THREADED:
                least, most = threads_of(task)
                assert int(num_threads) * least <= done[task.name][1] <= int(num_threads) * most, task.name
        wrong = [task for task in tasks() if digests.get(task.name, "") not in ("", expected[task.name])]
        if wrong:
            first = wrong[0]
            got, want = (
                run(first) for run in (module_of(first).through_dance, module_of(first).through_oracle)
            )
            elsewhere = "equal in this process, whose target or number of threads is another"
            pytest.fail(
                f"{target}, {num_threads} threads: {len(wrong)} of {len(expected)} cases differ, first "
                f"{first.name}: {cases.difference(got, want) or elsewhere}; also "
                + ", ".join(task.name for task in wrong[1:30])
            )


def test_an_unknown_target_is_an_error() -> None:
    done = run_target("sse9", "1")
    assert done.returncode != 0
    assert "sse9" in done.stderr
    assert "baseline" in done.stderr  # the remedy lists what there is


def test_topk_while_another_thread_changes_the_number_of_threads() -> None:
    """Both passes of the selector must cut the array alike, or they write past their memory."""
    code = """
import threading
import numpy as np
import dance
x = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
expected = dance.encode(x, "topk:ratio=0.3").to_bytes()
done = threading.Event()
def change():
    n = 0
    while not done.is_set():
        n += 1
        dance.set_num_threads(1 + n % 8)
changer = threading.Thread(target=change)
changer.start()
try:
    assert all(dance.encode(x, "topk:ratio=0.3").to_bytes() == expected for _ in range(40))
finally:
    done.set()
    changer.join()
"""
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_bits_do_not_depend_on_the_callers_floating_point_mode() -> None:
    """torch.set_flush_denormal, or a library linked with -ffast-math, must not reach the kernels."""
    chosen = [case for case in cases.small_cases() if case.values in ("denormal", "smallest", "half")][::3]
    chosen += [case for case in cases.threaded_cases() if case.values == "mixed"][::3]
    expected = [cases.digest(cases.through_oracle(case)) for case in chosen]
    for num_threads in (1, 2):
        dance.set_num_threads(num_threads)
        for case, want in zip(chosen, expected, strict=True):
            arrays = case.arrays()  # NumPy would flush what it draws
            known = {name: getattr(case, name) for name in ("codec", "operation", "numel", "seed", "dtypes")}
            prepared = SimpleNamespace(**known, arrays=lambda a=arrays: tuple(array.copy() for array in a))
            assert torch.set_flush_denormal(True)
            try:
                with _native.small_grains():
                    got = cases.through_dance(prepared)  # type: ignore[arg-type]
                kept = bool(torch.tensor(1e-38) * 0.1 == 0.0)
            finally:
                torch.set_flush_denormal(False)
            assert kept, "the caller's mode must be as it was"
            assert cases.digest(got) == want, case.name
    dance.set_num_threads(1)


def test_the_caller_works_alone_when_the_system_gives_no_more_threads() -> None:
    code = """
import re, resource
import numpy as np
import dance
x = np.random.default_rng(0).standard_normal(1 << 21).astype(np.float32)
dance.set_num_threads(1)
p = dance.encode(x, "int8")
expected = p.to_bytes()
dance.set_num_threads(8)
used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), -1))  # less than the stack of one thread
for _ in range(10):
    dance.encode(x, "int8", out=p)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
assert p.to_bytes() == expected
assert dance.encode(x, "int8", out=p).to_bytes() == expected
"""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_topk_of_an_input_that_another_thread_changes_stays_in_its_memory() -> None:
    code = """
import threading
import numpy as np
import dance
x = np.random.default_rng(0).standard_normal(1 << 19).astype(np.float32)
small, large = x.copy(), x * 1000
done = threading.Event()
def change():
    while not done.is_set():
        x[:] = large
        x[:] = small
changer = threading.Thread(target=change)
changer.start()
for _ in range(100):
    dance.encode(x, "topk:ratio=0.01")
done.set()
changer.join()
"""
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)


# ---- what is not finite


@pytest.mark.parametrize("codec", EXAMPLES)
def test_the_largest_values_decode_to_finite_values_for_every_block_length(codec: str) -> None:
    for numel in [*range(1, 70), 97, 127, 128, 129, 255, 257, 1000, 4095, 4096]:
        for value in (-cases.FLT_MAX, np.nextafter(cases.FLT_MAX, np.float32(0.0))):
            x = np.full(numel, value, np.float32)
            assert np.isfinite(dance.decode(dance.encode(x, codec, seed=numel))).all(), (codec, numel)
            x[::2] *= -1
            residual = np.zeros(numel, np.float32)
            dance.encode_feedback(x, residual, codec, seed=numel)
            assert np.isfinite(residual).all(), (codec, numel)


@pytest.mark.parametrize("codec", EXAMPLES)
def test_the_first_element_that_is_not_finite_is_named(codec: str) -> None:
    rng = np.random.default_rng(5)
    for numel, where in ((1, [0]), (100, [99]), (5000, [4321, 4999]), (30_000, [17_001, 17_000, 29_999])):
        x = rng.standard_normal(numel).astype(np.float32)
        x[where] = np.nan
        x[where[-1]] = np.inf
        for num_threads in (1, 7):
            dance.set_num_threads(num_threads)
            for dtype in cases.DTYPES:
                with np.errstate(all="ignore"):
                    array = cases.to_arrays(reference.store(x, dtype), dtype)
                with _native.small_grains(), pytest.raises(dance.NonFiniteError) as caught:
                    dance.encode(array, codec)
                assert caught.value.index == min(where)
            big = np.full(numel, cases.FLT_MAX, np.float32)
            big[: min(where)] = 0
            with _native.small_grains(), pytest.raises(dance.NonFiniteError) as caught:
                dance.encode_feedback(big, big.copy(), codec)  # v is not finite; x and the residual are
            assert caught.value.index == min(where)
    dance.set_num_threads(1)


@pytest.mark.parametrize("codec", EXAMPLES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_state_that_is_not_touched_keeps_its_bits(codec: str, dtype: str) -> None:
    """Every NaN there is among them: no conversion there and back makes a signalling one quiet."""
    numel = 6 * 4096
    wide = dtype == "float32"
    bits = np.random.default_rng(9).integers(0, 1 << 32, numel, dtype=np.uint32)
    bits = bits if wide else bits.astype(np.uint16)
    bits[bits << 1 == 0] = 0  # a reference's -0.0 becomes +0.0, as receivers' do
    kept = bits.copy()
    special = np.isnan(reference.load(bits.view(np.float32) if wide else raw_of(bits, dtype), dtype))
    assert special.sum() > 50
    x = np.full(numel, np.inf, np.float32)  # no element of v is finite
    for step in (dance.encode_feedback, dance.encode_difference):
        step(x, cases.to_arrays(raw_of(bits, dtype), dtype), codec, nonfinite="zero")
        assert np.array_equal(bits, kept)
    if "values" in {field.name for field in fields(dance.codec(codec))}:
        x = np.random.default_rng(9).standard_normal(numel).astype(np.float32)
        p = dance.encode(x, codec, seed=3)
        sent = dance.decode(p) != 0.0
        assert 0 < sent.sum() < numel
        dance.decode(p, out=cases.to_arrays(raw_of(bits, dtype), dtype), add=True)
        assert np.array_equal(bits[~sent & special], kept[~sent & special])
        assert np.array_equal(bits[~sent], kept[~sent])


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("codec", [*EXAMPLES, "randk:ratio=0.5,values=sign", "topk:ratio=1.0,values=sign"])
def test_senders_hold_what_receivers_hold_though_elements_are_not_finite(codec: str, dtype: str) -> None:
    rng = np.random.default_rng(11)
    x = rng.standard_normal(5000).astype(np.float32)
    x[::100] = np.nan
    x[7::500] = np.inf
    before = rng.standard_normal(5000).astype(np.float32)
    before[::50] = -0.0
    sender = reference.store(before, dtype)
    receiver = sender.copy()
    p = dance.encode_difference(x, cases.to_arrays(sender, dtype), codec, seed=4, nonfinite="zero")
    dance.decode(p, out=cases.to_arrays(receiver, dtype), add=True)
    assert sender.tobytes() == receiver.tobytes()


def raw_of(bits: np.ndarray, dtype: str) -> np.ndarray:
    return bits if dtype == "bfloat16" else bits.view(cases.out_type(dtype))


# ---- dtypes


def test_halves_are_rounded_to_even_and_saturate() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    halves = every[(every & 0x7C00) != 0x7C00].view(np.float16).astype(np.float32)
    halves.sort()
    middles = (halves[:-1] + halves[1:]) / 2  # exact in float32: the ties
    x = np.concatenate([halves, middles, np.nextafter(middles, -np.inf), np.nextafter(middles, np.inf)])
    for codec in ("fp16", "bf16"):
        got = bytes(dance.encode(x, codec).payload)
        assert got == reference.encode(reference.codec(codec), x).payload
    p = dance.encode(x, "none")
    for dtype in ("float16", "bfloat16"):
        out = np.zeros(x.size, np.uint16)
        dance.decode(p, out=cases.to_arrays(raw_of(out, dtype), dtype))
        assert np.array_equal(out, reference.store(x, dtype).view(np.uint16))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_arrays_of_16_bits_are_read_as_they_are(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    value = reference.load(raw_of(bits, dtype), dtype)
    finite = np.isfinite(value)
    x = cases.to_arrays(raw_of(bits[finite].copy(), dtype), dtype)
    p = dance.encode(x, "none")
    assert bytes(p.payload) == bits[finite].tobytes()
    out = np.zeros(finite.sum(), np.float32)
    dance.decode(p, out=out)
    assert np.array_equal(out.view(np.uint32), value[finite].view(np.uint32))


def test_float64_is_encoded_as_the_nearest_float32() -> None:
    x = np.random.default_rng(0).standard_normal(1000)
    for codec in EXAMPLES:
        wide = dance.encode(x, codec, seed=1)
        assert wide.to_bytes() == dance.encode(x.astype(np.float32), codec, seed=1).to_bytes()
