"""The algorithms over simulated links: oracles, exact bytes, and what must be equal bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_gan import BASE, SHAPE, gradient_of, parts
from torch import Tensor
from torch.nn.functional import softplus

import dance
from dance.exchange import SimulatedExchange
from dance.gan.acgan import ModelParallel
from dance.gan.choice import Choice
from dance.gan.config import RunConfig
from dance.gan.engine import build
from dance.gan.flgan import Flgan, model_of
from dance.gan.mdgan import Mdgan, swap_pairs
from dance.gan.nodes import build_generator
from dance.gan.optimizers import BlockAdam
from dance.gan.settings import AcganConfig, FlganConfig, MdganConfig
from dance.gan.standalone import Standalone

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(BASE, d_nodes=2, r1=0.5, r1_every=2)
HEADER = 64


def trained(config: RunConfig, rounds: int = 6, data: list[Tensor] | None = None) -> object:
    algorithm = build(config, SimulatedExchange(config.num_nodes), data or parts(config))
    for r in range(rounds):
        algorithm.round(r)
    return algorithm


@pytest.mark.parametrize("solver", ["block-adam", "adam", "sgd"])
@pytest.mark.parametrize("local_steps", [1, 2])
def test_one_d_node_without_compression_is_standalone_bit_for_bit(solver: str, local_steps: int) -> None:
    config = replace(TINY, d_nodes=1, codec="none", d_optimizer=solver, local_steps=local_steps)  # type: ignore[arg-type]
    alone = trained(replace(config, algorithm="standalone"), data=parts(config))
    nodes = trained(config, data=parts(config))
    assert isinstance(alone, Standalone)
    assert isinstance(nodes, ModelParallel)
    assert torch.equal(nodes.discriminators[1].net.theta, alone.d.net.theta)
    assert torch.equal(nodes.generators[0].net.theta, alone.g.net.theta)
    assert torch.equal(nodes.sample(7), alone.sample(7))
    assert nodes.losses(1) == alone.losses(0)


def test_uncompressed_gossip_with_step_one_makes_discriminators_equal() -> None:
    nodes = trained(replace(TINY, codec="none", d_nodes=3))
    assert isinstance(nodes, ModelParallel)
    first, *others = [d.net.theta for d in nodes.discriminators.values()]
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("topology", ["hub", "ring", "complete", "star", "one_peer_exponential"])
def test_discriminators_stay_together_and_share_their_moments(topology: str) -> None:
    def spread(config: RunConfig) -> float:
        nodes = trained(config, rounds=30)
        assert isinstance(nodes, ModelParallel)
        thetas = torch.stack([d.net.theta for d in nodes.discriminators.values()])
        solvers = [d.solver for d in nodes.discriminators.values()]
        for solver in solvers:
            assert isinstance(solver, BlockAdam)
            assert int(solver.counts[1]) == 30
            if topology == "hub" and config.acgan.period == 1:
                assert isinstance(solvers[0], BlockAdam)
                assert torch.equal(solver.v, solvers[0].v)
        return float((thetas - thetas.mean(0)).norm())

    config = replace(TINY, d_nodes=4, topology=topology, codec="int8")
    assert spread(config) < 0.5 * spread(replace(config, acgan=AcganConfig(period=1000)))


def test_several_g_nodes_train_and_are_served_by_all_d_nodes() -> None:
    nodes = trained(replace(TINY, g_nodes=2))
    assert isinstance(nodes, ModelParallel)
    first, second = (g.net.theta for g in nodes.generators.values())
    assert not torch.equal(first, second)
    assert nodes.exchange.counts.of(1, "image").sent_messages == 2 * 6
    assert nodes.exchange.counts.of(1, "feedback").received_messages == 2 * 6


@pytest.mark.parametrize("g_nodes", [1, 2])
def test_generators_of_ac_gan_follow_autograd_through_themselves_and_all_discriminators(g_nodes: int) -> None:
    config = replace(TINY, d_nodes=3, g_nodes=g_nodes, codec="none", g_optimizer="sgd", beta1=0.0)
    nodes = ModelParallel(config, SimulatedExchange(config.num_nodes), parts(config))
    references = {g_id: build_generator(config, SHAPE, g_id) for g_id in nodes.generators}
    nodes.round(0)
    for g_id, reference in references.items():
        losses = [
            softplus(-d.net.module(reference.net.module(reference._noise(0, d_id, 5)))).sum()
            for d_id, d in nodes.discriminators.items()
        ]
        expected = gradient_of(sum(losses, torch.zeros(())) / (3 * 5), reference.net)
        torch.testing.assert_close(nodes.generators[g_id].net.gradient, expected, rtol=1e-5, atol=1e-8)


def packet(codec: str, numel: int) -> int:
    return dance.codec(codec).packet_nbytes(numel)


@pytest.mark.parametrize("topology", ["hub", "ring"])
def test_bytes_of_ac_gan_are_those_of_its_messages(topology: str) -> None:
    rounds, period, n = 34, 2, 3
    config = replace(TINY, d_nodes=n, topology=topology, acgan=AcganConfig(period=period))
    nodes = trained(config, rounds)
    assert isinstance(nodes, ModelParallel)
    batch, theta = 5 * 32, nodes.discriminators[1].net.theta.numel()
    edges = 2 * n  # hub: up and down; ring of three: two neighbours each
    counts = nodes.exchange.counts
    turns = rounds // period
    assert counts.of(kind="image").sent_bytes == rounds * n * packet("int4", batch)
    assert counts.of(kind="feedback").sent_bytes == rounds * n * packet("sign:block=32", batch)
    assert counts.of(kind="gossip").sent_bytes == turns * edges * packet("sign", theta)
    assert counts.of(kind="moment").sent_bytes == turns * edges * packet("none", 6)
    assert counts.of(kind="image").raw_sent_bytes == rounds * n * (HEADER + 4 * batch)
    # Every 8 gossips, a byte from each node to node 0 and one back: does a guard ask for half the step?
    assert turns == 17
    assert counts.of(kind="control").sent_bytes == 2 * 2 * n
    assert counts.of().sent_bytes == counts.of().received_bytes


@pytest.mark.parametrize("topology", ["hub", "ring"])
def test_with_auto_nodes_of_different_codecs_take_equal_steps_and_keep_the_mean(
    topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, d_nodes=4, topology=topology, codec="auto", round_ms=100.0)
    nodes = ModelParallel(config, SimulatedExchange(5), parts(config))
    taken = {
        0: "none",
        1: "sign",
        2: "none",
        3: "sign",
        4: "int8",
    }  # the relay's exactly: the mean moves by it
    monkeypatch.setattr(Choice, "codec", lambda choice, *_, **__: dance.codec(taken[choice.node]))
    generator = torch.Generator().manual_seed(0)
    gossip = nodes.team.gossip
    assert gossip is not None
    thetas = [d.net.theta for d in nodes.discriminators.values()]
    for theta in thetas:
        theta.add_(torch.randn(theta.shape, generator=generator))
    x = torch.stack(thetas).double()
    for r in range(100):
        nodes.team.aggregate(r)
    assert {str(node.codec) for node in gossip.nodes.values()} >= {"none", "sign:block=256"}
    least = 0.9 if topology == "hub" else 0.5  # of int8 and of sign
    assert {node.step_size for node in gossip.nodes.values()} == {least}, "of the candidates"
    y = torch.stack(thetas).double()
    assert float((y.mean(0) - x.mean(0)).norm() / x.norm(dim=1).mean()) <= 1e-6
    assert float((y - y.mean(0)).norm()) < 0.1 * float((x - x.mean(0)).norm())


@pytest.mark.parametrize("topology", ["hub", "ring"])
def test_all_nodes_halve_in_the_round_in_which_they_ask_each_other(topology: str) -> None:
    config = replace(TINY, d_nodes=3, topology=topology)
    nodes = ModelParallel(config, SimulatedExchange(4), parts(config))
    gossip = nodes.team.gossip
    assert gossip is not None
    gossip.nodes[2].pace.alarm = True  # as if its guard had fired
    step_size = 0.95 if topology == "hub" else 0.5
    for r in range(9):
        assert {node.step_size for node in gossip.nodes.values()} == {step_size if r < 8 else step_size / 2}
        nodes.round(r)
    assert not any(node.alarm for node in gossip.nodes.values())


def test_sign_sends_25_times_fewer_gossip_bytes_than_none() -> None:
    wide = replace(TINY, d_widths=(256, 128))  # the networks of the defaults
    sent = {}
    for codec in ("sign", "none"):
        nodes = trained(replace(wide, gossip_codec=codec), rounds=2)
        assert isinstance(nodes, ModelParallel)
        sent[codec] = nodes.exchange.counts.of(kind="gossip").sent_bytes
    assert sent["none"] >= 25 * sent["sign"]


def test_points_are_sent_finer_than_images() -> None:
    for shape, codec in (((1, 1, 2), "int8:block=256"), ((1, 4, 8), "int4:block=256")):
        reals = [torch.zeros(20, *shape) for _ in range(TINY.d_nodes)]
        config = replace(TINY, r1=0.0)
        nodes = ModelParallel(config, SimulatedExchange(config.num_nodes), reals)
        nodes.round(0)
        assert nodes.codecs(0)["image"] == codec
        auto = ModelParallel(
            replace(config, codec="auto", round_ms=100.0), SimulatedExchange(config.num_nodes), reals
        )
        assert auto.wires.choices[0].candidates["image"][-1] == codec.split(":")[0]


@pytest.mark.parametrize(("links", "codec"), [("1gbit", "none"), ("50kbit", "sign:block=256")])
def test_auto_takes_the_least_lossy_codec_that_fits(links: str, codec: str) -> None:
    from dance.bandwidth import parse_links

    config = replace(TINY, codec="auto", simulate=True, links=links, round_ms=100.0)
    nodes = ModelParallel(config, SimulatedExchange(3, parse_links(links)), parts(config))
    for r in range(60):
        nodes.round(r)
    assert nodes.codecs(1)["gossip"] == codec
    assert nodes.codecs(0)["gossip"] == codec
    # Only changes are kept: the first sends, blind, and what followed the first measurement.
    assert all(len(choice._policy.log) <= 6 for choice in nodes.wires.choices.values())
    tensors, meta = nodes.state(1)
    again = ModelParallel(config, SimulatedExchange(3, parse_links(links)), parts(config))
    again.restore(1, tensors, meta)
    assert again.state(1)[1] == meta


# ---- MD-GAN ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 8, 9])
def test_swap_pairs_are_disjoint_complete_and_random(count: int) -> None:
    nodes = list(range(1, count + 1))
    drawn = [swap_pairs(0, r, nodes) for r in range(20)]
    for pairs in drawn:
        flat = [node for pair in pairs for node in pair]
        assert len(flat) == len(set(flat)) == count - count % 2
        assert set(flat) <= set(nodes)
    assert drawn == [swap_pairs(0, r, nodes) for r in range(20)]
    if count > 2:
        assert len({str(sorted(sorted(pair) for pair in pairs)) for pairs in drawn}) > 1


def test_md_gan_swaps_discriminators_each_epoch_and_resets_their_optimizers() -> None:
    config = replace(TINY, algorithm="md-gan", d_nodes=3)
    nodes = trained(config, rounds=3)
    assert isinstance(nodes, Mdgan)
    assert nodes.swap_every == 4  # 20 images in batches of 5
    before = {node: d.net.theta.clone() for node, d in nodes.local.items()}
    pairs = swap_pairs(config.seed, 3, nodes.workers)
    nodes._swap(3)
    partner = dict(pairs) | {b: a for a, b in pairs}
    for node, d in nodes.local.items():
        assert torch.equal(d.net.theta, before[partner.get(node, node)])
        reset = all(bool((tensor == 0).all()) for tensor in d.solver.state_dict().values())
        assert reset == (node in partner)


def test_md_gan_generator_gradient_is_autograd_through_joined_g_and_d() -> None:
    config = replace(TINY, algorithm="md-gan", d_nodes=3, g_optimizer="sgd", beta1=0.0)
    nodes = Mdgan(config, SimulatedExchange(4), parts(config))
    assert nodes.server is not None
    reference = build_generator(config, SHAPE, 0)
    made = reference.net.module(torch.cat([reference._noise(0, batch, 5) for batch in range(2)]))
    nodes.round(0)
    batches = torch.split(made, 5)
    # Worker n answers for batch n mod k with the D it has after its local step.
    losses = [softplus(-nodes.local[1 + n].net.module(batches[n % 2])).sum() for n in range(3)]
    expected = gradient_of(sum(losses, torch.zeros(())) / (3 * 5), reference.net)
    torch.testing.assert_close(nodes.server.net.gradient, expected, rtol=1e-6, atol=1e-8)


def test_md_gan_discriminators_train_against_the_batch_after_the_one_they_answer_for() -> None:
    config = replace(TINY, algorithm="md-gan", d_nodes=3, r1=0.0, beta1=0.0)
    config = replace(config, mdgan=MdganConfig(d_optimizer="sgd"))
    nodes = Mdgan(config, SimulatedExchange(4), parts(config))
    assert nodes.server is not None
    theta_0 = nodes.local[1].net.theta.clone()
    batches = [nodes.server.net.module(nodes.server._noise(0, batch, 5)).detach() for batch in range(2)]
    reference = Mdgan(config, SimulatedExchange(4), parts(config)).local[1].net
    nodes.round(0)
    for n in range(3):
        d = nodes.local[1 + n]
        reals, fakes = d.batches.batch(0), batches[(n + 1) % 2]
        loss = softplus(-reference.module(reals)).mean() + softplus(reference.module(fakes)).mean()
        expected = theta_0 - 1e-3 * gradient_of(loss, reference)
        torch.testing.assert_close(d.net.theta, expected, rtol=1e-6, atol=1e-8)


def test_what_one_node_sends_to_several_is_rounded_independently() -> None:
    nodes = Mdgan(replace(TINY, algorithm="md-gan"), SimulatedExchange(3), parts(TINY))
    first, second = (
        nodes.post.message(torch.ones(4), dance.codec("int8"), 0, target, "image", 0) for target in (1, 2)
    )
    assert first.packet.seed != second.packet.seed


def test_bytes_of_md_gan_are_those_of_its_messages() -> None:
    config = replace(TINY, algorithm="md-gan", d_nodes=3, mdgan=MdganConfig(image_codec="int8"))
    nodes = trained(config, rounds=9)
    assert isinstance(nodes, Mdgan)
    counts, batch = nodes.exchange.counts, 5 * 32
    theta = nodes.local[1].net.theta.numel()
    assert counts.of(kind="image").sent_bytes == 9 * 3 * packet("int8", 2 * batch)
    assert counts.of(kind="feedback").sent_bytes == 9 * 3 * packet("none", batch)
    assert counts.of(kind="model").sent_bytes == 2 * 2 * packet(
        "none", theta
    )  # two swaps of one pair of three


# ---- FL-GAN ------------------------------------------------------------------------------------------------


def test_fl_gan_that_syncs_each_round_with_sgd_is_one_step_along_the_weighted_mean_gradient() -> None:
    config = replace(
        TINY,
        algorithm="fl-gan",
        batch_size=6,
        r1=0.0,
        beta1=0.0,
        g_optimizer="sgd",
        flgan=FlganConfig(d_optimizer="sgd"),
        d_learning_rate=0.1,
        g_learning_rate=0.2,
    )
    data = [parts(config)[0][:6], parts(config)[1][:7]]  # one batch an epoch, shares 6/13 and 7/13
    nodes = Flgan(config, SimulatedExchange(3), data)
    assert nodes.period == 1
    shares = {1: 6 / 13, 2: 7 / 13}
    g_net, d_net = (part.net for part in Flgan(config, SimulatedExchange(3), data).local[1])
    for r in range(3):
        w, theta = g_net.theta.clone(), d_net.theta.clone()
        w_next, theta_next = w.clone(), theta.clone()
        for node, (g, d) in nodes.local.items():
            reals = d.batches.batch(r)
            noise = g._noise(r, node, 6)
            d_net.theta.copy_(theta)
            g_net.theta.copy_(w)
            fakes = g_net.module(noise).detach()
            loss = softplus(-d_net.module(reals)).mean() + softplus(d_net.module(fakes)).mean()
            d_step = 0.1 * gradient_of(loss, d_net)
            d_net.theta.copy_(theta - d_step)  # G meets the worker's own D, already moved
            g_step = 0.2 * gradient_of(softplus(-d_net.module(g_net.module(noise))).mean(), g_net)
            theta_next -= shares[node] * d_step
            w_next -= shares[node] * g_step
        nodes.round(r)
        g_net.theta.copy_(w_next)
        d_net.theta.copy_(theta_next)
        for g, d in nodes.local.values():
            torch.testing.assert_close(model_of(g, d), torch.cat([w_next, theta_next]), rtol=1e-6, atol=1e-6)
        assert nodes.server is not None
        torch.testing.assert_close(nodes.server.net.theta, w_next, rtol=1e-6, atol=1e-6)


def test_bytes_of_fl_gan_are_those_of_its_messages() -> None:
    config = replace(TINY, algorithm="fl-gan", d_nodes=3)
    nodes = trained(config, rounds=9)
    assert isinstance(nodes, Flgan)
    assert nodes.period == 4
    assert nodes.exchange.counts.of().sent_bytes == 2 * 2 * 3 * packet("none", nodes.numel)
    assert nodes.exchange.counts.kinds == ("average", "model")
