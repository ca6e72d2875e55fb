"""Feedback weights: what a G-Node learns from logits and their gradients, against autograd through it all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from dance.gan.weighting import SCHEMES, Weighting

N, BATCH = 3, 5
SHARES = (0.5, 0.3, 0.2)


def non_saturating(logits: Tensor) -> Tensor:
    return softplus(-logits).sum()


def networks() -> tuple[nn.Module, list[nn.Module]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        g = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6)).double()
        ds = [nn.Sequential(nn.Linear(6, 7), nn.LeakyReLU(0.2), nn.Linear(7, 1)).double() for _ in range(N)]
    for k, d in enumerate(ds):
        d[0].weight.data.mul_(2.0 + k)  # discriminators that disagree
    return g, ds


def joined_loss(scheme: str, sharpness: float, logits: Tensor) -> Tensor:
    """The joined objective as its paper writes it, in probabilities; `logits` (N, n)."""
    d = torch.sigmoid(logits)
    if scheme == "mean":
        return -d.log().mean(0).sum()
    if scheme == "f2u":
        return -d.max(0).values.log().sum()
    if scheme == "f2a":
        weights = torch.exp(sharpness * d) / torch.exp(sharpness * d).sum(0)
        return -(weights * d).sum(0).log().sum()
    if scheme == "gman":
        values = -d.log().mean(1)
        weights = torch.exp(sharpness * values) / torch.exp(sharpness * values).sum()
        return BATCH * (weights * values).sum()
    odds = (torch.tensor(SHARES, dtype=torch.float64)[:, None] * d / (1 - d)).sum(0)
    return -(odds / (1 + odds)).log().sum()


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 7.0])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_g_learns_the_gradient_of_the_joined_objective(scheme: str, sharpness: float) -> None:
    g, ds = networks()
    noise = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = g(noise)
    logits = torch.cat([d(made).T for d in ds])
    expected = torch.autograd.grad(joined_loss(scheme, sharpness, logits), list(g.parameters()))

    made = g(noise)
    gradients, rows = [], []
    for d in ds:  # at a D-Node: its logits, and their gradient at the images that arrived
        points = made.detach().requires_grad_(True)
        own = d(points)
        gradients.append(torch.autograd.grad(own.sum(), points)[0])
        rows.append(own.detach().view(-1))
    weighting = Weighting(scheme=scheme, loss=non_saturating, sharpness=sharpness, shares=SHARES)
    found = torch.autograd.grad(made, list(g.parameters()), weighting.joined(gradients, rows))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def lsgan(logits: Tensor) -> Tensor:
    return ((logits - 1) ** 2).sum() / 2


@pytest.mark.parametrize("loss", [non_saturating, lsgan])
@pytest.mark.parametrize("scheme", ["mean", "f2u", "gman"])
def test_of_equal_discriminators_every_scheme_is_the_plain_loss(
    scheme: str, loss: Callable[[Tensor], Tensor]
) -> None:
    row = torch.linspace(-3, 3, BATCH)
    weighting = Weighting(scheme=scheme, loss=loss)
    torch.testing.assert_close(weighting.objective(row.expand(N, -1)), loss(row))


@pytest.mark.parametrize("scheme", ["f2a", "ua"])
def test_of_equal_discriminators_the_odds_are_those_of_one(scheme: str) -> None:
    row = torch.linspace(-3, 3, BATCH)
    weighting = Weighting(scheme=scheme, loss=non_saturating, shares=SHARES)
    torch.testing.assert_close(weighting.objective(row.expand(N, -1)), non_saturating(row))


def test_sharp_f2a_forgives_first_and_sharp_gman_hears_the_harshest() -> None:
    logits = torch.tensor([[2.0, -1.0], [-2.0, 0.5], [0.0, 0.0]])
    f2u = Weighting(scheme="f2u", loss=non_saturating).objective(logits)
    f2a = Weighting(scheme="f2a", loss=non_saturating, sharpness=1e3).objective(logits)
    torch.testing.assert_close(f2a, f2u)
    gman = Weighting(scheme="gman", loss=non_saturating, sharpness=1e3).objective(logits)
    torch.testing.assert_close(gman, max(non_saturating(row) for row in logits))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sure_discriminators_leave_everything_finite(scheme: str) -> None:
    logits = [torch.tensor([200.0, -200.0]), torch.tensor([-200.0, -200.0]), torch.tensor([0.0, 200.0])]
    weighting = Weighting(scheme=scheme, loss=non_saturating, sharpness=2.0, shares=SHARES)
    assert bool(weighting.joined([torch.ones(2, 1, 2, 2)] * 3, logits).isfinite().all())


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ValueError, match=r"'vote'; choose from mean, f2u"):
        Weighting(scheme="vote", loss=non_saturating).objective(torch.zeros(2, 2))
