"""Partitions: every index once, the classes that were asked for, skew by Dirichlet, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dance import data

LABELS = np.random.default_rng(0).integers(0, 10, 1797)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(
        ["iid", "classes:1", "classes:2", "classes:3", "classes:7", "dirichlet:0.2", "dirichlet:5"]
    ),
    num_nodes=st.integers(1, 20),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_index_exactly_once(spec: str, num_nodes: int, seed: int) -> None:
    classes = int(spec[8:]) if spec.startswith("classes") else 0
    if classes and classes * num_nodes < 10:
        with pytest.raises(ValueError, match="cannot hold all 10 classes"):
            data.partition(LABELS, spec, num_nodes, seed)
        return
    nodes = data.partition(LABELS, spec, num_nodes, seed)
    again = data.partition(torch.from_numpy(LABELS), spec, num_nodes, seed)
    assert len(nodes) == num_nodes
    assert np.array_equal(np.sort(np.concatenate(nodes)), np.arange(len(LABELS)))
    for indices, same in zip(nodes, again, strict=True):
        assert np.array_equal(indices, same)
        assert np.array_equal(indices, np.sort(indices))
        assert len(indices) > 0
    if classes:
        # In one lap classes of unequal size are cut into equal pieces, which may reach into both neighbours.
        one_lap = classes > 1 and classes * num_nodes < 20
        seen = [len(np.unique(LABELS[indices])) for indices in nodes]
        assert all(abs(count - classes) <= (2 if one_lap else 0) for count in seen)


EQUAL = np.repeat(np.arange(10), 96)


@pytest.mark.parametrize("num_nodes", [5, 7, 8, 10, 13, 16, 20, 64])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classes_of_equal_size_are_exactly_k_a_node(classes: int, num_nodes: int) -> None:
    for indices in data.partition(EQUAL, f"classes:{classes}", num_nodes, seed=num_nodes):
        assert len(np.unique(EQUAL[indices])) == classes


@pytest.mark.parametrize("labels", [np.repeat(np.arange(10), 800), LABELS])
def test_two_classes_of_eight_nodes_are_pieces_of_the_sorted_data(
    labels: np.ndarray,
) -> None:
    """Against the plain words: sort by label, classes in a drawn order, cut into N equal pieces."""
    nodes = data.partition(labels, "classes:2", 8, seed=5)
    assert [len(indices) for indices in nodes] == [len(p) for p in np.array_split(labels, 8)]
    # The order of classes, read off the pieces: where a class's images lie on average.
    counts = np.array([np.bincount(labels[indices], minlength=10) for indices in nodes])
    place = (counts * np.arange(8)[:, None]).sum(0) / counts.sum(0)
    order = np.argsort(place)
    line = np.concatenate([labels[labels == c] for c in order])
    for indices, piece in zip(nodes, np.array_split(line, 8), strict=True):
        assert np.array_equal(np.sort(labels[indices]), np.sort(piece))


def test_seed_changes_the_class_order() -> None:
    labels = np.repeat(np.arange(10), 10)
    orders = {tuple(np.unique(labels[data.partition(labels, "classes:2", 5, s)[0]])) for s in range(20)}
    assert len(orders) > 5


def test_small_alpha_is_more_skewed_than_large() -> None:
    def skew(alpha: float) -> float:
        nodes = data.partition(LABELS, f"dirichlet:{alpha}", 8, 1)
        tables = np.stack([np.bincount(LABELS[indices], minlength=10) / len(indices) for indices in nodes])
        return float(np.square(tables - 0.1).sum())

    assert skew(0.1) > 5 * skew(10)


@pytest.mark.parametrize(
    ("spec", "num_nodes", "message"),
    [
        ("classes", 4, "unknown partition 'classes'"),
        ("classes:11", 4, "has 10 classes"),
        ("classes:2", 4, "use classes:3 or 5 nodes"),
        ("classes:x", 4, "'x' is not a number"),
        ("classes:0", 4, "above 0"),
        ("dirichlet:-1", 4, "above 0"),
        ("dirichlet:nan", 4, "above 0"),
        ("dirichlet:inf", 4, "above 0"),
        ("even", 4, "iid, classes:K"),
        ("iid:2", 4, "unknown partition"),
        ("iid", 0, "at least one node"),
        ("iid", 5000, "use fewer nodes"),
        ("dirichlet:0.001", 50, "larger ALPHA"),
    ],
)
def test_partition_errors(spec: str, num_nodes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.partition(LABELS, spec, num_nodes, 0)


def test_partition_without_labels() -> None:
    assert sum(len(indices) for indices in data.partition(100, "iid", 3, 0)) == 100
    with pytest.raises(ValueError, match="needs labels"):
        data.partition(100, "classes:2", 3, 0)
