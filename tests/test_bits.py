"""Equal bits: every CPU target and number of threads against the oracle, over awkward sizes and values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import pytest
import reference

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
