"""The device transport: raw payloads by torch's own collectives, over gloo on CPU tensors, and on a GPU."""

from __future__ import annotations

import tempfile
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from test_distributed import RULES, _input, _small_rules, _tensor

import dance
import dance.distributed as dd
from dance.distributed.device import DeviceCall
from dance.distributed.member import member_of
from dance.errors import NonFiniteError
from dance.policy import Fixed, Outcome, Send

CODECS = ("int8", "int4:block=64", "sign:block=64", "bf16", "topk:ratio=0.1", "mxfp4")
NUMEL = 2777


def _verbs(rank: int, world: int, codec: str, feedback: Any) -> list[torch.Tensor]:
    kept: dict[str, Any] = {"codec": codec, "min_bytes": 0}
    found = []
    for step, numel in enumerate((NUMEL, NUMEL, 1, 257)):
        x = _tensor(_input(rank, numel, step=step))
        op = dist.ReduceOp.AVG if step % 2 else dist.ReduceOp.SUM
        dd.all_reduce(x, op, feedback=feedback, key=f"w{numel}", **kept)
        found.append(x)
    y = _tensor(_input(rank, NUMEL))
    gathered, share, traded = torch.empty(world * NUMEL), torch.empty(NUMEL), torch.empty(world * NUMEL)
    dd.all_gather_into_tensor(gathered, y, **kept)
    wide = _tensor(_input(rank, world * NUMEL))
    dd.reduce_scatter_tensor(share, wide, **kept)
    dd.all_to_all_single(traded, wide, **kept)
    dd.broadcast(y, group_src=1, **kept)
    around = [torch.empty(NUMEL)]
    mine = _tensor(_input(rank, NUMEL, step=9))
    dd.neighbor_exchange(around, mine, [(rank + 1) % world], sources=[(rank - 1) % world], codec=codec)
    tensors = [_tensor(_input(rank, n)) for n in (900, 70)]
    dd.all_reduce_coalesced(tensors, codec=[codec, "bf16"], min_bytes=0)
    return [*found, gathered, share, traded, y, *around, *tensors]


def _both_ways(rank: int, world: int) -> None:
    _small_rules()
    member = member_of(None)[1]
    for codec in CODECS:
        results, residuals = [], []
        for over_host in (True, False):
            member.over_host = over_host
            feedback = dance.ErrorFeedback(codec)
            results.append(_verbs(rank, world, codec, feedback))
            residuals.append(feedback.state_dict()["residuals"])
        for k, (host, device) in enumerate(zip(*results, strict=True)):
            assert torch.equal(host, device), (codec, k)
        for key, residual in residuals[0].items():
            assert torch.equal(residual, residuals[1][key]), (codec, key)
    work = dd.all_reduce(torch.ones(NUMEL), codec="int8", min_bytes=0, async_op=True)
    assert work.wait()
    assert work.stats().bytes_sent > 0
    for codec in ("randk:ratio=0.1", "int4:rounding=stochastic"):
        feedback = dance.ErrorFeedback(codec)
        x = _tensor(_input(rank, NUMEL))
        total = x.clone()
        dist.all_reduce(total)
        dd.all_reduce(x, feedback=feedback, key="w", min_bytes=0)
        owed = feedback.residual("w").clone()
        dist.all_reduce(owed)
        assert torch.allclose(x + owed, total, atol=1e-4)
    # What is refused changes nothing.
    feedback = dance.ErrorFeedback("dgc:ratio=0.1")
    options: dict[str, Any] = {"feedback": feedback, "key": "w"}
    for call in (dd.all_reduce, partial(dd.broadcast, src=0)):
        with pytest.raises(ValueError, match="its size varies"):
            call(torch.ones(NUMEL), min_bytes=0, **options)
        for codec in ("none", "int8"):  # the flag of a call on a GPU, which nobody has read yet
            member.unread = ("all_reduce", torch.ones(1))
            with pytest.raises(NonFiniteError, match="some rank"):
                call(torch.ones(NUMEL), codec=codec, **options)
    assert feedback.step("w") == 0
    if not torch.cuda.is_available():
        import_module("torch.testing._internal.distributed.fake_pg")  # a backend that is not gloo
        with pytest.raises(ValueError, match=r"no GPU for another; call init_process_group\('gloo'\)"):
            dd.all_reduce(torch.ones(NUMEL), group=dist.new_group(backend="fake"))
    x = torch.ones(NUMEL)
    if rank == 1:
        x[7] = float("nan")
    with pytest.raises(NonFiniteError, match="some rank"):
        dd.all_reduce(x, codec="int8", min_bytes=0)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("world", [2, 3])
def test_the_device_transport_gives_the_bits_of_the_wire(world: int) -> None:
    assert RULES.chunk_numel % 256 == 0
    run_ranks(_both_ways, world, world)


def _neighbors(rank: int, world: int) -> None:
    """All others get the same payload, so one residual is what all of them are owed."""
    others = [peer for peer in range(world) if peer != rank]
    member = member_of(None)[1]
    for member.over_host in (True, False):
        for codec in ("topk:ratio=0.05", "int4:rounding=stochastic"):
            feedback = dance.ErrorFeedback(codec)
            x = _tensor(_input(rank, NUMEL))
            outputs = [torch.empty(NUMEL) for _ in others]
            options: Any = {"feedback": feedback, "key": "w", "async_op": True}
            work = dd.neighbor_exchange(outputs, x, others, **options)
            work.wait()
            got: list[Any] = [None] * world
            dist.all_gather_object(got, dict(zip(others, outputs, strict=True)))
            sent = [got[peer][rank] for peer in others]
            assert all(torch.equal(sent[0], each) for each in sent), (member.over_host, codec)
            torch.testing.assert_close(sent[0] + feedback.residual("w"), x, atol=1e-6, rtol=0)
            stats = work.stats()
            assert stats.raw_bytes == len(others) * NUMEL * 4
            assert stats.bytes_sent == stats.bytes_received > 0


