"""Policies in collectives: all ranks decide alike, outcomes are told, figures are agreed on in time."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from processes import run_ranks

import dance
import dance.distributed as dd
from dance.policy import Fixed, Outcome, Send


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
