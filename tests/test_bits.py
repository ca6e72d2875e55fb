"""Equal bits: every CPU target and number of threads against the oracle, over awkward sizes and values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cases
import numpy as np
import pytest
import reference
import torch

import dance

TARGETS = dance.info()["cpu_targets"]


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    return {case.name: cases.digest(cases.through_oracle(case)) for case in cases.all_cases()}


def run_target(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(cases.__file__)), *arguments],
        env={**os.environ, "DANCE_CPU": target},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_and_number_of_threads_equals_the_oracle(target: str, expected: dict[str, str]) -> None:
    done = run_target(target, "1", "2", "7")
    if "UnavailableError" in done.stderr:
        pytest.skip(f"this CPU lacks {target}")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["target"] == target
    for num_threads, digests in report["digests"].items():
        wrong = [case for case in cases.all_cases() if digests[case.name] != expected[case.name]]
        assert not wrong, (
            f"{target}, {num_threads} threads: {len(wrong)} cases differ, first {wrong[0].name}: "
            + (
                cases.difference(cases.through_dance(wrong[0]), cases.through_oracle(wrong[0]))
                or "equal in this process, whose target or number of threads is another"
            )
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
    chosen = [case for case in cases.small_cases() if case.values in ("denormal", "smallest", "half")]
    chosen += [case for case in cases.large_cases() if case.values == "mixed"]
    expected = [cases.digest(cases.through_oracle(case)) for case in chosen]
    for num_threads in (1, 2):
        dance.set_num_threads(num_threads)
        for case, want in zip(chosen, expected, strict=True):
            arrays = case.arrays()  # NumPy would flush what it draws
            prepared = SimpleNamespace(codec=case.codec, operation=case.operation, arrays=lambda a=arrays: a)
            assert torch.set_flush_denormal(True)
            try:
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
    try:
        dance.encode(x, "topk:ratio=0.01")
    except ValueError as error:
        assert "changed the input" in str(error)
done.set()
changer.join()
"""
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)


@pytest.mark.parametrize("numel", [0, 1, 33, cases.PRIME, cases.LARGE])
@pytest.mark.parametrize("values", ["gaussian", "huge", "denormal"])
def test_mix_equals_the_oracle(numel: int, values: str) -> None:
    rng = np.random.default_rng(numel)
    x, s, ref = (cases.VALUES[values](rng, numel) for _ in range(3))
    with np.errstate(all="ignore"):
        expected = reference.mix(x, s, ref, cases.STEP)
    dance.mix(x, s, ref, cases.STEP)
    assert np.array_equal(x.view(np.uint32), expected.view(np.uint32))


def test_the_largest_values_decode_to_finite_values_for_every_block_length() -> None:
    for codec in ("int8:block=4096", "sign:block=4096", "fp16", "bf16"):
        for numel in [*range(1, 130), 255, 257, 1000, 4095, 4096]:
            x = np.full(numel, -cases.FLT_MAX, np.float32)
            assert np.isfinite(dance.decode(dance.encode(x, codec))).all(), (codec, numel)


def test_halves_are_rounded_to_even_and_saturate() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    halves = every[(every & 0x7C00) != 0x7C00].view(np.float16).astype(np.float32)
    halves.sort()
    middles = (halves[:-1] + halves[1:]) / 2  # exact in float32: the ties
    x = np.concatenate([halves, middles, np.nextafter(middles, -np.inf), np.nextafter(middles, np.inf)])
    for codec in ("fp16", "bf16"):
        got = bytes(dance.encode(x, codec).payload)
        assert got == reference.codec(codec).encode(x).payload
