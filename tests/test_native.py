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
from dance import _native, codecs

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
        ({"x": 0}, "int8: the input has no memory"),
        ({"payload": 0}, "int8: the payload has no memory"),
        ({"payload": _native.address(X)}, "shares memory with the input; pass another out"),
        ({"payload": _native.address(X) + 4 * NUMEL - 4}, "shares memory with the input"),
        (
            {"operation": 1, "x": _native.address(PAYLOAD), "payload": _native.address(X)}
            | {"state": _native.address(X)},
            "shares memory with the residual or reference",
        ),
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


def test_decode_and_mix_refuse() -> None:
    encode()
    payload, x = _native.address(PAYLOAD), _native.address(X)

    def decode(payload: int, out: int) -> None:
        _native.decode(INT8, 0, 0, payload, PAYLOAD.nbytes, out, 0, NUMEL, False, 1.0, -1, 0, 0)

    for wrong, says in (
        ((payload, 0), "int8: the output has no memory"),
        ((0, x), "int8: the payload has no memory"),
        ((payload, payload), "the output shares memory with the packet; pass another out"),
        ((payload, payload + PAYLOAD.nbytes - 4), "shares memory with the packet"),
        ((payload, payload - 4 * NUMEL + 4), "shares memory with the packet"),
    ):
        with pytest.raises(ValueError, match=says):
            decode(*wrong)
    out = np.zeros(NUMEL, np.float32)
    decode(payload, _native.address(out))
    for arrays in ((0, x, x), (x, 0, x), (x, x, 0)):
        with pytest.raises(ValueError, match="mix: an array has no memory"):
            _native.mix(*arrays, 0, 0.5, NUMEL, -1, 0)


def test_a_refused_argument_is_named_as_a_number() -> None:
    for kind, value, says in (
        (codecs.Threshold, float("nan"), "positive and finite, got nan"),
        (codecs.Threshold, -0.5, "positive and finite, got -0.5"),
        (codecs.Dgc, 1.5, r"in \(0, 1\], got 1.5"),
    ):
        spec = _native.Spec(id=kind.id, count=1, argument=value)
        with pytest.raises(ValueError, match=says):
            _native.payload_nbytes(spec, 0, NUMEL)


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
    for number in (257, 1 << 40):
        with pytest.raises(ValueError, match=f"expected 1 to 256, got {number}"):
            dance.set_num_threads(number)


def test_whatever_may_use_several_threads_follows_torch() -> None:
    code = """
import numpy as np, torch
import dance
from dance import _native, codecs
calls = []
for codec, numel in (("int8", _native.PARALLEL_NUMEL), ("topk", _native.PARALLEL_SPARSE_NUMEL)):
    x = np.random.default_rng(0).standard_normal(numel).astype(np.float32)
    p, quarter = dance.encode(x, codec), [dance.encode(x[: numel // 4], codec)] * 4
    calls += [
        lambda x=x, codec=codec: dance.encode(x, codec),
        lambda x=x, p=p: dance.decode(p, out=x),
        lambda p=p: dance.reduce([p]),
        lambda quarter=quarter: dance.reduce(quarter),
        lambda quarter=quarter: dance.reduce(quarter, codec="topk"),
        lambda data=p.to_bytes(): dance.Packet.from_bytes(data),
    ]
x = np.zeros(_native.PARALLEL_NUMEL, np.float32)
calls += [p.indices, lambda: dance.mix(x, x + 1, x + 2, 0.5)]
for number, call in enumerate(calls, 2):
    torch.set_num_threads(number)
    call()
    print(_native._core.get_num_threads(), end=" ")
"""
    assert run(code) == " ".join(map(str, range(2, 16)))


def test_fewer_elements_than_that_are_the_work_of_one_thread() -> None:
    code = """
import os
import numpy as np
import dance
from dance import _native, codecs
dance.set_num_threads(2)
threads = lambda: len(os.listdir("/proc/self/task"))
before, numel = threads(), _native.PARALLEL_SPARSE_NUMEL - 1
array = np.random.default_rng(0).standard_normal(_native.PARALLEL_NUMEL - 1).astype(np.float32)
examples = [example for kind in dance.codecs.CODECS for example in kind.examples]
for ratio in (0.01, 0.5, 1.0):
    for scope in (64, numel // 2, numel - 1):
        examples += [f"{name}:ratio={ratio},scope=block,block={scope}" for name in ("topk", "randk")]
for text in examples:
    x = array[: dance.codec(text).parallel_numel - 1]
    p, state = dance.encode(x, text), x.copy()
    dance.encode_feedback(x, state, text)
    dance.decode(dance.Packet.from_bytes(p.to_bytes()), out=state, add=True)
    if dance.codec(text).name in ("topk", "randk"):
        p.indices()
for num_packets in (2, 3, 8, 31, 32, 100):
    packets = [dance.encode(array[: array.size // num_packets], "int8")] * num_packets
    dance.reduce(packets)
    dance.reduce(packets, codec="int8")
dance.mix(array, array + 1, array + 2, 0.5)
alone = before == threads()
dance.decode(dance.encode(np.zeros(1 << 20, np.float32), "int8"))
print(alone, before < threads())
"""
    assert run(code) == "True True"


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
