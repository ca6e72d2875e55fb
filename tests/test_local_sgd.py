"""Local SGD against a NumPy oracle: the outer step, what feedback keeps, equal bits, and resuming."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_once

from dance.errors import NonFiniteError
from dance.local_sgd import LocalSGD, OuterSGD, averaging, reshard

SHAPES = {"b.weight": (7, 31), "a.bias": (3,), "c": (1, 300)}
NAMES = sorted(SHAPES)
NUMEL = 520
F32 = np.float32
CODECS = ("none", "int8", "sign", "topk:ratio=0.05", "qsgd:levels=255")


def work(rank: int, world: int) -> dict[str, Any]:
    return {name: job(rank) for name, job in JOBS[world].items()}


ran = partial(run_once, work)


def parameters(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def vector(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([tensors[name].numpy().ravel() for name in NAMES])


def walk(rank: int, step: int, numel: int = NUMEL) -> np.ndarray:
    """What an inner step adds: of another size at each rank and in each step."""
    noise = np.random.default_rng(1000 * rank + step).standard_normal(numel)
    return (0.01 * (1 + rank) * noise).astype(F32)


def add(tensors: Mapping[str, torch.Tensor], change: np.ndarray) -> None:
    start = 0
    for name in NAMES:
        part = torch.from_numpy(change[start : start + tensors[name].numel()])
        tensors[name] += part.view(tensors[name].shape)
        start += tensors[name].numel()


def train(rank: int, steps: int, **options: Any) -> list[np.ndarray]:
    """The parameters at first and after each step."""
    mine = parameters(rank)
    local = LocalSGD(mine, **options)
    after = [vector(mine)]
    for step in range(steps):
        add(mine, walk(rank, step))
        assert local.step() == ((step + 1) % local.every == 0)
        after.append(vector(mine))
    return after


def conserve(rank: int, codec: str, rounds: int) -> dict[str, Any]:
    """Plain averaging: where it ended, the sum of all pseudo-gradients, and what is still owed."""
    mine = parameters(0)
    local = LocalSGD(mine, every=1, codec=codec, outer_optimizer=averaging)
    total = np.zeros(NUMEL)
    for step in range(rounds):
        start = vector(mine)
        add(mine, walk(rank, step))
        total += start.astype(np.float64) - vector(mine)
        local.step()
    assert local.feedback is not None
    residuals = local.feedback.state_dict()["residuals"]
    owed = vector(residuals) if residuals else np.zeros(NUMEL, F32)
    return {
        "end": vector(mine),
        "total": total,
        "owed": owed,
        "sent": local.bytes_sent,
        "raw": local.raw_bytes,
        "snapshot": saved(local.state_dict()),
    }


def saved(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def center(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal(512).astype(F32)


def descend(rank: int, feedback: bool) -> np.ndarray:
    """f_i(x) = |x - c_i|^2 / 2, and four inner steps of gradient descent a round."""
    x, goal = torch.zeros(512), torch.from_numpy(center(rank))
    local = LocalSGD({"x": x}, every=4, codec="topk:ratio=0.5", outer_optimizer=averaging, feedback=feedback)
    for _ in range(4 * 300):
        x -= 0.005 * (x - goal)
        local.step()
    return x.numpy().copy()


def resume(
    rank: int, codec: str, stop: int = 7, steps: int = 16
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What an uninterrupted run and one that begins again in the middle of a round see from then on."""

    def go(local: LocalSGD, tensors: Mapping[str, torch.Tensor], span: range) -> list[np.ndarray]:
        seen = []
        for step in span:
            add(tensors, walk(rank, step))
            local.step()
            seen.append(vector(tensors))
        return seen

    whole, again = parameters(0), parameters(9)
    local = LocalSGD(whole, every=3, codec=codec)
    go(local, whole, range(stop))
    saved, state = {name: each.clone() for name, each in whole.items()}, local.state_dict()
    uninterrupted = go(local, whole, range(stop, steps))

    other = LocalSGD(again, every=3, codec=codec)
    for name, each in saved.items():
        again[name].copy_(each)
    other.load_state_dict(state)
    assert other.round == stop // 3
    resumed = go(other, again, range(stop, steps))
    assert (other.round, other.bytes_sent) == (local.round, local.bytes_sent)
    return uninterrupted, resumed


def normalize(rank: int, whole: bool) -> dict[str, dict[str, np.ndarray]]:
    """A model with batch norm, and its state before and after the last outer step."""
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 2))
    model.register_buffer("mask", torch.full((4,), float(rank)), persistent=False)
    model[2].requires_grad_(False)
    local = LocalSGD(model if whole else model.named_parameters(), every=2)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.01)
    states = {}
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(32, 8) + rank).square().mean().backward()
        optimizer.step()
        states["before"] = {name: each.numpy().copy() for name, each in model.state_dict().items()}
        local.step()
    assert float(model.mask[0]) == rank
    states["after"] = {name: each.numpy().copy() for name, each in model.state_dict().items()}
    return states


