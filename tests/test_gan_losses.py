"""The losses against closed forms and autograd; the penalties against discriminators with known gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dance.gan.config import LOSSES as NAMES
from dance.gan.config import RunConfig
from dance.gan.losses import LOSSES, gradient_penalty, loss_named, r1_penalty
from dance.gan.nodes import Batches, build_discriminator

REAL = torch.tensor([[-3.0], [0.0], [0.25], [2.0]])
FAKE = torch.tensor([[-2.0], [-0.5], [1.0], [4.0]])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# What the papers write down, in NumPy: (real, fake, generator), G's as a sum over images.
PAPERS = {
    "non-saturating": (
        lambda r: -np.log(sigmoid(r)).mean(),
        lambda f: -np.log(1 - sigmoid(f)).mean(),
        lambda f: -np.log(sigmoid(f)).sum(),
    ),
    "minimax": (
        lambda r: -np.log(sigmoid(r)).mean(),
        lambda f: -np.log(1 - sigmoid(f)).mean(),
        lambda f: np.log(1 - sigmoid(f)).sum(),
    ),
    "lsgan": (
        lambda r: 0.5 * ((r - 1) ** 2).mean(),
        lambda f: 0.5 * (f**2).mean(),
        lambda f: 0.5 * ((f - 1) ** 2).sum(),
    ),
    "hinge": (
        lambda r: -np.minimum(0, -1 + r).mean(),
        lambda f: -np.minimum(0, -1 - f).mean(),
        lambda f: -f.sum(),
    ),
    "wgan-gp": (lambda r: -r.mean(), lambda f: f.mean(), lambda f: -f.sum()),
}
# Derivatives of a fake image's part of G's loss by its logit.
SLOPES = {
    "non-saturating": lambda f: -sigmoid(-f),
    "minimax": lambda f: -sigmoid(f),
    "lsgan": lambda f: f - 1,
    "hinge": lambda f: -np.ones_like(f),
    "wgan-gp": lambda f: -np.ones_like(f),
}


def test_every_loss_has_its_name_and_its_oracle() -> None:
    assert tuple(LOSSES) == NAMES
    assert set(PAPERS) == set(SLOPES) == set(LOSSES)
    with pytest.raises(ValueError, match=r"'wasserstein'.*wgan-gp"):
        loss_named("wasserstein")


@pytest.mark.parametrize("name", LOSSES)
def test_values_are_those_of_the_paper(name: str) -> None:
    loss, paper = loss_named(name), PAPERS[name]
    for ours, theirs, logits in zip(
        (loss.real, loss.fake, loss.generator), paper, (REAL, FAKE, FAKE), strict=True
    ):
        assert ours(logits).item() == pytest.approx(float(theirs(logits.double().numpy())), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_feedback_of_an_image_does_not_depend_on_its_batch(name: str) -> None:
    """With D(x) = w.x the gradient at an image is its slope times w, whatever stands beside it."""
    config = RunConfig(batch_size=4, loss=name, d_widths=())  # type: ignore[arg-type]
    images = torch.randn(9, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    d = build_discriminator(config, "sgd", Batches(images=images, size=4, seed=0, node=1))
    (weight,) = (p for p in d.net.module.parameters() if p.numel() == 15)
    alone, all_nine = d.feedback(images[2:3]), d.feedback(images)
    torch.testing.assert_close(all_nine[2:3], alone)
    with torch.no_grad():
        logits = d.net.module(images).double().numpy()
    expected = torch.from_numpy(SLOPES[name](logits)).float() @ weight.detach()
    torch.testing.assert_close(all_nine.flatten(1), expected, rtol=1e-5, atol=1e-7)


def quadratic(images: Tensor) -> Tensor:
    """|x|^2 / 2, whose gradient is x."""
    return images.square().flatten(1).sum(1, keepdim=True) / 2


def test_r1_of_a_linear_and_of_a_quadratic_discriminator() -> None:
    images = torch.randn(12, 1, 3, 5, generator=torch.Generator().manual_seed(1))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(15, 1))
    weight = linear[1].weight
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(r1_penalty(linear, images), weight.square().sum() / 2)
    (by_weight,) = torch.autograd.grad(r1_penalty(linear, images), weight)
    torch.testing.assert_close(by_weight, weight.detach())
    torch.testing.assert_close(r1_penalty(quadratic, images), images.square().flatten(1).sum(1).mean() / 2)


def test_gradient_penalty_of_a_linear_and_of_a_quadratic_discriminator() -> None:
    random = torch.Generator().manual_seed(2)
    reals, fakes = torch.randn(2, 6, 1, 2, 2, generator=random)
    mix = torch.rand(6, 1, 1, 1, generator=random)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    weight = linear[1].weight
    assert isinstance(weight, Tensor)
    norm = weight.norm()
    torch.testing.assert_close(gradient_penalty(linear, reals, fakes, mix), (norm - 1).square())
    # d/dw (|w| - 1)^2 = 2 (|w| - 1) w / |w|
    (by_weight,) = torch.autograd.grad(gradient_penalty(linear, reals, fakes, mix), weight)
    torch.testing.assert_close(by_weight, (2 * (norm - 1) * weight / norm).detach())
    between = (mix * reals + (1 - mix) * fakes).flatten(1)
    torch.testing.assert_close(
        gradient_penalty(quadratic, reals, fakes, mix), (between.norm(dim=1) - 1).square().mean()
    )


def test_gradient_penalty_of_a_dead_discriminator_can_be_differentiated() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    weight = linear[1].weight
    assert isinstance(weight, Tensor)
    nn.init.zeros_(weight)
    images = torch.ones(3, 1, 2, 2)
    (by_weight,) = torch.autograd.grad(
        gradient_penalty(linear, images, -images, torch.zeros(3, 1, 1, 1)), weight
    )
    assert bool(torch.isfinite(by_weight).all())


@pytest.mark.parametrize("name", LOSSES)
def test_local_update_follows_the_loss_and_its_penalty(name: str) -> None:
    """The gradient of a D step with twice as many generated images as real ones, against plain autograd."""
    config = RunConfig(batch_size=4, loss=name, r1_every=1, r1=0.3, d_widths=(6,))  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(3)
    images, fakes = torch.randn(12, 1, 3, 5, generator=random), torch.randn(8, 1, 3, 5, generator=random)
    d = build_discriminator(config, "sgd", Batches(images=images, size=4, seed=0, node=1))
    loss, module = loss_named(name), d.net.module
    reals = d.batches.batch(0)
    total = loss.real(module(reals)) + loss.fake(module(fakes))
    if name == "wgan-gp":
        points = (d.mix(0, 8) * torch.cat([reals, reals]) + (1 - d.mix(0, 8)) * fakes).requires_grad_()
        (slope,) = torch.autograd.grad(module(points).sum(), points, create_graph=True)
        total = total + 10 * (slope.flatten(1).norm(dim=1) - 1).square().mean()
    else:
        total = total + 0.3 * r1_penalty(module, reals)
    named = sorted(module.named_parameters())
    expected = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
    flat = torch.cat(
        [
            torch.zeros(p.numel()) if g is None else g.reshape(-1)
            for g, (_, p) in zip(expected, named, strict=True)
        ]
    )
    d.local_update(0, fakes)
    torch.testing.assert_close(d.net.gradient, flat, rtol=1e-4, atol=1e-6)
    assert math.isfinite(d.d_loss)


def test_places_of_the_penalty_differ_by_step_and_node() -> None:
    config = replace(RunConfig(batch_size=4, loss="wgan-gp"), d_widths=(3,))
    images = torch.zeros(8, 1, 2, 2)
    one, two = (
        build_discriminator(config, "sgd", Batches(images=images, size=4, seed=0, node=node))
        for node in (1, 2)
    )
    assert torch.equal(one.mix(3, 5), one.mix(3, 5))
    assert not torch.equal(one.mix(3, 5), one.mix(4, 5))
    assert not torch.equal(one.mix(3, 5), two.mix(3, 5))
