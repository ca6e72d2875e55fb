"""Ranks that mean to make different calls: all find out at once, and the group goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from test_distributed import _small_rules

import dance.distributed as dd
from dance import ErrorFeedback
from dance.errors import PeerError
from dance.exchange.stamp import FLAGS, VERBS, Stamp, differs, is_same_call

NUMEL = 20000
SUM, AVG = dist.ReduceOp.SUM, dist.ReduceOp.AVG
Call = Callable[[dist.ProcessGroup], object]


def _verbs(world: int, numel: int) -> dict[str, Call]:
    """Calls whose packets, but for what they say of the call, are the same; keys are the words of errors."""
    kept: dict[str, Any] = {"codec": "int8", "min_bytes": 0}

    def many(n: int) -> torch.Tensor:
        return torch.ones(n * numel)

    return {
        "all_reduce": lambda group: dd.all_reduce(many(1), group=group, **kept),
        "all_gather": lambda group: dd.all_gather_into_tensor(many(world), many(1), group=group, **kept),
        "reduce_scatter": lambda group: dd.reduce_scatter_tensor(many(1), many(world), group=group, **kept),
        "broadcast": lambda group: dd.broadcast(many(1), group_src=0, group=group, **kept),
        "all_to_all": lambda group: dd.all_to_all_single(many(world), many(world), group=group, **kept),
    }


def _refused(call: Call, text: str, group: dist.ProcessGroup) -> None:
    """A call that waited for the group's timeout has another error, and nothing works after it."""
    with pytest.raises(PeerError, match=text):
        call(group)
    x = torch.full((NUMEL,), 1.0)
    dd.all_reduce(x, codec="bf16", group=group)
    assert torch.equal(x, torch.full_like(x, float(group.size())))


def _groups() -> Iterator[dist.ProcessGroup]:
    """A group can stand a few refused calls only."""
    while True:
        group = dist.new_group(timeout=timedelta(seconds=30))
        for _ in range(8):
            yield group


def _other_verb(rank: int, world: int, numel: int) -> None:
    groups, calls = _groups(), _verbs(world, numel)
    for mine, theirs in itertools.permutations(calls, 2):
        last = rank == world - 1
        text = f"it calls {theirs}, this rank {mine}"
        _refused(calls[theirs if last else mine], f"it calls {mine}, this" if last else text, next(groups))


@pytest.mark.parametrize("world", [2, 3])
def test_another_verb_is_refused_at_all_ranks(world: int) -> None:
    run_ranks(_other_verb, world, world, NUMEL)


def test_another_verb_with_payloads_too_large_to_be_taken_in_vain_is_refused() -> None:
    run_ranks(_other_verb, 2, 2, 1 << 20)


def _other_arguments(rank: int, world: int) -> None:
    groups = _groups()
    odd = rank == world - 1
    kept: dict[str, Any] = {"codec": "int8", "min_bytes": 0}
    op, other, key = (AVG, SUM, "v") if odd else (SUM, AVG, "w")
    x, wide, share = torch.ones(NUMEL), torch.ones(world * NUMEL), torch.empty(NUMEL)
    text = f"asks for {str(other).split('.')[-1]}, this rank for {str(op).split('.')[-1]}"
    _refused(lambda group: dd.all_reduce(x, op, group=group, **kept), text, next(groups))
    _refused(lambda group: dd.reduce_scatter_tensor(share, wide, op, group=group, **kept), text, next(groups))
    text = "another src or key"
    _refused(lambda group: dd.broadcast(x, group_src=rank, group=group, **kept), text, next(groups))
    _refused(lambda group: dd.broadcast(x, group_src=int(odd), group=group, **kept), text, next(groups))
    feedback = ErrorFeedback("int8")
    given: dict[str, Any] = {"min_bytes": 0, "feedback": feedback}
    _refused(lambda group: dd.all_reduce(x, key=key, group=group, **given), "another key", next(groups))
    # One message of two packets, of which the receiver expects the first alone.
    more = [x, torch.ones(300)] if odd else [x]
    codecs = ["int8", "bf16"][: len(more)]
    _refused(
        lambda group: dd.all_reduce_coalesced(more, codec=codecs, min_bytes=0, group=group),
        "another number of tensors",
        next(groups),
    )
    keys = ["a", "b"] if odd else ["b", "a"]
    two = [torch.ones(NUMEL), torch.ones(NUMEL)]
    _refused(
        lambda group: dd.all_reduce_coalesced(two, keys=keys, group=group, **given),
        "another key",
        next(groups),
    )


def _late_row(rank: int) -> None:
    """Rank 0's first message for rank 2 is its second: the first row has no shard of rank 2."""
    _small_rules()
    both = [torch.ones(512), torch.ones(100)]
    calls: list[Call] = [
        lambda group: dd.all_reduce_coalesced(both, codec=["bf16", "fp16"], min_bytes=0, group=group),
        lambda group: dd.all_gather_into_tensor(
            torch.ones(3 * 512), torch.ones(512), codec="bf16", min_bytes=0, group=group
        ),
    ]
    group = dist.new_group(timeout=timedelta(seconds=30))
    _refused(calls[rank == 2], "it calls all_(reduce|gather), this rank", group)


