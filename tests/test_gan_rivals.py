"""FL-GAN's settings, Gossip GAN, and "auto" for the rivals: oracles, exact bytes, equivalences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_gan import BASE, SHAPE, parts
from torch import Tensor

import dance
from dance.bandwidth import parse_links
from dance.data import ImageData
from dance.exchange import SimulatedExchange
from dance.gan.choice import Choice
from dance.gan.config import RunConfig
from dance.gan.engine import build
from dance.gan.flgan import Flgan, fegan_weights, model_of, participants
from dance.gan.gossipgan import Gossipgan, peer_of
from dance.gan.mdgan import Mdgan
from dance.gan.parts import Part, run_data
from dance.gan.reports import LINK
from dance.gan.settings import FlganConfig, GossipganConfig, MdganConfig
from dance.gan.standalone import Standalone

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = replace(BASE, r1=0.5, r1_every=2)
EPOCH = 4  # rounds: 20 images in batches of 5


def labelled(config: RunConfig, labels: list[Tensor]) -> list[Part]:
    return [Part(images=own, labels=row) for own, row in zip(parts(config), labels, strict=True)]


def built(config: RunConfig, links: str | None = None) -> object:
    return build(config, SimulatedExchange(config.num_nodes, parse_links(links)), parts(config))


def trained(config: RunConfig, rounds: int, links: str | None = None) -> object:
    algorithm = built(config, links)
    for r in range(rounds):
        algorithm.round(r)  # type: ignore[attr-defined]
    return algorithm


# ---- a worker alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["fl-gan", "gossip-gan"])
def test_a_worker_alone_is_standalone_bit_for_bit(algorithm: str) -> None:
    config = replace(TINY, d_nodes=1, d_optimizer="adam")
    alone = trained(replace(config, algorithm="standalone"), 2 * EPOCH)
    nodes = trained(replace(config, algorithm=algorithm), 2 * EPOCH)  # type: ignore[arg-type]
    assert isinstance(alone, Standalone)
    assert isinstance(nodes, Flgan | Gossipgan)
    ((g, d),) = nodes.local.values()
    assert torch.equal(g.net.theta, alone.g.net.theta)
    assert torch.equal(d.net.theta, alone.d.net.theta)
    assert torch.equal(nodes.sample(3, raw=True), alone.sample(3, raw=True))


# ---- FL-GAN ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count"), [(1.0, 8), (0.5, 4), (0.01, 1)])
def test_participants_are_a_share_of_the_workers_and_change(share: float, count: int) -> None:
    drawn = [participants(0, turn, range(1, 9), share) for turn in range(12)]
    assert all(len(set(each)) == count and set(each) <= set(range(1, 9)) for each in drawn)
    assert drawn == [participants(0, turn, range(1, 9), share) for turn in range(12)]
    assert (len({str(each) for each in drawn}) > 1) == (share < 1)


def test_only_participants_train_and_their_mean_alone_goes_to_those_who_are_next() -> None:
    config = replace(TINY, algorithm="fl-gan", d_nodes=4, flgan=FlganConfig(participation=0.5))
    nodes = built(config)
    assert isinstance(nodes, Flgan)
    start = {node: model_of(*pair) for node, pair in nodes.local.items()}
    now, after = (participants(config.seed, turn, nodes.workers, 0.5) for turn in (0, 1))
    for r in range(EPOCH - 1):
        nodes.round(r)
    for node, pair in nodes.local.items():
        assert torch.equal(model_of(*pair), start[node]) == (node not in now)
    trained_alone = built(replace(config, flgan=FlganConfig(epochs=100)))
    assert isinstance(trained_alone, Flgan)
    for r in range(EPOCH):
        trained_alone.round(r)
    nodes.round(EPOCH - 1)
    mean = sum((model_of(*trained_alone.local[node]) for node in now), torch.zeros(nodes.numel)) / 2
    for node in after:
        torch.testing.assert_close(model_of(*nodes.local[node]), mean, rtol=1e-6, atol=1e-7)
    assert nodes.server is not None
    torch.testing.assert_close(nodes.server.net.theta, mean[: nodes.sizes[0]], rtol=1e-6, atol=1e-7)
    counts = nodes.exchange.counts
    assert counts.of(kind="model").sent_messages == counts.of(kind="average").sent_messages == 2


def test_up_and_down_have_codecs_of_their_own() -> None:
    config = replace(TINY, algorithm="fl-gan", flgan=FlganConfig(up_codec="int8", down_codec="fp16"))
    nodes = trained(config, EPOCH)
    assert isinstance(nodes, Flgan)
    counts = nodes.exchange.counts
    assert counts.of(kind="model").sent_bytes == 3 * dance.codec("int8").packet_nbytes(nodes.numel)
    assert counts.of(kind="average").sent_bytes == 3 * dance.codec("fp16").packet_nbytes(nodes.numel)
    assert nodes.codecs(0) == {"average": "fp16"}
    assert nodes.codecs(1) == {"model": "int8:block=256"}


def test_fegans_weights_are_the_exponential_of_each_workers_share_of_skew() -> None:
    histograms = torch.tensor([[10.0, 10.0, 0.0], [0.0, 0.0, 20.0], [30.0, 20.0, 10.0]])
    total = histograms.double().numpy().sum()
    union = histograms.double().numpy().sum(0) / total
    scores = []
    for row in histograms.double().numpy():
        own = row / row.sum()
        skew = sum(p * np.log(p / q) for p, q in zip(own, union, strict=True) if p > 0)
        scores.append(np.exp(row.sum() / total * skew))
    np.testing.assert_allclose(fegan_weights(histograms).numpy(), np.array(scores) / sum(scores), rtol=1e-12)


def test_histograms_leave_a_node_once_and_only_when_fegan_asks_for_them() -> None:
    config = replace(TINY, algorithm="fl-gan")
    labels = [torch.tensor([0, 1] * 10), torch.tensor([2] * 20), torch.tensor([0, 1, 2, 2] * 5)]
    for weights, messages in (("images", 0), ("fegan", 3)):
        asked = replace(config, flgan=FlganConfig(weights=weights))  # type: ignore[arg-type]
        nodes = build(asked, SimulatedExchange(4), labelled(config, labels))
        assert isinstance(nodes, Flgan)
        for r in range(2 * EPOCH):
            nodes.round(r)
        counts = nodes.exchange.counts.of(kind="histogram")
        assert counts.sent_messages == messages
        assert counts.sent_bytes == messages * dance.codec("none").packet_nbytes(3)
        counted = torch.stack([torch.bincount(own, minlength=3) for own in labels])
        expected = fegan_weights(counted).tolist() if messages else [1 / 3] * 3
        assert list(nodes.shares.values()) == pytest.approx(expected)
        again = build(asked, SimulatedExchange(4), labelled(config, labels))
        again.restore(0, *nodes.state(0))
        assert isinstance(again, Flgan)
        assert again.shares == nodes.shares


def test_fegan_without_labels_is_refused() -> None:
    config = replace(TINY, algorithm="fl-gan", flgan=FlganConfig(weights="fegan"))
    images = torch.zeros(60, *SHAPE)
    data = ImageData(
        name="mine", images=images, labels=None, test_images=images, test_labels=None, num_classes=0
    )
    with pytest.raises(ValueError, match=r"fegan needs labelled data, mine has none.*--flgan.weights images"):
        run_data(config, data)


def test_the_average_counts_workers_as_fegan_weighs_them() -> None:
    config = replace(TINY, algorithm="fl-gan", flgan=FlganConfig(weights="fegan"))
    labels = [torch.tensor([0] * 20), torch.tensor([0, 1] * 10), torch.tensor([1] * 10 + [2] * 10)]
    nodes = build(config, SimulatedExchange(4), labelled(config, labels))
    apart = build(replace(config, flgan=FlganConfig(epochs=100)), SimulatedExchange(4), parts(config))
    assert isinstance(nodes, Flgan)
    assert isinstance(apart, Flgan)
    for r in range(EPOCH):
        nodes.round(r)
        apart.round(r)
    weights = fegan_weights(torch.stack([torch.bincount(own, minlength=3) for own in labels]))
    models = torch.stack([model_of(*apart.local[node]).double() for node in apart.workers])
    found = model_of(*nodes.local[1]).double()
    torch.testing.assert_close(found, weights @ models, rtol=1e-5, atol=1e-7)


def test_uncompressed_deltas_are_the_plain_average() -> None:
    config = replace(TINY, algorithm="fl-gan")
    plain = trained(config, 3 * EPOCH)
    deltas = trained(replace(config, flgan=FlganConfig(deltas=True)), 3 * EPOCH)
    assert isinstance(plain, Flgan)
    assert isinstance(deltas, Flgan)
    for node in plain.local:
        one, other = model_of(*plain.local[node]), model_of(*deltas.local[node])
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_what_coarse_deltas_lose_is_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """int4 there and back: all hold the same average, and it is off by what the residuals still owe."""
    flgan = FlganConfig(deltas=True, up_codec="int4", down_codec="int4")
    nodes = built(replace(TINY, algorithm="fl-gan", flgan=flgan))
    assert isinstance(nodes, Flgan)
    asked: list[Tensor] = []
    model = Flgan._model

    def seen(self: Flgan, node: int, round_index: int) -> object:
        asked.append((model_of(*self.local[node]) - self.deltas[node].reference).double())
        return model(self, node, round_index)

    monkeypatch.setattr(Flgan, "_model", seen)
    start = nodes.deltas[0].reference.double()
    for r in range(4 * EPOCH):
        nodes.round(r)
    sent = nodes.deltas[0].reference.double() - start
    owed = torch.stack([nodes.deltas[node].residual.double() for node in nodes.local]).mean(0)
    owed += nodes.deltas[0].residual.double()
    torch.testing.assert_close(sent + owed, torch.stack(asked).sum(0) / 3, rtol=1e-4, atol=1e-5)
    assert float(owed.norm()) > 0.01 * float(sent.norm()), "int4 loses nothing here: this shows nothing"
    for node, (g, d) in nodes.local.items():
        assert torch.equal(nodes.deltas[node].reference, nodes.deltas[0].reference)
        assert torch.equal(model_of(g, d), nodes.deltas[0].reference)


# ---- Gossip GAN --------------------------------------------------------------------------------------------


def test_peers_are_others_evenly_drawn_and_known_to_all() -> None:
    drawn = [peer_of(0, r, 2, "model", 5) for r in range(2000)]
    assert set(drawn) == {0, 1, 3, 4}
    # Four peers, 2,000 draws: 500 each, deviation 19.4; five of them.
    assert all(abs(drawn.count(peer) - 500) < 97 for peer in set(drawn))
    assert drawn == [peer_of(0, r, 2, "model", 5) for r in range(2000)]


@pytest.mark.parametrize("variant", ["a", "b"])
def test_who_is_sent_a_model_averages_it_and_nobody_else_changes(variant: str) -> None:
    config = replace(TINY, algorithm="gossip-gan", d_nodes=4)
    settings = GossipganConfig(variant=variant, period=3)  # type: ignore[arg-type]
    nodes = built(replace(config, gossipgan=settings))
    apart = built(replace(config, gossipgan=replace(settings, period=1000)))
    assert isinstance(nodes, Gossipgan)
    assert isinstance(apart, Gossipgan)
    for r in range(3):
        nodes.round(r)
        apart.round(r)
    wholes = {0: "generator", 1: "discriminator"} if variant == "b" else {0: "model", 1: "model"}
    for part, kind in wholes.items():
        expected = {node: pair[part].net.theta.double() for node, pair in apart.local.items()}
        before = dict(expected)
        targets = [peer_of(config.seed, 2, source, kind, 4) for source in range(4)]
        for source, target in enumerate(targets):
            expected[target] = (expected[target] + before[source]) / 2
        for node, pair in nodes.local.items():
            torch.testing.assert_close(pair[part].net.theta.double(), expected[node], rtol=1e-5, atol=1e-7)
            assert torch.equal(pair[part].net.theta, apart.local[node][part].net.theta) == (
                node not in targets
            )


def test_in_variant_b_generators_and_discriminators_go_different_ways() -> None:
    ways = [
        [peer_of(0, r, node, kind, 6) for r in range(30) for node in range(6)]
        for kind in ("generator", "discriminator")
    ]
    assert ways[0] != ways[1]


@pytest.mark.parametrize("variant", ["a", "b"])
def test_bytes_of_gossip_gan_are_those_of_its_messages(variant: str) -> None:
    settings = GossipganConfig(variant=variant, codec="int8")  # type: ignore[arg-type]
    config = replace(TINY, algorithm="gossip-gan", gossipgan=settings)
    nodes = trained(config, 2 * EPOCH)
    assert isinstance(nodes, Gossipgan)
    assert nodes.period == EPOCH
    sizes = [part.net.theta.numel() for part in nodes.local[0]]
    packets = [sum(sizes)] if variant == "a" else sizes
    each = sum(dance.codec("int8").packet_nbytes(numel) for numel in packets)
    assert nodes.exchange.counts.of().sent_bytes == 2 * 3 * each


# ---- auto --------------------------------------------------------------------------------------------------

AUTO = [
    ("md-gan", "image", 0),
    ("md-gan", "feedback", 1),
    ("fl-gan", "model", 1),
    ("fl-gan", "average", 0),
    ("gossip-gan", "model", 1),
]


@pytest.mark.parametrize(("algorithm", "kind", "node"), AUTO)
def test_auto_follows_the_links_of_a_rival(algorithm: str, kind: str, node: int) -> None:
    config = replace(TINY, algorithm=algorithm, codec="auto", simulate=True, round_ms=100.0)  # type: ignore[arg-type]
    config = replace(config, mdgan=MdganConfig(swap_epochs=1))
    coarse = {"feedback": "sign:block=32", "image": "int4:block=256"}.get(kind, "int8:block=256")
    for links, expected in (("1gbit", "none"), ("5kbit", coarse)):
        nodes = trained(config, 10 * EPOCH, links)
        assert nodes.codecs(node)[kind] == expected  # type: ignore[attr-defined]


def test_a_sender_judges_its_way_by_what_the_receiver_measured() -> None:
    """Fast down, slow up: the server sends images as they are, workers compress what they answer."""
    config = replace(TINY, algorithm="md-gan", codec="auto", simulate=True, round_ms=30.0)
    nodes = built(config)
    assert isinstance(nodes, Mdgan)
    from dance.bandwidth import Link, Links

    fast, slow = Link(rate_mbps=1000.0), Link(rate_mbps=0.05, down_mbps=1000.0)
    links = Links(default=slow, nodes={0: fast})
    nodes = build(config, SimulatedExchange(config.num_nodes, links), parts(config))
    assert isinstance(nodes, Mdgan)
    for r in range(40):
        nodes.round(r)
    assert nodes.codecs(0)["image"] == "none"
    assert nodes.codecs(1)["feedback"] == "sign:block=32"
    told = nodes.choices[0].reported[1]
    assert told.rate_mbps == pytest.approx(1000.0, rel=0.1), "the way from the server to worker 1"
    assert nodes.choices[1].reported[0].rate_mbps == pytest.approx(0.05, rel=0.1)
    # Every fifth round, there and back, eight numbers: 96 bytes.
    assert nodes.exchange.counts.of(kind=LINK).sent_bytes == 8 * 2 * 3 * 96


def test_with_fixed_codecs_nobody_reports() -> None:
    nodes = trained(replace(TINY, algorithm="md-gan"), 6)
    assert isinstance(nodes, Mdgan)
    assert nodes.exchange.counts.of(kind=LINK).sent_messages == 0


def test_a_choice_goes_on_with_what_it_was_told() -> None:
    config = replace(TINY, algorithm="md-gan", codec="auto", simulate=True)
    nodes = trained(config, 10, "10mbit")
    assert isinstance(nodes, Mdgan)
    again = built(config)
    assert isinstance(again, Mdgan)
    assert nodes.choices[0].reported
    for node in range(4):
        again.restore(node, *nodes.state(node))
        assert again.choices[node].reported == nodes.choices[node].reported
        assert again.state(node)[1] == nodes.state(node)[1]


def test_a_choice_without_auto_has_the_codecs_of_its_texts() -> None:
    choice = Choice(TINY, SimulatedExchange(2), 0, 32, {"model": "int4"}, phases=2)
    assert not choice.is_auto
    assert str(choice.codec("model", 100, 0, [1])) == "int4:block=256"
    assert choice.expected("model") == dance.codec("int4")