def _accounts(rank: int, world: int) -> None:
    """Who sends is told from who receives, on either transport."""
    member = member_of(None)[1]
    for member.over_host in (True, False):
        x = torch.ones(NUMEL)
        work = dd.broadcast(x, group_src=1, codec="int8", min_bytes=0, async_op=True)
        work.wait()
        stats = work.stats()
        greetings = 64 * world  # no more than these go the other way
        assert (stats.bytes_sent > greetings, stats.bytes_received > greetings) == (rank == 1, rank != 1)
        assert (stats.raw_bytes > 0) == (rank == 1)
        around = [torch.empty(NUMEL)] if rank == 1 else []
        sources = [0] if rank == 1 else []
        work = dd.neighbor_exchange(
            around, x, [1] if rank == 0 else [], sources=sources, codec="int8", async_op=True
        )
        work.wait()
        stats = work.stats()
        assert stats.raw_bytes == (4 * NUMEL if rank == 0 else 0)
        assert (stats.bytes_sent > 0, stats.bytes_received > 0) == (rank == 0, rank == 1)


def _uneven(rank: int, world: int) -> None:
    """Inputs of both sides of min_bytes: ranks decide alike, by the codec alone."""
    taken = [20000, 4000]
    mine = taken[rank]
    x = _tensor(_input(rank, 2 * mine))
    expected = torch.empty(24000)
    dist.all_to_all_single(expected, x, taken, [mine, mine])
    for member_of(None)[1].over_host in (True, False):
        out = torch.empty(24000)
        work = dd.all_to_all_single(out, x, taken, [mine, mine], codec="int8", async_op=True)
        work.wait()
        assert work.stats().algorithm == "one-shot"
        assert (out - expected).abs().max() <= 1.01 * expected.abs().max() / 254
        for policy in ("auto", Fixed("int8")):
            with pytest.raises(ValueError, match="policy"):
                dd.all_to_all_single(out, x, taken, [mine, mine], codec=policy)


def _looks(rank: int, world: int) -> None:
    """What is not finite is told with "zero" as well, wherever it is; all encoded is looked at."""
    _small_rules()
    member_of(None)[1].over_host = False
    looked_at = []
    nonfinite = DeviceCall.nonfinite

    def spy(call: DeviceCall, sections: Any) -> torch.Tensor:
        looked_at.append(len(call._packets))
        return nonfinite(call, sections)

    DeviceCall.nonfinite = spy  # type: ignore[method-assign]
    numel = 30000
    for at in (None, 0, numel // 2, numel - 1):  # the shards of all ranks, so of the own one
        x, wide, share = torch.ones(numel), torch.ones(world * numel), torch.empty(numel)
        if at is not None and rank == 1:
            x[at] = wide[at * world] = float("nan")
        for work in (
            dd.all_reduce(x, codec="int8", min_bytes=0, nonfinite="zero", async_op=True),
            dd.reduce_scatter_tensor(share, wide, codec="int8", min_bytes=0, nonfinite="zero", async_op=True),
        ):
            work.wait()
            assert work.stats().nonfinite is (at is not None)
        assert torch.isfinite(x).all()
        assert torch.isfinite(share).all()
    # To the two others, the own shard and the sum of it; to the two others and the own share.
    assert looked_at == [4, 3] * 4


@pytest.mark.parametrize(("body", "world"), [(_neighbors, 3), (_accounts, 3), (_uneven, 2), (_looks, 3)])
def test_the_transports_agree_on(body: Any, world: int) -> None:
    run_ranks(body, world, world)


class Timed(Fixed):
    """Keeps the seconds that it is told."""

    def __init__(self, codec: str) -> None:
        super().__init__(codec)
        self.seconds: list[float] = []

    def observe(self, send: Send, codec: dance.Codec, outcome: Outcome) -> None:
        self.seconds.append(outcome.seconds)


@pytest.mark.cuda
def test_one_gpu_over_nccl_and_staged_over_gloo() -> None:
    """One rank has nothing to send; the transport is called as it would be with more."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        try:
            x = torch.randn(100000, device="cuda")
            expected = dance.decode(dance.encode(x, "int8"))
            out = torch.empty_like(x)
            member = member_of(None)[1]
            member.over_host, member.world = False, 2  # past the short cut of a single rank
            dd.broadcast(out.copy_(x), group_src=0, codec="int8")
            assert torch.equal(out, expected)
            member.over_host = True
            dd.broadcast(out.copy_(x), group_src=0, codec="int8")
            assert torch.equal(out, expected)
            policy = Timed("none")
            dd.broadcast(out, group_src=0, codec=policy)
            torch.cuda._sleep(1 << 28)  # over 0.1 s of work that the call is not to be charged with
            works = [dd.broadcast(out, group_src=0, codec=policy, async_op=True) for _ in range(2)]
            assert all(work.wait() for work in works)
            assert len(policy.seconds) == 3
            assert all(0.0 < seconds < 0.1 for seconds in policy.seconds[1:])
        finally:
            dist.destroy_process_group()
