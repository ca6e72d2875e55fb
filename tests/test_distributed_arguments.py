"""What a user may get wrong in a call of dance.distributed: each error names the value and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_ranks

import dance
import dance.distributed as dd
from dance.errors import PeerError
from dance.policy import Auto, Send

NUMEL = 20000


def _refused(rank: int) -> None:
    x, both = torch.ones(NUMEL), torch.ones(2 * NUMEL)
    untyped: Any = dd  # what follows is wrong by its types, too
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: dd.all_reduce(x, "int8"),
            "all_reduce: expected an op such as ReduceOp.SUM, got 'int8'.*codec='int8'",
        ),
        (lambda: dd.all_reduce(x, dance.codec("int4")), "passed by name"),
        (lambda: dd.all_reduce(x, Auto()), "passed by name"),
        (lambda: dd.all_reduce(x, 3), "expected an op such as ReduceOp.SUM, got 3$"),
        (
            lambda: dd.reduce_scatter_tensor(x, both, "int8"),
            "reduce_scatter_tensor: expected an op.*codec='int8'",
        ),
        (lambda: dd.all_reduce(x, codec="auto:budget_s=0.1"), r"dance\.policy\.Auto\(budget_s="),
        (lambda: dd.all_reduce(x, codec="Auto"), "codec 'Auto': did you mean 'auto'"),
        (
            lambda: untyped.all_reduce(x.numpy()),
            "expected a torch tensor, got numpy.ndarray; pass torch.from_numpy",
        ),
        (lambda: untyped.all_reduce([x]), "expected a torch tensor, got list; .*all_reduce_coalesced"),
        (lambda: untyped.all_reduce(None), "expected a torch tensor, got NoneType"),
        (lambda: untyped.broadcast(np.ones(3), 0), "broadcast: expected a torch tensor, got numpy.ndarray"),
        (
            lambda: untyped.all_gather_into_tensor([x, x], x),
            "all_gather_into_tensor: expected a torch tensor, got list",
        ),
        (
            lambda: dd.all_reduce(x.to_sparse()),
            r"expected a dense tensor, got layout sparse_coo; pass tensor.to_dense",
        ),
        (lambda: dd.all_reduce(torch.empty(NUMEL, device="meta")), "meta device"),
        (lambda: dd.all_reduce(torch.empty(NUMEL, device="meta"), codec="none"), "meta device"),
        (
            lambda: untyped.all_reduce(x, min_bytes="64Ki"),
            "expected min_bytes as a number of at least 0, got '64Ki'",
        ),
        (lambda: dd.all_reduce(x, min_bytes=-1), "min_bytes .* got -1"),
        (lambda: untyped.all_reduce(x, seed="a"), r"expected a seed in \[0, 2\^64\), got 'a'"),
        (lambda: dd.all_reduce(x, seed=-1), "seed .* got -1"),
        (lambda: dd.all_reduce(x, seed=1 << 64), "expected a seed"),
        (lambda: dd.broadcast(x, 9), r"expected as src one of the ranks \[0, 1\], got 9"),
        (lambda: dd.broadcast(x, group_src=2), r"expected as group_src one of the ranks \[0, 1\], got 2"),
        (
            lambda: dd.all_gather_into_tensor(torch.empty(7), x),
            f"all_gather_into_tensor: expected an output of 2 times {NUMEL} elements, got 7",
        ),
        (lambda: dd.all_gather([x], x), rf"all_gather: expected 2 tensors of {NUMEL} elements.* got 1 of"),
        (lambda: dd.all_gather([x, both], x), f"all_gather: expected 2 tensors.*{NUMEL}, {2 * NUMEL}"),
    ]
    for call, text in cases:
        with pytest.raises(ValueError, match=text):
            call()
    other = dist.new_group([1, 0])
    dd.all_reduce(x, op=dist.ReduceOp.SUM, codec="none", min_bytes=np.int64(0), seed=np.int64(3), group=other)
    assert torch.equal(x, torch.full_like(x, 2.0))


def test_each_error_names_the_value_and_the_remedy() -> None:
    run_ranks(_refused, 2)


def _one_compresses(rank: int) -> str:
    group = dist.new_group(timeout=timedelta(seconds=2))
    x = torch.ones(NUMEL)
    dd.all_reduce(x, codec="int8", group=group)
    with pytest.raises((PeerError, RuntimeError)) as caught:
        dd.all_reduce(x, codec="int8" if rank else "none", group=group)
    dist.barrier()
    return " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def test_a_timeout_says_that_ranks_may_differ() -> None:
    direct, compressed = run_ranks(_one_compresses, 2)
    assert "differ in codec, min_bytes, or the size" in compressed
    if sys.version_info >= (3, 11):  # older ones know no notes
        assert "differ in codec, min_bytes, or the size" in direct


def test_the_names_are_those_of_the_verbs() -> None:
    assert dir(dd) == sorted(dd.__all__)
    assert not hasattr(dd, "reduce_scatter")
    for name, text in (
        ("reduce_scatter", "no compressed reduce_scatter; use dance.distributed.reduce_scatter_tensor"),
        ("all_to_all", "use dance.distributed.all_to_all_single"),
        ("gather", "use torch.distributed.gather"),
        ("nonsense", "has no attribute 'nonsense'"),
        ("_nothing", "has no attribute '_nothing'"),
    ):
        with pytest.raises(AttributeError, match=text):
            getattr(dd, name)


def _believed(rank: int) -> list[Any]:
    send = Send(kind="all_reduce", round=1, numel=1 << 20, world=2)
    for feedback in (False, True):
        assert "nothing is measured yet" in dd.policy(feedback=feedback).explain(send).reason
    dd.probe()
    told: list[Any] = []
    for feedback in (False, True):
        policy = dd.policy(feedback=feedback)
        assert isinstance(policy, Auto)
        assert "nothing is measured yet" not in policy.explain(send).reason
        believed = policy.link_estimate()  # of the slower link
        assert believed is not None
        mine = dd.links()[1 - rank].estimate()
        assert mine is not None
        assert believed.rate_mbps <= mine.rate_mbps * 1.001  # two meters, each with its rounding
        told += [believed.rate_mbps, believed.latency_s]
    for _ in range(4):  # ranks that believed different things would not agree here
        work = dd.all_reduce(torch.ones(1 << 18), codec="auto", async_op=True)
        work.wait()
        told.append(work.stats().codec)
    auto = dd.policy()
    assert isinstance(auto, Auto)
    learned = auto.link_estimate()
    dd.probe()
    assert auto.link_estimate() == learned  # what calls have measured counts for more
    return told


def test_auto_believes_what_the_probe_measured_and_ranks_believe_the_same() -> None:
    ranks = run_ranks(_believed, 2)
    assert ranks[0] == ranks[1]
