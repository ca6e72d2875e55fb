"""Topologies: doubly stochastic weights, neighbours, spectral gaps, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dance import topology
from dance.topology import Topology

ALL = [
    topology.ring(8),
    topology.ring(2),
    topology.ring(1),
    topology.torus(12),
    topology.torus(7),
    topology.complete(5),
    topology.star(6),
    topology.exponential(9),
    topology.one_peer_exponential(8),
    topology.one_peer_exponential(6, directed=True),
    topology.one_peer_exponential(1),
    topology.random_matching(7, seed=3),
    topology.erdos_renyi(10, 0.4, seed=1),
    topology.from_matrix([[0.25, 0.75], [0.75, 0.25]]),
]


@pytest.mark.parametrize("graph", ALL, ids=str)
def test_every_matrix_is_doubly_stochastic_and_names_its_neighbors(graph: Topology) -> None:
    for step in range(2 * graph.period):
        weights = graph.weights(step)
        np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-12)
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-12)
        assert np.array_equal(weights, graph.weights(step + graph.period))
        for rank in range(graph.num_nodes):
            assert graph.neighbors(rank, step) == tuple(
                j for j in range(graph.num_nodes) if j != rank and weights[rank, j] > 0
            )
            assert graph.targets(rank, step) == tuple(
                j for j in range(graph.num_nodes) if j != rank and weights[j, rank] > 0
            )
            if graph.symmetric:
                assert graph.targets(rank, step) == graph.neighbors(rank, step)


def test_neighbors_of_the_named_graphs() -> None:
    assert topology.ring(8).neighbors(0) == (1, 7)
    assert topology.ring(8).weights()[0, 1] == pytest.approx(1 / 3)
    assert topology.torus(12).neighbors(0) == (1, 3, 4, 8)
    assert topology.star(6).neighbors(0) == (1, 2, 3, 4, 5)
    assert topology.star(6).neighbors(3) == (0,)
    assert topology.exponential(9).neighbors(0) == (1, 2, 4, 5, 7, 8)
    peers = topology.one_peer_exponential(8)
    assert [peers.neighbors(5, step) for step in range(4)] == [(4,), (7,), (1,), (4,)]
    directed = topology.one_peer_exponential(6, directed=True)
    assert not directed.symmetric
    assert [directed.targets(5, step) for step in range(3)] == [(0,), (1,), (3,)]
    assert [directed.neighbors(5, step) for step in range(3)] == [(4,), (3,), (1,)]


def test_spectral_gaps() -> None:
    # Ring with weights 1/3: the second eigenvalue is (1 + 2 cos(2 pi / n)) / 3.
    for n in (5, 8, 16):
        expected = 1 - (1 + 2 * math.cos(2 * math.pi / n)) / 3
        assert topology.ring(n).spectral_gap() == pytest.approx(expected)
    assert topology.ring(1).spectral_gap() == 1.0
    assert topology.complete(6).spectral_gap() == pytest.approx(1.0)
    # A period of one-peer exponential steps averages a power of two exactly; one matching alone never.
    assert topology.one_peer_exponential(8).spectral_gap() == pytest.approx(1.0)
    assert topology.one_peer_exponential(8, directed=True).spectral_gap() == pytest.approx(1.0)
    assert 0.0 < topology.one_peer_exponential(6, directed=True).spectral_gap() < 1.0
    assert topology.from_matrix(topology.one_peer_exponential(8).weights(0)).spectral_gap() == 0.0
    assert topology.random_matching(7, seed=3).spectral_gap() > 0.0
    assert topology.star(8).spectral_gap() == pytest.approx(1 / 8)
    # Not normal: a first step keeps the size of some disagreement, and yet all agree in the end.
    skewed = topology.from_matrix([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5], [0.5, 0.0, 0.5]])
    assert np.linalg.norm(skewed.weights() - 1 / 3, 2) == pytest.approx(1.0)
    assert np.linalg.matrix_power(skewed.weights(), 100) == pytest.approx(np.full((3, 3), 1 / 3))
    assert 0.0 < skewed.spectral_gap() < 1.0


def test_random_graphs_repeat_with_their_seed() -> None:
    for seed in range(5):
        one, two = (topology.erdos_renyi(12, 0.3, seed=seed) for _ in range(2))
        assert np.array_equal(one.weights(), two.weights())
        assert one.spectral_gap() > 0.0
        pairs = topology.random_matching(6, seed=seed)
        assert np.array_equal(pairs.weights(3), topology.random_matching(6, seed=seed).weights(3))
        assert all(len(pairs.neighbors(rank, step)) == 1 for rank in range(6) for step in range(pairs.period))
    assert not np.array_equal(
        topology.erdos_renyi(12, 0.3, seed=0).weights(), topology.erdos_renyi(12, 0.3, seed=1).weights()
    )


def test_names() -> None:
    assert topology.named("ring", 4).neighbors(0) == (1, 3)
    assert topology.named("one-peer-exponential", 4).period == 2
    assert topology.named("erdos_renyi:0.9", 6, seed=2).name == "erdos_renyi"
    assert topology.named("random_matching", 6).symmetric


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: topology.ring(0), "ring: expected at least 1 node, got 0"),
        (lambda: topology.named("circle", 4), "unknown topology 'circle'; there is ring, torus"),
        (lambda: topology.named("ring:3", 4), "unknown topology 'ring:3'"),
        (lambda: topology.named("erdos_renyi:often", 4), "expected erdos_renyi:PROBABILITY, got 'often'"),
        (lambda: topology.one_peer_exponential(6), "power of two, got 6 nodes; use directed=True"),
        (lambda: topology.torus(12, num_rows=5), "expected num_rows to divide 12 nodes, got 5"),
        (lambda: topology.erdos_renyi(6, 1.5), r"expected a probability in \[0, 1\], got 1.5"),
        (lambda: topology.erdos_renyi(6, 0.0), "no connected graph of 6 nodes"),
        (
            lambda: topology.random_matching(6, period=1),
            "1 pairings do not join 6 nodes; use a longer period",
        ),
        (lambda: topology.from_matrix([[0.5, 0.6], [0.5, 0.5]]), "every row to sum to 1, row 0 sums to 1.1"),
        (
            lambda: topology.from_matrix([[1.0, 0.0], [1.0, 0.0]]),
            "every column to sum to 1, column 0 sums to 2",
        ),
        (lambda: topology.from_matrix([[2.0, -1.0], [-1.0, 2.0]]), "weights of at least 0, got -1"),
        (lambda: topology.from_matrix([1.0, 2.0]), r"got \(2,\)"),
        (lambda: topology.ring(4).neighbors(4), r"expected a position in \[0, 4\), got 4"),
    ],
)
def test_bad_graphs_are_refused_with_the_remedy(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
