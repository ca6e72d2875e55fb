"""On a GPU: bits equal to the CPU's for every codec, operation, size and value; reports, streams, bounds."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
import torch

import dance

pytestmark = pytest.mark.cuda
LARGE = [*cases.large_cases()]


def through_torch(case: cases.Case) -> cases.Results:
    return cases.through_dance(case, lambda a: torch.from_numpy(a).cuda(), lambda t: t.cpu().numpy())


@pytest.mark.parametrize("values", list(cases.VALUES))
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_small_arrays_equal_the_cpu(operation: str, values: str) -> None:
    chosen = [case for case in cases.small_cases() if case.operation == operation and case.values == values]
    assert len(chosen) > 100
    for case in chosen:
        assert not cases.difference(through_torch(case), cases.through_dance(case)), case.name


@pytest.mark.parametrize("case", LARGE, ids=[case.name for case in LARGE])
def test_large_arrays_equal_the_cpu(case: cases.Case) -> None:
    assert not cases.difference(through_torch(case), cases.through_dance(case))


@pytest.mark.parametrize("numel", [0, 1, 33, cases.PRIME, cases.LARGE])
def test_mix_equals_the_cpu(numel: int) -> None:
    rng = np.random.default_rng(numel)
    x, s, ref = (rng.standard_normal(numel).astype(np.float32) for _ in range(3))
    moved = torch.from_numpy(x.copy()).cuda()
    dance.mix(moved, torch.from_numpy(s).cuda(), torch.from_numpy(ref).cuda(), cases.STEP)
    dance.mix(x, s, ref, cases.STEP)
    assert np.array_equal(moved.cpu().numpy().view(np.uint32), x.view(np.uint32))


@pytest.mark.parametrize("codec", ["none", "fp16", "bf16", "int8", "sign", "topk"])
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
    with pytest.raises(ValueError, match="out: expected cuda:0, got the CPU"):
        dance.decode(p, out=torch.zeros(5000))
    with pytest.raises(ValueError, match="residual: expected cuda:0, got the CPU"):
        dance.encode_feedback(x, torch.zeros(5000), codec)


@pytest.mark.parametrize("codec", ["none", "fp16", "int8", "sign", "topk"])
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


def test_work_is_put_on_the_current_stream() -> None:
    stream = torch.cuda.Stream()
    x = torch.randn(1 << 22, device="cuda")
    expected = dance.encode(x.cpu(), "int8").to_bytes()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)  # without the order of the stream the encode would see zeros
        late.copy_(x)
        p = dance.encode(late, "int8")
        assert not stream.query(), "encode waited for the GPU"
        assert p.to_bytes() == expected


def test_indices_of_a_hostile_payload_stay_in_bounds() -> None:
    p = dance.encode(torch.arange(1000.0, device="cuda"), "topk:ratio=0.01")
    p.payload.view(torch.int32)[:10] = torch.tensor(
        [0, 5, 10**6, 2**31 - 1, -1, -2, 999, 1000, 1001, 3], device="cuda"
    )
    guarded = torch.full((3000,), 7.0, device="cuda")
    dance.decode(p, out=guarded[1000:2000])
    torch.cuda.synchronize()
    assert (guarded[:1000] == 7.0).all()
    assert (guarded[2000:] == 7.0).all()


def test_cupy_arrays_give_the_same_bytes() -> None:
    cupy: Any = pytest.importorskip("cupy", reason="CuPy is not installed")
    x = np.linspace(-3, 3, 5000, dtype=np.float32)
    for codec in ("none", "fp16", "bf16", "int8", "sign", "topk"):
        residual, on_cpu = cupy.zeros(5000, dtype=np.float32), np.zeros(5000, np.float32)
        p = dance.encode_feedback(cupy.asarray(x), residual, codec)
        assert p.to_bytes() == dance.encode_feedback(x, on_cpu, codec).to_bytes()
        assert np.array_equal(cupy.asnumpy(residual), on_cpu)
        assert isinstance(p.payload, cupy.ndarray)
        assert isinstance(dance.decode(p), cupy.ndarray)
