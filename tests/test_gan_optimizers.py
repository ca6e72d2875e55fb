"""Block Adam, Adam and SGD over flat vectors, each against an independent recursion."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from dance.gan.optimizers import Adam, BlockAdam, Ema, Rates, Sgd

RATES = Rates(learning_rate=0.01, beta1=0.5, beta2=0.9)
SIZES = [4, 1, 6]


def gradients(rounds: int, steps: int, nodes: int) -> np.ndarray:
    scale = np.concatenate([np.full(size, 10.0 ** (k - 1)) for k, size in enumerate(SIZES)])
    return np.random.default_rng(0).normal(size=(rounds, steps, nodes, sum(SIZES))) * scale


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("steps", [1, 2])
def test_block_adam_follows_its_recursion(nodes: int, steps: int) -> None:
    rounds = 6
    g = gradients(rounds, steps, nodes)
    # float64, from the formula: v of round r is that shared after round r - 1; round 0 uses the node's own.
    bounds = np.cumsum([0, *SIZES])
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    theta, m, v, t = np.ones((nodes, sum(SIZES))), np.zeros((nodes, sum(SIZES))), np.zeros(len(SIZES)), 0
    for r in range(rounds):
        for step in range(steps):
            t += 1
            m = RATES.beta1 * m + (1 - RATES.beta1) * g[r, step]
            for i in range(nodes):
                for j, part in enumerate(parts):
                    own = (g[r, : step + 1, i, part] ** 2).mean()
                    vhat = v[j] / (1 - RATES.beta2**r) if r else own
                    mhat = m[i, part] / (1 - RATES.beta1**t)
                    theta[i, part] -= RATES.learning_rate * mhat / (np.sqrt(vhat) + RATES.epsilon)
        for j, part in enumerate(parts):
            v[j] = RATES.beta2 * v[j] + (1 - RATES.beta2) * (g[r, :, :, part] ** 2).mean()

    solvers = [BlockAdam(SIZES, RATES) for _ in range(nodes)]
    thetas = [torch.ones(sum(SIZES)) for _ in range(nodes)]
    for r in range(rounds):
        for step in range(steps):
            for i, solver in enumerate(solvers):
                solver.step(thetas[i], torch.tensor(g[r, step, i], dtype=torch.float32))
        mean = torch.stack([solver.moment_out() for solver in solvers]).mean(0)
        for solver in solvers:
            solver.moment_in(mean)
    np.testing.assert_allclose(torch.stack(thetas).numpy(), theta, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(solvers[0].v.numpy(), v, rtol=1e-5)


def assert_steps_equal(
    solver: Adam | Sgd, reference: torch.nn.Parameter, expected: torch.optim.Optimizer, steps: int
) -> None:
    """``expected`` is torch's optimizer of ``reference``."""
    theta = reference.detach().clone()
    for row in gradients(steps, 1, 1)[:, 0, 0]:
        gradient = torch.tensor(row, dtype=torch.float32)
        solver.step(theta, gradient)
        reference.grad = gradient
        expected.step()
    torch.testing.assert_close(theta, reference.detach())


def test_adam_is_torchs() -> None:
    reference = torch.nn.Parameter(torch.ones(sum(SIZES)))
    expected = torch.optim.Adam([reference], lr=0.01, betas=(0.5, 0.9), eps=RATES.epsilon)
    assert_steps_equal(Adam(sum(SIZES), RATES), reference, expected, 6)


def test_sgd_is_torchs() -> None:
    reference = torch.nn.Parameter(torch.ones(sum(SIZES)))
    expected = torch.optim.SGD([reference], lr=0.01, momentum=0.5)
    assert_steps_equal(Sgd(sum(SIZES), RATES), reference, expected, 4)


@pytest.mark.parametrize("kind", ["block-adam", "adam", "sgd"])
def test_a_restored_optimizer_goes_on_with_equal_bits_and_a_reset_one_is_new(kind: str) -> None:
    from dance.gan.optimizers import optimizer

    g = torch.tensor(gradients(4, 1, 1)[:, 0, 0], dtype=torch.float32)

    def go(solver: object, theta: torch.Tensor, rows: torch.Tensor) -> None:
        for row in rows:
            solver.step(theta, row)  # type: ignore[attr-defined]
            if isinstance(solver, BlockAdam):
                solver.moment_in(solver.moment_out())

    whole, theta = optimizer(kind, SIZES, RATES), torch.ones(sum(SIZES))
    go(whole, theta, g)
    first, second, split = (
        optimizer(kind, SIZES, RATES),
        optimizer(kind, SIZES, RATES),
        torch.ones(sum(SIZES)),
    )
    go(first, split, g[:2])
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    go(second, split, g[2:])
    assert torch.equal(split, theta)
    second.reset()
    assert all(bool((tensor == 0).all()) for tensor in second.state_dict().values())


def test_a_state_of_another_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="optimizer state"):
        Adam(3, RATES).load_state_dict({"m": torch.zeros(3)})


def test_ema_begins_short_and_ends_with_its_decay() -> None:
    ema, expected, random = Ema(torch.zeros(3), 0.9), torch.zeros(3, dtype=torch.float64), torch.Generator()
    for t in range(1, 200):
        theta = torch.randn(3, generator=random)
        ema.update(theta)
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * theta.double()
    # One rounding of float32 a step, each forgotten at the decay's rate: 10 steps' worth.
    torch.testing.assert_close(ema.average.double(), expected, atol=10 * 2**-22, rtol=0)


def test_ema_of_several_rounds_at_once() -> None:
    once, often = Ema(torch.zeros(3), 0.9), Ema(torch.zeros(3), 0.9)
    for ema in (once, often):  # until the decay is whole
        for _ in range(90):
            ema.update(torch.zeros(3))
    once.update(torch.ones(3), 5)
    for _ in range(5):
        often.update(torch.ones(3))
    torch.testing.assert_close(once.average, often.average)


def test_ema_goes_on_from_its_state() -> None:
    whole, first, second = (Ema(torch.zeros(2), 0.99) for _ in range(3))
    for t in range(40):
        theta = torch.tensor([1.0, t])
        whole.update(theta)
        (first if t < 20 else second).update(theta)
        if t == 19:
            second.load_state_dict(first.state_dict())
    assert torch.equal(whole.average, second.average)
