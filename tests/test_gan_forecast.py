"""The forecast by which the hub chooses recipes: closed forms, what it learns of a run, and how that ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_gan import BASE, parts

import dance
from dance.bandwidth import Link, LinkEstimate, Links
from dance.exchange import SimulatedExchange
from dance.gan import AcganConfig
from dance.gan.acgan import ModelParallel
from dance.gan.config import RunConfig, validate
from dance.gan.controller import DWELL, guide_of
from dance.gan.forecast import Forecast, Load
from dance.gan.parts import Part
from dance.gan.recipes import Recipe
from dance.gan.rounds import ROUNDS

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(BASE, d_nodes=2, codec="auto", simulate=True)
IMAGE = 32  # elements of one of BASE's images
FINE = Recipe(gossip="none", period=1, image="none", feedback="none")
COARSE = Recipe(gossip="sign", period=4, image="int8", feedback="sign:block=image")


def link(mbps: float, latency_s: float = 0.0) -> LinkEstimate:
    return LinkEstimate(rate_mbps=mbps, latency_s=latency_s)


def forecast() -> Forecast:
    loads = [Load(down=3e6, up=1e6, messages=2.0), Load(down=3e5, up=1e5, messages=1.25)]
    return Forecast({FINE: 1.0, COARSE: 2.0}, loads)


# ---- the arithmetic ----------------------------------------------------------------------------------------


def test_seconds_are_those_of_bytes_latencies_and_the_rest_times_rounds() -> None:
    found = forecast()
    down, up = link(8.0, 0.01), link(2.0, 0.02)  # 1 and 0.25 MB a second
    # 3 MB down take 3 s, 1 MB up 4 s, and 2 x 0.03 s of latency; the coarse one 0.3, 0.4 and 1.25 x 0.03.
    np.testing.assert_allclose(found.seconds_over(down, up), [7.06, 2 * 0.7375], rtol=1e-12)
    found.begin(10, 100.0)
    found.note(30, 260.0, 0, down, up)  # 8 s a round, 0.94 more than the messages take
    np.testing.assert_allclose(found.seconds_over(down, up), [8.0, 2 * (0.7375 + 0.94)], rtol=1e-12)
    assert found.seconds_over(link(1e30), link(1e30)).argmin() == 0, "the rest alone: fewer rounds"


def test_one_long_stall_does_not_change_what_a_round_takes() -> None:
    found = forecast()
    fast = link(1e9)
    found.begin(0, 0.0)
    for turn, clock_s in enumerate(
        [20.0, 40.0, 1000.0, 1020.0]
    ):  # one of 960 s among three of a second a round
        found.note(20 * (turn + 1), clock_s, 0, fast, fast)
    np.testing.assert_allclose(found.seconds_over(fast, fast), [1.0, 2.0], rtol=1e-6)


def test_messages_faster_than_expected_leave_no_negative_rest_and_a_new_clock_is_no_time() -> None:
    found = forecast()
    found.begin(0, 50.0)
    found.note(20, 51.0, 0, link(8.0), link(8.0))
    np.testing.assert_allclose(found.seconds_over(link(8.0), link(8.0)), [4.0, 0.8])
    again = forecast()
    again.begin(0, 50.0)
    again.note(20, 3.0, 0, link(1e9), link(1e9))  # a process that resumed counts from its own start
    again.note(40, 23.0, 0, link(1e9), link(1e9))
    np.testing.assert_allclose(again.seconds_over(link(1e9), link(1e9)), [1.0, 2.0], rtol=1e-6)


def test_a_state_goes_on() -> None:
    found = forecast()
    found.begin(0, 0.0)
    found.note(20, 30.0, 1, link(8.0), link(8.0))
    again = forecast()
    again.load_state_dict(found.state_dict())
    for each in (found, again):
        each.note(40, 90.0, 1, link(8.0), link(8.0))
    np.testing.assert_array_equal(
        again.seconds_over(link(1.0), link(2.0)), found.seconds_over(link(1.0), link(2.0))
    )


def test_loads_are_the_bytes_of_the_packets() -> None:
    theta = 1000
    texts = {"gossip": "auto", "image": "auto", "feedback": "auto"}
    found = guide_of(TINY, texts, IMAGE, theta)
    assert isinstance(found, Forecast)
    batch = TINY.batch_size * IMAGE
    for recipe, load in zip(found.recipes, found.loads, strict=True):
        gossip, image, feedback = (
            dance.codec(getattr(recipe, kind).replace("image", str(IMAGE))).packet_nbytes(numel)
            for kind, numel in (("gossip", theta), ("image", batch), ("feedback", batch))
        )
        assert load.down == pytest.approx(image + gossip / recipe.period)
        assert load.up == pytest.approx(feedback + gossip / recipe.period)
        assert load.messages == pytest.approx(1 + 1 / recipe.period)
    fixed = guide_of(TINY, {**texts, "image": "fp16"}, IMAGE, theta)
    assert isinstance(fixed, Forecast)
    image_bytes = dance.codec("fp16").packet_nbytes(batch)
    assert all(
        load.down - image_bytes == pytest.approx(load.up - dance.codec(text).packet_nbytes(batch))
        for load, text in zip(
            fixed.loads, (each.feedback.replace("image", str(IMAGE)) for each in fixed.recipes), strict=True
        )
    )


# ---- in a run ----------------------------------------------------------------------------------------------


def nodes_over(links: Links | None, config: RunConfig = TINY, compute_s: float = 0.0) -> ModelParallel:
    """`compute_s` is what the G-Node takes for a round; D-Nodes take no time."""
    validate(config)
    exchange = SimulatedExchange(config.num_nodes, links, lambda node, _: compute_s if node == 0 else 0.0)
    return ModelParallel(config, exchange, parts(config))


def run_rounds(nodes: ModelParallel, rounds: range | int) -> None:
    for r in rounds if isinstance(rounds, range) else range(rounds):
        nodes.round(r)


@pytest.mark.parametrize(
    ("down_mbps", "up_mbps", "compute_s"),
    [(1000.0, 1000.0, 0.0), (0.05, 0.05, 0.0), (0.05, 0.05, 10.0), (100.0, 0.02, 0.0), (0.02, 100.0, 0.01)],
)
def test_the_recipe_is_that_of_the_least_seconds(down_mbps: float, up_mbps: float, compute_s: float) -> None:
    """Of the least that a closed form gives, or one within what another must promise to be worth a change."""
    hub = Link(rate_mbps=1e6)
    edge = Link(rate_mbps=up_mbps, down_mbps=down_mbps)  # of a D-Node: up is what it sends
    nodes = nodes_over(Links(default=edge, nodes={0: hub}), compute_s=compute_s)
    assert nodes.controller is not None
    assert isinstance(nodes.controller.guide, Forecast)
    first = nodes.controller.recipe
    assert first.gossip == "sign"
    assert first.period == max(recipe.period for recipe in ROUNDS)
    run_rounds(nodes, 8 * DWELL + 1)
    loads = nodes.controller.guide.loads
    seconds = [
        (compute_s + 8e-6 * (load.down / down_mbps + load.up / up_mbps)) * rounds
        for load, rounds in zip(loads, ROUNDS.values(), strict=True)
    ]
    # Meters are a little unsure, and rates are taken at their lower fifth.
    assert seconds[nodes.controller.index] <= 1.1 * min(seconds)


def test_computing_is_learnt_from_the_clock() -> None:
    nodes = nodes_over(Links(default=Link(rate_mbps=1.0), nodes={0: Link(rate_mbps=1e6)}), compute_s=0.5)
    run_rounds(nodes, 2 * DWELL + 1)
    assert nodes.controller is not None
    assert nodes.controller.forecast is not None
    state = nodes.controller.forecast.state_dict()
    assert state["others_s"] == pytest.approx([0.5] * len(state["others_s"]), rel=0.02)
    assert len(state["others_s"]) == 2


def test_what_is_not_left_to_auto_stays() -> None:
    config = replace(TINY, codec=None, gossip_codec="auto", image_codec="fp16")
    nodes = nodes_over(Links(default=Link(rate_mbps=0.05)), config)
    run_rounds(nodes, 2 * DWELL)
    assert nodes.controller is not None
    assert nodes.codecs(0)["image"] == "fp16"
    assert nodes.codecs(1)["feedback"].startswith("sign")
    assert nodes.codecs(1)["gossip"].split(":")[0] == nodes.controller.recipe.gossip


def test_points_in_the_plane_are_not_sent_in_int4() -> None:
    images = [Part(images=torch.zeros(20, 1, 1, 2))] * TINY.d_nodes
    nodes = ModelParallel(TINY, SimulatedExchange(3), images)
    assert nodes.controller is not None
    assert nodes.controller.recipe.image == "int4"
    nodes.round(0)
    assert nodes.codecs(0)["image"] == "int8:block=256"


def test_a_run_goes_on_with_what_it_knew() -> None:
    links = Links(default=Link(rate_mbps=1.0))
    first, again = nodes_over(links, compute_s=0.1), nodes_over(links, compute_s=0.1)
    run_rounds(first, 2 * DWELL + 3)
    for node in range(3):
        again.restore(node, *first.state(node))
    assert again.controller is not None
    assert first.controller is not None
    assert again.controller.recipe == first.controller.recipe
    assert again.controller.state_dict() == first.controller.state_dict()
    assert again.team.gossip is not None
    assert again.team.gossip.period == first.controller.recipe.period
    tensors, meta = first.state(0)
    with pytest.raises(ValueError, match="recipes than the run began with"):
        again.restore(0, tensors, meta | {"controller": {"recipe": 0, "digest": 1, "forecast": None}})


@pytest.mark.parametrize(
    ("change", "follows"),
    [
        ({}, True),
        ({"codec": None, "gossip_codec": "auto"}, True),
        ({"round_ms": 50.0}, False),
        ({"codec": "sign"}, False),
        ({"codec": None, "image_codec": "auto"}, False),
        ({"topology": "ring"}, False),
        ({"d_nodes": 1}, False),
        ({"acgan": AcganConfig(aggregation="low-rank")}, False),
        ({"layout": "adaptive"}, False),
        ({"layout": "adaptive", "gossip_codec": "auto"}, True),
        ({"layout": "data-parallel"}, False),
        ({"algorithm": "md-gan"}, False),
    ],
)
def test_who_follows_recipes(change: dict[str, object], follows: bool) -> None:
    config = replace(TINY, **change)  # type: ignore[arg-type]
    validate(config)
    assert config.follows_recipes == follows


def test_a_period_of_ones_own_beside_auto_is_refused() -> None:
    config = replace(TINY, acgan=AcganConfig(period=3))
    with pytest.raises(ValueError, match=r"acgan.period: 3, .*--round-ms"):
        validate(config)
    validate(replace(config, round_ms=100.0))
