"""How the images of a data set are divided over nodes: iid, by classes, by Dirichlet shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Indices = NDArray[np.int64]


def partition(
    labels_or_n: Sequence[int] | NDArray[Any] | torch.Tensor | int, spec: str, num_nodes: int, seed: int
) -> list[Indices]:
    """Divide indices 0..n-1 over nodes: every index exactly once, sorted, the same for equal arguments.

    spec: "iid"; "classes:K": label-sorted data, class order drawn by the seed, cut into equal contiguous
    pieces where that gives K classes a node (two classes, eight nodes, ten classes; where classes differ in
    size a piece may reach a little into another), else equal shares of classes, exactly K a node;
    "dirichlet:ALPHA": each class is divided by shares drawn from a symmetric Dirichlet distribution (small
    ALPHA: skewed).
    """
    if num_nodes < 1:
        raise ValueError(f"partition: expected at least one node, got {num_nodes}")
    labels = None if isinstance(labels_or_n, int) else np.asarray(labels_or_n)
    n = labels_or_n if isinstance(labels_or_n, int) else len(labels_or_n)
    if n < num_nodes:
        raise ValueError(f"partition: {n} images cannot be divided over {num_nodes} nodes; use fewer nodes")
    kind, _, parameter = spec.partition(":")
    random = np.random.default_rng([seed & (2**64 - 1), 0x70617274])
    if spec == "iid":
        return [np.sort(piece).astype(np.int64) for piece in np.array_split(random.permutation(n), num_nodes)]
    if kind not in ("classes", "dirichlet") or not parameter:
        raise ValueError(
            f"unknown partition {spec!r}; use iid, classes:K (say classes:2) or dirichlet:ALPHA "
            "(say dirichlet:0.2)"
        )
    if labels is None:
        raise ValueError(f"partition {spec!r} needs labels, and these images have none; use iid")
    values = np.unique(labels)
    members = [random.permutation(np.flatnonzero(labels == value)) for value in values]
    if kind == "classes":
        return _by_classes(spec, members, _number(spec, parameter, int), num_nodes, random)
    return _by_dirichlet(spec, members, _number(spec, parameter, float), num_nodes, random)


def _number(spec: str, parameter: str, kind: Callable[[str], Any]) -> Any:
    try:
        value = kind(parameter)
    except ValueError:
        raise ValueError(
            f"partition {spec!r}: {parameter!r} is not a number; say classes:2 or dirichlet:0.2"
        ) from None
    if not 0 < value < float("inf"):
        raise ValueError(f"partition {spec!r}: expected a number above 0, got {parameter}")
    return value


def _by_classes(
    spec: str, members: list[Indices], classes: int, num_nodes: int, random: np.random.Generator
) -> list[Indices]:
    num_classes = len(members)
    if classes > num_classes:
        raise ValueError(
            f"partition {spec!r}: the data has {num_classes} classes; use classes:{num_classes} at most"
        )
    if classes * num_nodes < num_classes:
        least = -(-num_classes // num_nodes)
        raise ValueError(
            f"partition {spec!r}: {num_nodes} nodes with {classes} classes each cannot hold all "
            f"{num_classes} classes; use classes:{least} or {-(-num_classes // classes)} nodes"
        )
    order = [int(c) for c in random.permutation(num_classes)]
    shares = _contiguous(classes, num_classes, num_nodes)
    fits = all(len({c for c, _, _ in piece}) == classes for piece in shares)
    if (
        fits and classes > 1 and classes * num_nodes < 2 * num_classes
    ):  # one lap: a plain cut into equal pieces
        line = np.concatenate([members[c] for c in order])
        return [np.sort(piece).astype(np.int64) for piece in np.array_split(line, num_nodes)]
    if not fits:
        shares = _cyclic(classes, num_classes, num_nodes)
    nodes = []
    for piece in shares:
        parts = []
        for position, low, high in piece:
            part = members[order[position]]
            parts.append(part[int(low * len(part)) : int(high * len(part))])
        nodes.append(np.sort(np.concatenate(parts)).astype(np.int64))
    return _all_filled(spec, nodes)


_Share = tuple[int, Fraction, Fraction]  # (position in the class order, from, to), fractions of that class


def _contiguous(classes: int, num_classes: int, num_nodes: int) -> list[list[_Share]]:
    """Walk the class order `laps` times, a lap being an equal part of every class; cut the walk equally."""
    laps = classes * num_nodes // num_classes
    length = Fraction(num_classes * laps, num_nodes)
    pieces: list[list[_Share]] = []
    for node in range(num_nodes):
        at, end = node * length, (node + 1) * length
        piece: list[_Share] = []
        while at < end:
            lap, position = divmod(int(at), num_classes)
            start = int(at)
            stop = min(end, Fraction(start + 1))
            piece.append((position, (lap + at - start) / laps, (lap + stop - start) / laps))
            at = stop
        pieces.append(piece)
    return pieces


def _cyclic(classes: int, num_classes: int, num_nodes: int) -> list[list[_Share]]:
    """Where equal pieces do not fit: each node takes the next K classes; a class is shared by its takers."""
    takers = [0] * num_classes
    for slot in range(classes * num_nodes):
        takers[slot % num_classes] += 1
    pieces: list[list[_Share]] = []
    for node in range(num_nodes):
        piece: list[_Share] = []
        for slot in range(node * classes, (node + 1) * classes):
            lap, position = divmod(slot, num_classes)
            piece.append((position, Fraction(lap, takers[position]), Fraction(lap + 1, takers[position])))
        pieces.append(piece)
    return pieces


def _by_dirichlet(
    spec: str, members: list[Indices], alpha: float, num_nodes: int, random: np.random.Generator
) -> list[Indices]:
    # A small alpha may leave a node without images; such a draw is repeated.
    for _ in range(100):
        pieces: list[list[Indices]] = [[] for _ in range(num_nodes)]
        for part in members:
            shares = random.dirichlet(np.full(num_nodes, alpha))
            cuts = np.floor(np.cumsum(shares)[:-1] * len(part)).astype(np.int64)
            for node, indices in enumerate(np.split(part, np.clip(cuts, 0, len(part)))):
                pieces[node].append(indices)
        nodes = [np.sort(np.concatenate(piece)).astype(np.int64) for piece in pieces]
        if all(len(node) for node in nodes):
            return nodes
    raise ValueError(
        f"partition {spec!r}: 100 draws all left one of {num_nodes} nodes without images; use a larger ALPHA"
    )


def _all_filled(spec: str, nodes: list[Indices]) -> list[Indices]:
    for node, indices in enumerate(nodes):
        if len(indices) == 0:
            raise ValueError(
                f"partition {spec!r}: node {node} of {len(nodes)} would get no images; use fewer nodes"
            )
    return nodes
