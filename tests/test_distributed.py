"""dance.distributed over gloo against the oracle: all codecs, worlds, sizes, dtypes, layouts and verbs."""

from __future__ import annotations

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


ANY_SIZE = (0, 1, 257, 2304)  # the third leaves shards empty from three ranks on


def _any_size(rank: int, world: int) -> list[np.ndarray]:
    _small_rules()
    outputs = []
    for numel in ANY_SIZE:
        for text in ("int8", "topk:ratio=0.1"):
            x = _tensor(_input(rank, numel))
            dd.all_reduce(x, codec=text, min_bytes=0)
            outputs.append(_raw(x))
    return outputs


@pytest.mark.parametrize("world", [1, 4, 5, 6, 7, 8, 9])
def test_any_world_and_any_size(world: int) -> None:
    ranks = run_ranks(_any_size, world, world)
    cases = [(numel, text) for numel in ANY_SIZE for text in ("int8", "topk:ratio=0.1")]
    for k, (numel, text) in enumerate(cases):
        inputs = [_input(rank, numel) for rank in range(world)]
        expected = inputs[0] if world == 1 else oracle.all_reduce(text, inputs, rules=RULES).output
        for rank in range(world):
            np.testing.assert_array_equal(ranks[rank][k], expected, f"{text} {numel} rank {rank}")


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


# --------------------------------------------------------------------------------------- the other verbs

SIZES = (0, 1, 255, 1111)
VERB_CODECS = ("int8", "topk:ratio=0.1", "dgc:ratio=0.1", "fp16", "none")


def _verbs(rank: int, world: int) -> list[Any]:
    _small_rules()
    found = []
    for text in VERB_CODECS:
        for numel in SIZES:
            x = _tensor(_input(rank, numel))
            both = torch.empty(world, numel)
            dd.all_gather_into_tensor(both, x, codec=text, min_bytes=0)
            listed = [torch.empty(numel) for _ in range(world)]
            dd.all_gather(listed, x, codec=text, min_bytes=0)
            sent = _tensor(_input(rank, numel))
            dd.broadcast(sent, group_src=world - 1, codec=text, min_bytes=0)
            wide = _tensor(_input(rank, numel * world))
            share = torch.empty(numel)
            dd.reduce_scatter_tensor(share, wide, codec=text, min_bytes=0)
            traded = torch.empty(numel * world)
            dd.all_to_all_single(traded, wide, codec=text, min_bytes=0)
            assert torch.equal(x, _tensor(_input(rank, numel)))
            assert torch.equal(wide, _tensor(_input(rank, numel * world)))
            around = [torch.empty(numel)] if world > 1 else []
            to, of = ([(rank + 1) % world], [(rank - 1) % world]) if world > 1 else ([], [])
            dd.neighbor_exchange(around, x, to, sources=of, codec=text)
            found.append([_raw(t) for t in (both, torch.cat(listed), sent, share, traded, *around)])
    return found


def _decoded(text: str, x: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            reference.decode(reference.encode(reference.codec(text), x[a:b]).packet)
            for a, b in oracle.chunks(text, (0, x.size), RULES)
        ]
        or [x]
    )


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_verbs(world: int) -> None:
    ranks = run_ranks(_verbs, world, world)
    cases = [(text, numel) for text in VERB_CODECS for numel in SIZES]
    for k, (text, numel) in enumerate(cases):
        code = "none" if world == 1 else text
        narrow = [_input(rank, numel) for rank in range(world)]
        wide = [_input(rank, numel * world) for rank in range(world)]
        for rank in range(world):
            both, listed, sent, share, traded, *around = ranks[rank][k]
            gathered = np.concatenate([_decoded(code, x) for x in narrow])
            np.testing.assert_array_equal(both, gathered)
            np.testing.assert_array_equal(listed, gathered)
            np.testing.assert_array_equal(sent, _decoded(code, narrow[-1]))
            mine = [x[rank * numel : (rank + 1) * numel] for x in wide]
            parts = [mine[r] if r == rank else _decoded(code, mine[r]) for r in range(world)]
            np.testing.assert_array_equal(traded, np.concatenate(parts))
            total = parts[0].copy()
            for part in parts[1:]:
                total = total + part
            if code == "none":  # torch adds up in an order of its own
                np.testing.assert_allclose(share, total, atol=world * 2.0**-21)
            else:
                np.testing.assert_array_equal(share, total)
            for found in around:
                np.testing.assert_array_equal(found, _decoded(code, narrow[rank - 1]))


def _uneven(rank: int, world: int) -> None:
    sizes = [[0, 3, 500], [2, 0, 1], [700, 5, 0]]
    given, taken = sizes[rank], [sizes[r][rank] for r in range(world)]
    x = torch.arange(sum(given) * 7, dtype=torch.float32).view(-1, 7) / 512
    for codec in ("none", "fp16"):
        out = torch.full((sum(taken), 7), -1.0)
        dd.all_to_all_single(out, x, taken, given, codec=codec, min_bytes=0)
        expected = torch.empty_like(out)
        dist.all_to_all_single(expected, x, taken, given)
        assert torch.allclose(out, expected, rtol=2.0**-10)
    with pytest.raises(ValueError, match="input_split_sizes"):
        dd.all_to_all_single(out, x, taken, [1, 2, 3], codec="int8")
    with pytest.raises(ValueError, match="3 times"):
        dd.reduce_scatter_tensor(torch.empty(5), torch.empty(5), codec="int8")
    with pytest.raises(ValueError, match="either src or group_src"):
        dd.broadcast(x)
    # A star: node 0 hears both others, who hear it alone; then somebody is left out.
    tensors = [torch.empty(5000) for _ in range(2 if rank == 0 else 1)]
    star = [1, 2] if rank == 0 else [0]
    dd.neighbor_exchange(tensors, torch.full((5000,), float(rank + 1)), star, codec="int8")
    assert [t[0].item() for t in tensors] == pytest.approx([r + 1.0 for r in star], rel=1e-2)
    pair = {0: [1], 1: [0], 2: []}[rank]
    tensors = [torch.empty(5000) for _ in pair]
    dd.neighbor_exchange(tensors, torch.full((5000,), float(rank + 1)), pair, codec="int8")
    gathered = [torch.empty(40000) for _ in range(world)]
    work = dd.all_gather(gathered, torch.full((40000,), float(rank)), codec="int8", async_op=True)
    assert work.get_future().wait()[2][0].item() == pytest.approx(2.0, rel=1e-2)
    share = torch.empty(40000)
    dd.reduce_scatter_tensor(share, torch.full((120000,), 2.0), dist.ReduceOp.AVG, codec="int8")
    assert share[0].item() == pytest.approx(2.0, rel=1e-2)


def test_uneven_parts_and_neighbors() -> None:
    run_ranks(_uneven, 3, 3)
