"""Where AC-GAN is another algorithm: each against that algorithm written out with autograd alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_gan import BASE, SHAPE, gradient_of, parts
from torch.nn.functional import softplus

from dance.exchange import SimulatedExchange
from dance.gan.acgan import ModelParallel
from dance.gan.nodes import build_discriminator, build_generator

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(BASE, codec="none", g_optimizer="sgd", beta1=0.0)


@pytest.mark.parametrize("topology", ["complete", "hub"])
def test_uncompressed_gossip_among_all_is_the_mean_of_an_all_reduce(topology: str) -> None:
    """One round with plain SGD: what each D-Node then holds is the mean of what each would hold alone."""
    config = replace(TINY, topology=topology, d_optimizer="sgd")
    nodes = ModelParallel(config, SimulatedExchange(4), parts(config))
    reference = ModelParallel(config, SimulatedExchange(4), parts(config))
    fakes = {node: images for (_, node), images in reference._images(0).items()}
    reference.team.update(0, fakes)
    mean = torch.stack([d.net.theta.double() for d in reference.discriminators.values()]).mean(0)
    nodes.round(0)
    for d in nodes.discriminators.values():
        torch.testing.assert_close(d.net.theta.double(), mean, rtol=1e-5, atol=1e-7)


def test_several_generators_and_one_discriminator_are_a_stackelberg_gan() -> None:
    """One round as Zhang et al. 2018 write it: D leads, against the mean over generators; each G follows."""
    config = replace(TINY, d_nodes=1, g_nodes=3, d_optimizer="sgd", r1=0.0)
    config = replace(config, d_learning_rate=0.1, g_learning_rate=0.2)
    data = parts(config)
    nodes = ModelParallel(config, SimulatedExchange(4), data)
    (d,) = nodes.discriminators.values()
    lead = build_discriminator(config, "sgd", d.batches)
    followers = [build_generator(config, SHAPE, g_id) for g_id in range(3)]
    for r in range(3):
        made = [g.net.module(g._noise(r, d.node, 5)) for g in followers]
        reals = lead.net.module(d.batches.batch(r))
        fakes = [softplus(lead.net.module(batch.detach())).mean() for batch in made]
        leads = softplus(-reals).mean() + sum(fakes, torch.zeros(())) / 3
        lead.net.theta -= 0.1 * gradient_of(leads, lead.net)
        steps = []
        for g, batch in zip(followers, made, strict=True):
            steps.append(0.2 * gradient_of(softplus(-lead.net.module(batch)).mean(), g.net))
        for g, step in zip(followers, steps, strict=True):
            g.net.theta -= step
        nodes.round(r)
        torch.testing.assert_close(d.net.theta, lead.net.theta, rtol=1e-5, atol=1e-7)
        for g_id, g in enumerate(followers):
            torch.testing.assert_close(nodes.generators[g_id].net.theta, g.net.theta, rtol=1e-5, atol=1e-7)
