"""What is owed to the parameters survives all that happens to a DDP run: nothing is lost, and bits repeat."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ddp_terms import ROUNDING, Ledger, Terms, backward, coefficients, equal_at_all_ranks, owed, same, wrap
from processes import run_ranks

import dance
from dance.ddp import CompressionState, reshard

ALGORITHMS = ("int8", "sign", "topk:ratio=0.05", "powersgd:rank=2")
NAMES = sorted(name for name, _ in Terms().named_parameters())
VECTORS = {name for name, p in Terms().named_parameters() if p.ndim == 1}


@pytest.mark.parametrize("world", [2, 3])
def test_nothing_is_lost_when_buckets_are_rebuilt_or_the_codec_changes(world: int) -> None:
    for answers in run_ranks(_conserve, world, world):
        for algorithm, (gap, equal, layouts, names) in answers.items():
            assert gap < ROUNDING, (algorithm, gap)
            assert equal, algorithm
            assert len(layouts[0]) == 1, algorithm
            assert len(layouts[1]) > 2, algorithm
            assert layouts[1] == layouts[-1], algorithm
            # PowerSGD sends vectors as they are: they owe nothing.
            vectors = VECTORS if algorithm.startswith("powersgd") else set()
            assert names == [name for name in NAMES if name not in vectors], algorithm


def _conserve(rank: int, world: int) -> dict[str, tuple[float, bool, list[list[list[str]]], list[str]]]:
    answers = {}
    for algorithm in (*ALGORITHMS, "changing"):
        ddp = wrap(Terms())
        changing = algorithm == "changing"
        state = dance.ddp.attach(ddp, "int8" if changing else algorithm, min_bytes=0)
        ledger, equal, layouts = Ledger(), True, []
        for step in range(8):
            if changing:
                state.codec = (*ALGORITHMS, "none", "powersgd:rank=1", "int4", "powersgd:rank=2")[step]
            applied = backward(ddp, coefficients(rank, step))
            ledger.book(rank, world, step, applied)
            equal &= equal_at_all_ranks(applied)
            layouts.append(state.layout.buckets)
        names = sorted(state.state_dict()["residuals"]["residuals"])
        answers[algorithm] = (ledger.gap(owed(state)), equal, layouts, names)
    return answers


def test_residuals_follow_a_loss_scale() -> None:
    for gap in run_ranks(_scaled, 2):
        assert gap < ROUNDING


def _scaled(rank: int) -> float:
    ddp, ledger, scale = wrap(Terms()), Ledger(), 4.0
    state = dance.ddp.attach(ddp, "sign", min_bytes=0)
    for step in range(4):
        given = {name: x * scale for name, x in coefficients(rank, step).items()}
        ledger.book(rank, 2, step, {name: x / scale for name, x in backward(ddp, given).items()})
        state.rescale(0.5)
        scale *= 0.5
    return ledger.gap({name: x / scale for name, x in owed(state).items()})


RESUMED = ("int8:rounding=stochastic", "topk:ratio=0.05", "powersgd:rank=2")


def test_a_resumed_run_and_a_new_ddp_instance_have_the_bits_of_an_uninterrupted_run() -> None:
    for rank, answers in enumerate(run_ranks(_resume, 2)):
        for algorithm, (resumed, again, differs) in answers.items():
            assert resumed, (rank, algorithm)
            assert again, (rank, algorithm)
            assert differs, (rank, algorithm)


def _resume(rank: int) -> dict[str, tuple[bool, bool, bool]]:
    answers = {}
    for algorithm in RESUMED:
        model, other = Terms(), Terms()
        ddp, second = wrap(model), wrap(other)
        state = dance.ddp.attach(ddp, algorithm, min_bytes=0, seed=5)
        kept = dance.ddp.attach(second, algorithm, min_bytes=0, seed=5)
        for step in range(3):
            backward(ddp, coefficients(rank, step))
            backward(second, coefficients(rank, step))
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state.state_dict(), Path(folder) / "state.pt")
            snapshot = torch.load(Path(folder) / "state.pt", weights_only=True)
        fresh = wrap(Terms())
        loaded = dance.ddp.attach(fresh, algorithm, min_bytes=0, seed=5)
        loaded.load_state_dict(snapshot)
        empty = wrap(Terms())
        dance.ddp.attach(empty, algorithm, min_bytes=0, seed=5)
        del second
        second = wrap(other)  # a new instance around the same model, by torch's own call
        second.register_comm_hook(kept, dance.ddp.compress_hook)
        resumed = again = differs = True
        for step in range(3, 6):
            given = coefficients(rank, step)
            applied = backward(ddp, given)
            resumed &= same(applied, backward(fresh, given))
            again &= same(applied, backward(second, given))
            differs &= not same(applied, backward(empty, given))
        answers[algorithm] = (resumed, again, differs)
    return answers


def test_another_world_size_owes_the_same_sum() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for algorithm, gaps, factors in run_ranks(_resize, 4, folder)[0]:
            assert max(gaps) < ROUNDING, (algorithm, gaps)
            assert factors, algorithm


def _resize(rank: int, folder: str) -> list[tuple[str, list[float], bool]]:
    answers = []
    worlds = (4, 2, 3, 1)
    groups = [dist.new_group(list(range(world))) for world in worlds]
    for algorithm in ALGORITHMS:
        ledger, gaps, factors, former = Ledger(), [], True, 0
        for number, (group, world) in enumerate(zip(groups, worlds, strict=True)):
            if rank < world:
                ddp = wrap(Terms(), process_group=group)
                state = dance.ddp.attach(ddp, algorithm, min_bytes=0)
                if former:
                    saved = [
                        torch.load(f"{folder}/{algorithm}-{former}-{each}.pt", weights_only=True)
                        for each in range(former)
                    ]
                    state.load_state_dict(reshard(saved, rank, world))
                    gaps.append(ledger.gap(owed(state, group)))
                    factors &= same(saved[0]["factors"]["factors"], state.state_dict()["factors"]["factors"])
                for step in range(3 * number, 3 * number + 3):
                    ledger.book(rank, world, step, backward(ddp, coefficients(rank, step)))
                gaps.append(ledger.gap(owed(state, group)))
                torch.save(state.state_dict(), f"{folder}/{algorithm}-{world}-{rank}.pt")
            former = world
            dist.barrier()
        answers.append((algorithm, gaps, factors))
    return answers


BREAK, STEPS = 25, 50


@pytest.mark.parametrize("algorithm", ["sign", "topk:ratio=0.05"])
def test_the_loss_goes_on_with_other_ranks(algorithm: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, *resumed = run_ranks(_curves, 4, algorithm, folder)[0]
    for losses in resumed:  # with 4, 2 and 3 ranks from the break on
        assert len(losses) == STEPS
        assert losses[: BREAK + 1] == whole[: BREAK + 1]
        assert losses[-1] < 0.7 * losses[BREAK - 1]
        # The same mean gradients; what is encoded differs by rank.
        assert max(a / b for a, b in zip(losses, whole, strict=True)) < 1.1
        assert losses[-1] > 0.8 * whole[-1]
    assert resumed[0] == whole


def _curves(rank: int, algorithm: str, folder: str) -> list[list[float]]:
    groups = {world: dist.new_group(list(range(world))) for world in (4, 2, 3)}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(240, 20, generator=generator)  # equal parts for 2, 3 and 4 ranks
    y = torch.tanh(x @ torch.randn(20, 10, generator=generator) / 4)
    path = f"{folder}/{{}}.pt"

    def run(world: int, first: int, last: int) -> list[float]:
        """The loss over all data before each step."""
        torch.manual_seed(0)
        ddp = wrap(
            torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10)),
            process_group=groups[world],
        )
        state = dance.ddp.attach(ddp, algorithm, min_bytes=0)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2, momentum=0.5)
        if first:
            model, moments = torch.load(path.format("model"), weights_only=True)
            ddp.module.load_state_dict(model)
            optimizer.load_state_dict(moments)
            saved = [torch.load(path.format(each), weights_only=True) for each in range(4)]
            state.load_state_dict(reshard(saved, rank, world))
        losses = []
        for _ in range(first, last):
            with torch.no_grad():
                losses.append(float(torch.nn.functional.mse_loss(ddp.module(x), y)))
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(ddp(x[rank::world]), y[rank::world]).backward()
            optimizer.step()
        if last == BREAK:
            torch.save(state.state_dict(), path.format(rank))
            if rank == 0:
                torch.save((ddp.module.state_dict(), optimizer.state_dict()), path.format("model"))
        return losses

    whole, begun = run(4, 0, STEPS), run(4, 0, BREAK)
    dist.barrier()
    return [whole, *(begun + run(world, BREAK, STEPS) for world in groups if rank < world)]


def test_a_snapshot_of_another_rank_or_world_is_refused() -> None:
    for messages in run_ranks(_refuse, 2):
        assert "of rank 1 of 2, this is rank 0 of 2" in messages[0] or "of rank 0 of 2" in messages[0]
        assert "of rank 0 of 3" in messages[1]
        assert "dance.ddp.reshard" in messages[1]
        assert "one rank's of 2, the group has 1" in messages[2]
        assert "of 2, this is rank 0 of 1" in messages[3]


def _refuse(rank: int) -> list[str]:
    messages = []

    def note(call: Any, *args: Any) -> None:
        with pytest.raises(ValueError, match=r"dance\.ddp\.reshard|every rank loads its own") as caught:
            call(*args)
        messages.append(str(caught.value))

    alone = [dist.new_group([each]) for each in range(2)][rank]
    ddp = wrap(Terms())
    state = dance.ddp.attach(ddp, "int8")
    backward(ddp, coefficients(rank, 0))
    snapshot = state.state_dict()
    note(state.load_state_dict, {**snapshot, "rank": 1 - rank})
    note(state.load_state_dict, {**snapshot, "rank": 0, "world": 3})
    single = wrap(Terms(), process_group=alone)
    dance.ddp.attach(single, state=state)
    note(backward, single, coefficients(rank, 1))

    # Loaded before there is a module, whose group alone tells.
    early = CompressionState("int8", min_bytes=0)
    early.load_state_dict(snapshot)
    assert early.state_dict()["rank"] == rank
    single = wrap(Terms(), process_group=alone)
    note(partial(dance.ddp.attach, single, state=early))
    assert not single._comm_hooks
    state = dance.ddp.attach(single, "int8", min_bytes=0)
    backward(single, coefficients(rank, 0))
    early.load_state_dict(state.state_dict())
    again = wrap(Terms(), process_group=alone)
    dance.ddp.attach(again, state=early)
    assert same(backward(single, coefficients(rank, 1)), backward(again, coefficients(rank, 1)))
    return messages


def test_a_snapshot_of_another_model_is_refused_and_changes_nothing() -> None:
    for answers in run_ranks(_other_model, 2):
        for algorithm, (messages, kept, free) in answers.items():
            assert ["is no parameter here" in each for each in messages] == [True] * 2 + [False] * 2, (
                algorithm
            )
            assert "its 'first.weight' has 3000 elements, here 1500" in messages[2], algorithm
            assert messages[2] == messages[3]
            assert kept, algorithm
            assert free, algorithm


def _other_model(rank: int) -> dict[str, tuple[list[str], bool, bool]]:
    answers = {}
    for algorithm in ("int8", "powersgd:rank=2"):
        ddp = wrap(Terms())
        state = dance.ddp.attach(ddp, algorithm, min_bytes=0)
        backward(ddp, coefficients(rank, 0))
        snapshot, messages, kept, free = state.state_dict(), [], True, True
        narrow = Terms()
        narrow.first = torch.nn.Linear(30, 50)
        for model in (torch.nn.Linear(4, 3), narrow):
            other = wrap(model)
            served = dance.ddp.attach(other, algorithm)
            late = wrap(model)
            loaded = CompressionState(algorithm)
            loaded.load_state_dict(snapshot)  # no module yet: `attach` finds out
            for call in (
                partial(served.load_state_dict, snapshot),
                partial(dance.ddp.attach, late, state=loaded),
            ):
                with pytest.raises(ValueError, match="the snapshot is of another model") as caught:
                    call()
                messages.append(str(caught.value))
            kept &= served.state_dict()["world"] == 0 and not served.state_dict()["layout"]
            free &= not late._comm_hooks
        answers[algorithm] = (messages, kept, free)
    return answers


def test_reshard_wants_all_snapshots_in_their_order() -> None:
    snapshot = CompressionState("int8").state_dict()
    of_two = [{**snapshot, "rank": rank, "world": 2} for rank in range(2)]
    assert reshard(of_two, 1, 2)["rank"] == 1
    for wrong in (of_two[:1], of_two[::-1], [*of_two, of_two[0]]):
        with pytest.raises(ValueError, match="expected the snapshots of all ranks in their order"):
            reshard(wrong, 0, 3)
    # Before the first step no snapshot knows its rank, and nothing is owed.
    begun = reshard([snapshot, snapshot], 1, 3)
    assert (begun["rank"], begun["world"], begun["residuals"]["residuals"]) == (1, 3, {})
    with pytest.raises(ValueError, match="expected the snapshots of all ranks in their order"):
        reshard([snapshot, of_two[1]], 0, 2)
    with pytest.raises(ValueError, match="expected what state_dict or reshard gave"):
        CompressionState("int8").load_state_dict({})
