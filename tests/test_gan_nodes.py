"""The parts of a GAN by themselves: flat parameters, losses, feedback, batches, samples."""

from __future__ import annotations

from dataclasses import replace

import torch
from tiny_gan import gradient_of
from torch import Tensor
from torch.nn.functional import softplus

from dance.gan.config import RunConfig
from dance.gan.losses import r1_penalty
from dance.gan.nodes import Batches, build_discriminator, build_generator

CONFIG = RunConfig(batch_size=4, latent=5, g_widths=(7,), d_widths=(6, 5), r1=0.5)


def images(count: int = 12, shape: tuple[int, ...] = (1, 3, 5)) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(1)) * 2 - 1


def batches(size: int = 4, count: int = 12) -> Batches:
    return Batches(images=images(count), size=size, seed=3, node=1)


def test_seeded_networks_are_equal_and_leave_torch_alone() -> None:
    before = torch.random.get_rng_state()
    first = build_discriminator(CONFIG, "sgd", batches())
    second = build_discriminator(CONFIG, "sgd", batches())
    assert torch.equal(first.net.theta, second.net.theta)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_r1_is_applied_every_so_many_rounds_times_so_many() -> None:
    """The local step's gradient, round by round, against autograd with the weight r1 * r1_every or none."""
    d = build_discriminator(replace(CONFIG, r1_every=4), "sgd", batches())
    fakes = images(4).flip(0)
    for r in range(6):
        reals = d.batches.batch(r)
        loss = softplus(-d.net.module(reals)).mean() + softplus(d.net.module(fakes)).mean()
        if r % 4 == 0:
            loss = loss + 0.5 * 4 * r1_penalty(d.net.module, reals)
        parameters = [parameter for _, parameter in sorted(d.net.module.named_parameters())]
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        expected = torch.cat([g.reshape(-1) for g in grads if g is not None])
        assert len(expected) == len(d.net.theta)
        d.local_update(r, fakes)
        torch.testing.assert_close(d.net.gradient, expected, rtol=1e-5, atol=1e-7)


def test_feedback_is_autograd_through_joined_g_and_d() -> None:
    """What G learns from two D-Nodes' feedback == the gradient of the joint loss through G and both D."""
    g = build_generator(CONFIG, (1, 3, 5), 0)
    ds = {
        node: build_discriminator(CONFIG, "sgd", Batches(images=images(), size=4, seed=3, node=node))
        for node in (1, 2)
    }
    ds[2].net.theta.mul_(1.5)
    fakes = g.generate(0, [1, 2])
    feedback = {node: d.feedback(fakes[node]) for node, d in ds.items()}
    noise = torch.cat([g._noise(0, node, 4) for node in (1, 2)])
    made = g.net.module(noise)
    joint = sum(
        (
            softplus(-ds[node].net.module(part)).sum()
            for node, part in zip((1, 2), torch.split(made, 4), strict=True)
        ),
        torch.zeros(()),
    )
    expected = gradient_of(joint / 8, g.net)
    before = g.net.gradient.clone()
    g.absorb(feedback, 8)
    assert not torch.equal(g.net.gradient, before)
    torch.testing.assert_close(g.net.gradient, expected, rtol=1e-6, atol=1e-8)


def test_epochs_show_every_image_once_in_an_order_of_their_own() -> None:
    source = batches(size=4, count=12)
    first, second = ([source.batch(3 * epoch + k) for k in range(3)] for epoch in range(2))
    for epoch in (first, second):
        seen = torch.cat(epoch).flatten(1).sort(0).values
        assert torch.equal(seen, images().flatten(1).sort(0).values)
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(source.batch(4), second[1])


def test_batches_leave_out_an_incomplete_last_one() -> None:
    assert batches(size=5, count=12).per_epoch == 2


def test_noise_differs_between_rounds_nodes_and_keys() -> None:
    g, other = (build_generator(CONFIG, (1, 3, 5), node) for node in (0, 1))
    drawn = [g._noise(0, 1, 4), g._noise(1, 1, 4), g._noise(0, 2, 4), other._noise(0, 1, 4)]
    for k, first in enumerate(drawn):
        for second in drawn[k + 1 :]:
            assert not torch.equal(first, second)


def test_sampling_changes_nothing_and_repeats() -> None:
    g = build_generator(CONFIG, (1, 3, 5), 0)
    g.generate(0, [1])
    g.absorb({1: torch.ones(4, 1, 3, 5)}, 4)
    theta = g.net.theta.clone()
    assert torch.equal(g.sample(6), g.sample(6))
    assert not torch.equal(g.sample(6), g.sample(6, raw=True))
    assert torch.equal(g.net.theta, theta)
