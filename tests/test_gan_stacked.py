"""Discriminators computed together agree with the same nodes computed one by one, and keep their states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dance.exchange import SimulatedExchange
from dance.gan import AcganConfig, MdganConfig, RunConfig, stacked
from dance.gan.engine import build
from dance.gan.nodes import Batches, DNode, build_discriminator
from dance.gan.rows import Algorithm
from dance.gan.stacked import Stack

pytestmark = pytest.mark.usefixtures("one_thread")
ROUNDS = 10
CONFIG = RunConfig(
    layout="model-parallel",
    d_nodes=3,
    batch_size=4,
    latent=6,
    g_widths=(16,),
    d_widths=(24, 12),
    channels=4,
    codec="none",
    simulate=True,
)
VARIANTS: dict[str, RunConfig] = {
    "hub": CONFIG,
    "two-g": replace(CONFIG, g_nodes=2),
    "ring": replace(CONFIG, topology="ring"),
    "local-steps": replace(CONFIG, local_steps=2, d_decay_rounds=3),
    "adam": replace(CONFIG, d_optimizer="adam"),
    "sgd": replace(CONFIG, d_optimizer="sgd"),
    "wgan-gp": replace(CONFIG, loss="wgan-gp"),
    "overlap": replace(CONFIG, acgan=AcganConfig(order="overlap")),
    "data-parallel": replace(CONFIG, layout="data-parallel", acgan=AcganConfig(sync_period=4)),
    "gradient": replace(CONFIG, acgan=AcganConfig(aggregation="gradient")),
    "adaptive": replace(
        CONFIG, layout="adaptive", acgan=AcganConfig(sync_period=2, switch_above=-1e9, switch_after=0)
    ),
    "md-gan": replace(CONFIG, algorithm="md-gan", mdgan=MdganConfig(swap_epochs=1)),
    "dcgan": replace(CONFIG, model="dcgan"),
    "spectral": replace(CONFIG, d_norm="spectral"),
}


@pytest.fixture(autouse=True)
def _groups_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nodes are then a whole group and a part of one."""
    monkeypatch.setattr(stacked, "_CHUNK", 2)


def images(seed: int, count: int = 12) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def built(config: RunConfig) -> Algorithm:
    parts = [images(node) for node in range(config.d_nodes)]
    return build(config, SimulatedExchange(config.num_nodes), parts)


def trained(config: RunConfig) -> Algorithm:
    algorithm = built(config)
    for round_index in range(ROUNDS):
        algorithm.round(round_index)
    return algorithm


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stack_agrees_with_its_nodes(name: str) -> None:
    """To 1e-4 of the length of each vector, after ten rounds with every message on the way."""
    assert_agreement(VARIANTS[name], 1e-4)


@pytest.mark.parametrize("codec", [None, "int8"])
def test_with_quantised_messages_too(codec: str | None) -> None:
    """Here a value at the border between two codes may go either way, and its element then differs by a code:

    with one bit, twice the scale of its block, which is the mean magnitude of what the block has to send. No
    more is claimed than that this does not grow.
    """
    assert_agreement(replace(CONFIG, codec=codec), 1e-2)


def assert_agreement(config: RunConfig, bound: float) -> None:
    alone, together = trained(config), trained(replace(config, stack="on"))
    for node in range(config.num_nodes):
        expected, found = alone.state(node)[0], together.state(node)[0]
        assert expected.keys() == found.keys()
        for key in ("theta", "w", "d_solver.m", "d_solver.v"):
            if key in expected:
                assert distance(found[key], expected[key]) < bound, (node, key)
        losses = alone.losses(node)
        assert losses is None or together.losses(node) == pytest.approx(losses, rel=bound, abs=bound)


def test_first_round_differs_by_rounding_only() -> None:
    """Before anything could grow: gradients, and so moments and feedback, to a few units of 2^-24."""

    def nodes() -> list[DNode]:
        return [
            build_discriminator(CONFIG, "block-adam", Batches(images=images(node), size=4, seed=0, node=node))
            for node in range(3)
        ]

    alone, together = nodes(), nodes()
    stack = Stack(together)
    fakes = {node: images(10 + node, 4) for node in range(3)}
    stack.local_update(0, fakes)
    answers = stack.feedback(fakes)
    for one, other in zip(alone, together, strict=True):
        one.local_update(0, fakes[one.node])
        answer = one.feedback(fakes[one.node])
        found = other.state_dict()
        for name, tensor in one.state_dict().items():
            same = torch.equal(found[name], tensor)  # counts, and what is zero yet
            assert same or distance(found[name], tensor) < 1e-6, name
        assert distance(answers[one.node], answer) < 1e-6


def test_nodes_differ_as_their_images_do() -> None:
    """A stack that gave every node the same images or weights would agree with nothing; here to be seen."""
    together = trained(replace(CONFIG, stack="on", d_nodes=2, codec="none", acgan=AcganConfig(period=100)))
    first, second = (together.state(node)[0]["theta"] for node in (1, 2))
    assert distance(first, second) > 1e-3


@pytest.mark.parametrize(("before", "after"), [("on", "off"), ("off", "on")])
def test_a_state_moves_between_stacked_and_unstacked(before: Any, after: Any) -> None:
    whole = trained(replace(CONFIG, stack=after))
    first, second = built(replace(CONFIG, stack=before)), built(replace(CONFIG, stack=after))
    for round_index in range(4):
        first.round(round_index)
    for node in range(CONFIG.num_nodes):
        tensors, meta = first.state(node)
        second.restore(node, {name: tensor.clone() for name, tensor in tensors.items()}, meta)
    for round_index in range(4, ROUNDS):
        second.round(round_index)
    for node in range(CONFIG.num_nodes):
        for key, tensor in whole.state(node)[0].items():
            if key in ("theta", "w"):
                assert distance(second.state(node)[0][key], tensor) < 1e-4


class Refuses(torch.nn.Module):
    """Decides by values, which vmap cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images.flatten(1))
        return -logits if float(logits.sum().detach()) > 0 else logits


def own_discriminator(_: object) -> torch.nn.Module:
    return Refuses()


def test_a_network_that_cannot_be_stacked_is_named() -> None:
    own = replace(CONFIG, discriminator="tests.test_gan_stacked:own_discriminator")
    with pytest.raises(ValueError, match=r"stack: Refuses cannot be .* use --stack off"):
        built(replace(own, stack="on"))
    trained(replace(own, stack="auto"))
