"""The C++ front door by itself: what it refuses though dance never asks, and what the environment sets."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dance
from dance import _native

NUMEL = 300
X = np.arange(NUMEL, dtype=np.float32)
INT8 = dance.codec("int8").spec(NUMEL)
PAYLOAD = np.zeros(_native.payload_nbytes(INT8, 0, NUMEL), np.uint8)


def encode(**changes: int) -> tuple[int, int]:
    arguments = {
        "operation": 0,
        "x": _native.address(X),
        "dtype": 0,
        "state": 0,
        "state_dtype": 0,
        "numel": NUMEL,
        "seed": 0,
        "payload": _native.address(PAYLOAD),
        "payload_nbytes": PAYLOAD.nbytes,
        "device": -1,
        "stream": 0,
        "flags": 0,
        "scratch": 0,
    }
    return _native.encode(codec=INT8, **(arguments | changes))  # type: ignore[arg-type]


def reduction(numel: int = NUMEL, *packets: int, device: int = -1) -> _native.Reduction:
    """Of packets with so many elements, all in the same memory."""
    made = _native.Reduction(numel, 1.0, device, 0)
    for own in packets:
        spec = dance.codec("int8").spec(own)
        nbytes = _native.payload_nbytes(spec, 0, own)
        made.add(spec, 0, 0, _native.address(PAYLOAD), nbytes, own)
    return made


def encode_into(made: _native.Reduction, payload: np.ndarray) -> _native.Reduction:
    made.encode(INT8, 0, 0, 0, 0, _native.address(payload), payload.nbytes, 0)
    return made


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"operation": 3}, "operation 3 is unknown"),
        ({"operation": -1}, "operation -1 is unknown"),
        ({"dtype": 3}, "dtype 3 is unknown"),
        ({"state_dtype": 255}, "dtype 255 is unknown"),
        ({"operation": 1}, "int8: this operation needs a residual or reference"),
        ({"payload_nbytes": 307}, "a payload of 300 elements has 308 bytes, got 307"),
        ({"payload": _native.address(PAYLOAD) + 1}, "must be aligned to 4 bytes"),
    ],
)
def test_encode_refuses(changes: dict[str, int], says: str) -> None:
    assert encode() == (-1, 0)
    with pytest.raises(ValueError, match=says):
        encode(**changes)


@pytest.mark.parametrize("spec", [{"id": 200}, {"id": 2, "mode": 77}, {"id": 0, "values": 1}])
def test_a_spec_that_no_codec_has_is_refused(spec: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"unknown|has no|must be"):
        _native.payload_nbytes(_native.Spec(**spec), 0, NUMEL)


def test_reduce_refuses() -> None:
    out = np.zeros(NUMEL, np.float32)
    other = np.zeros_like(PAYLOAD)
    with pytest.raises(ValueError, match="at least one packet"):
        reduction().run(0)
    with pytest.raises(ValueError, match="either an output array or a packet"):
        reduction(NUMEL, NUMEL).run(0)
    both = encode_into(reduction(NUMEL, NUMEL), other)
    both.store(_native.address(out), 0)
    with pytest.raises(ValueError, match="either an output array or a packet"):
        both.run(0)
    with pytest.raises(ValueError, match="packet 1 has 299 elements, not 300"):
        encode_into(reduction(NUMEL, NUMEL, NUMEL - 1), other).run(0)
    with pytest.raises(ValueError, match="shares memory with packet 0"):
        encode_into(reduction(NUMEL, NUMEL), PAYLOAD).run(0)
    assert encode_into(reduction(NUMEL, NUMEL), other).run(0) == (-1, 0)


@pytest.mark.skipif(_native.cuda_built(), reason="this build has CUDA code")
def test_a_build_without_cuda_says_so() -> None:
    address = _native.address(X)
    spec = dance.codec("topk:ratio=0.1").spec(NUMEL)
    calls: list[Callable[[], object]] = [
        lambda: encode(device=0),
        lambda: _native.decode(
            INT8, 0, 0, _native.address(PAYLOAD), PAYLOAD.nbytes, address, 0, NUMEL, False, 1.0, 0, 0, 0
        ),
        lambda: encode_into(reduction(NUMEL, NUMEL, device=0), np.zeros_like(PAYLOAD)).run(0),
        lambda: reduction(NUMEL, NUMEL, device=0).scratch_nbytes(),
        lambda: _native.mix(address, address, address, 0, 0.5, NUMEL, 0, 0),
        lambda: _native.cuda_scratch_nbytes(spec, 0, NUMEL),
    ]
    for call in calls:
        with pytest.raises(dance.UnavailableError, match="no CUDA code; install nvcc"):
            call()
    assert _native.cuda_scratch_nbytes(INT8, 0, 0) == 0


def run(code: str, **environment: str) -> str:
    """What a new process prints, or the message of the error it ends with."""
    names = ("DANCE_CPU", "DANCE_NUM_THREADS", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env={name: value for name, value in os.environ.items() if name not in names} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout or done.stderr).strip().splitlines()[-1]


def test_the_environment_chooses_the_number_of_threads() -> None:
    code = "import dance; print(dance.info()['threads'])"
    cpus = min(len(os.sched_getaffinity(0)), 256)
    for environment, threads in (
        ({}, cpus),
        ({"DANCE_NUM_THREADS": "5", "OMP_NUM_THREADS": "3"}, 5),
        ({"DANCE_NUM_THREADS": "", "OMP_NUM_THREADS": "3,2"}, 3),
        ({"OMP_NUM_THREADS": "100000"}, 256),
        ({"OMP_NUM_THREADS": "many"}, cpus),
        ({"LOCAL_WORLD_SIZE": "2"}, max(1, cpus // 2)),
        ({"LOCAL_WORLD_SIZE": "1000"}, 1),
    ):
        assert run(code, **environment) == str(threads), environment
    for wrong in ("0", "257", "4,2", "two"):
        assert f"DANCE_NUM_THREADS={wrong}: expected a whole number from 1 to 256" in run(
            code, DANCE_NUM_THREADS=wrong
        )
    with pytest.raises(ValueError, match="expected 1 to 256, got 257"):
        dance.set_num_threads(257)


def test_ranks_of_torchrun_share_the_cpus(tmp_path: Path) -> None:
    """What each of four ranks starts, as torchrun sets OMP_NUM_THREADS and, at odd ranks, without it."""
    script = tmp_path / "rank.py"
    script.write_text("""