def test_the_first_header_is_found_whatever_message_it_belongs_to() -> None:
    run_ranks(_late_row, 3)


@pytest.mark.parametrize("world", [2, 3])
def test_another_op_source_or_key_is_refused_at_all_ranks(world: int) -> None:
    run_ranks(_other_arguments, world, world)


def _nothing_to_say(rank: int, world: int) -> dict[str, tuple[int, int]]:
    """Calls in which some ranks have nothing for others, or nobody has anything."""
    _small_rules()
    found: dict[str, tuple[int, int]] = {}

    def count(name: str, call: Callable[[], object]) -> None:
        before = dd.stats()
        call()
        after = dd.stats()
        sent, received = (after[what] - before[what] for what in ("bytes_sent", "bytes_received"))
        found[name] = (sent, received)

    # Two shards of 256 elements, and none for rank 2, in two shots.
    x = torch.full((512,), rank + 1.0)
    count("two-shot", lambda: dd.all_reduce(x, codec="bf16", min_bytes=0))
    assert torch.equal(x, torch.full_like(x, 6.0))
    # One row in two shots without a part for rank 2, and one in one shot: its message is not the first.
    both = [torch.full((512,), rank + 1.0), torch.full((100,), rank + 1.0)]
    count("mixed", lambda: dd.all_reduce_coalesced(both, codec=["bf16", "fp16"], min_bytes=0))
    assert all(torch.equal(each, torch.full_like(each, 6.0)) for each in both)
    y = torch.full((NUMEL,), float(rank))
    count("broadcast", lambda: dd.broadcast(y, group_src=1, codec="bf16", min_bytes=0))
    assert torch.equal(y, torch.ones(NUMEL))
    none = torch.empty(0)
    for name, call in _verbs(world, 0).items():
        count(f"{name} of nothing", partial(call, dist.group.WORLD))
    given = [[0, 5, 0], [0, 0, 0], [7, 0, 0]][rank]
    taken = [[0, 0, 7], [5, 0, 0], [0, 0, 0]][rank]
    out = torch.full((sum(taken),), -1.0)
    count("uneven", lambda: dd.all_to_all_single(out, torch.ones(sum(given)), taken, given, codec="bf16"))
    assert torch.equal(out, torch.ones(sum(taken)))
    dd.neighbor_exchange([], none, [], key=f"of {rank}")  # nobody's neighbour
    pair = {0: [1], 1: [0], 2: []}[rank]
    came = [torch.empty(NUMEL) for _ in pair]
    feedback = ErrorFeedback("int8")  # neighbours may name their residuals as they like
    dd.neighbor_exchange(came, torch.ones(NUMEL), pair, feedback=feedback, key=f"to {pair}")
    assert all(torch.allclose(each, torch.ones(NUMEL)) for each in came)
    return found


def test_those_with_nothing_to_say_greet_each_other_and_all_bytes_are_counted_once() -> None:
    ranks = run_ranks(_nothing_to_say, 3, 3)
    assert ranks[0].keys() >= {"two-shot", "mixed", "broadcast", "all_reduce of nothing", "uneven"}
    for name in ranks[0]:
        assert sum(found[name][0] for found in ranks) == sum(found[name][1] for found in ranks) > 0, name
    # 64 bytes to each of two others where there is nothing else.
    assert [found["all_reduce of nothing"] for found in ranks] == [(128, 128)] * 3
    assert [ranks[rank]["broadcast"][0] for rank in (0, 2)] == [128, 128]


def test_stamps_tell_calls_apart() -> None:
    """Tags of calls repeat every 2^18; flags are nothing of the call."""
    first = Stamp(number=5, verb="all_reduce").bits()
    assert first & FLAGS == 0
    for number in (4, 6, 5 + 512, 5 + (1 << 18), 5 + (1 << 19), 5 + 1000 * (1 << 18)):
        assert not is_same_call(first, Stamp(number=number, verb="all_reduce").bits())
    assert is_same_call(first, first | FLAGS)
    assert differs(first, first | FLAGS) == ""
    for verb in VERBS[1:]:
        other = Stamp(number=5, verb=verb, mean=True, source=3, keys=["w"]).bits()
        assert 0 <= other < 1 << 32
        assert is_same_call(first, other)
        assert f"it calls {verb}, this rank all_reduce" in differs(first, other)
    assert "another collective" in differs(first, first | 7 << 10)
    named = [
        Stamp(number=5, verb="broadcast", source=0, keys=keys).bits() for keys in (["ab"], ["a", "b"], [])
    ]
    assert all("src or key" in differs(one, two) for one, two in itertools.permutations(named, 2))
