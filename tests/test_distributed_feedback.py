"""Error feedback through collectives: nothing is lost, whatever changes: codec, grouping or world."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import collective_oracle as oracle
import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_ranks
from test_distributed import RULES, _input, _raw, _seeds, _small_rules, _tensor

import dance
import dance.distributed as dd
from dance.distributed.residual import pay
from dance.feedback import reshard
from dance.local_sgd import LocalSGD, averaging
from dance.policy import Fixed, PerLayer
from dance.report import CallLog, read_metrics

NUMEL = 2777
STEPS = 6
UNBOUNDED = next(t for t in ("qsgd:levels=3,norm=l2,block=4096",) if not dance.codec(t).bounded)
CODECS = ("int8", "int4:rounding=stochastic", "sign:block=64", "topk:ratio=0.05", "dgc:ratio=0.05", "bf16")


def _steps(rank: int) -> dict[str, Any]:
    _small_rules()
    found: dict[str, Any] = {}
    for text in CODECS:
        feedback = dance.ErrorFeedback(text)
        outputs = []
        for step in range(STEPS):
            x = _tensor(_input(rank, NUMEL, step=step))
            dd.all_reduce(x, feedback=feedback, key="w", min_bytes=0)
            outputs.append(_raw(x))
        found[text] = (outputs, feedback.state_dict()["residuals"]["w"].numpy().copy())
    return found


@pytest.mark.parametrize("world", [2, 3, 4])
def test_outputs_and_residuals_telescope_and_have_the_bits_of_the_oracle(world: int) -> None:
    ranks = run_ranks(_steps, world)
    for text in CODECS:
        residuals = [np.zeros(NUMEL, np.float32) for _ in range(world)]
        for step in range(STEPS):
            inputs = [_input(rank, NUMEL, step=step) for rank in range(world)]
            expected = oracle.all_reduce(
                text, inputs, residuals=residuals, seeds=partial(_seeds, "w", step), rules=RULES
            )
            residuals = expected.residuals
            for rank in range(world):
                np.testing.assert_array_equal(ranks[rank][text][0][step], expected.output, f"{text} {step}")
        for rank in range(world):
            np.testing.assert_array_equal(ranks[rank][text][1], residuals[rank], text)
        put_in = sum(
            _input(rank, NUMEL, step=step).astype(np.float64)
            for rank in range(world)
            for step in range(STEPS)
        )
        came_out = sum(output.astype(np.float64) for output in ranks[0][text][0])
        owed = sum(ranks[rank][text][1].astype(np.float64) for rank in range(world))
        # Each encode and each sum rounds once, within 2^-24 of what is at most 8 * world * STEPS.
        bound = STEPS * (2 * world + 2) * 2.0**-24 * 8 * world * STEPS
        assert np.abs(put_in - came_out - owed).max() <= bound, text


def _changing(rank: int, world: int) -> None:
    """Codecs, algorithms and groupings change from step to step; the sum is kept all along."""
    _small_rules()
    feedback = dance.ErrorFeedback("int8")
    shapes = [(900,), (3, 200), (1277,)]
    keys = ["a", "b", "c"]
    put_in, came_out = 0.0, 0.0
    plans = (
        ("int8", True),
        ("topk:ratio=0.1", True),
        ("sign:block=64", False),
        (["int8", "bf16", "int8"], True),
        ("none", False),
        ("int4", False),
        ("int2", True),
    )
    for step, (codec, together) in enumerate(plans):
        tensors = [
            _tensor(_input(rank + 10 * k, int(np.prod(s)), step=step)).view(s) for k, s in enumerate(shapes)
        ]
        put_in = put_in + torch.cat([t.reshape(-1) for t in tensors]).double()
        if together:
            dd.all_reduce_coalesced(tensors, codec=codec, keys=keys, feedback=feedback, min_bytes=0)
        else:
            for key, tensor in zip(keys, tensors, strict=True):
                dd.all_reduce(tensor, codec=codec, key=key, feedback=feedback, min_bytes=0)
        came_out = came_out + torch.cat([t.reshape(-1) for t in tensors]).double()
        owed = torch.cat([feedback.residual(key).reshape(-1) for key in keys]).double()
        total = torch.stack([put_in, owed])
        dist.all_reduce(total)
        assert (total[0] - total[1] - came_out).abs().max().item() <= 1e-4, (step, codec)
        if codec == "none":
            assert not owed.any()
    with pytest.raises(ValueError, match="has shape"):
        dd.all_reduce(torch.ones(5), codec="int8", key="a", feedback=feedback, min_bytes=0)
    with pytest.raises(ValueError, match="no bound"):
        dd.all_reduce(torch.ones(900), codec=UNBOUNDED, key="a", feedback=feedback, min_bytes=0)
    with pytest.raises(ValueError, match="keys"):
        dd.all_reduce_coalesced([torch.ones(900)], codec="int8", feedback=feedback, min_bytes=0)
    x = torch.randn(999)
    out = torch.zeros(999)
    sent = torch.zeros(999)
    gathered = torch.empty(world * 999)
    for _ in range(5):
        dd.all_gather_into_tensor(gathered, x, codec="int2", key="g", feedback=feedback, min_bytes=0)
        sent += gathered[rank * 999 : (rank + 1) * 999]
    assert torch.allclose(sent + feedback.residual("g"), 5 * x, atol=1e-4)
    wide = torch.randn(999 * world)
    for codec in ("int4", "none"):
        dd.reduce_scatter_tensor(out, wide, codec=codec, key="s", feedback=feedback, min_bytes=0)
        first = out if codec == "int4" else first + out  # noqa: F821
        first = first.clone()
    exact = torch.empty(999)
    dist.reduce_scatter_tensor(exact, wide)
    assert torch.allclose(first, 2 * exact, atol=1e-4)


@pytest.mark.parametrize("world", [2, 3])
def test_a_change_of_codec_or_grouping_loses_nothing(world: int) -> None:
    run_ranks(_changing, world, world)


def _sixteen(rank: int) -> None:
    """Rank 0 pays uncompressed what it owes, rank 1 sends zeros: so what comes out is what rank 0 sent."""
    numel = 20000
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for codec, min_bytes in (("none", 0), ("int8", 1 << 20)):
            for gathers in (False, True):
                feedback = dance.ErrorFeedback("int8")
                owed = 1e-3 * _tensor(_input(0, numel))
                x = torch.zeros(numel, dtype=dtype)
                if rank == 0:
                    x = _tensor(_input(1, numel)).to(dtype)
                    feedback.put("residual", "w", owed.clone())
                options = {"codec": codec, "feedback": feedback, "key": "w", "min_bytes": min_bytes}
                came = x.clone()
                if gathers:
                    both = torch.empty(2 * numel, dtype=dtype)
                    dd.all_gather_into_tensor(both, x, **options)
                    came = both[:numel]
                else:
                    dd.all_reduce(came, **options)
                if rank == 0:
                    left = feedback.residual("w")
                    gap = (x.double() + owed.double() - came.double() - left.double()).abs().max().item()
                    assert gap <= 2.0**-24 * 8, (dtype, codec, gathers)  # of sums below 8
                    assert bool(left.any()) is (dtype is not torch.float32)
                    assert feedback.owes("w") is (dtype is not torch.float32)


def test_what_16_bits_have_no_room_for_stays_owed() -> None:
    run_ranks(_sixteen, 2)
    x = torch.tensor([1.0, torch.inf, 65504.0], dtype=torch.float16)
    owed = torch.full((3,), 100.0003)
    pay(x, owed, 2.0)
    assert x.tolist() == [201.0, torch.inf, torch.inf]
    torch.testing.assert_close(owed, torch.tensor([0.0003, 100.0003, 100.0003]), atol=2e-5, rtol=0)


def _noise(rank: int) -> None:
    """A run's seed gives each call noise of its own, and the same calls the same noise."""

    def outputs(seed: int, gathers: bool) -> list[torch.Tensor]:
        group = dist.new_group()  # whose calls are counted from the start
        found = []
        for _ in range(3):
            x = _tensor(_input(0, NUMEL))
            out = x
            options = {"codec": "int4:rounding=stochastic", "group": group, "min_bytes": 0, "seed": seed}
            if gathers:
                out = torch.empty(2 * NUMEL)
                dd.all_gather_into_tensor(out, x, **options)
            else:
                dd.all_reduce(x, **options)
            found.append(out)
        return found

    for gathers in (False, True):
        first, again, other = (outputs(seed, gathers) for seed in (7, 7, 8))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[1], first[2])
        assert not torch.equal(first[0], other[0])


