"""Every verb against the oracle, over worlds, sizes, dtypes, layouts and sub-groups, at once and later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import collective_oracle as oracle
import numpy as np
import pytest
import reference
import torch
import torch.distributed as dist
from processes import run_ranks
from test_distributed import RULES, _input, _raw, _small_rules, _tensor

import dance.distributed as dd

# codec, elements, dtype; from three ranks on, all_reduce leaves shards of 257 elements empty.
ANY_WORLD = (
    ("int8", 0, "float32"),
    ("int8", 1, "bfloat16"),
    ("int8", 257, "float16"),
    ("int8", 2304, "float32"),
    ("topk:ratio=0.1", 257, "float32"),
    ("none", 255, "float32"),
)
FEW_RANKS = (
    *(
        (text, numel, "float32")
        for text in ("int8", "topk:ratio=0.1", "dgc:ratio=0.1", "fp16", "none")
        for numel in (0, 1, 255, 1111)
    ),
    *((text, 1111, dtype) for text in ("int8", "topk:ratio=0.1") for dtype in ("float16", "bfloat16")),
)
VERBS = (
    "all_reduce",
    "all_gather_into_tensor",
    "all_gather",
    "reduce_scatter_tensor",
    "broadcast",
    "all_to_all_single",
    "neighbor_exchange",
)


def _cases(world: int) -> Sequence[tuple[str, int, str]]:
    return FEW_RANKS if world in (2, 3) else ANY_WORLD


def _gapped(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, every third place in memory."""
    wide = torch.zeros(tensor.numel(), 3, dtype=tensor.dtype)[:, 1]
    wide.copy_(tensor)
    return wide


def _verbs(rank: int, world: int, case: tuple[str, int, str], **options: Any) -> list[np.ndarray]:
    """What each of `VERBS` leaves at ``rank`` of a group; with ``async_op`` all are under way at once, and
    no tensor is contiguous.
    """
    text, numel, dtype = case
    place = _gapped if options.get("async_op") else torch.clone

    def given(n: int) -> torch.Tensor:
        return place(_tensor(_input(rank, n, dtype), dtype))

    def room(n: int) -> torch.Tensor:
        return place(torch.full((n,), -7.0, dtype=getattr(torch, dtype)))

    around = {"to": [(rank + 1) % world], "of": [(rank - 1) % world]} if world > 1 else {"to": [], "of": []}
    x, wide, total, sent = given(numel), given(numel * world), given(numel), given(numel)
    both, listed = room(world * numel), [room(numel) for _ in range(world)]
    share, traded, came = room(numel), room(world * numel), [room(numel) for _ in around["of"]]
    kept = {"codec": text, "min_bytes": 0, **options}
    works = [
        dd.all_reduce(total, **kept),
        dd.all_gather_into_tensor(both, x, **kept),
        dd.all_gather(listed, x, **kept),
        dd.reduce_scatter_tensor(share, wide, **kept),
        dd.broadcast(sent, group_src=world - 1, **kept),
        dd.all_to_all_single(traded, wide, **kept),
        dd.neighbor_exchange(came, x, around["to"], sources=around["of"], codec=text, **options),
    ]
    for work in works:
        if options.get("async_op"):
            assert work.wait()
            assert work.stats().world == world
    assert torch.equal(x, given(numel))
    assert torch.equal(wide, given(numel * world))
    return [_raw(t) for t in (total, both, torch.cat(listed), share, sent, traded, torch.cat([*came, x[:0]]))]


def _expected(rank: int, world: int, case: tuple[str, int, str]) -> list[np.ndarray]:
    """The same by the oracle."""
    text, numel, dtype = case
    text = "none" if world == 1 else text
    narrow = [_input(r, numel, dtype) for r in range(world)]
    wide = [_input(r, numel * world, dtype) for r in range(world)]
    gathered = np.concatenate([_decoded(text, x, dtype) for x in narrow])
    mine = [x[rank * numel : (rank + 1) * numel] for x in wide]
    return [
        oracle.all_reduce(text, narrow, dtype=dtype, rules=RULES).output if world > 1 else narrow[0],
        gathered,
        gathered,
        np.concatenate([_sum(text, mine, rank, span, dtype) for span in _spans(text, numel)]),
        _decoded(text, narrow[-1], dtype),
        np.concatenate([x if r == rank else _decoded(text, x, dtype) for r, x in enumerate(mine)]),
        _decoded(text, narrow[rank - 1], dtype) if world > 1 else narrow[0][:0],
    ]


def _spans(text: str, numel: int) -> list[tuple[int, int]]:
    return oracle.chunks(text, (0, numel), RULES) or [(0, 0)]


def _decoded(text: str, x: np.ndarray, dtype: str) -> np.ndarray:
    codec = reference.codec(text)
    packets = [reference.encode(codec, x[a:b], dtype=dtype).packet for a, b in _spans(text, x.size)]
    return np.concatenate([reference.decode(packet) for packet in packets]) if x.size else x


def _sum(text: str, parts: Sequence[np.ndarray], own: int, span: tuple[int, int], dtype: str) -> np.ndarray:
    """The own part is exact, and the sum is rounded once."""
    start, stop = span
    if start == stop:
        return parts[0][:0]
    packets = [
        reference.encode(
            oracle.EXACT if rank == own else reference.codec(text), part[start:stop], dtype=dtype
        ).packet
        for rank, part in enumerate(parts)
    ]
    return reference.reduce(packets, out_dtype=dtype)


def _check(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], case: Any, world: int) -> None:
    for verb, ours, theirs in zip(VERBS, found, expected, strict=True):
        if case[0] == "none":  # torch adds up in an order of its own
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=world * 2.0**-21, err_msg=f"{verb} {case}")
        else:
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(
                ours.view(np.uint8), theirs.view(np.uint8), f"{verb} {case} world {world}"
            )


def _at_each_rank(rank: int, world: int) -> tuple[list[Any], list[Any], tuple[int, list[Any]] | None]:
    _small_rules()
    at_once = [_verbs(rank, world, case) for case in _cases(world)]
    later = [_verbs(rank, world, case, async_op=True) for case in _cases(world)]
    without_first = dist.new_group(list(range(min(1, world - 1), world)))
    if rank == 0 and world > 1:
        return at_once, later, None
    me, size = without_first.rank(), without_first.size()
    return at_once, later, (me, [_verbs(me, size, case, group=without_first) for case in ANY_WORLD])


@pytest.mark.parametrize("world", range(1, 10))
def test_every_verb_has_the_bits_of_the_oracle(world: int) -> None:
    ranks = run_ranks(_at_each_rank, world, world)
    for k, case in enumerate(_cases(world)):
        for rank, (at_once, later, _) in enumerate(ranks):
            expected = _expected(rank, world, case)
            _check(at_once[k], expected, case, world)
            _check(later[k], expected, case, world)
    members = [member for _, _, member in ranks if member is not None]
    for k, case in enumerate(ANY_WORLD):
        for me, found in members:
            _check(found[k], _expected(me, len(members), case), case, len(members))


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
    least = torch.empty(2000)
    dd.reduce_scatter_tensor(least, torch.full((6000,), rank + 1.0), dist.ReduceOp.MIN, codec="none")
    assert torch.equal(least, torch.ones(2000))
    with pytest.raises(ValueError, match="an average of int64"):
        dd.reduce_scatter_tensor(least.long(), torch.ones(6000).long(), dist.ReduceOp.AVG, codec="none")
    with pytest.raises(ValueError, match="SUM and AVG"):
        dd.reduce_scatter_tensor(least, torch.ones(6000), dist.ReduceOp.MIN, codec="int8")
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
