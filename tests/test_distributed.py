"""all_reduce over gloo against the oracle: all codecs, dtypes, layouts, groups and forms."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import collective_oracle as oracle
import numpy as np
import pytest
import reference
import torch
import torch.distributed as dist
from processes import run_ranks

import dance
import dance.distributed as dd
from dance import plan as plans
from dance.codecs import CODECS

RULES = oracle.Rules(one_shot_nbytes=300, chunk_numel=512)
NUMEL = 2777  # two chunks a shard at three ranks, the last one short
TEXTS = [text for kind in CODECS for text in kind.examples if kind.name != "none"]
_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def _input(rank: int, numel: int, dtype: str = "float32", step: int = 0) -> np.ndarray:
    rng = np.random.default_rng([rank, numel, step])
    return reference.store(rng.standard_normal(numel).astype(np.float32), dtype)


def _tensor(raw: np.ndarray, dtype: str = "float32") -> torch.Tensor:
    if dtype == "bfloat16":
        return torch.from_numpy(raw.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(raw.copy())


def _raw(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous().reshape(-1)
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16).copy()
    return tensor.numpy().copy()


def _small_rules() -> None:
    """Makes what decides between algorithms small, so that small tensors take all of them."""
    plans.ONE_SHOT_NBYTES, plans.CHUNK_NUMEL = RULES.one_shot_nbytes, RULES.chunk_numel
    plans._plan.cache_clear()


def _seeds(key: str, step: int, rank: int, phase: str, start: int) -> int:
    return dance.derive_seed(0, step, rank, key, f"{phase} {start}")


# ------------------------------------------------------------------------------- all_reduce, bit for bit

CASES = ((NUMEL, "float32", False), (NUMEL, "bfloat16", True), (1, "float16", False))


def _every_codec(rank: int) -> dict[Any, Any]:
    _small_rules()
    found: dict[Any, Any] = {}
    call = 0
    for text in TEXTS:
        for numel, dtype, mean in (
            (NUMEL, "float32", False),
            (NUMEL, "bfloat16", True),
            (1, "float16", False),
        ):
            x = _tensor(_input(rank, numel, dtype), dtype)
            op = dd_op(mean)
            before = dd.stats()["bytes_sent"]
            dd.all_reduce(x, op, codec=text, min_bytes=0)
            call += 1
            found[text, numel, dtype, mean] = (_raw(x), dd.stats()["bytes_sent"] - before, call)
    return found


def dd_op(mean: bool) -> Any:
    return dist.ReduceOp.AVG if mean else dist.ReduceOp.SUM


@pytest.mark.parametrize("world", [2, 3])
def test_every_codec_gives_the_bits_of_the_oracle(world: int) -> None:
    ranks = run_ranks(_every_codec, world)
    shots = set()
    for case, (_, _, call) in ranks[0].items():
        text, numel, dtype, mean = case
        expected = oracle.all_reduce(
            text,
            [_input(rank, numel, dtype) for rank in range(world)],
            dtype=dtype,
            mean=mean,
            seeds=partial(_seeds, "", call),
            rules=RULES,
        )
        shots.add(expected.two_shot)
        for rank in range(world):
            output, sent, _ = ranks[rank][case]
            np.testing.assert_array_equal(output.view(np.uint8), expected.output.view(np.uint8), f"{case}")
            assert sent == expected.sent[rank], (case, rank)
        if dance.codec(text).fixed_size:
            planned = _planned(text, numel, world, dtype)
            assert planned == max(expected.sent), case
    assert shots == ({False, True} if world > 2 else {False})


def _planned(text: str, numel: int, world: int, dtype: str) -> int:
    kept = plans.ONE_SHOT_NBYTES, plans.CHUNK_NUMEL
    try:
        _small_rules()
        return plans.plan("all_reduce", text, numel, world, dtype=dtype).bytes_sent
    finally:
        plans.ONE_SHOT_NBYTES, plans.CHUNK_NUMEL = kept
        plans._plan.cache_clear()


# --------------------------------------------------------------------------- layouts, groups, ops, forms


def _layouts(rank: int, world: int) -> None:
    x = torch.from_numpy(_input(rank, 20000)).view(100, 200)
    expected = x.t().contiguous()
    dd.all_reduce(expected, codec="int8", min_bytes=0)
    turned = x.t()
    assert not turned.is_contiguous()
    dd.all_reduce(turned, codec="int8", min_bytes=0)
    assert torch.equal(turned, expected)
    assert torch.equal(x.t(), expected)  # in place, through the view
    strided = torch.zeros(20000, 3)[:, 1]
    strided.copy_(torch.from_numpy(_input(rank, 20000)))
    flat = strided.clone()
    for tensor in (strided, flat):
        dd.all_reduce(tensor, codec="topk:ratio=0.1", min_bytes=0)
    assert torch.equal(strided, flat)
    odd = torch.zeros(20001, dtype=torch.bfloat16)[1:]  # starts at an address that is no multiple of 4
    odd.copy_(torch.from_numpy(_input(rank, 20000)))
    even = odd.clone()
    for tensor in (odd, even):
        dd.all_reduce(tensor, codec="int8", min_bytes=0)
    assert torch.equal(odd, even)
    wanting = torch.ones(20000, requires_grad=True)
    dd.all_reduce(wanting, codec="int8", min_bytes=0)
    assert wanting[0].item() == pytest.approx(world, rel=1e-2)


def _groups(rank: int, world: int) -> None:
    calls = dd.stats()["calls"]
    first, second = dist.new_group([0, 2]), dist.new_group([3, 1, 2])
    members = {first: [0, 2], second: dist.get_process_group_ranks(second)}
    for group, ranks in members.items():
        if rank in ranks:
            x = torch.full((30000,), float(rank + 1))
            dd.all_reduce(x, codec="int8", group=group)
            assert torch.allclose(x, torch.full_like(x, sum(r + 1.0 for r in ranks)), rtol=1e-2)
            y = torch.full((30000,), float(rank))
            dd.broadcast(y, src=ranks[-1], codec="int8", group=group)
            assert torch.allclose(y, torch.full_like(y, float(ranks[-1])), rtol=1e-2)
            assert dd.stats(group)["compressed"] == 2
        else:
            with pytest.raises(ValueError, match="no member"):
                dd.all_reduce(torch.ones(30000), group=group)
    assert dd.stats()["calls"] == calls


def _ops(rank: int, world: int) -> None:
    for op in (dist.ReduceOp.MAX, dist.ReduceOp.MIN):
        x = torch.full((30000,), float(rank))
        dd.all_reduce(x, op, codec="none")
        assert x[0].item() == (world - 1 if op == dist.ReduceOp.MAX else 0)
        with pytest.raises(ValueError, match="SUM and AVG"):
            dd.all_reduce(torch.ones(30000), op, codec="int8")
    for codec in ("none", "int8"):
        x = torch.full((30000,), float(rank))
        dd.all_reduce(x, dist.ReduceOp.AVG, codec=codec)
        assert x[0].item() == pytest.approx((world - 1) / 2, rel=1e-2)
    number = torch.full((30000,), rank, dtype=torch.int64)
    dd.all_reduce(number, codec="none")
    assert number[0].item() == world * (world - 1) // 2
    with pytest.raises(ValueError, match="an average of int64"):
        dd.all_reduce(number, dist.ReduceOp.AVG, codec="none")
    with pytest.raises(ValueError, match="int64; cast first"):
        dd.all_reduce(number, codec="int8")
    with pytest.raises(ValueError, match="nonfinite"):
        dd.all_reduce(torch.ones(30000), nonfinite="ignore")


def _counting(rank: int, world: int) -> None:
    before = dd.stats()
    dd.all_reduce(torch.ones(16383), codec="int8")  # 4 bytes under the limit
    dd.all_reduce(torch.ones(16384), codec="int8")
    dd.all_reduce(torch.ones(16384), codec="none")
    after = dd.stats()
    assert after["calls"] - before["calls"] == 3
    assert after["compressed"] - before["compressed"] == 1
    assert after["direct"] - before["direct"] == 2
    assert after["under_min_bytes"] - before["under_min_bytes"] == 1
    raw = round(2 * (world - 1) / world * 4 * 16384)
    assert after["raw_bytes"] - before["raw_bytes"] >= 2 * raw


def _asynchronous(rank: int, world: int) -> None:
    tensors = [torch.full((40000,), float(rank + k)) for k in range(6)]
    works = [dd.all_reduce(tensor, codec="bf16", async_op=True) for tensor in tensors]
    future = works[0].get_future()
    assert future is works[0].get_future()
    assert future.wait()[0] is tensors[0]
    for k, (work, tensor) in enumerate(zip(works, tensors, strict=True)):
        assert work.wait()
        assert work.is_completed()
        assert work.exception() is None
        assert tensor[0].item() == sum(r + k for r in range(world))
        assert work.get_future().value()[0] is tensor
        stats = work.stats()
        assert stats.codec == "bf16"
        assert stats.algorithm == plans.plan("all_reduce", "bf16", 40000, world).algorithm
        assert stats.bytes_sent <= plans.plan("all_reduce", "bf16", 40000, world).bytes_sent
        assert 0.0 < stats.encode_s < stats.seconds
        assert stats.wire_s is not None
        assert not stats.nonfinite
    late = torch.ones(40000)
    if rank != 0:
        dist.barrier()
    work = dd.all_reduce(late, codec="int8", async_op=True)
    if rank == 0:  # the others have not begun
        assert not work.is_completed()
        with pytest.raises(TimeoutError, match="wait again"):
            work.wait(timedelta(milliseconds=20))
        dist.barrier()
    assert work.wait()
    assert late[0].item() == pytest.approx(world, rel=1e-2)
    direct = dd.all_reduce(torch.full((40000,), 1.0), dist.ReduceOp.AVG, codec="none", async_op=True)
    assert direct.get_future().wait()[0][0].item() == 1.0
    assert direct.stats().algorithm == "direct"


def _coalesced(rank: int, world: int) -> None:
    flat = torch.from_numpy(_input(rank, 30000))
    expected = flat.clone()
    dd.all_reduce(expected, codec="int8")
    views = [flat[:10000].view(100, 100), flat[10000:10001], flat[10001:]]
    apart = [view.clone() for view in views]
    dd.all_reduce_coalesced(views, codec="int8")
    assert torch.equal(flat, expected)
    dd.all_reduce_coalesced(apart, codec="int8")
    assert torch.equal(torch.cat([tensor.reshape(-1) for tensor in apart]), expected)
    mixed = [torch.full((20000,), float(rank)), torch.full((50,), 0.5), torch.full((20000,), 3.0)]
    before = dd.stats()
    dd.all_reduce_coalesced(mixed, codec=["int8", "bf16", "int8"])
    after = dd.stats()
    assert after["compressed"] - before["compressed"] == 1
    assert mixed[1][7].item() == world / 2
    assert mixed[2][7].item() == pytest.approx(3.0 * world, rel=1e-2)
    exact = [torch.arange(60000.0) + rank, torch.ones(100)]
    work = dd.all_reduce_coalesced(exact, codec=["none", "int8"], min_bytes=0, async_op=True)
    work.wait()
    assert torch.equal(exact[0], world * torch.arange(60000.0) + sum(range(world)))
    ring = plans.plan("all_reduce", "none", 60000, world).bytes_sent
    # Shards end at multiples of 256 elements; a header and 100 elements as int8 for each message.
    assert work.stats().bytes_sent <= ring + (world - 1) * (2 * 4 * 256 + 2 * 64 + 512)
    with pytest.raises(ValueError, match="a codec for each"):
        dd.all_reduce_coalesced(mixed, codec=["int8"])
    with pytest.raises(ValueError, match="one dtype"):
        dd.all_reduce_coalesced([torch.ones(20000), torch.ones(20000).half()], codec="int8")


def _forms(rank: int, world: int) -> None:
    for form in (_layouts, _groups, _ops, _counting, _asynchronous, _coalesced):
        if form is _groups and world < 4:
            continue
        form(rank, world)


@pytest.mark.parametrize("world", [2, 4])
def test_forms_of_all_reduce(world: int) -> None:
    run_ranks(_forms, world, world)


def test_outside_of_a_group_the_remedy_is_named() -> None:
    with pytest.raises(ValueError, match="init_process_group"):
        dd.all_reduce(torch.ones(4))
