"""PowerSGD under DDP beside no hook and torch's own hook: loss after equal steps, and bytes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ddp_terms import Terms, backward, coefficients, wrap
from processes import run_ranks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import dance

STEPS, START, RANK = 60, 2, 2


def _train(rank: int, hook: str) -> tuple[float, float, float]:
    """Returns the loss over all data before and after training, and the bytes of the ring all_reduces."""
    world = dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 32, generator=generator)
    targets = torch.tanh(inputs @ torch.randn(32, 8, generator=generator) / 4)
    torch.manual_seed(1)
    layers = [torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh()]
    ddp = DistributedDataParallel(torch.nn.Sequential(*layers, torch.nn.Linear(64, 8)))
    if hook == "dance":
        options = {"start_step": START, "min_bytes": 0}
        state = dance.ddp.attach(ddp, f"powersgd:rank={RANK}", **options)
    elif hook == "torch":
        theirs = PowerSGDState(None, matrix_approximation_rank=RANK, start_powerSGD_iter=START)
        ddp.register_comm_hook(theirs, powerSGD_hook)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(ddp(inputs[rank::world]), targets[rank::world]).backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(float(torch.nn.functional.mse_loss(ddp.module(inputs), targets)))
    num_bytes = 0.0
    if hook == "dance":
        num_bytes = state.stats()["bytes_sent"]
    elif hook == "torch":
        numel = theirs.compression_stats()[2] + START * sum(p.numel() for p in ddp.parameters())
        num_bytes = 4 * numel * 2 * (world - 1) / world
    return losses[0], losses[-1], num_bytes


def _compare(rank: int, hooks: tuple[str, ...]) -> dict[str, tuple[float, float, float]]:
    return {hook: _train(rank, hook) for hook in hooks}


def test_it_learns_what_torchs_hook_learns_for_the_same_bytes() -> None:
    for answers in run_ranks(_compare, 2, ("none", "torch", "dance")):
        first, exact, _ = answers["none"]
        _, ours, our_bytes = answers["dance"]
        _, theirs, their_bytes = answers["torch"]
        assert exact < 0.2 * first
        assert ours < 1.1 * theirs, (ours, theirs)
        assert ours < 0.2 * first
        assert our_bytes <= 1.001 * their_bytes


@pytest.mark.parametrize("world", [4, 8])
def test_more_ranks_learn_as_two_do(world: int) -> None:
    two = run_ranks(_compare, 2, ("dance",))
    more = run_ranks(_compare, world, ("dance",))
    # The same data, cut in two or in more: the same mean gradients but for what approximation leaves.
    assert len({answers["dance"][1] for answers in more}) == 1
    assert abs(more[0]["dance"][1] - two[0]["dance"][1]) < 0.05 * two[0]["dance"][1]


def test_stats_tell_what_factors_cost() -> None:
    """Bytes both ways and seconds of coding, and at all ranks that one of them had NaN."""
    numel = 0  # in messages, a step
    for _, each in Terms().named_parameters():
        n, m = each.shape[0], each[0].numel()
        numel += RANK * (n + m) if each.ndim > 1 else n
    ring = 3 * numel * 4 * 2 * 2 / 3  # of three steps, with three ranks
    for before, after in run_ranks(_costs, 3):
        assert before["nonfinite"] == 0
        assert after["nonfinite"] == 1
        # A message is rounded to whole bytes; a step has no more than a parameter has one, and one more.
        assert abs(after["bytes_sent"] - ring) <= 3 * 8
        assert after["bytes_received"] == after["bytes_sent"]
        assert min(after["encode_s"] - before["encode_s"], after["decode_s"] - before["decode_s"]) > 0.0
        assert after["encode_s"] + after["decode_s"] < after["seconds"]


def _costs(rank: int) -> tuple[dict[str, float], dict[str, float]]:
    ddp = wrap(Terms())
    state = dance.ddp.attach(ddp, f"powersgd:rank={RANK}", min_bytes=0)
    seen = []
    for step in range(3):
        given = coefficients(rank, step)
        if (rank, step) == (1, 2):
            given["conv.weight"][3, 2, 1, 0] = torch.nan
        backward(ddp, given)
        seen.append(state.stats())
    return seen[1], seen[2]
