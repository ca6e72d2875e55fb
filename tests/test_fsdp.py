"""FSDP2 with compressed collectives, against an unsharded copy of the model that does the same by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_once
from sharded_net import (
    LR,
    arrays,
    backward,
    batch,
    descend,
    fsdp,
    gradients,
    plain,
    same,
    sharded,
    train,
    whole,
)
from torch import nn

import dance
import dance.fsdp
from dance.distributed.member import _MEMBERS
from dance.fsdp.message import Message, Parameter


def work(rank: int, world: int) -> dict[str, Any]:
    return {name: job(rank, world) for name, job in JOBS[world].items()}


ran = partial(run_once, work)


def first_gradient(rank: int, world: int) -> list[dict[str, np.ndarray]]:
    """What int8 makes of the first gradient, and the gradients of all ranks."""
    model = sharded(world)
    weights = whole(model)
    dance.fsdp.attach(model, "int8", feedback=False, min_bytes=0)
    backward(model, rank, 0)
    got = {name: each.grad.full_tensor() for name, each in model.named_parameters() if each.grad is not None}
    return [arrays(got), *(arrays(gradients(weights, other, 0)) for other in range(world))]


def conserve(rank: int, world: int, codec: str, steps: int = 8) -> dict[str, Any]:
    """Where training went, the sum of all its gradients, and what this rank owes in the end."""
    model = sharded(world)
    compression = dance.fsdp.attach(model, codec, min_bytes=0)
    start = whole(model)
    total = {name: torch.zeros_like(each, dtype=torch.float64) for name, each in start.items()}
    for step in range(steps):
        for name, each in gradients(whole(model), rank, step).items():
            total[name] += each
        backward(model, rank, step)
        descend(model)
    state = compression.state_dict()
    return {
        "start": arrays(start),
        "end": arrays(whole(model)),
        "total": arrays(total),
        "owed": arrays(state["residuals"]),
        "steps": state["steps"],
        "sent": compression.bytes_sent,
        "raw": compression.raw_bytes,
    }


def gather(rank: int, world: int) -> dict[str, Any]:
    """The loss that int8 weights give, and that of an unsharded copy with the same weights by hand."""
    model = sharded(world)
    compression = dance.fsdp.attach(model, "none", gather_codec="int8", min_bytes=0)
    exact = whole(model)
    losses, expected = [], []
    for step in range(3):
        weights = whole(model)
        for message in _all_messages(model):
            rows = message.join(weights).view(world, -1)
            coded = torch.stack([dance.decode(dance.encode(row.contiguous(), "int8")) for row in rows])
            weights |= message.split(coded.flatten())
        copy = plain()
        copy.load_state_dict(weights)
        expected.append(float((copy(batch(rank, step)) - 1).square().mean().detach()))
        losses.append(backward(model, rank, step))
        if step == 0:  # the shards themselves are not rounded
            same = all(torch.equal(exact[name], each) for name, each in whole(model).items())
        descend(model)
    return {"losses": losses, "expected": expected, "same": same, "sent": dict(compression.bytes_sent)}


def _all_messages(model: nn.Module) -> list[Message]:
    """Like those of gradients, but with the parameters that are not trained."""
    model.second.bias.requires_grad_(True)
    found = dance.fsdp.message.messages_of(model)
    model.second.bias.requires_grad_(False)
    return list(found)


def together(rank: int, world: int) -> list[dict[str, np.ndarray]]:
    """Two modules that share their messages, asynchronous gathers, and a parameter cut along dimension 1."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard

    ends = []
    for codec in (None, "none"):
        model = plain()
        mesh = init_device_mesh("cpu", (world,))
        options = {
            "mesh": mesh,
            "shard_placement_fn": lambda each: Shard(1) if each.shape == (33, 10) else None,
        }
        fsdp.fully_shard([model.second, model.first], **options)
        fsdp.fully_shard(model, **options)
        if codec is not None:
            dance.fsdp.attach(model, codec, gather_codec="none", min_bytes=0)
        for step in range(3):
            model.second.unshard(async_op=True)
            backward(model, rank, step)
            descend(model)
        ends.append(arrays(whole(model)))
    return ends


def halves(rank: int, world: int) -> list[dict[str, np.ndarray]]:
    """Mixed precision: bfloat16 in forward and backward and on the wire, with and without the library."""
    policy = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    ends = []
    for attached in (False, True):
        model = sharded(world, mp_policy=policy)
        if attached:
            dance.fsdp.attach(model, "none", gather_codec="bf16", min_bytes=0)
        for step in range(3):
            backward(model, rank, step)
            descend(model)
        ends.append(arrays(whole(model)))
    return ends


def automatic(rank: int, world: int) -> dict[str, np.ndarray]:
    return train(rank, world, "auto", gather_codec="auto")


def seeds(rank: int, world: int) -> list[bool]:
    """Whether noise without feedback follows from the seed: of gradients, and of weights."""
    found = []
    for options in ({}, {"codec": "none", "gather_codec": "int4:rounding=stochastic"}):
        ends = []
        for seed in (1, 2, 1):
            for each in _MEMBERS.values():
                each.calls = 0  # which noise follows from, too
            ends.append(
                train(
                    rank,
                    world,
                    **{"codec": "int8:rounding=stochastic", "feedback": False, "seed": seed, **options},
                )
            )
        found += [same(ends[0], ends[2]), not same(ends[0], ends[1])]
    return found


