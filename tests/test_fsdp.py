"""FSDP2 with compressed collectives, against an unsharded copy of the model that does the same by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_ranks
from torch import nn

import dance
import dance.fsdp
from dance.distributed.member import _MEMBERS
from dance.fsdp.message import Message, Parameter

fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(getattr(fsdp, "FSDPModule", None), "set_custom_reduce_scatter"):
    pytest.skip("this torch has no custom collectives in FSDP", allow_module_level=True)

LR = 0.1


@cache
def _ran(world: int) -> list[dict[str, Any]] | AssertionError:
    try:
        return run_ranks(work, world, world)
    except AssertionError as error:
        return error


def ran(world: int) -> list[dict[str, Any]]:
    """What each job returned, at each rank; processes are dear to start, so all jobs run in the same ones."""
    answers = _ran(world)
    if isinstance(answers, AssertionError):
        raise answers
    return answers


def work(rank: int, world: int) -> dict[str, Any]:
    return {name: job(rank, world) for name, job in JOBS[world].items()}


class Net(nn.Module):
    """Sizes that no world size divides, a parameter of the root's own, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 33)
        self.second = nn.Linear(33, 5)
        self.scale = nn.Parameter(torch.ones(5))
        self.second.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x))) * self.scale


def plain() -> Net:
    torch.manual_seed(0)
    return Net()


def sharded(world: int, **options: Any) -> Net:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (world,))
    model = plain()
    for module in (model.first, model.second, model):
        fsdp.fully_shard(module, mesh=mesh, **options)
    return model


def batch(rank: int, step: int) -> torch.Tensor:
    return torch.randn(8, 10, generator=torch.Generator().manual_seed(100 * rank + step)) + rank


def backward(model: nn.Module, rank: int, step: int) -> float:
    model.zero_grad()
    loss = (model(batch(rank, step)) - 1).square().mean()
    loss.backward()
    return float(loss.detach())


def descend(model: nn.Module) -> None:
    with torch.no_grad():
        for each in model.parameters():
            if each.grad is not None:
                each -= LR * each.grad


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the parameters of a sharded model, unsharded, in exact bits; all ranks call it."""
    return {name: each.full_tensor().detach().clone() for name, each in model.named_parameters()}


def gradients(weights: dict[str, torch.Tensor], rank: int, step: int) -> dict[str, torch.Tensor]:
    """Those of one rank's loss, by an unsharded copy."""
    copy = plain()
    copy.load_state_dict(weights)
    backward(copy, rank, step)
    return {name: each.grad.clone() for name, each in copy.named_parameters() if each.grad is not None}


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: each.detach().numpy().copy() for name, each in tensors.items()}


def train(rank: int, world: int, codec: str | None, steps: int = 4, **options: Any) -> dict[str, np.ndarray]:
    model = sharded(world)
    if codec is not None:
        dance.fsdp.attach(model, codec, min_bytes=0, **options)
    for step in range(steps):
        backward(model, rank, step)
        descend(model)
    return arrays(whole(model))


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
RESUMED = ("int8:rounding=stochastic", "sign")
JOBS: dict[int, dict[str, Callable[[int, int], Any]]] = {
    2: {
        "without": partial(train, codec=None),
        "none": partial(train, codec="none", gather_codec="none"),
        "first gradient": first_gradient,
        **{f"conserve {codec}": partial(conserve, codec=codec) for codec in CODECS},
        "gather": gather,
        **{f"resume {codec}": partial(resume, codec=codec) for codec in RESUMED},
        "together": together,
        "halves": halves,
        "automatic": automatic,
        "not finite": not_finite,
        "seeds": seeds,
        "detach": detach,
        "refuse": refuse,
        "refuse in backward": refuse_in_backward,
    },
    3: {
        "first gradient": first_gradient,
        **{f"conserve {codec}": partial(conserve, codec=codec) for codec in CODECS},
        "gather": gather,
        "resume sign": partial(resume, codec="sign"),
        "reshape": reshape,
    },
}


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


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


def test_modules_may_share_a_message() -> None:
    for answers in ran(2):
        assert same(*answers["together"])


def test_mixed_precision_keeps_its_bits_in_bf16() -> None:
    for answers in ran(2):
        assert same(*answers["halves"])


def test_what_is_not_finite_reaches_all_ranks_and_leaves_residuals_finite() -> None:
    for answers in ran(2):
        assert all(answers["not finite"].values()), answers["not finite"]


def test_noise_follows_from_the_seed() -> None:
    for answers in ran(2):
        assert answers["seeds"] == [True] * 4


def test_auto_is_a_codec() -> None:
    one, two = (answers["automatic"] for answers in ran(2))
    assert same(one, two)


def test_what_cannot_be_is_refused() -> None:
    assert all(answers["refuse"] is None and answers["refuse in backward"] is None for answers in ran(2))


def test_an_older_torch_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(fsdp.FSDPModule, "set_custom_reduce_scatter")
    with pytest.raises(dance.UnavailableError, match=r"torch 2\.9"):
        dance.fsdp.attach(plain())