def test_a_seed_without_feedback_gives_every_call_its_own_noise() -> None:
    run_ranks(_noise, 2)


def _interrupted(rank: int, world: int) -> tuple[np.ndarray, np.ndarray]:
    _small_rules()
    whole, first = (dance.ErrorFeedback("int4:rounding=stochastic") for _ in range(2))
    for step in range(4):
        a = _tensor(_input(rank, NUMEL, step=step))
        b = a.clone()
        dd.all_reduce(a, feedback=whole, key="w", min_bytes=0)
        if step == 2:  # another process would load what this one saved
            state = first.state_dict()
            first = dance.ErrorFeedback("int4:rounding=stochastic")
            others = {"codec": state["codec"], "residuals": {}}
            states = [state if r == rank else others for r in range(world)]
            first.load_state_dict(reshard(states, rank, world))
        dd.all_reduce(b, feedback=first, key="w", min_bytes=0)
    return _raw(a), _raw(b)


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one() -> None:
    for whole, resumed in run_ranks(_interrupted, 3, 3):
        np.testing.assert_array_equal(whole, resumed)


@pytest.mark.parametrize(("before", "after"), [(4, 2), (3, 2), (2, 5), (3, 1)])
def test_reshard_keeps_the_sum(before: int, after: int) -> None:
    states = []
    for rank in range(before):
        feedback = dance.ErrorFeedback("int8")
        for key, numel in (("a", 1000), (None, 30)):
            feedback.encode(_tensor(_input(rank, numel)), key)
        states.append(feedback.state_dict())
    loaded = []
    for rank in range(after):
        feedback = dance.ErrorFeedback("int8")
        feedback.load_state_dict(reshard(states, rank, after))
        loaded.append(feedback)
    for key, numel in (("a", 1000), (None, 30)):
        of = [s["residuals"]["a"] if key == "a" else s["unnamed_residual"] for s in states]
        total = sum(r.double() for r in of)
        kept = [f.residual(key) for f in loaded]
        assert all(r is None for r in kept[before:])
        assert all(f.step(key) == 1 for f in loaded)
        now = sum(r.double() for r in kept if r is not None)
        assert (total - now).abs().max().item() <= before * 2.0**-24 * total.abs().max().item() * before
        assert total.abs().max().item() > 0.0
        assert now.shape == (numel,)


