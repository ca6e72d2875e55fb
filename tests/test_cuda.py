"""On a GPU: the CPU's bits for every codec, operation, size and value; reports, streams, graphs, bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cases
import numpy as np
import pytest
import reductions
import reference
import torch

import dance
from dance.codecs import CODECS

pytestmark = pytest.mark.cuda
KINDS = [kind.name for kind in CODECS]
EXAMPLES = [str(dance.codec(example)) for kind in CODECS for example in kind.examples]
FIXED = [text for text in EXAMPLES if dance.codec(text).fixed_size]


def to_gpu(raw: np.ndarray, dtype: str) -> torch.Tensor:
    return cases.to_torch(raw, dtype).cuda()


def to_cpu(tensor: torch.Tensor) -> np.ndarray:
    return cases.to_raw(tensor.cpu())


def of_kind(kind: str, tasks: Iterator[Any]) -> Iterator[Any]:
    return (task for task in tasks if task.codec.partition(":")[0] == kind)


def check(task: Any) -> None:
    module = cases if isinstance(task, cases.Case) else reductions
    assert not cases.difference(module.through_dance(task, to_gpu, to_cpu), module.through_dance(task)), (
        task.name
    )


@pytest.mark.parametrize("kind", KINDS)
def test_small_arrays_equal_the_cpu(kind: str) -> None:
    chosen = [*of_kind(kind, cases.small_cases())]
    assert len(chosen) > 50
    for case in chosen:
        check(case)


@pytest.mark.parametrize("kind", KINDS)
def test_large_arrays_equal_the_cpu(kind: str) -> None:
    chosen = [*of_kind(kind, cases.large_cases())]
    assert chosen
    for case in chosen:
        check(case)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_equal_the_cpu(kind: str) -> None:
    chosen = [task for task in reductions.reductions() if task.codecs[0].partition(":")[0] == kind]
    assert len(chosen) > 5
    for task in chosen:
        check(task)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("numel", [0, 1, 33, cases.PRIME, cases.LARGE])
def test_mix_equals_the_cpu(numel: int, dtype: str) -> None:
    rng = np.random.default_rng(numel)
    x, s, ref = (reference.store(rng.standard_normal(numel).astype(np.float32), dtype) for _ in range(3))
    moved = to_gpu(x.copy(), dtype)
    dance.mix(moved, to_gpu(s, dtype), to_gpu(ref, dtype), cases.STEP)
    dance.mix(*(cases.to_arrays(array, dtype) for array in (x, s, ref)), cases.STEP)
    assert to_cpu(moved).tobytes() == x.tobytes()


@pytest.mark.parametrize("codec", EXAMPLES)
def test_slices_that_are_aligned_to_their_elements_only_equal_the_cpu(codec: str) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.randn(5002, generator=torch.Generator().manual_seed(1)).to(dtype)
        residual = torch.zeros(5003)
        gpu, gpu_residual = x.cuda(), residual.cuda()
        for start in (0, 1):
            p = dance.encode_feedback(gpu[start:][:5001], gpu_residual[start:][:5001], codec, seed=6)
            want = dance.encode_feedback(x[start:][:5001], residual[start:][:5001], codec, seed=6)
            assert p.to_bytes() == want.to_bytes()
            assert torch.equal(gpu_residual.cpu(), residual)


@pytest.mark.parametrize("codec", EXAMPLES)
def test_packets_travel_between_gpu_and_cpu(codec: str) -> None:
    x = torch.linspace(-3, 3, 5000, device="cuda").reshape(50, 100)
    p = dance.encode(x, codec, seed=8)
    assert p.payload.is_cuda
    data = p.to_bytes()
    assert data == dance.encode(x.cpu(), codec, seed=8).to_bytes()
    back = dance.Packet.from_parts(data[:64], p.payload, expect=(codec, (50, 100), "float32"))
    y = dance.decode(back)
    assert y.is_cuda
    assert y.shape == x.shape
    assert torch.equal(y, dance.decode(p))
    assert torch.equal(y.cpu(), dance.decode(dance.encode(x.cpu(), codec, seed=8)))
    with pytest.raises(ValueError, match="out: expected cuda:0, got the CPU"):
        dance.decode(p, out=torch.zeros(5000))
    with pytest.raises(ValueError, match="residual: expected cuda:0, got the CPU"):
        dance.encode_feedback(x, torch.zeros(5000), codec)


@pytest.mark.parametrize("codec", EXAMPLES)
def test_non_finite_input_is_reported_at_the_next_call_that_waits(codec: str) -> None:
    x = torch.ones(100_000, device="cuda")
    x[[31_337, 99_999]] = float("nan")
    p = dance.encode(x, codec)  # does not wait, so cannot know
    with pytest.raises(dance.NonFiniteError) as caught:
        p.to_bytes()
    assert caught.value.index == 31_337
    dance.encode(x, codec, nonfinite="zero").to_bytes()
    with pytest.raises(dance.NonFiniteError, match="31337"):
        dance.encode(x, codec).check_finite()


@pytest.mark.parametrize("codec", EXAMPLES)
def test_work_is_put_on_the_current_stream(codec: str) -> None:
    stream = torch.cuda.Stream()
    x = torch.randn(1 << 20, device="cuda")
    expected = dance.encode(x.cpu(), codec).to_bytes()
    late, residual = torch.zeros_like(x), torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        dance.encode_feedback(torch.ones_like(x), residual, codec)  # the first allocations may wait
        residual.zero_()
        stream.synchronize()
        torch.cuda._sleep(50_000_000)  # without the order of the stream the encode would see zeros
        late.copy_(x)
        p = dance.encode_feedback(late, residual, codec)
        assert not stream.query(), "encode waited for the GPU"
        assert p.to_bytes() == expected


@pytest.mark.parametrize("codec", EXAMPLES)
def test_what_waits_for_a_packet_waits_for_the_stream_of_its_encode(codec: str) -> None:
    """Outside of that stream nothing orders the copy to the host behind the kernel but the packet itself."""
    stream = torch.cuda.Stream()
    x = torch.randn(1 << 20, device="cuda")
    expected = dance.encode(x.cpu(), codec)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    for bad in (False, True):
        with torch.cuda.stream(stream):
            late.zero_()
            dance.encode(torch.ones_like(x), codec, nonfinite="zero")  # the first allocations may wait
            stream.synchronize()
            torch.cuda._sleep(50_000_000)
            late.copy_(x)
            if bad:
                late[777].fill_(float("nan"))
            p = dance.encode(late, codec)
            total = dance.reduce([p], codec="int8") if dance.codec(codec).fixed_size else None
        if bad:
            with pytest.raises(dance.NonFiniteError, match="element 777"):
                p.check_finite()
            continue
        if total is not None:
            assert total.to_bytes() == dance.reduce([expected], codec="int8").to_bytes()
        assert p.nbytes == expected.nbytes
        assert p.to_bytes() == expected.to_bytes()


@pytest.mark.parametrize("codec", FIXED)
def test_encode_and_decode_run_in_a_graph(codec: str) -> None:
    x = torch.randn(300_001, device="cuda")
    residual, y = torch.zeros_like(x), torch.zeros_like(x)
    dance.decode(dance.encode_feedback(x, residual.clone(), codec, seed=4), out=y)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        p = dance.encode_feedback(x, residual, codec, seed=4, nonfinite="zero")
        dance.decode(p, out=y)
        total = dance.reduce([p, p], mean=True)
    on_cpu = torch.zeros(300_001)
    for step in range(3):
        new = torch.randn(300_001, generator=torch.Generator().manual_seed(step))
        new[step::3] *= 100.0**step  # another selection, other scales
        x.copy_(new)
        graph.replay()
        want = dance.encode_feedback(new, on_cpu, codec, seed=4)
        assert torch.equal(y.cpu(), dance.decode(want))
        assert torch.equal(total.cpu(), dance.reduce([want, want], mean=True))
        assert torch.equal(residual.cpu(), on_cpu)


@pytest.mark.parametrize(
    "codec", ["topk:ratio=0.3", "topk:ratio=0.01", "dgc:ratio=0.01", "threshold:value=0.001"]
)
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_selection_where_a_sample_says_little(codec: str, state: torch.dtype) -> None:
    """Equal elements, zeros but for a few, all that is large in one place; and repeated runs."""
    n = 3_000_017
    few = torch.zeros(n)
    few[torch.randint(n, (1000,), generator=torch.Generator().manual_seed(0))] = 1.0
    place = torch.full((n,), 1e-3)
    place[1_000_000:1_200_000] = torch.linspace(1, 2, 200_000)
    for x in (torch.zeros(n), torch.full((n,), -2.0), few, place):
        residual = torch.zeros(n, dtype=state)
        want = dance.encode_feedback(x, residual, codec, seed=1)
        for _ in range(2):
            on_gpu = torch.zeros(n, dtype=state, device="cuda")
            assert dance.encode_feedback(x.cuda(), on_gpu, codec, seed=1).to_bytes() == want.to_bytes()
            assert torch.equal(on_gpu.cpu(), residual)


@pytest.mark.parametrize("codec", ["topk:ratio=0.01", "topk:ratio=0.01,scope=block", "randk:ratio=0.01"])
@pytest.mark.parametrize("byte", [0, 255, "random"])
def test_indices_of_a_hostile_payload_stay_in_bounds(codec: str, byte: int | str) -> None:
    p = dance.encode(torch.arange(1000.0, device="cuda"), codec)
    p.payload.random_(0, 256) if byte == "random" else p.payload.fill_(byte)
    for add in (False, True):
        guarded = torch.full((3000,), 7.0, device="cuda")
        dance.decode(p, out=guarded[1000:2000], add=add)
        torch.cuda.synchronize()
        assert (guarded[:1000] == 7.0).all()
        assert (guarded[2000:] == 7.0).all()


def test_arrays_of_more_than_2_to_the_32_elements() -> None:
    n = 2**32 + 1000
    if torch.cuda.mem_get_info()[0] < 6 * n:
        pytest.skip("less than 26 GB of free device memory")
    x = torch.zeros(n, dtype=torch.float16, device="cuda")
    x[-5:] = torch.arange(1.0, 6.0, device="cuda")
    p = dance.encode(x, "int4", seed=2)
    tail = torch.zeros(1256)
    tail[-5:] = torch.arange(1.0, 6.0)
    y = dance.decode(p)
    assert torch.equal(y[-1256:].float().cpu(), dance.decode(dance.encode(tail, "int4")))
    assert not y[:-1256].any()


@pytest.mark.parametrize("codec", EXAMPLES)
def test_cupy_arrays_give_the_same_bytes(codec: str) -> None:
    cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed")
    for dtype in (np.float32, np.float16):
        x = np.linspace(-3, 3, 5000, dtype=dtype)
        residual, on_cpu = cupy.zeros(5000, dtype=np.float32), np.zeros(5000, np.float32)
        p = dance.encode_feedback(cupy.asarray(x), residual, codec, seed=9)
        assert p.to_bytes() == dance.encode_feedback(x, on_cpu, codec, seed=9).to_bytes()
        assert np.array_equal(cupy.asnumpy(residual), on_cpu)
        assert isinstance(p.payload, cupy.ndarray)
        y = dance.decode(p)
        assert isinstance(y, cupy.ndarray)
        assert y.dtype == dtype


def test_cupy_agrees_on_int8_and_on_what_is_largest() -> None:
    """An oracle that is neither ours nor on the CPU."""
    cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed")
    x = cupy.random.default_rng(3).standard_normal(1 << 18, dtype=cupy.float32)
    rows = x.reshape(-1, 256)
    scale = cupy.abs(rows).max(axis=1, keepdims=True) / cupy.float32(127)
    y = dance.decode(dance.encode(x, "int8:block=256")).reshape(-1, 256)
    assert (cupy.abs(y - rows) <= scale * cupy.float32(0.50001)).all()
    k = 2622
    p = dance.encode(x, f"topk:ratio={k / x.size}")
    sent = cupy.flatnonzero(dance.decode(p))
    assert cupy.array_equal(cupy.sort(cupy.argsort(-cupy.abs(x))[: sent.size]), sent)
