"""Who gossips with whom: mixing matrices over node positions 0..n-1, fixed or a periodic sequence.

Weights are those of Metropolis and Hastings (Xiao and Boyd 2004): symmetric and doubly stochastic on any
undirected graph. One-peer exponential graphs are those of Ying et al. 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import isqrt

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

_SUM_TOLERANCE = 1e-9
_DRAWS = 1000  # tries to draw a connected random graph before giving up


@dataclass(frozen=True, kw_only=True, eq=False)
class Topology:
    """A mixing matrix, or a periodic sequence of them: row i says what position i takes from whom.

    Every matrix is doubly stochastic, so mixing preserves the mean. Position i takes ``weights(step)[i, j]``
    of position j. Make one with the functions of this module.
    """

    name: str
    matrices: tuple[Matrix, ...]
    _sources: tuple[tuple[tuple[int, ...], ...], ...] = field(init=False, repr=False)  # [step][position]
    _targets: tuple[tuple[tuple[int, ...], ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.matrices:
            raise ValueError(f"{self.name}: expected at least one matrix, got none")
        num_nodes = self.matrices[0].shape[0]
        checked = tuple(_checked(self.name, matrix, num_nodes) for matrix in self.matrices)
        object.__setattr__(self, "matrices", checked)
        sources = tuple(tuple(_positive(matrix[i], i) for i in range(num_nodes)) for matrix in checked)
        targets = tuple(tuple(_positive(matrix[:, i], i) for i in range(num_nodes)) for matrix in checked)
        object.__setattr__(self, "_sources", sources)
        object.__setattr__(self, "_targets", targets)

    @property
    def num_nodes(self) -> int:
        return int(self.matrices[0].shape[0])

    @property
    def period(self) -> int:
        """After how many steps the sequence repeats; 1 for a fixed graph."""
        return len(self.matrices)

    @property
    def symmetric(self) -> bool:
        return all(bool(np.array_equal(matrix, matrix.T)) for matrix in self.matrices)

    def weights(self, step: int = 0) -> Matrix:
        """Returns the (n, n) float64 mixing matrix of ``step``, read only."""
        return self.matrices[step % self.period]

    def neighbors(self, rank: int, step: int = 0) -> tuple[int, ...]:
        """Returns the positions that ``rank`` takes something from at ``step``: rising, without itself."""
        return self._sources[step % self.period][self._position(rank)]

    def targets(self, rank: int, step: int = 0) -> tuple[int, ...]:
        """Returns the positions that take something from ``rank``; not `neighbors` only if directed."""
        return self._targets[step % self.period][self._position(rank)]

    def distinct_neighbors(self, rank: int) -> tuple[int, ...]:
        """Returns the positions that ``rank`` takes something from at any step of a period."""
        return tuple(sorted({j for step in range(self.period) for j in self.neighbors(rank, step)}))

    def spectral_gap(self) -> float:
        """Returns one minus the second largest eigenvalue in magnitude of W, the product of one period.

        In [0, 1]. Exactly 0 says that the nodes never agree (up to rounding): then, and only then, a part of
        their disagreement never shrinks. For one symmetric matrix it is also what is lost in a single step,
        and 1 says that a step averages exactly.
        """
        product = np.eye(self.num_nodes)
        for matrix in self.matrices:
            product = matrix @ product
        gap = 1.0 - float(np.abs(np.linalg.eigvals(product - 1.0 / self.num_nodes)).max())
        return 0.0 if gap < 1e-12 else min(1.0, gap)

    def _position(self, rank: int) -> int:
        if not 0 <= rank < self.num_nodes:
            raise ValueError(f"{self.name}: expected a position in [0, {self.num_nodes}), got {rank}")
        return rank

    def __str__(self) -> str:
        return f"{self.name} of {self.num_nodes}"


def ring(num_nodes: int) -> Topology:
    """Returns the ring: two neighbours each."""
    _check_nodes("ring", num_nodes)
    return _undirected("ring", num_nodes, ((i, (i + 1) % num_nodes) for i in range(num_nodes)))


def torus(num_nodes: int, *, num_rows: int | None = None) -> Topology:
    """Returns the torus of ``num_rows`` rows (by default the most square): up to four neighbours each."""
    _check_nodes("torus", num_nodes)
    if num_rows is None:
        num_rows = next(rows for rows in range(isqrt(num_nodes), 0, -1) if num_nodes % rows == 0)
    if num_rows < 1 or num_nodes % num_rows:
        raise ValueError(f"torus: expected num_rows to divide {num_nodes} nodes, got {num_rows}")
    num_columns = num_nodes // num_rows
    edges = []
    for i in range(num_nodes):
        row, column = divmod(i, num_columns)
        edges.append((i, row * num_columns + (column + 1) % num_columns))
        edges.append((i, (row + 1) % num_rows * num_columns + column))
    return _undirected("torus", num_nodes, edges)


def complete(num_nodes: int) -> Topology:
    """Returns the complete graph: every weight is 1/n, one uncompressed step averages exactly."""
    _check_nodes("complete", num_nodes)
    return Topology(name="complete", matrices=(np.full((num_nodes, num_nodes), 1.0 / num_nodes),))


def star(num_nodes: int) -> Topology:
    """Returns the star with position 0 in its middle."""
    _check_nodes("star", num_nodes)
    return _undirected("star", num_nodes, ((0, i) for i in range(1, num_nodes)))


def exponential(num_nodes: int) -> Topology:
    """Returns the static exponential graph, undirected: i is joined to i + 1, i + 2, i + 4, ... modulo n."""
    _check_nodes("exponential", num_nodes)
    edges = ((i, (i + hop) % num_nodes) for i in range(num_nodes) for hop in _hops(num_nodes))
    return _undirected("exponential", num_nodes, edges)


def one_peer_exponential(num_nodes: int, *, directed: bool = False) -> Topology:
    """Returns the sequence in which each node has one peer a step, 1, 2, 4, ... positions away.

    Not directed (the default, the form that gossip takes): at step k positions i and i XOR 2^k are matched,
    so n must be a power of two. Directed (Ying et al. 2021), any n: i takes half from i - 2^k, and gives half
    to i + 2^k. Either way one period of uncompressed steps averages exactly when n is a power of two.
    """
    name = "one_peer_exponential"
    _check_nodes(name, num_nodes)
    hops = _hops(num_nodes) or (0,)
    if directed:
        shifts = [np.roll(np.eye(num_nodes), hop, axis=0) for hop in hops]
        return Topology(name=name, matrices=tuple(0.5 * np.eye(num_nodes) + 0.5 * shift for shift in shifts))
    if num_nodes & (num_nodes - 1):
        raise ValueError(
            f"{name}: matching needs a power of two, got {num_nodes} nodes; "
            "use directed=True, random_matching or exponential"
        )
    pairs = [[(i, i ^ hop) for i in range(num_nodes) if i < i ^ hop] for hop in hops]
    return Topology(name=name, matrices=tuple(_matching(num_nodes, matching) for matching in pairs))


def random_matching(num_nodes: int, *, period: int | None = None, seed: int = 0) -> Topology:
    """Returns a periodic sequence of random pairings; with an odd n one node rests at each step.

    ``period`` defaults to 2 ceil(log2 n); pairings are drawn from ``seed`` until one period joins all nodes.
    """
    name = "random_matching"
    _check_nodes(name, num_nodes)
    if period is None:
        period = max(1, 2 * (num_nodes - 1).bit_length())
    if period < 1:
        raise ValueError(f"{name}: expected a period of at least 1, got {period}")
    random = np.random.default_rng(seed)
    for _ in range(_DRAWS):
        orders = [random.permutation(num_nodes) for _ in range(period)]
        pairs = [[(int(order[k]), int(order[k + 1])) for k in range(0, num_nodes - 1, 2)] for order in orders]
        if _connected(num_nodes, [pair for matching in pairs for pair in matching]):
            return Topology(name=name, matrices=tuple(_matching(num_nodes, matching) for matching in pairs))
    raise ValueError(f"{name}: {period} pairings do not join {num_nodes} nodes; use a longer period")


def erdos_renyi(num_nodes: int, probability: float, *, seed: int = 0) -> Topology:
    """Returns a random graph with each edge there with ``probability``, drawn until connected."""
    name = "erdos_renyi"
    _check_nodes(name, num_nodes)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {probability}")
    random = np.random.default_rng(seed)
    pairs = [(i, j) for i in range(num_nodes) for j in range(i + 1, num_nodes)]
    for _ in range(_DRAWS):
        draws = random.random(len(pairs))
        edges = [pair for pair, draw in zip(pairs, draws, strict=True) if draw < probability]
        if _connected(num_nodes, edges):
            return _undirected(name, num_nodes, edges)
    raise ValueError(
        f"{name}: no connected graph of {num_nodes} nodes in {_DRAWS} draws; raise probability={probability}"
    )


def from_matrix(matrices: npt.ArrayLike | Sequence[npt.ArrayLike], *, name: str = "from_matrix") -> Topology:
    """Returns the topology of a doubly stochastic matrix (n, n), or of a sequence (period, n, n) of them."""
    array = np.array(matrices, dtype=np.float64)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.shape[1] != array.shape[2] or array.size == 0:
        raise ValueError(f"{name}: expected shape (n, n) or (period, n, n), got {array.shape}")
    return Topology(name=name, matrices=tuple(array))


_BY_NAME: dict[str, Callable[[int], Topology]] = {
    "ring": ring,
    "torus": torus,
    "complete": complete,
    "star": star,
    "exponential": exponential,
    "one_peer_exponential": one_peer_exponential,
}


def named(name: str, num_nodes: int, *, seed: int = 0) -> Topology:
    """Returns the topology a text names, such as ``ring``; ``erdos_renyi`` takes ``erdos_renyi:0.3``."""
    kind, _, option = name.partition(":")
    kind = kind.replace("-", "_")
    if kind in _BY_NAME and not option:
        return _BY_NAME[kind](num_nodes)
    if kind == "random_matching" and not option:
        return random_matching(num_nodes, seed=seed)
    if kind == "erdos_renyi":
        try:
            probability = float(option) if option else 0.5
        except ValueError:
            raise ValueError(f"topology {name!r}: expected erdos_renyi:PROBABILITY, got {option!r}") from None
        return erdos_renyi(num_nodes, probability, seed=seed)
    known = ", ".join((*_BY_NAME, "random_matching", "erdos_renyi:PROBABILITY"))
    raise ValueError(f"unknown topology {name!r}; there is {known}")


def _hops(num_nodes: int) -> tuple[int, ...]:
    return tuple(1 << k for k in range((num_nodes - 1).bit_length()))


def _undirected(name: str, num_nodes: int, edges: Iterable[tuple[int, int]]) -> Topology:
    joined = np.zeros((num_nodes, num_nodes), dtype=bool)
    for i, j in edges:
        if i != j:
            joined[i, j] = joined[j, i] = True
    degree = joined.sum(axis=1)
    weights = np.where(joined, 1.0 / (1.0 + np.maximum(degree[:, None], degree[None, :])), 0.0)
    # The diagonal is what the others leave, so that rows sum to one as exactly as float64 can say.
    np.fill_diagonal(weights, 1.0 - weights.sum(axis=1))
    return Topology(name=name, matrices=(weights,))


def _matching(num_nodes: int, pairs: Iterable[tuple[int, int]]) -> Matrix:
    matrix = np.eye(num_nodes)
    for i, j in pairs:
        matrix[i, i] = matrix[j, j] = matrix[i, j] = matrix[j, i] = 0.5
    return matrix


def _connected(num_nodes: int, edges: Iterable[tuple[int, int]]) -> bool:
    root = list(range(num_nodes))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = root[i]
        return i

    for i, j in edges:
        root[find(i)] = find(j)
    return len({find(i) for i in range(num_nodes)}) == 1


def _positive(row: Matrix, own: int) -> tuple[int, ...]:
    return tuple(int(j) for j in np.flatnonzero(row) if j != own)


def _checked(name: str, matrix: Matrix, num_nodes: int) -> Matrix:
    if matrix.shape != (num_nodes, num_nodes) or num_nodes == 0:
        raise ValueError(f"{name}: expected matrices ({num_nodes}, {num_nodes}), got {matrix.shape}")
    if not bool(np.all(np.isfinite(matrix))) or bool(np.any(matrix < 0.0)):
        raise ValueError(f"{name}: expected finite weights of at least 0, got {matrix.min()}")
    for axis, what in ((1, "row"), (0, "column")):
        sums = matrix.sum(axis=axis)
        worst = int(np.argmax(np.abs(sums - 1.0)))
        if abs(float(sums[worst]) - 1.0) > _SUM_TOLERANCE:
            raise ValueError(
                f"{name}: expected every {what} to sum to 1, {what} {worst} sums to {sums[worst]:.9g}; "
                "a matrix that is not doubly stochastic does not preserve the mean"
            )
    matrix = matrix.copy()
    matrix.setflags(write=False)
    return matrix


def _check_nodes(name: str, num_nodes: int) -> None:
    if num_nodes < 1:
        raise ValueError(f"{name}: expected at least 1 node, got {num_nodes}")
