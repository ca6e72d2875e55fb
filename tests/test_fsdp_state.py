"""What FSDP2's compression keeps: resumed, resharded, detached, or refused with all as it was."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_once
from sharded_net import arrays, backward, batch, descend, plain, same, sharded, train, whole

import dance
import dance.fsdp


def work(rank: int, world: int) -> dict[str, Any]:
    return {name: job(rank, world) for name, job in JOBS[world].items()}


ran = partial(run_once, work)


def resume(rank: int, world: int, codec: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Where an uninterrupted run ends, and one that is loaded into a new model half way."""
    ends = []
    model = sharded(world)
    compression = dance.fsdp.attach(model, codec, min_bytes=0)
    for step in range(6):
        if step == 3:
            saved, state = whole(model), compression.state_dict()
        backward(model, rank, step)
        descend(model)
    ends.append(arrays(whole(model)))
    again = sharded(world)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(again, saved, options=StateDictOptions(full_state_dict=True))
    other = dance.fsdp.attach(again, codec, min_bytes=0)
    other.load_state_dict(state)
    for step in range(3, 6):
        backward(again, rank, step)
        descend(again)
    ends.append(arrays(whole(again)))
    return ends[0], ends[1]


def reshape(rank: int, world: int) -> dict[str, np.ndarray]:
    """What a rank of three owes after loading what two ranks owed."""
    states = []
    for old in range(2):
        generator = torch.Generator().manual_seed(old)
        owed = {
            name: torch.randn(each.shape, generator=generator)
            for name, each in plain().named_parameters()
            if each.requires_grad
        }
        state = dance.ErrorFeedback("int8").state_dict()
        states.append({**state, "residuals": owed, "steps": dict.fromkeys(owed, 5)})
    compression = dance.fsdp.attach(sharded(world), "int8")
    compression.load_state_dict(dance.feedback.reshard(states, rank, world))
    return arrays(compression.state_dict()["residuals"])


def detach(rank: int, world: int) -> list[dict[str, np.ndarray]]:
    """Training by torch alone, and with what was compressed before the first step, but is no more."""
    model = sharded(world)
    compression = dance.fsdp.attach(model, "sign", gather_codec="int8", min_bytes=0)
    compression.detach()
    for step in range(2):
        backward(model, rank, step)
        descend(model)
    # What is attached then is all there is: the weights of the former are not rounded any more.
    again = dance.fsdp.attach(model, "none", min_bytes=0)
    for step in range(2, 4):
        backward(model, rank, step)
        descend(model)
    assert not any(compression.bytes_sent.values())
    assert again.bytes_sent["gradients"] > 0
    return [arrays(whole(model)), train(rank, world, None)]


def refuse(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match="fully_shard first"):
        dance.fsdp.attach(plain())
    with pytest.raises(ValueError, match="dense gather_codec"):
        dance.fsdp.attach(sharded(world), gather_codec="topk:ratio=0.1")
    model = sharded(world)
    compression = dance.fsdp.attach(model, min_bytes=0)
    state = compression.state_dict()
    with pytest.raises(ValueError, match="unknown here"):
        compression.load_state_dict({**state, "residuals": {"other": torch.zeros(3)}})
    with pytest.raises(ValueError, match="with shape"):
        compression.load_state_dict({**state, "residuals": {"first.bias": torch.zeros(3)}})
    with pytest.raises(ValueError, match=r"compressed already.*compression\.codec = 'int4'.*detach\(\)"):
        dance.fsdp.attach(model, "int4")
    with pytest.raises(ValueError, match="compressed already"):
        dance.fsdp.attach(model.first)
    compression.detach()
    with pytest.raises(ValueError, match="feedback=True"):
        dance.fsdp.attach(model, feedback=False, min_bytes=0).load_state_dict(state)


def refuse_in_backward(rank: int, world: int) -> None:
    """What FSDP asks for only then; raised before anything is sent, so that all ranks can go on."""
    model = sharded(world)
    dance.fsdp.attach(model, min_bytes=0)
    for module in (model.first, model.second, model):
        module.set_gradient_divide_factor(3.0)
    with pytest.raises(ValueError, match="set_force_sum_reduction_for_comms"):
        backward(model, rank, 0)
    model = sharded(world)
    dance.fsdp.attach(model, min_bytes=0)
    model.first.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="have no gradient in this step"):
        backward(model, rank, 0)


def not_finite(rank: int, world: int) -> dict[str, bool]:
    """Rank 1's second batch overflows: no rank raises, all find it, and the next step is as any other."""
    answers = {}
    for feedback in (True, False):
        model = sharded(world)
        compression = dance.fsdp.attach(model, "int8", feedback=feedback, min_bytes=0)
        finite = []
        for step in range(3):
            model.zero_grad()
            loss = (model(batch(rank, step)) - 1).square().mean()
            (loss * (torch.inf if (step, rank) == (1, 1) else 1.0)).backward()
            found = [p.grad.to_local() for p in model.parameters() if p.grad is not None]
            finite.append([bool(torch.isfinite(each).all()) for each in found if each.numel()])
        owed = compression.state_dict().get("residuals", {}).values()
        answers[f"feedback {feedback}"] = (
            all(finite[0])
            and not any(finite[1])
            and all(finite[2])
            and all(bool(torch.isfinite(each).all()) for each in owed)
        )
    return answers


RESUMED = ("int8:rounding=stochastic", "sign")
JOBS: dict[int, dict[str, Callable[[int, int], Any]]] = {
    2: {
        **{f"resume {codec}": partial(resume, codec=codec) for codec in RESUMED},
        "not finite": not_finite,
        "detach": detach,
        "refuse": refuse,
        "refuse in backward": refuse_in_backward,
    },
    3: {"resume sign": partial(resume, codec="sign"), "reshape": reshape},
}


@pytest.mark.parametrize(("world", "codec"), [(2, "int8:rounding=stochastic"), (2, "sign"), (3, "sign")])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(world: int, codec: str) -> None:
    for answers in ran(world):
        assert same(*answers[f"resume {codec}"])


def test_residuals_survive_a_change_of_world_size() -> None:
    owed = [torch.Generator().manual_seed(old) for old in range(2)]
    for name, each in plain().named_parameters():
        if not each.requires_grad:
            continue
        before = sum(torch.randn(each.shape, generator=generator).double() for generator in owed)
        # The third rank owes nothing yet.
        after = sum(answers["reshape"][name].astype(np.float64) for answers in ran(3)[:2])
        assert not ran(3)[2]["reshape"]
        np.testing.assert_array_equal(after, before.numpy())


def test_after_detach_torch_sends() -> None:
    for answers in ran(2):
        assert same(*answers["detach"])


def test_what_is_not_finite_reaches_all_ranks_and_leaves_residuals_finite() -> None:
    for answers in ran(2):
        assert all(answers["not finite"].values()), answers["not finite"]


def test_what_cannot_be_is_refused() -> None:
    assert all(answers["refuse"] is None and answers["refuse in backward"] is None for answers in ran(2))
