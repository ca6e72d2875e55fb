"""AC-GAN's layouts against oracles: one process with all batches, recursions in float64, exact bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gossip_oracle import Array, sign
from tiny_gan import BASE, SHAPE, parts
from torch.nn.functional import softplus

import dance
from dance.bandwidth import parse_links
from dance.exchange import SimulatedExchange
from dance.gan.acgan import Adaptive, DataParallel, ModelParallel, acgan
from dance.gan.acgan.adaptive import decides_after
from dance.gan.acgan.average import FeedbackAverage
from dance.gan.acgan.skew import SIZE
from dance.gan.acgan.wires import wires
from dance.gan.config import RunConfig
from dance.gan.nodes import build_generator, discriminator_net
from dance.gan.optimizers import Adam, BlockAdam, decayed
from dance.gan.settings import AcganConfig

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(BASE, r1=0.5, r1_every=2)
EXACT = AcganConfig(g_sync="exact", aggregation="gradient", gradient_codec="none")


def nodes_of(config: RunConfig, rounds: int = 0) -> Adaptive | DataParallel | ModelParallel:
    nodes = acgan(config, SimulatedExchange(config.num_nodes), parts(config))
    for r in range(rounds):
        nodes.round(r)
    return nodes


def data_parallel(config: RunConfig, rounds: int = 0) -> DataParallel:
    nodes = nodes_of(replace(config, layout="data-parallel"), rounds)
    assert isinstance(nodes, DataParallel)
    return nodes


def model_parallel(config: RunConfig, rounds: int = 0) -> ModelParallel:
    nodes = nodes_of(config, rounds)
    assert isinstance(nodes, ModelParallel)
    return nodes


def adaptive(config: RunConfig, rounds: int = 0) -> Adaptive:
    nodes = nodes_of(replace(config, layout="adaptive"), rounds)
    assert isinstance(nodes, Adaptive)
    return nodes


# ---- data parallel -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_exact_workers_are_one_process_with_all_their_batches(solver: str) -> None:
    """The oracle: torch's optimizers on the joined batches of all workers, R1 included."""
    config = replace(TINY, d_optimizer=solver, g_optimizer=solver, acgan=EXACT)  # type: ignore[arg-type]
    config = replace(config, d_learning_rate=0.01, g_learning_rate=0.01, beta1=0.5)
    nodes = data_parallel(config)
    g, d = build_generator(config, SHAPE, 0).net.module, discriminator_net(config, SHAPE).module
    kinds = {
        "adam": lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, config.beta2)),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5),
    }
    g_solver, d_solver = kinds[solver](g.parameters()), kinds[solver](d.parameters())
    for r in range(4):
        noise = torch.cat([nodes.generators[n]._noise(r, n, 5) for n in nodes.wires.d_ids])
        reals = torch.cat([d_node.batches.batch(r) for d_node in nodes.discriminators.values()])
        nodes.round(r)
        fakes = g(noise)
        loss = softplus(-d(reals)).mean() + softplus(d(fakes.detach())).mean()
        if r % 2 == 0:
            points = reals.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(d(points).sum(), points, create_graph=True)
            loss = loss + 0.5 * 2 * slope.square().sum((1, 2, 3)).mean() / 2
        d_solver.zero_grad()
        loss.backward()
        d_solver.step()
        g_solver.zero_grad()
        softplus(-d(fakes)).mean().backward()
        g_solver.step()
    for net, module in [
        *((g_node.net, g) for g_node in (*nodes.generators.values(), nodes.evaluated)),
        *((d_node.net, d) for d_node in nodes.discriminators.values()),
    ]:
        own = torch.cat([p.detach().reshape(-1) for _, p in sorted(module.named_parameters())])
        torch.testing.assert_close(net.theta, own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("g_sync", ["gradient", "exact"])
def test_workers_that_average_gradients_hold_equal_bits(g_sync: str) -> None:
    settings = AcganConfig(g_sync=g_sync, aggregation="gradient")  # type: ignore[arg-type]
    nodes = data_parallel(replace(TINY, local_steps=2, acgan=settings), rounds=8)
    start = build_generator(TINY, SHAPE, 0).net.theta
    assert not torch.equal(nodes.evaluated.net.theta, start)
    for node, d in nodes.discriminators.items():
        assert torch.equal(d.net.theta, nodes.discriminators[1].net.theta)
        assert torch.equal(nodes.generators[node].net.theta, nodes.evaluated.net.theta)


def test_uncompressed_exchanges_leave_the_mean_of_all_workers_everywhere() -> None:
    config = replace(TINY, acgan=AcganConfig(sync_period=3, sync_codec="none"))
    apart = data_parallel(replace(config, acgan=AcganConfig(sync_period=100)), rounds=3)
    nodes = data_parallel(config, rounds=3)
    w = torch.stack([g.net.theta for g in apart.generators.values()]).double().mean(0)
    theta = torch.stack([d.net.theta for d in apart.discriminators.values()]).double().mean(0)
    torch.testing.assert_close(nodes.evaluated.net.theta.double(), w, rtol=0, atol=1e-6)
    for node, d in nodes.discriminators.items():
        assert torch.equal(nodes.generators[node].net.theta, nodes.evaluated.net.theta)
        torch.testing.assert_close(d.net.theta.double(), theta, rtol=0, atol=1e-6)
        assert isinstance(d.solver, BlockAdam)
        first = nodes.discriminators[1].solver
        assert isinstance(first, BlockAdam)
        assert torch.equal(d.solver.v, first.v)
        assert int(d.solver.counts[1]) == 3


def test_averages_follow_the_recursion_with_feedback_both_ways() -> None:
    """e_i += x_i; q_i = C(e_i); e_i -= q_i; u = e_s + mean q_i; p = C(u); e_s = u - p, in float64."""
    config = replace(TINY, codec="sign", layout="data-parallel")
    ways = wires(config, SimulatedExchange(4), math.prod(SHAPE))
    numel, turns = 600, 12
    average = FeedbackAverage(ways, numel, "delta")
    random = np.random.default_rng(0)
    e: Array = np.zeros((3, numel))
    e_s: Array = np.zeros((1, numel))
    sent = np.zeros(numel)
    for turn in range(turns):
        x = random.normal(size=(3, numel)).astype(np.float32) + np.float32(0.5)
        mean = average.mean({n: torch.from_numpy(x[n - 1].copy()) for n in (1, 2, 3)}, turn)
        e += x
        q = sign(e)
        e -= q
        u = e_s + q.mean(0, keepdims=True)
        p = sign(u)
        e_s = u - p
        np.testing.assert_allclose(mean.vector.numpy(), p[0], rtol=1e-4, atol=1e-4)
        sent += x.mean(0) - p[0]
    # What is not sent yet is in the residuals, all of it.
    np.testing.assert_allclose(sent, e.mean(0) + e_s[0], rtol=1e-3, atol=1e-3)


def test_data_parallel_workers_send_nothing_but_at_exchanges() -> None:
    config = replace(TINY, acgan=AcganConfig(sync_period=4))
    nodes = data_parallel(config, rounds=11)
    counts = nodes.wires.exchange.counts
    numel = nodes.generators[1].net.theta.numel() + nodes.discriminators[1].net.theta.numel()
    assert counts.of(kind="delta").sent_bytes == 2 * 2 * 3 * dance.codec("sign").packet_nbytes(numel)
    assert counts.of(kind="moment").sent_bytes == 2 * 2 * 3 * dance.codec("none").packet_nbytes(6)
    assert set(counts.kinds) == {"delta", "moment"}


def test_gossiping_generators_need_no_hub_and_come_together() -> None:
    config = replace(TINY, topology="ring", d_nodes=4, acgan=AcganConfig(g_sync="choco", sync_period=2))

    def spread(config: RunConfig) -> float:
        nodes = data_parallel(config, rounds=80)
        assert nodes.wires.d_ids == [0, 1, 2, 3]
        assert nodes.evaluated is nodes.generators[0]
        w = torch.stack([g.net.theta for g in nodes.generators.values()])
        return float((w - w.mean(0)).norm())

    apart = replace(config, acgan=replace(config.acgan, sync_period=100))
    assert spread(config) < 0.5 * spread(apart)


# ---- adaptive ----------------------------------------------------------------------------------------------


def test_a_switch_goes_on_from_the_reference_that_all_hold() -> None:
    settings = AcganConfig(sync_period=2, switch_above=-1e9, switch_after=8, aggregation="parameters")
    before = data_parallel(replace(TINY, acgan=settings), rounds=8)
    nodes = adaptive(replace(TINY, acgan=settings), rounds=8)
    assert nodes.switched == 8
    layout = nodes.layout
    assert isinstance(layout, ModelParallel)
    assert before.delta is not None
    assert torch.equal(layout.generators[0].net.theta, before.delta.w)
    solver = layout.generators[0].solver
    assert isinstance(solver, Adam)
    assert int(solver.count) == 0
    gossip = layout.team.gossip
    assert gossip is not None
    assert gossip.relay is not None
    assert torch.equal(gossip.relay.relayed, before.delta.theta)
    for node, d in layout.discriminators.items():
        assert torch.equal(d.net.theta, before.delta.theta)
        assert torch.equal(gossip.nodes[node].reference, before.delta.theta)
        own = before.discriminators[node].solver.state_dict()
        assert all(torch.equal(tensor, own[name]) for name, tensor in d.solver.state_dict().items())
    counts, first = nodes.exchange.counts, before.wires.exchange.counts
    # Beyond the exchanges: the sketches, and the switch itself, a byte each way and node when it is due.
    more = counts.of(kind="sketch").sent_bytes + 2 * 3
    assert counts.of().sent_bytes == first.of().sent_bytes + more
    nodes.round(8)
    assert counts.of(kind="image").sent_bytes > 0


@pytest.mark.parametrize("solver", [None, "adam", "block-adam"])
def test_after_a_switch_to_averaged_gradients_all_discriminators_stay_one(solver: str | None) -> None:
    settings = AcganConfig(sync_period=2, switch_above=-1e9, switch_after=8)  # low-rank by default
    config = replace(TINY, d_optimizer=solver, acgan=settings)  # type: ignore[arg-type]
    before = data_parallel(replace(config, acgan=replace(settings, aggregation=None)), rounds=8)
    nodes = adaptive(config, rounds=8)
    assert isinstance(nodes.layout, ModelParallel)
    assert before.delta is not None
    for r in range(8, 16):
        if r == 10:
            solvers = [d.solver for d in nodes.layout.discriminators.values()]
            kind = BlockAdam if solver == "block-adam" else Adam
            assert all(isinstance(each, kind) for each in solvers)
            first = solvers[0].state_dict()
            for each in solvers[1:]:
                assert all(torch.equal(first[name], t) for name, t in each.state_dict().items())
        thetas = [d.net.theta for d in nodes.layout.discriminators.values()]
        assert all(torch.equal(thetas[0], theta) for theta in thetas)
        assert torch.equal(thetas[0], before.delta.theta) == (r == 8)
        nodes.round(r)


def test_a_worker_alone_disagrees_with_nobody_and_never_switches() -> None:
    settings = AcganConfig(sync_period=2, switch_above=0.0, switch_after=0)
    assert adaptive(replace(TINY, d_nodes=1, acgan=settings), rounds=6).switched is None


def test_without_skew_or_before_its_time_nothing_switches() -> None:
    patient = AcganConfig(sync_period=2, switch_above=-1e9, switch_after=14)
    tolerant = AcganConfig(sync_period=2, switch_above=1e9, switch_after=0)
    for settings, judged in ((patient, 0), (tolerant, 1)):
        nodes = adaptive(replace(TINY, acgan=settings), rounds=12)
        assert isinstance(nodes.layout, DataParallel)
        assert nodes.measured()["switched"] is None
        assert nodes.measured()["skew"] is not None
        counts = nodes.exchange.counts
        # Asked once, a byte each way and node; measured until then.
        assert counts.of(kind="control").sent_bytes == judged * 2 * 3
        sketches = (3 if judged else 6) * 3
        assert counts.of(kind="sketch").sent_bytes == sketches * dance.codec("none").packet_nbytes(SIZE)
        alone = data_parallel(replace(TINY, acgan=settings), rounds=12)
        assert torch.equal(nodes.layout.evaluated.net.theta, alone.evaluated.net.theta)


@pytest.mark.parametrize(
    ("period", "after", "expected"), [(4, 5, 12), (4, 13, 16), (4, 16, 16), (200, 800, 800), (1000, 0, 3000)]
)
def test_the_layout_decides_at_the_first_exchange_when_two_count(
    period: int, after: int, expected: int
) -> None:
    assert decides_after(AcganConfig(sync_period=period, switch_after=after)) == expected
    if expected < 20:
        settings = AcganConfig(sync_period=period, switch_after=after, switch_above=-1e9)
        assert adaptive(replace(TINY, acgan=settings), rounds=20).switched == expected


def test_a_run_that_ends_before_the_layout_decides_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    adaptive(replace(TINY, rounds=800))
    assert "decides after 800 rounds" in caplog.text
    caplog.clear()
    adaptive(replace(TINY, rounds=801))
    assert not caplog.text


# ---- model parallel ----------------------------------------------------------------------------------------


def test_by_partition_a_d_node_serves_one_g_node_and_then_the_next() -> None:
    settings = AcganConfig(attachment="partition", rotate_every=3)
    nodes = model_parallel(replace(TINY, g_nodes=2, acgan=settings), rounds=6)
    assert [nodes.served(node, 0) for node in nodes.wires.d_ids] == [[0], [1], [0]]
    assert [nodes.served(node, 3) for node in nodes.wires.d_ids] == [[1], [0], [1]]
    counts, image = nodes.exchange.counts, dance.codec("int4").packet_nbytes(5 * 32)
    assert counts.of(kind="image").sent_bytes == 6 * 3 * image  # not times two G-Nodes
    assert counts.of(node=0, kind="image").sent_bytes == 3 * (2 + 1) * image


def test_smaller_fake_batches_are_what_g_nodes_send_and_learn_from() -> None:
    config = replace(TINY, codec="none", g_optimizer="sgd", beta1=0.0, acgan=AcganConfig(fake_batch_size=2))
    nodes = model_parallel(config)
    reference = build_generator(config, SHAPE, 0)
    nodes.round(0)
    assert nodes.exchange.counts.of(kind="image").sent_bytes == 3 * dance.codec("none").packet_nbytes(2 * 32)
    made = {n: reference.net.module(reference._noise(0, n, 2)) for n in nodes.wires.d_ids}
    losses = [softplus(-nodes.discriminators[n].net.module(images)).sum() for n, images in made.items()]
    reference.net.backward(torch.stack(losses).sum() / 6)
    torch.testing.assert_close(nodes.generators[0].net.gradient, reference.net.gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("topology", ["hub", "ring"])
def test_overlap_answers_before_discriminators_move_and_waits_less(topology: str) -> None:
    """After one round: the D-Nodes of order fresh, and the generator of a run without gossip, bit for bit."""
    config = replace(TINY, topology=topology, links="100mbit,1000ms")

    def after_one(settings: AcganConfig) -> tuple[ModelParallel, float]:
        exchange = SimulatedExchange(4, parse_links("100mbit,1000ms"))
        nodes = ModelParallel(replace(config, acgan=settings), exchange, parts(config))
        nodes.round(0)
        return nodes, exchange.elapsed_s(0)

    fresh, fresh_s = after_one(AcganConfig())
    overlap, overlap_s = after_one(AcganConfig(order="overlap"))
    apart, _ = after_one(AcganConfig(period=1000))
    for node, d in overlap.discriminators.items():
        assert torch.equal(d.net.theta, fresh.discriminators[node].net.theta)
    assert torch.equal(overlap.generators[0].net.theta, apart.generators[0].net.theta)
    assert not torch.equal(overlap.generators[0].net.theta, fresh.generators[0].net.theta)
    assert overlap.exchange.counts.of().sent_bytes == fresh.exchange.counts.of().sent_bytes
    assert overlap_s < fresh_s - 1.5  # a way of 2 s less


@pytest.mark.parametrize("local_steps", [1, 2])
def test_averaged_gradients_keep_discriminators_equal_to_the_bit(local_steps: int) -> None:
    config = replace(TINY, local_steps=local_steps, acgan=AcganConfig(aggregation="gradient"))
    nodes = model_parallel(config, rounds=6)
    thetas = [d.net.theta for d in nodes.discriminators.values()]
    assert all(torch.equal(theta, thetas[0]) for theta in thetas)
    counts, numel = nodes.exchange.counts, thetas[0].numel()
    assert counts.of(kind="d-gradient").sent_bytes == 6 * local_steps * 2 * 3 * dance.codec(
        "int4"
    ).packet_nbytes(numel)
    assert counts.of(kind="gossip").sent_bytes == 0


def test_learning_rates_fall_to_zero_in_a_line() -> None:
    assert [decayed(r, 4) for r in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert decayed(7, 0) == 1.0
    config = replace(TINY, acgan=AcganConfig(period=1000), g_decay_rounds=2, d_decay_rounds=3)
    nodes = model_parallel(config, rounds=2)
    w, theta = nodes.generators[0].net.theta.clone(), nodes.discriminators[1].net.theta.clone()
    nodes.round(2)
    assert torch.equal(nodes.generators[0].net.theta, w)
    assert not torch.equal(nodes.discriminators[1].net.theta, theta)


@pytest.mark.parametrize("codec", ["int4", "int8", "none"])
def test_averaged_gradients_of_unlike_quadratics_reach_the_mean_of_their_centres(codec: str) -> None:
    """f_i(x) = |x - c_i|^2 / 2: the sum's minimum is the mean of c; each node's own is c_i."""
    ways = wires(replace(TINY, codec=codec), SimulatedExchange(4), math.prod(SHAPE))
    average = FeedbackAverage(ways, 300, "d-gradient")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 300, generator=generator) + 1.0
    x = torch.zeros(300)
    for turn in range(300):
        mean = average.mean({n: x - centres[n - 1] for n in (1, 2, 3)}, turn)
        x -= 0.05 * mean.vector
    assert float((x - centres.mean(0)).norm() / centres.mean(0).norm()) < 0.02


@pytest.mark.parametrize(("links", "codec"), [("1gbit", "none"), ("50kbit", "sign:block=256")])
def test_auto_chooses_the_codec_of_exchanged_models(links: str, codec: str) -> None:
    config = replace(
        TINY, layout="data-parallel", codec="auto", links=links, acgan=AcganConfig(sync_period=2)
    )
    nodes = DataParallel(config, SimulatedExchange(4, parse_links(links)), parts(config))
    for r in range(60):
        nodes.round(r)
    assert nodes.codecs(1)["delta"] == nodes.codecs(0)["delta"] == codec
