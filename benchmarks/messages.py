"""What each algorithm sends, counted at the exchange, beside the formulas of docs/algorithms.md.

    python benchmarks/messages.py      about half a minute

Eight D-Nodes, batches of 16 images of 28 x 28 (random: bytes do not depend on them), the default networks;
20 rounds, 160 images a node, so an epoch is 10 rounds. Prints a line for each kind of message.
"""

from __future__ import annotations

from dataclasses import replace

import torch

import dance
from dance.exchange import SimulatedExchange
from dance.gan import AcganConfig, FlganConfig, GossipganConfig, RunConfig
from dance.gan.acgan.low_rank import LowRankAverage
from dance.gan.acgan.wires import wires
from dance.gan.config import image_block
from dance.gan.engine import build
from dance.gan.nodes import discriminator_net
from dance.gan.standalone import Standalone

N, B, ROUNDS, EPOCH = 8, 16, 20, 10
SHAPE = (1, 28, 28)
BASE = RunConfig(layout="model-parallel", d_nodes=N, batch_size=B, simulate=True)
HUB = replace(BASE, gossip_codec="sign")
FEEDBACK = f"sign:block={image_block(28 * 28)}"


def packet(codec: str, numel: int) -> int:
    return dance.codec(codec).packet_nbytes(numel)


def rows() -> list[tuple[str, RunConfig, dict[str, tuple[str, int]]]]:
    """Name, run, and for each kind of message its formula as text and its value over all rounds."""
    shape_d = B * 28 * 28
    theta = discriminator_net(BASE, SHAPE).theta.numel()
    tensors = len(discriminator_net(BASE, SHAPE).sizes)
    w = Standalone(
        replace(BASE, d_nodes=1), SimulatedExchange(1), [torch.zeros((B, *SHAPE))]
    ).g.net.theta.numel()
    image, feedback = packet("int4", shape_d), packet(FEEDBACK, shape_d)
    sync = ROUNDS // EPOCH
    hub = {
        "image": ("R N P(b d)", ROUNDS * N * image),
        "feedback": ("R N P(b d)", ROUNDS * N * feedback),
        "gossip": ("R/H 2 N P(theta)", ROUNDS * 2 * N * packet("sign", theta)),
        "moment": ("R/H 2 N P(tensors)", ROUNDS * 2 * N * packet("none", tensors)),
        "control": ("R/(8 H) 2 N", ROUNDS // 8 * 2 * N),
    }
    ring = hub | {
        "gossip": ("R/H 2 N P(theta)", ROUNDS * 2 * N * packet("sign", theta)),
        "control": ("R/(8 H) 2 N", ROUNDS // 8 * 2 * N),
    }
    low_rank = replace(BASE, acgan=AcganConfig(aggregation="low-rank"))
    average = LowRankAverage(
        wires(low_rank, SimulatedExchange(1 + N), 28 * 28),
        discriminator_net(BASE, SHAPE),
        low_rank.acgan.rank,
    )
    factors = {
        "d-factor-p": ("R 2 N P(left)", ROUNDS * 2 * N * packet("int8", average.numels[0])),
        "d-factor-q": ("R 2 N P(right)", ROUNDS * 2 * N * packet("int8", average.numels[1])),
    }
    delta = {
        "delta": ("R/H 2 N P(w + theta)", sync * 2 * N * packet("sign", w + theta)),
        "moment": ("R/H 2 N P(tensors)", sync * 2 * N * packet("none", tensors)),
    }
    return [
        (
            "ac-gan, data parallel",
            replace(BASE, layout="data-parallel", acgan=AcganConfig(sync_period=EPOCH)),
            delta,
        ),
        ("ac-gan, low-rank", low_rank, {"image": hub["image"], "feedback": hub["feedback"], **factors}),
        ("ac-gan, hub, sign", HUB, hub),
        ("ac-gan, ring, sign", replace(HUB, topology="ring"), ring),
        (
            "md-gan",
            replace(BASE, algorithm="md-gan"),
            {
                "image": ("R N P(2 b d)", ROUNDS * N * packet("none", 2 * shape_d)),
                "feedback": ("R N P(b d)", ROUNDS * N * packet("none", shape_d)),
                "model": ("R/E N P(theta)", sync * N * packet("none", theta)),
            },
        ),
        (
            "fl-gan",
            replace(BASE, algorithm="fl-gan"),
            {
                "model": ("R/E N P(w + theta)", sync * N * packet("none", w + theta)),
                "average": ("R/E N P(w + theta)", sync * N * packet("none", w + theta)),
            },
        ),
        (
            "fl-gan, int4 deltas",
            replace(BASE, algorithm="fl-gan", codec="int4", flgan=FlganConfig(deltas=True)),
            {
                "delta": ("R/E N P(w + theta)", sync * N * packet("int4", w + theta)),
                "step": ("R/E N P(w + theta)", sync * N * packet("int4", w + theta)),
            },
        ),
        (
            "gossip-gan A",
            replace(BASE, algorithm="gossip-gan"),
            {"model": ("R/T N P(w + theta)", sync * N * packet("none", w + theta))},
        ),
        (
            "gossip-gan B",
            replace(BASE, algorithm="gossip-gan", gossipgan=GossipganConfig(variant="b")),
            {
                "generator": ("R/T N P(w)", sync * N * packet("none", w)),
                "discriminator": ("R/T N P(theta)", sync * N * packet("none", theta)),
            },
        ),
    ]


def table() -> list[str]:
    """The lines of the table in docs/algorithms.md; AssertionError where a formula is not what was sent."""
    parts = [torch.rand((EPOCH * B, *SHAPE)) * 2 - 1 for _ in range(N)]
    out = [
        "| algorithm | message | packets | formula = counted | a D-Node's, sent + received, a round |",
        "|---|---|---|---|---|",
    ]
    for name, config, formulas in rows():
        exchange = SimulatedExchange(config.num_nodes)
        algorithm = build(config, exchange, parts)
        for r in range(ROUNDS):
            algorithm.round(r)
        counted = {kind: exchange.counts.of(kind=kind).sent_bytes for kind in exchange.counts.kinds}
        assert counted == {kind: value for kind, (_, value) in formulas.items()}, (name, counted)
        for kind, (text, value) in formulas.items():
            counts = [exchange.counts.of(node, kind) for node in exchange.nodes[-N:]]
            each = sum(count.sent_bytes + count.received_bytes for count in counts) / N / ROUNDS / 1e3
            out.append(f"| {name} | {kind} | `{text}` | {value:,} | {each:.2f} KB |")
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(table()))
