"""How far a gossip step goes: values known to work per codec, and the bound that is proved."""

from __future__ import annotations

import numpy as np

from dance.codecs import Like
from dance.codecs import codec as to_codec
from dance.topology import Topology

# Known to work on a ring of 8 with weights 1/3 (d = 2000 and the authors' code); top-k in between by ratio.
_RING_OF_8 = {"none": 1.0, "fp16": 0.9, "bf16": 0.9, "int8": 0.9, "sign": 0.5}
_TOPK_PER_RATIO = 3.0  # 0.3 at 10 %, 0.03 at 1 %
_PER_CONTRACTION = 3.0  # a codec without an entry: as top-k of the same contraction
_CAP = 0.9
_HUB = {"sign": 0.95}  # through a hub, of what is not as fine as _FINE
_RING_PULL = 2.0 / 3.0  # 1 - w_ii on that ring
_FINE = 0.7  # a codec that contracts at least so much is stable at its step size on any graph


def default_step_size(codec: Like, topology: Topology | None = None) -> float:
    """Returns the step size that "auto" takes for ``codec`` on ``topology`` (None: through a hub).

    The values of a ring of 8, on other graphs times ((2/3) / max_i (1 - w_ii))^2 where that is below 1.
    Scaling by the spectral gap, the first idea, is wrong: top-10 % diverges at 0.3 on the complete graph of 8
    (gap 1) and on the star (1/8) and not on a ring of 32 (1/78: pytest tests/test_consensus.py -k spectral).
    What a step may be depends on how much weight a node gives away, not on how fast the graph mixes. At a hub
    all of it counts as given away, but for sign: at 0.5 and 0.7 the nodes end on a limit cycle, over a
    hundredth of their size apart, from 0.9 on they agree to the last bits (pytest tests/test_gossip.py -k
    limit_cycle), and discriminators that agree train better generators (docs/results.md). Raises ValueError
    for a graph that never agrees and for a codec of unknown contraction.
    """
    c = to_codec(codec)
    contraction = c.contraction
    if contraction is None:
        raise ValueError(
            f"{c}: gossip needs a codec of known contraction; use a smaller block or another codec"
        )
    if topology is not None and topology.num_nodes > 1 and topology.spectral_gap() == 0.0:
        raise ValueError(
            f"{topology}: its nodes never agree (spectral gap 0); join them or lengthen the sequence"
        )
    if c.name == "topk":
        base = min(_CAP, _TOPK_PER_RATIO * contraction)
    else:
        base = _RING_OF_8.get(c.name, min(_CAP, _PER_CONTRACTION * contraction))
    if contraction >= _FINE:
        return base
    if topology is None:
        return _HUB.get(c.name, base * _RING_PULL**2)
    pull = max(float(1.0 - np.diag(topology.weights(step)).min()) for step in range(topology.period))
    return base * min(1.0, (_RING_PULL / pull) ** 2) if pull > 0.0 else base


def theory_step_size(codec: Like, topology: Topology) -> float:
    """Returns the step size that is proved to converge (Koloskova et al. 2019), far below the useful.

    delta^2 w / (16 delta + delta^2 + 4 beta^2 + 2 delta beta^2 - 8 delta w) with delta the spectral gap, w
    the codec's contraction and beta = ||I - W||_2. For a fixed symmetric matrix.
    """
    contraction = to_codec(codec).contraction
    if contraction is None or topology.period != 1 or not topology.symmetric:
        raise ValueError(
            f"theory needs a codec of known contraction and one symmetric matrix, got {codec}, {topology}"
        )
    delta = topology.spectral_gap()
    beta = float(np.linalg.norm(np.eye(topology.num_nodes) - topology.weights(), 2))
    divisor = 16 * delta + delta**2 + 4 * beta**2 + 2 * delta * beta**2 - 8 * delta * contraction
    return delta**2 * contraction / divisor
