"""Policies in collectives: all ranks decide alike, outcomes are told, figures are agreed on in time."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_ranks

import dance
import dance.distributed as dd
from dance.distributed.turns import Turns
from dance.distributed.work import Work
from dance.policy import Decision, Fixed, Outcome, Schedule, Send


class Ladder:
    """Takes the next codec when the agreed number of outcomes has grown by two."""

    codecs = ("int8", "none", "topk:ratio=0.1", "bf16")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.sends: list[Send] = []
        self.outcomes: list[tuple[Send, str, Outcome]] = []
        self.agreed: list[np.ndarray] = []
        self.trail: list[str] = []

    def choose(self, send: Send) -> Any:
        self.sends.append(send)
        seen = int(-self.agreed[-1][0]) if self.agreed else 0  # of the rank that has seen least
        self.trail.append(f"choose {seen}")
        return dance.codec(self.codecs[seen // 2 % len(self.codecs)])

    def observe(self, send: Send, codec: Any, outcome: Outcome) -> None:
        self.outcomes.append((send, codec.name, outcome))

    def shares(self, call: int) -> bool:
        return call <= 3 or call % 2 == 0

    def figures(self) -> np.ndarray:
        self.trail.append("figures")
        return np.array([-float(len(self.outcomes)), float(self.rank)])

    def agree(self, figures: np.ndarray) -> None:
        self.trail.append("agree")
        self.agreed.append(figures.copy())


def _climb(rank: int, world: int) -> list[str]:
    policy = Ladder(rank)
    used = []
    for step in range(9):
        x = torch.full((30000,), float(rank + 1))
        if rank == 0:
            time.sleep(0.01)
        dd.all_reduce(x, codec=policy, key="w")
        assert torch.allclose(x, torch.full_like(x, world * (world + 1) / 2), rtol=1e-2) or step >= 4
        assert len(policy.outcomes) == step + 1
        send, name, outcome = policy.outcomes[-1]
        assert send is policy.sends[-1]
        assert (send.kind, send.target, send.round, send.numel) == ("all_reduce", "w", step + 1, 30000)
        assert (send.world, send.dtype, send.feedback, send.device) == (world, "float32", False, "cpu")
        assert outcome.seconds > 0.0
        if name == "none":
            assert outcome.wire_s is None
        else:
            assert 0.0 < outcome.wire_s <= outcome.seconds
            assert 0 < outcome.wire_bytes <= 4 * 30000 * world
            assert outcome.encode_s + outcome.decode_s > 0.0
        used.append(name)
    # Figures of the first three calls are handed over at the next, those of later ones a call after that.
    assert policy.trail[:6] == ["choose 0", "figures", "agree", "choose 1", "figures", "agree"]
    assert all(figures[1] == world - 1 for figures in policy.agreed)
    assert dd.stats()["agreements"] == 6
    assert dd.stats()["by_reason"] == {"policy": used.count("none")}
    works = [dd.all_reduce(torch.ones(30000), codec=policy, async_op=True) for _ in range(4)]
    assert all(work.wait() for work in works)
    assert len(policy.outcomes) == 13
    tensors = [torch.ones(30000), torch.ones(10)]
    dd.all_reduce_coalesced(tensors, codec=[policy, "bf16"])
    assert tensors[1][3].item() == world
    return used


def test_ranks_that_measure_differently_decide_alike() -> None:
    ranks = run_ranks(_climb, 3, 3)
    assert ranks[0] == ranks[1] == ranks[2]
    assert len(set(ranks[0])) >= 3


def _policies_of_the_library(rank: int, world: int) -> list[str]:
    x = torch.full((30000,), 1.0)
    fixed = Fixed("int4")
    dd.all_reduce(x, codec=fixed)
    assert x[0].item() == float(world)
    assert [decision.codec for decision in fixed.log] == ["int4:block=256"]
    used = []
    for _ in range(6):
        x = torch.randn(50000)
        work = dd.all_reduce(x, codec="auto", async_op=True)
        work.wait()
        used.append(work.stats().codec)
        both = [torch.empty_like(x) for _ in range(world)]
        dist.all_gather(both, x)
        assert all(torch.equal(each, x) for each in both)
    return used


def test_fixed_and_auto() -> None:
    ranks = run_ranks(_policies_of_the_library, 2, 2)
    assert ranks[0] == ranks[1]


class Forgetful(Fixed):
    """Shares after every call, and cannot take in an outcome."""

    def shares(self, call: int) -> bool:
        return True

    def observe(self, send: Send, codec: Any, outcome: Outcome) -> None:
        raise RuntimeError(f"cannot observe call {send.round}")


def _unobserved(rank: int, world: int) -> None:
    for codec in ("int8", "none"):
        policy = Forgetful(codec)
        for async_op in (True, False, True, False):
            x = torch.full((30000,), 1.0)
            error: BaseException | None = None
            try:
                work = dd.all_reduce(x, codec=policy, async_op=async_op)
                work.wait(timedelta(seconds=10))
            except RuntimeError as raised:
                error = raised
            assert "cannot observe" in str(error)
            assert torch.allclose(x, torch.full_like(x, world), rtol=1e-2)
    dd.all_reduce(x, codec="int8", async_op=True).wait(timedelta(seconds=10))


def test_a_policy_that_fails_to_observe_is_reported_and_stops_nobody() -> None:
    run_ranks(_unobserved, 2, 2)


class Listening(Fixed):
    """Keeps what it is told, and shares nothing."""

    def __init__(self, codec: Any) -> None:
        super().__init__(codec)
        self.sends: list[Send] = []
        self.outcomes: list[Outcome] = []

    def choose(self, send: Send) -> Any:
        self.sends.append(send)
        return super().choose(send)

    def observe(self, send: Send, codec: Any, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def _queued(rank: int, world: int) -> None:
    policy = Listening("none")
    tensors = [torch.ones(1 << 20) for _ in range(12)]
    dist.barrier()
    start_s = time.monotonic()
    works = [dd.all_reduce(x, codec=policy, async_op=True) for x in tensors]
    for work in works:
        work.wait()
    total_s = time.monotonic() - start_s
    took = [outcome.seconds for outcome in policy.outcomes]
    assert len(took) == 12
    assert min(took) > 0.0
    assert sum(took) < 2.0 * total_s, (took, total_s)  # about 6 times with their queues


def test_what_queues_is_not_timed_with_its_queue() -> None:
    run_ranks(_queued, 2, 2)


def test_calls_that_queue_share_the_time_out() -> None:
    one_by_one, pairs = Turns(), Turns()
    assert [one_by_one.taken_s(0.0, end_s, 8) for end_s in (1.0, 2.0, 3.0)] == [1.0, 1.0, 1.0]
    assert one_by_one.taken_s(10.0, 10.5, 8) == 0.5
    assert [pairs.taken_s(0.0, end_s, 8) for end_s in (1.0, 1.0, 2.0, 2.0)] == [1.0, 0.5, 0.5, 0.5]
    assert pairs.taken_s(1.0, 5.0, 24) == 2.25


def _unasked(rank: int, world: int) -> None:
    policy = Listening("int8")
    small, large = torch.ones(100), torch.ones(30000)

    def reason(x: torch.Tensor, **given: Any) -> str:
        work = dd.all_reduce(x, codec=policy, async_op=True, **given)
        work.wait()
        assert work.stats().algorithm == "direct"
        return str(work.stats().reason)

    assert reason(small.clone()) == "under min_bytes"
    assert reason(large.to(torch.int64)) == "dtype"
    highest = torch.full((30000,), float(rank))
    assert reason(highest, op=dist.ReduceOp.MAX) == "op"
    assert highest[0].item() == world - 1
    lowest = torch.empty(15000)
    dd.reduce_scatter_tensor(lowest, torch.full((30000,), float(rank)), dist.ReduceOp.MIN, codec=policy)
    assert lowest.abs().max().item() == 0.0
    gathered = torch.empty(world * 100)
    dd.all_gather_into_tensor(gathered, small, codec=policy)
    dd.all_gather_into_tensor(torch.empty(world * 30000, dtype=torch.int32), large.int(), codec=policy)
    dd.all_reduce_coalesced([small.clone(), small.clone()], codec=[policy, "bf16"])
    assert policy.sends == []
    assert policy.outcomes == []
    with pytest.raises(ValueError, match="SUM and AVG"):
        dd.all_reduce(large.clone(), dist.ReduceOp.MAX, codec="int8")
    with pytest.raises(ValueError, match="cast first"):
        dd.all_reduce(large.int(), codec="int8")
    # Two in one message: each is told its part, and nothing of what was not executed as it chose.
    other = Listening("fp16")
    work = dd.all_reduce_coalesced([large.clone(), large.clone()], codec=[policy, other], async_op=True)
    work.wait()
    stats = work.stats()
    told = [policy.outcomes[0], other.outcomes[0]]
    assert sum(each.seconds for each in told) == pytest.approx(stats.seconds)
    assert sum(each.wire_bytes for each in told) == pytest.approx(stats.bytes_received, abs=2)
    assert 0.3 < told[0].seconds / told[1].seconds < 0.6  # int8 has half the bytes
    uncompressed = Listening("none")
    dd.all_reduce_coalesced([large.clone(), large.clone()], codec=[policy, uncompressed])
    assert (len(policy.outcomes), len(uncompressed.outcomes)) == (1, 1)


def test_policies_are_asked_and_told_only_of_what_is_theirs() -> None:
    run_ranks(_unasked, 2, 2)


def _decided(number: int, codec: str) -> Decision:
    return Decision(
        kind="all_reduce", target="", round=number, codec=codec, num_bytes=0, predicted_s=None, budget_s=None
    )


def _calls(policy: Any, group: Any, count: int) -> list[str]:
    used = []
    for _ in range(count):
        work = dd.all_reduce(torch.randn(50000), codec=policy, group=group, async_op=True)
        work.wait()
        used.append(work.stats().codec.partition(":")[0])
    return used


def _kept(rank: int, world: int) -> list[str]:
    assert dd.links() == {}
    if rank == 1:
        time.sleep(1.0)  # who comes late changes nothing
    dd.probe()
    previous = (rank - 1) % world
    estimate = dd.links()[previous].estimate()
    assert list(dd.links()) == [previous]
    assert estimate is not None
    assert estimate.rate_mbps > 20.0  # with the second it would be 8
    assert dd.stats()["by_collective"] == {"neighbor_exchange": 6}
    send = Send(kind="all_reduce", round=7, numel=50000, world=world)
    for _ in range(6):
        dd.all_reduce(torch.randn(50000), codec="auto")
    policy = dd.policy()
    assert policy is dd.policy(feedback=False)
    assert policy is not dd.policy(feedback=True)
    assert [decision.round for decision in policy.log][:1] == [1]
    told = policy.explain(send)
    assert all(row.cost is not None for row in told.rows)
    assert sorted(dd.links()) == [peer for peer in range(world) if peer != rank]
    resumed = dist.new_group()
    dd.policy(resumed).load_state_dict(policy.state_dict())
    assert dd.policy(resumed).log == policy.log
    work = dd.all_reduce(torch.randn(50000), codec="auto", group=resumed, async_op=True)
    work.wait()
    # A resumed run counts on, and so does the replay of a log.
    assert (policy.round, dd.policy(resumed).round) == (6, 7)
    first = Schedule([_decided(1, "int8"), _decided(3, "bf16"), _decided(5, "fp16")])
    used = _calls(first, None, 3)
    again = Schedule([_decided(1, "int8"), _decided(3, "bf16"), _decided(5, "fp16")])
    _calls(again, resumed, 4)  # what was before it was loaded counts for nothing
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    used += _calls(again, resumed, 3)
    assert used == ["int8", "int8", "bf16", "bf16", "fp16", "fp16"]
    assert [(each.round, each.codec.partition(":")[0]) for each in again.log] == [
        (1, "int8"),
        (3, "bf16"),
        (5, "fp16"),
    ]
    alone = [dist.new_group([peer]) for peer in range(world)][rank]
    dd.probe(alone)
    assert dd.links(alone) == {}
    return [work.stats().codec, *(decision.codec for decision in policy.log)]


def test_what_is_kept_of_a_group_can_be_read_and_resumed() -> None:
    ranks = run_ranks(_kept, 3, 3)
    assert ranks[0] == ranks[1] == ranks[2]


def _ended(rank: int, world: int) -> None:
    finish = Work.finish

    def and_linger(work: Work, *given: Any) -> None:
        finish(work, *given)
        time.sleep(0.3)

    Work.finish = and_linger  # type: ignore[method-assign]
    group = dist.new_group()
    x, share = torch.ones(1000), torch.empty(1000 * world)
    dd.all_reduce(x, codec="none", group=group, async_op=True).wait()
    dd.all_gather_into_tensor(share, x, codec="none", group=group, async_op=True).wait()
    dist.destroy_process_group(group)
    del group
    time.sleep(0.6)


def test_a_group_may_end_while_its_thread_still_tells_of_the_last_call() -> None:
    """gloo's thread must not be the last to hold the group: its end would wait for that thread."""
    run_ranks(_ended, 2, 2)
