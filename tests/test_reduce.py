"""Reduce: many packets decoded and summed, stored or encoded again, in one pass over memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dance
from dance import _native
from dance.codecs import DTYPES


def sum_of(packets: list[dance.Packet], weight: float) -> np.ndarray:
    total = np.empty(packets[0].numel, np.float32)
    for k, p in enumerate(packets):
        dance.decode(p, out=total, add=k > 0, weight=weight)
    return total


REDUCED = {
    "one": ["int8:block=32"],
    "equal": ["int8"] * 4,
    "blocks": ["int8:block=32", "sign:block=128", "mxfp4", "none", "bf16"],
    "odd blocks": ["int8:block=100", "int4:block=4096", "fp16"],
    "sparse": ["topk:ratio=0.1", "randk:ratio=0.2,values=int8", "threshold:value=1.0"],
    "mixed": ["int8", "dgc:ratio=0.1", "none"],
}


AGAIN = ("int8", "int4:block=100,rounding=stochastic", "topk:ratio=0.05", "threshold:value=1.5", "none")


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("numel", [0, 1, 33, 4097, 70_001, 300_007])
@pytest.mark.parametrize("group", REDUCED)
def test_reduce_is_decode_and_add_in_one_pass(group: str, numel: int, mean: bool) -> None:
    rng = np.random.default_rng(numel)
    packets = [
        dance.encode(rng.standard_normal(numel).astype(np.float32), codec, seed=k)
        for k, codec in enumerate(REDUCED[group])
    ]
    weight = float(np.float32(1.0 / len(packets))) if mean else 1.0
    total = sum_of(packets, weight)
    assert np.array_equal(dance.reduce(packets, mean=mean), total)
    out = np.full(numel, 9.0, np.float32)
    assert dance.reduce(packets, mean=mean, out=out) is out
    assert out.tobytes() == total.tobytes()
    half = torch.empty(numel, dtype=torch.bfloat16)
    assert torch.equal(dance.reduce(packets, mean=mean, out=half), torch.from_numpy(total).bfloat16())
    reused = dance.encode(np.zeros(2 * numel + 8, np.float32), "none")  # room for any
    for codec in AGAIN:
        p = dance.reduce(packets, codec=codec, mean=mean, seed=7)
        assert p.to_bytes() == dance.encode(total, codec, seed=7).to_bytes()
        residual = (np.arange(numel) % 7).astype(np.float32)
        expected = residual.copy()
        q = dance.encode_feedback(total, expected, codec, seed=7)
        p = dance.reduce(packets, codec=codec, mean=mean, seed=7, residual=residual, out=reused)
        assert p is reused
        assert p.to_bytes() == q.to_bytes()
        assert residual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", ["int8", "none", "topk:ratio=0.1", "fp16"])
def test_reduce_of_16_bits_sums_in_float32(codec: str, dtype: str) -> None:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 5000)).astype(np.float32))
    packets = [dance.encode(row.to(getattr(torch, dtype)), codec) for row in x]
    total = torch.empty(5000)
    for k, p in enumerate(packets):
        dance.decode(p, out=total, add=k > 0)
    result = dance.reduce(packets)
    assert result.dtype == getattr(torch, dtype)
    assert torch.equal(result, total.to(result.dtype))
    for again in ("none", "int8", "topk:ratio=0.2", "randk:ratio=0.1,values=int4"):
        p = dance.reduce(packets, codec=again, seed=2)
        assert p.dtype == dtype
        out = torch.empty(5000)
        # `none` of a 16-bit packet sends 16 bits; what was summed had more.
        plain = {"float16": "fp16", "bfloat16": "bf16"}.get(dtype, "none") if again == "none" else again
        expected = dance.encode(
            total, plain.replace("ratio=0.2", f"ratio=0.2,values={values_of(dtype)}"), seed=2
        )
        assert torch.equal(dance.decode(p, out=out), dance.decode(expected))


def values_of(dtype: str) -> str:
    return {"float16": "fp16", "bfloat16": "bf16"}.get(dtype, "none")


def test_reduce_refuses_what_does_not_fit_and_leaves_the_rest_alone() -> None:
    x = np.ones(5000, np.float32)
    good = dance.encode(x, "int8")
    bad = dance.encode(x, "int8")
    bad.payload[-1] = 0xFF  # a negative scale
    out, residual = np.full(5000, 7.0, np.float32), np.full(5000, 7.0, np.float32)
    reused = dance.encode(x, "int8")
    before = reused.to_bytes()
    for call in (
        lambda: dance.reduce([good, bad], out=out),
        lambda: dance.reduce([good, bad], codec="int8", residual=residual, out=reused),
    ):
        with pytest.raises(dance.FrameError, match="scale"):
            call()
    assert (out == 7.0).all()
    assert (residual == 7.0).all()
    assert reused.to_bytes() == before
    for packets, options, says in (
        ([], {}, "at least one Packet"),
        (good, {}, r"got a single one; pass \[packet\]"),
        ((p for p in [good]), {}, r"got generator; pass list\(...\) of it"),
        ([good], {"seed": -4}, r"seed in \[0, 2\^64\), got -4"),
        ([good], {"nonfinite": "bogus"}, "'raise' or 'zero', got 'bogus'"),
        ([good, x], {}, "at least one Packet"),
        ([good, dance.encode(x[:10], "int8")], {}, "packet 1: expected 5000 elements, got 10"),
        ([good], {"out": np.zeros(3, np.float32)}, "out: expected 5000 elements, got 3"),
        ([good], {"residual": residual}, "pass codec, too"),
        ([good], {"codec": "int8", "out": out}, "out is a Packet"),
        ([good], {"out": good}, "pass codec, too"),
        ([good], {"codec": "int8", "residual": out[:4]}, "residual: expected 5000 elements, got 4"),
        ([good], {"codec": "int8", "seed": -1}, "seed"),
        ([good], {"codec": "int8", "nonfinite": "no"}, "'raise' or 'zero'"),
    ):
        with pytest.raises(ValueError, match=says):
            dance.reduce(packets, **options)  # type: ignore[arg-type]
    huge = dance.encode(np.full(5000, 3e38, np.float32), "none")
    largest = np.finfo(np.float32).max
    assert (dance.reduce([huge, huge]) == largest).all(), "a sum of finite numbers stays finite"
    assert (dance.decode(dance.reduce([huge, huge], codec="bf16", nonfinite="raise")) > 3e38).all()
    bad = np.zeros(5000, np.float32)
    bad[0] = np.inf
    for codec in ("int8", "topk"):
        with pytest.raises(dance.NonFiniteError, match="element 0"):
            dance.reduce([huge, huge], codec=codec, residual=bad)
    zeros = dance.reduce([huge, huge], codec="int8:block=4096", residual=bad, nonfinite="zero")
    assert not dance.decode(zeros)[:4096].any()


@pytest.mark.parametrize("library", [np.copy, torch.from_numpy])
def test_reduce_refuses_to_write_into_what_it_reads(library: Any) -> None:
    x = np.random.default_rng(3).standard_normal(5000).astype(np.float32)
    packets = [dance.encode(library(x.copy()), "none") for _ in range(3)]
    # A packet that was used again reads the head of its buffer, and may write all of it.
    roomy = dance.encode(library(np.zeros(9000, np.float32)), "none")
    roomy.payload[16_000:] = packets[0].payload
    tail = dance.Packet.from_parts(packets[0].header(), roomy.payload[16_000:])
    small = dance.encode(library(x[:4000].copy()), "none", out=roomy)
    before = [p.to_bytes() for p in (*packets, tail, small)]
    payload = packets[1].payload
    as_array = payload.view(np.float32 if isinstance(payload, np.ndarray) else torch.float32)
    own = "out is packet {}; pass a packet of its own"
    for given, options, says in (
        (packets, {"codec": "int8", "out": packets[0]}, own.format(0)),
        (packets, {"codec": "int8", "out": packets[2]}, own.format(2)),
        ([packets[0], tail], {"codec": "int8", "out": small}, "out lies in the memory of packet 1"),
        (packets, {"codec": "int8", "residual": as_array}, "residual is packet 1; pass an array of its own"),
        (packets, {"out": as_array}, "out is packet 1"),
        (
            packets[:1],
            {"codec": "int8", "out": packets[1], "residual": as_array},
            "residual lies in the memory of out",
        ),
    ):
        with pytest.raises(ValueError, match=f"reduce: {says}"):
            dance.reduce(given, **options)
    assert [p.to_bytes() for p in (*packets, tail, small)] == before
    for out in (dance.encode(library(x.copy()), "none"), small):  # what is not read may be written
        expected = dance.reduce(packets, codec="int8").to_bytes()
        assert dance.reduce(packets, codec="int8", out=out).to_bytes() == expected


@pytest.mark.parametrize("codec", ["none", "int8:block=32", "topk:ratio=0.2", "threshold:value=1"])
def test_a_packet_is_not_lost_where_the_sum_is_not_finite(codec: str) -> None:
    x = np.random.default_rng(4).standard_normal(500).astype(np.float32)
    packets = [dance.encode(x, "none")] * 2
    kept = np.ones(500, np.float32)
    kept[70] = np.inf
    raised = kept.copy()
    sent = dance.reduce(packets, codec=codec, nonfinite="zero", residual=kept)
    with pytest.raises(dance.NonFiniteError) as caught:
        dance.reduce(packets, codec=codec, residual=raised)
    assert caught.value.index == 70
    assert caught.value.packet.to_bytes() == sent.to_bytes()
    assert raised.tobytes() == kept.tobytes()


def test_reduce_gives_the_same_bits_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(2)
    for codec in ("int8", "int4:block=100", "topk:ratio=0.1"):
        packets = [dance.encode(rng.standard_normal(1 << 16).astype(np.float32), codec) for _ in range(3)]
        found = set()
        try:
            for num_threads in (1, 2, 7):
                dance.set_num_threads(num_threads)
                residual = np.ones(1 << 16, np.float32)
                with _native.small_grains():
                    again = dance.reduce(packets, codec="qsgd:levels=15", seed=3, residual=residual)
                    found.add((dance.reduce(packets, mean=True).tobytes(), again.to_bytes()))
        finally:
            dance.set_num_threads(1)
        assert len(found) == 1, codec
