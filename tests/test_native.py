"""The C++ front door by itself: what it refuses though dance never asks, and what the environment sets."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_the_environment_chooses_the_cpu_target() -> None:
    code = "import dance; print(dance.info()['cpu_target'])"
    built = dance.info()["cpu_targets"]
    assert run(code) in built
    assert run(code, DANCE_CPU="baseline") == "baseline"
    assert "DANCE_CPU=sse9: unknown CPU target; this build has baseline" in run(code, DANCE_CPU="sse9")
    for name in {"avx2", "avx512", "neon"} - set(built):
        assert f"UnavailableError: DANCE_CPU={name}: not in this build" in run(code, DANCE_CPU=name)


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