def test_reshard_refuses_what_it_cannot_do() -> None:
    state = dance.ErrorFeedback("int8").state_dict()
    other = dance.ErrorFeedback("sign").state_dict()
    with pytest.raises(ValueError, match="one run"):
        reshard([state, other], 0, 1)
    with pytest.raises(ValueError, match="rank 2, world 2"):
        reshard([state], 2, 2)
    assert reshard([state], 0, 1) == state


def _direct_beside_encoding(rank: int, store: str) -> None:
    """Rank 1 begins when rank 0 has got through all its calls: none of them may wait for a peer."""
    group = dist.new_group(timeout=timedelta(seconds=8))
    signs = dist.FileStore(store, 2)
    feedback = dance.ErrorFeedback("int8")
    feedback.put("residual", "b", torch.full((300,), 0.25))
    if rank == 1:
        signs.wait(["rank 0 is through"], timedelta(seconds=20))
    options = {"feedback": feedback, "group": group, "async_op": True}
    a, b, c = torch.ones(1000), torch.ones(300), torch.ones(300)
    works = [
        dd.all_reduce(a, codec="int8", key="a", min_bytes=0, **options),
        dd.all_reduce(b, codec="none", key="b", **options),
        dd.all_gather_into_tensor(torch.empty(600), c, codec="int8", key="c", **options),  # under min_bytes
    ]
    if rank == 0:
        signs.set("rank 0 is through", "")
    for work in works:
        work.wait()
    assert [work.stats().algorithm for work in works] == ["one-shot", "direct", "direct"]
    assert torch.equal(b, torch.full((300,), 2.5))
    # With the same key it waits, for what that call will leave to be paid.
    for step in range(3):
        values = _tensor(_input(rank, 1000, step=step))
        total = values.clone()
        dist.all_reduce(total)
        first, second = values.clone(), torch.zeros(1000)
        work = dd.all_reduce(first, codec="int4", key="a", min_bytes=0, **options)
        dd.all_reduce(second, codec="none", key="a", feedback=feedback, group=group)
        work.wait()
        assert torch.allclose(first + second, total, atol=1e-5)
        assert not feedback.owes("a")