CODECS = ("int8", "sign", "topk:ratio=0.1")
JOBS: dict[int, dict[str, Callable[[int, int], Any]]] = {
    2: {
        "without": partial(train, codec=None),
        "none": partial(train, codec="none", gather_codec="none"),
        "first gradient": first_gradient,
        **{f"conserve {codec}": partial(conserve, codec=codec) for codec in CODECS},
        "gather": gather,
        "together": together,
        "halves": halves,
        "automatic": automatic,
        "seeds": seeds,
    },
    3: {
        "first gradient": first_gradient,
        **{f"conserve {codec}": partial(conserve, codec=codec) for codec in CODECS},
        "gather": gather,
    },
}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_message_is_laid_out_as_fsdp_does(world: int) -> None:
    shapes = {"a": (7, 2), "b": (2,), "c": (3, 6, 2), "d": (1,)}
    gradients = {name: torch.randn(shape) for name, shape in shapes.items()}
    dims = {name: 1 if name == "c" else 0 for name in shapes}
    message = Message(
        "root", (), tuple(Parameter(name=n, shape=shapes[n], dim=dims[n]) for n in shapes), world
    )
    chunked = [
        torch.cat(each.chunk(world, dim=dims[name])) if dims[name] else each
        for name, each in gradients.items()
    ]
    padded = sum(-(-each.shape[0] // world) * world * each[0].numel() for each in chunked)
    flat = torch.empty(padded).view(world, -1)
    torch.ops.fsdp.chunk_cat(chunked, dim=0, num_chunks=world, out=flat)
    assert message.numel == padded
    assert torch.equal(message.join(gradients), flat.flatten())
    split = message.split(flat.flatten())
    assert all(torch.equal(split[name], each) for name, each in gradients.items())
    noisy = torch.where(flat == 0, 1.0, flat).flatten()
    message.clear_padding(noisy)
    assert torch.equal(noisy, flat.flatten())


def test_without_a_codec_nothing_changes() -> None:
    for answers in ran(2):
        assert same(answers["none"], answers["without"])


@pytest.mark.parametrize("world", [2, 3])
def test_a_gradient_is_within_the_error_of_int8(world: int) -> None:
    for answers in ran(world):
        got, *exact = answers["first gradient"]
        for name, each in got.items():
            mean = np.mean([gradient[name].astype(np.float64) for gradient in exact], axis=0)
            # Each rank rounds by half a step of its block at most, 1/254 of the largest value in the message
            # (with which the block may be shared), and the mean of N by the mean of their errors.
            largest = [max(np.abs(other).max() for other in gradient.values()) for gradient in exact]
            assert np.abs(each - mean).max() <= np.mean(largest) / 254 * 1.001
    assert not same(got, {name: np.mean([gradient[name] for gradient in exact], axis=0) for name in got})


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("world", [2, 3])
def test_feedback_loses_nothing(world: int, codec: str) -> None:
    got = [answers[f"conserve {codec}"] for answers in ran(world)]
    for name, start in got[0]["start"].items():
        moved = start.astype(np.float64) - got[0]["end"][name]
        if name == "second.bias":
            assert not moved.any()
            continue
        total = sum(each["total"][name] for each in got)
        owed = sum(each["owed"][name].astype(np.float64) for each in got)
        # Gradients, residuals and parameters are below 8 and rounded a few times in each of 8 steps.
        np.testing.assert_allclose(moved, LR * (total - owed) / world, rtol=0, atol=8 * 4 * 8 * 2**-24)
        assert got[0]["steps"][name] == 8
    assert max(np.abs(each).max() for each in got[0]["owed"].values()) > 0
    for each in got:
        assert 0 < each["sent"]["gradients"] < each["raw"]["gradients"]
        assert each["sent"]["parameters"] == 0  # torch's own


@pytest.mark.parametrize("world", [2, 3])
def test_weights_are_gathered_in_a_codec(world: int) -> None:
    for answers in ran(world):
        seen = answers["gather"]
        assert seen["losses"] == seen["expected"]
        assert seen["same"]
        assert seen["sent"]["parameters"] > 0


def test_modules_may_share_a_message() -> None:
    for answers in ran(2):
        assert same(*answers["together"])


def test_mixed_precision_keeps_its_bits_in_bf16() -> None:
    for answers in ran(2):
        assert same(*answers["halves"])


def test_noise_follows_from_the_seed() -> None:
    for answers in ran(2):
        assert answers["seeds"] == [True] * 4


def test_auto_is_a_codec() -> None:
    one, two = (answers["automatic"] for answers in ran(2))
    assert same(one, two)


def test_an_older_torch_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fsdp.FSDPModule, "set_custom_reduce_scatter")
    with pytest.raises(dance.UnavailableError, match=r"torch 2\.9"):
        dance.fsdp.attach(plain())
