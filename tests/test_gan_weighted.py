"""AC-GAN with feedback weights and with several generators, against autograd through all of its networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_gan import BASE, SHAPE, gradient_of, noise_images
from torch import Tensor
from torch.nn.functional import softplus

import dance
from dance.exchange import SimulatedExchange
from dance.gan.acgan import ModelParallel
from dance.gan.config import validate
from dance.gan.nodes import build_generator
from dance.gan.settings import AcganConfig
from dance.gan.weighting import Weighting

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(BASE, codec="none", g_optimizer="sgd", beta1=0.0)
COUNTS = (20, 30, 50)


def non_saturating(logits: Tensor) -> Tensor:
    return softplus(-logits).sum()


@pytest.mark.parametrize("order", ["fresh", "overlap"])
@pytest.mark.parametrize("scheme", ["f2u", "f2a", "gman", "ua"])
def test_every_generator_follows_the_joined_objective_of_all_its_discriminators(
    scheme: str, order: str
) -> None:
    settings = AcganConfig(feedback_weights=scheme, weight_sharpness=3.0, order=order, period=1000)  # type: ignore[arg-type]
    config = replace(TINY, g_nodes=2, acgan=settings)
    nodes = ModelParallel(config, SimulatedExchange(5), noise_images(COUNTS))
    for d in nodes.discriminators.values():
        d.net.theta += 0.3 * torch.randn(d.net.theta.shape, generator=torch.Generator().manual_seed(d.node))
    references = {g_id: build_generator(config, SHAPE, g_id) for g_id in nodes.generators}
    nodes.round(0)
    shares = [count / sum(COUNTS) for count in COUNTS]
    weighting = Weighting(scheme=scheme, loss=non_saturating, sharpness=3.0, shares=shares)
    for g_id, reference in references.items():
        made = reference.net.module(reference._noise(0, -1, 5))
        logits = torch.stack([d.net.module(made).view(-1) for d in nodes.discriminators.values()])
        expected = gradient_of(weighting.objective(logits) / 5, reference.net)
        torch.testing.assert_close(nodes.generators[g_id].net.gradient, expected, rtol=1e-5, atol=1e-7)


def test_logits_travel_uncompressed_beside_the_feedback_and_are_counted() -> None:
    config = replace(TINY, codec="int8", acgan=AcganConfig(feedback_weights="f2a"))
    nodes = ModelParallel(config, SimulatedExchange(4), noise_images(COUNTS))
    for r in range(4):
        nodes.round(r)
    counts = nodes.exchange.counts
    assert counts.of(kind="logit").sent_bytes == 4 * 3 * dance.codec("none").packet_nbytes(5)
    assert counts.of(kind="feedback").sent_bytes == 4 * 3 * dance.codec("int8").packet_nbytes(5 * 32)
    assert counts.of(kind="image").sent_bytes == 4 * 3 * dance.codec("int8").packet_nbytes(5 * 32)


def test_all_discriminators_judge_the_same_images_and_keep_training() -> None:
    config = replace(TINY, codec="int8:rounding=stochastic", gossip_codec="sign")
    config = replace(config, acgan=AcganConfig(feedback_weights="gman"))
    nodes = ModelParallel(config, SimulatedExchange(4), noise_images(COUNTS))
    first, *others = nodes._images(0).values()
    assert all(torch.equal(first, other) for other in others)


def test_ua_without_r1_is_refused() -> None:
    config = replace(TINY, acgan=AcganConfig(feedback_weights="ua"))
    validate(config)
    with pytest.raises(ValueError, match=r"ua without R1 .*--r1"):
        validate(replace(config, r1=0.0))


@pytest.mark.parametrize("scheme", ["f2a", "ua"])
def test_weights_that_read_odds_are_refused_where_logits_are_none(scheme: str) -> None:
    config = replace(TINY, loss="hinge", acgan=AcganConfig(feedback_weights=scheme))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"{scheme} reads logits as odds.*hinge.*f2u"):
        validate(config)
    validate(replace(config, acgan=AcganConfig(feedback_weights="f2u")))