def test_a_direct_call_waits_for_those_that_encode_the_same_key_alone(tmp_path: Path) -> None:
    run_ranks(_direct_beside_encoding, 2, str(tmp_path / "signs"))


def _broadcasts(rank: int) -> None:
    feedback = dance.ErrorFeedback("int8")
    for step, (codec, min_bytes) in enumerate(
        (("int2", 0), ("none", 0), ("int2", 0), ("int8", 1 << 20), ("int2", 0), (Fixed("none"), 0))
    ):
        x = _tensor(_input(0, NUMEL, step=step)).view(-1, 1).expand(-1, 2)[:, 0]  # with gaps
        sent = x.clone()
        owed = feedback.residual("w")
        owed = torch.zeros(NUMEL) if owed is None or step == 0 else owed.clone()
        out = x.clone() if step % 4 == 1 else torch.empty(2 * NUMEL)[::2].copy_(x)
        dd.broadcast(out, 0, codec=codec, feedback=feedback, key="w", min_bytes=min_bytes)
        both = [torch.empty(NUMEL) for _ in range(2)]
        dist.all_gather(both, out.contiguous())
        assert torch.equal(both[0], both[1]), (step, codec)
        if rank == 0:
            left = feedback.residual("w")
            assert torch.allclose(sent + owed, out + left, atol=1e-6), (step, codec)
            assert bool(left.any()) is (step % 2 == 0)


def test_a_direct_broadcast_leaves_what_it_has_paid_at_the_root_too() -> None:
    run_ranks(_broadcasts, 2)


def _by_name(rank: int) -> None:
    keys = ["a.bias", "b.weight", "c.bias", "head.weight"]
    rules = {"*.bias": "bf16", "head.*": "none"}
    given = [_tensor(_input(rank, 500 + k, step=k)) for k in range(4)]
    each = [t.clone() for t in given]
    dd.all_reduce_coalesced(each, codec=["bf16", "int8", "bf16", "none"], keys=keys, min_bytes=0)
    log = Path(tempfile.mkdtemp()) / "calls.jsonl"
    for policy in (
        PerLayer(rules, default="int8"),
        PerLayer(rules, default=Fixed("int8")),
        PerLayer(rules, default=PerLayer({"b.*": "int8"}, default="sign")),
        CallLog(PerLayer(rules, default=_Int8("int8")), log),
    ):
        named = [t.clone() for t in given]
        dd.all_reduce_coalesced(named, codec=policy, keys=keys, min_bytes=0)
        assert all(torch.equal(a, b) for a, b in zip(named, each, strict=True))
        alone = given[1].clone()
        dd.all_reduce(alone, codec=policy, key=keys[1], min_bytes=0)
        assert torch.equal(alone, each[1])
        shares = [torch.empty(500), torch.empty(500)]
        wide = given[0].repeat(2)
        for share, codec in zip(shares, (policy, "bf16"), strict=True):
            dd.reduce_scatter_tensor(share, wide, codec=codec, key=keys[0], min_bytes=0)
        assert torch.equal(*shares)
    lines = read_metrics(log)
    assert [line["target"] for line in lines] == ["b.weight"] * 2
    assert [decision.codec for decision in policy.log] == ["int8:block=256"]

    # Whole models.
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 30))
    local = LocalSGD(
        model, every=1, codec=PerLayer({"*.bias": "none"}, default="int2"), outer_optimizer=averaging
    )
    biases = {name: each.detach() for name, each in model.named_parameters() if name.endswith("bias")}
    torch.manual_seed(100 + rank)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn(each.shape))
    means = {name: each / 2 for name, each in biases.items()}
    for mean in means.values():
        dist.all_reduce(mean)
    local.step()
    for name, mean in means.items():
        assert torch.allclose(biases[name], mean, atol=1e-5), name


class _Int8(Fixed):
    """A policy that is asked: no codec that is known."""


def test_a_policy_for_each_name_is_followed_for_each_tensor_of_a_call() -> None:
    run_ranks(_by_name, 2)