def bfloat(rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Seven outer steps of 0.2 each, where neighbours in bfloat16 are 1 apart: parameter and start."""
    x = torch.full((256,), 128.0, dtype=torch.bfloat16)
    local = LocalSGD({"x": x}, every=1, outer_optimizer=partial(OuterSGD, lr=0.2, momentum=0.0))
    for _ in range(7):
        x += 1
        local.step()
    return x.float().numpy(), local.state_dict()["start"]["x"].numpy()


def automatic(rank: int) -> tuple[bytes, int]:
    x = torch.zeros(50_000)
    local = LocalSGD({"x": x}, every=2, codec="auto")
    for step in range(8):
        x += torch.from_numpy(walk(rank, step, 50_000))
        local.step()
    return x.numpy().tobytes(), local.round


def refuse(rank: int) -> list[str]:
    wrong: tuple[Callable[[], Any], ...] = (
        lambda: LocalSGD({"x": torch.zeros(3 + rank)}, every=1),
        lambda: LocalSGD({"x": torch.zeros(3)}, every=0),
        lambda: LocalSGD([torch.zeros(3)], every=1),
        lambda: LocalSGD({}, every=1),
        lambda: LocalSGD({"x": torch.zeros(3, dtype=torch.int64)}, every=1),
        lambda: OuterSGD([torch.zeros(3)], momentum=1.0),
        lambda: LocalSGD({"x": torch.zeros(3)}, every=1, outer_optimizer=OuterSGD([torch.zeros(3)])),
        lambda: LocalSGD({"x": torch.zeros(3)}, every=1, codec="powersgd:rank=4", feedback=False),
    )
    said = []
    for each in wrong:
        with pytest.raises(ValueError, match=r"local_sgd|OuterSGD|dance\.ddp") as caught:
            each()
        said.append(str(caught.value))
    x = torch.zeros(3)
    local, other = LocalSGD({"x": x}, every=1), LocalSGD({"y": torch.zeros(3)}, every=1)
    with pytest.raises(ValueError, match="other parameters"):
        local.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="residuals"):
        LocalSGD({"x": x}, every=1, feedback=False).load_state_dict(local.state_dict())
    with pytest.raises(ValueError, match="expected what state_dict or reshard gave"):
        local.load_state_dict(torch.optim.SGD([x]).state_dict())

    # Another rank's residuals are not ours, nor are those of another world.
    x += rank + torch.rand(3)
    local.step()
    own, before = local.state_dict(), vector_of(local)
    there = (1 - rank, 2), (0, 3)
    for number, world in there:
        changed = {**own, "rank": number, "world": world}
        changed["feedback"] = {**own["feedback"], "residuals": {"x": torch.ones(3)}}
        with pytest.raises(
            ValueError, match=rf"of rank {number} of {world}, this is rank {rank} of 2.*reshard"
        ):
            local.load_state_dict(changed)
        assert np.array_equal(vector_of(local), before)
    local.load_state_dict(own)
    three = [{**own, "rank": number, "world": 3} for number in range(3)]
    local.load_state_dict(reshard(three, rank, 2))
    # Of three like ours the first rank takes over two.
    np.testing.assert_array_equal(vector_of(local), before * (2 if rank == 0 else 1))
    without = LocalSGD({"x": x}, every=1, feedback=False)
    without.load_state_dict({**without.state_dict(), "rank": 1 - rank})  # the same at all ranks
    return said


def vector_of(local: LocalSGD) -> np.ndarray:
    """The residual of x."""
    assert local.feedback is not None
    return local.feedback.residual("x").numpy().copy()


def overflow(rank: int) -> list[float]:
    """One rank's parameter is not finite in one round: everybody is told, and can go on."""
    x = torch.zeros(300)
    local = LocalSGD({"x": x}, every=1, outer_optimizer=averaging)
    x += 1
    if rank == 1:
        x[7] = float("nan")
    with pytest.raises(NonFiniteError):
        local.step()
    assert local.round == 0
    x.fill_(2.0)
    local.step()
    assert local.round == 1
    return [float(x.min()), float(x.max())]


PAPER = partial(train, steps=9, every=3, codec="none")
CONSERVE = {f"conserve {codec}": partial(conserve, codec=codec, rounds=12) for codec in CODECS}
JOBS: dict[int, dict[str, Callable[[int], Any]]] = {
    1: {"paper": PAPER},
    2: {
        "paper": PAPER,
        **CONSERVE,
        **{
            f"resume {codec}": partial(resume, codec=codec)
            for codec in ("int8:rounding=stochastic", "topk:ratio=0.1")
        },
        "whole": partial(normalize, whole=True),
        "parameters": partial(normalize, whole=False),
        "bfloat": bfloat,
        "automatic": automatic,
        "refuse": refuse,
        "overflow": overflow,
    },
    3: {
        "averaging": partial(train, steps=2, every=2, codec="none", outer_optimizer=averaging),
        **CONSERVE,
        "descend": partial(descend, feedback=True),
        "descend without": partial(descend, feedback=False),
    },
    4: {"paper": PAPER},
}


def oracle(world: int, steps: int, every: int) -> Iterator[list[np.ndarray]]:
    """The parameters of all ranks at first and after each step, every operation rounded to float32."""
    lr, momentum = F32(0.7), F32(0.9)
    start = vector(parameters(0))
    theta = [start.copy() for _ in range(world)]
    buffer = np.zeros_like(start)
    yield theta
    for step in range(steps):
        theta = [each + walk(rank, step) for rank, each in enumerate(theta)]
        if (step + 1) % every == 0:
            total = np.zeros_like(start)
            for each in theta:
                total += start - each
            mean = total / F32(world)
            buffer = buffer * momentum + mean
            start = start - (mean + buffer * momentum) * lr
            theta = [start.copy() for _ in range(world)]
        yield theta


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_outer_step_is_that_of_the_paper(world: int) -> None:
    steps, every = 9, 3
    got = [answers["paper"] for answers in ran(world)]
    for step, expected in enumerate(oracle(world, steps, every)):
        for rank in range(world):
            if world <= 2:  # a sum of two has one order
                np.testing.assert_array_equal(got[rank][step], expected[rank])
            # Another order of a sum of N moves it by N - 1 roundings of values below 1; the outer step
            # multiplies that by lr (1 + momentum) < 2, three rounds add up, and so do roundings of theta < 4.
            bound = 3 * (2 * (world - 1) * 2**-24 + 4 * 2**-24)
            np.testing.assert_allclose(got[rank][step], expected[rank], rtol=0, atol=bound)
    for step in range(0, steps + 1, every):
        assert all(np.array_equal(got[0][step], got[rank][step]) for rank in range(world))
    assert world == 1 or not np.array_equal(got[0][1], got[1][1])


def test_plain_averaging_is_the_mean_of_the_parameters() -> None:
    alone = [vector(parameters(0)) + walk(rank, 0) + walk(rank, 1) for rank in range(3)]
    mean = np.mean(np.stack(alone).astype(np.float64), axis=0)
    # start - (start - theta) and the mean in between: four roundings of values below 4.
    np.testing.assert_allclose(ran(3)[0]["averaging"][-1], mean, rtol=0, atol=4 * 4 * 2**-24)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_outer_optimizer_agrees_with_torch(momentum: float, nesterov: bool) -> None:
    ours, theirs = torch.zeros(1000), torch.zeros(1000)
    optimizer = OuterSGD([ours], lr=0.7, momentum=momentum, nesterov=nesterov)
    peer = torch.optim.SGD([theirs], lr=0.7, momentum=momentum, nesterov=nesterov and momentum > 0)
    for step in range(5):
        gradient = torch.from_numpy(walk(99, step, 1000))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        peer.step()
    # Where we round a product and then a sum torch may round once: three pairs a step, of values below 32.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5 * 3 * 32 * 2**-24)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("world", [2, 3])
def test_feedback_loses_nothing(codec: str, world: int) -> None:
    got = [answers[f"conserve {codec}"] for answers in ran(world)]
    assert len({each["end"].tobytes() for each in got}) == 1
    moved = vector(parameters(0)).astype(np.float64) - got[0]["end"]
    owed = sum(each["owed"].astype(np.float64) for each in got)
    expected = (sum(each["total"] for each in got) - owed) / world
    # A round rounds parameters below 4 as they move and in start - mean, and a few smaller values.
    np.testing.assert_allclose(moved, expected, rtol=0, atol=12 * 3 * 4 * 2**-24)
    assert min(each["sent"] for each in got) > 0
    if codec != "none":
        assert max(each["sent"] for each in got) < min(each["raw"] for each in got)
        assert np.abs(owed).max() > 0


def test_it_converges_on_a_quadratic() -> None:
    centers = np.stack([center(rank) for rank in range(3)]).astype(np.float64)
    mean = centers.mean(axis=0)
    lost, without = (float(np.linalg.norm(ran(3)[0][name] - mean)) for name in ("descend", "descend without"))
    # Uncompressed, a round takes x the part a = 1 - 0.995^4 of the way to the mean of the centers. With
    # feedback x - mean(e) goes that way but for a |e|, and |e| <= k a (|x - mean| + |c_i - mean|) where
    # k = r / (1 - r), r^2 = 1 - ratio. So |x - mean| <= 2 |e|, and what 300 rounds leave of the beginning.
    a, r = 1 - 0.995**4, (1 - 0.5) ** 0.5
    share = 2 * a * r / (1 - r)
    spread = max(float(np.linalg.norm(each - mean)) for each in centers)
    bound = share / (1 - share) * spread + (1 - a) ** 300 * float(np.linalg.norm(mean))
    assert lost <= bound
    assert without > bound  # what topk leaves out is never sent


@pytest.mark.parametrize("codec", ["int8:rounding=stochastic", "topk:ratio=0.1"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(codec: str) -> None:
    for answers in ran(2):
        for uninterrupted, resumed in zip(*answers[f"resume {codec}"], strict=True):
            np.testing.assert_array_equal(uninterrupted, resumed)


def test_residuals_survive_a_change_of_world_size() -> None:
    files = [io.BytesIO(answers["conserve topk:ratio=0.05"]["snapshot"]) for answers in ran(3)]
    states = [torch.load(each, weights_only=True) for each in files]
    new = [reshard(states, rank, 2) for rank in range(2)]
    assert [(state["rank"], state["world"]) for state in new] == [(0, 2), (1, 2)]
    before = sum(vector(state["feedback"]["residuals"]).astype(np.float64) for state in states)
    after = sum(vector(state["feedback"]["residuals"]).astype(np.float64) for state in new)
    assert np.abs(before).max() > 0
    assert reshard(states, 2, 3) == states[2]
    for wrong in (states[:2], states[::-1]):
        with pytest.raises(ValueError, match="expected the snapshots of all ranks in their order"):
            reshard(wrong, 0, 2)
    np.testing.assert_allclose(after, before, rtol=0, atol=2**-24)  # one sum of two, below 1


def test_statistics_of_a_module_are_averaged() -> None:
    one, two = (answers["whole"] for answers in ran(2))
    for name in ("1.running_mean", "1.running_var"):
        mean = (one["before"][name] + two["before"][name]) / F32(2)
        np.testing.assert_array_equal(one["after"][name], mean)
        np.testing.assert_array_equal(two["after"][name], mean)
        assert not np.array_equal(one["before"][name], two["before"][name])
    assert int(one["after"]["1.num_batches_tracked"]) == 4
    np.testing.assert_array_equal(one["after"]["0.weight"], two["after"]["0.weight"])
    # A parameter that is not trained is no matter of ours.
    assert not np.array_equal(one["after"]["2.weight"], two["after"]["2.weight"])


def test_statistics_stay_where_only_parameters_are_passed() -> None:
    one, two = (answers["parameters"] for answers in ran(2))
    for each in (one, two):
        np.testing.assert_array_equal(each["before"]["1.running_mean"], each["after"]["1.running_mean"])
    assert not np.array_equal(one["after"]["1.running_mean"], two["after"]["1.running_mean"])
    np.testing.assert_array_equal(one["after"]["0.weight"], two["after"]["0.weight"])


def test_parameters_of_16_bits_have_a_start_of_32() -> None:
    for answers in ran(2):
        x, start = answers["bfloat"]
        np.testing.assert_array_equal(x, np.full(256, 129.0, F32))
        # Seven roundings of values below 256, and what int8 makes of 1, far less.
        np.testing.assert_allclose(start, 128 + 7 * 0.2, rtol=0, atol=8 * 2**-17)


def test_auto_is_a_codec() -> None:
    one, two = (answers["automatic"] for answers in ran(2))
    assert one == two
    assert one[1] == 4


def test_what_is_not_finite_is_told_to_all() -> None:
    for answers in ran(2):
        low, high = answers["overflow"]
        # The first round was not taken; what its finite blocks lost, half a step of 1 / 127, is still owed.
        assert 2 - 1 / 127 <= low <= high <= 2 + 1 / 127


def test_what_cannot_be_is_refused() -> None:
    words = ("differ between ranks", "every", "named_parameters", "at least one", "cast", "momentum")
    words += ("got OuterSGD; pass functools.partial", "only dance.ddp accepts it")
    for text, word in zip(ran(2)[0]["refuse"], words, strict=True):
        assert word in text


def test_without_a_group_it_says_what_to_call() -> None:
    with pytest.raises(ValueError, match=r"local_sgd: .*init_process_group\('gloo'\)"):
        LocalSGD({"x": torch.zeros(3)}, every=1)