import os, sys
rank = int(os.environ["RANK"])
if rank % 2:
    del os.environ["OMP_NUM_THREADS"]
import numpy as np, dance
if rank == 0:
    import torch
x = np.random.default_rng(0).standard_normal(1 << 21).astype(np.float32)
before = len(os.listdir("/proc/self/task"))
for _ in range(5):
    dance.decode(dance.encode(x, "int8"))
started = len(os.listdir("/proc/self/task")) - before
open(f"{sys.argv[1]}/{rank}", "w").write(f"{dance.info()['threads']} {1 + started}")
""")
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "DANCE_NUM_THREADS")}
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=4", "--standalone", str(script), str(tmp_path))
    subprocess.run(
        [sys.executable, *launch], cwd=tmp_path, env=environment, capture_output=True, check=True, timeout=300
    )
    shares = [(tmp_path / str(rank)).read_text().split() for rank in range(4)]
    assert [share[0] for share in shares] == [share[1] for share in shares]
    cpus = len(os.sched_getaffinity(0))
    assert sum(int(share[1]) for share in shares) <= max(4, cpus)
    assert [int(share[1]) for share in shares] == [1, max(1, cpus // 4)] * 2


def test_the_environment_chooses_the_cpu_target() -> None:
    code = "import dance; print(dance.info()['cpu_target'])"
    built = dance.info()["cpu_targets"]
    assert run(code) in built
    assert run(code, DANCE_CPU="baseline") == "baseline"
    assert "DANCE_CPU=sse9: unknown CPU target; this build has baseline" in run(code, DANCE_CPU="sse9")
    for name in {"avx2", "avx512", "neon"} - set(built):
        assert f"UnavailableError: DANCE_CPU={name}: not in this build" in run(code, DANCE_CPU=name)


# ---- Python's lock


def seen_from_another_thread(work: Callable[[], object]) -> bool:
    """Whether another thread of Python runs while ``work`` does. None takes its turn by itself here: ``work``
    has to release Python's lock. An attempt may fail, where the machine gives the other thread no time.
    """
    work()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e6)
    try:
        for _ in range(100):
            events: list[str] = []

            def call(events: list[str] = events) -> None:
                events.append("begin")
                work()
                events.append("end")

            thread = threading.Thread(target=call)
            thread.start()
            seen = False
            while thread.is_alive():
                seen = seen or events == ["begin"]
                time.sleep(2e-5)  # not 0, which would take the lock again before the worker wakes up
            thread.join()
            if seen:
                return True
        return False
    finally:
        sys.setswitchinterval(interval)


def test_other_threads_run_while_the_core_works() -> None:
    numel = 1 << 20
    x, state, out = (np.ones(numel, np.float32) for _ in range(3))
    spec = dance.codec("topk:ratio=0.3").spec(numel)  # the slowest
    payload = np.zeros(_native.payload_nbytes(spec, 0, numel), np.uint8)
    at, size = _native.address, payload.nbytes
    places = (at(x), 0, at(state), 0, numel, 0, at(payload), size, -1, 0, 0, 0)
    place = (at(out), 0, numel, False, 1.0, -1, 0, 0)

    def reduce(again: bool) -> None:
        made = _native.Reduction(numel, 1.0, -1, 0)
        made.add(spec, 0, 0, at(payload), size, numel)
        if again:
            made.encode(spec, 0, 0, 0, 0, at(other), size, 0)
        else:
            made.store(at(out), 0)
        made.run(0)

    other = np.zeros_like(payload)
    indices = np.zeros(_native.num_values(spec, numel), np.int64)
    headers: list[bytes] = []
    works: dict[str, Callable[[], object]] = {
        "encode": lambda: _native.encode(spec, 0, *places),
        "encode_feedback": lambda: _native.encode(spec, 1, *places),
        "encode_difference": lambda: _native.encode(spec, 2, *places),
        "decode": lambda: _native.decode(spec, 0, 0, at(payload), size, *place),
        "indices": lambda: _native.indices(spec, 0, 0, at(payload), size, numel, at(indices)),
        "reduce": lambda: reduce(False),
        "reduce and encode": lambda: reduce(True),
        "mix": lambda: _native.mix(at(x), at(out), at(out), 0, 0.5, numel, -1, 0),
        "header_write": lambda: headers.append(
            _native.header_write(spec, 0, numel, 0, 0, 0, at(payload), size)
        ),
        "payload_check": lambda: _native.payload_check(headers[-1], at(payload), size),
        "crc32c": lambda: _native.crc32c(payload),
    }
    dance.set_num_threads(1)
    for name, work in works.items():
        assert seen_from_another_thread(work), name
    assert not seen_from_another_thread(lambda: sum(range(10_000)))  # what holds the lock is never seen


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer widens stacks")
def test_a_stack_of_256_kib_is_enough() -> None:
    code = """
import threading
import numpy as np
import dance
x = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
def work():
    for codec in (example for kind in dance.codecs.CODECS for example in kind.examples):
        p, state = dance.encode(x, codec), x.copy()
        dance.encode_feedback(x, state, codec)
        dance.encode_difference(x, state, codec)
        dance.reduce([dance.Packet.from_bytes(p.to_bytes()), p], codec=codec)
        dance.decode(p, out=state, add=True)
        done.append(codec)
threading.stack_size(256 << 10)
for num_threads in (1, 2):
    done = []
    dance.set_num_threads(num_threads)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(len(done))
"""
    assert int(run(code)) >= len(dance.codecs.CODECS)
