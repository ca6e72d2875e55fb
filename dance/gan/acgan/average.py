"""The mean of one vector a worker, through the hub, compressed both ways with error feedback.

    worker:  e_i += x_i;  q_i = C(e_i);  e_i -= q_i;  send q_i to the hub
    hub:     u = e_s + mean of q_i;  p = C(u);  e_s = u - p;  send p to all
    all:     take p for the mean

What a codec could not send stays in e_i and e_s and is sent later (Karimireddy et al. 2019, both ways as in
Tang et al. 2019). With codec none p is the mean itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dance
from dance.codecs import Codec
from dance.exchange import Expected, Message
from dance.gan.acgan.gossip import MOMENT
from dance.gan.acgan.skew import SIZE, Sketcher, skew
from dance.gan.acgan.wires import HUB, NONE, Wires
from dance.gan.messages import content, stamped
from dance.packet import Packet, derive_seed

SKETCH = "sketch"


@dataclass(frozen=True, kw_only=True)
class Mean:
    """What all nodes know after an average; `moment`: the mean second moment, where those travelled along."""

    vector: Tensor
    moment: Tensor | None


class FeedbackAverage:
    """Averages vectors of `numel` elements as messages of one `kind`; `followers` get the mean, too.

    `num_moments` second moments travel along, uncompressed (0: none). `every`: rounds from one to the next.
    Without `feedback` what a codec could not send is lost here, and `sent` has what each worker did send.
    While `measures` is set, equally at all nodes, workers add a sketch of their vectors, from which the hub
    knows the `skew` of the last two averages (dance.gan.acgan.skew), None until there are two.
    """

    def __init__(
        self,
        wires: Wires,
        numel: int,
        kind: str,
        *,
        followers: Sequence[int] = (),
        num_moments: int = 0,
        every: int = 1,
        feedback: bool = True,
    ) -> None:
        self.wires = wires
        self.numel = numel
        self.kind = kind
        self.num_moments = num_moments
        self.every = every
        self.followers = list(followers)
        self.residuals = {
            node: torch.zeros(numel)
            for node in wires.here
            if feedback and (node == HUB or node in wires.d_ids)
        }
        self.sent: dict[int, Tensor] = {}
        self.measures = False
        self.skew: float | None = None
        self.sketches: Tensor | None = None  # at the hub: those of the last average

    def mean(
        self, vectors: Mapping[int, Tensor], turn: int, moments: Mapping[int, Tensor] | None = None
    ) -> Mean | None:
        """The mean of all workers' vectors, as every node of this process knows it; all nodes call it.

        `vectors` and `moments` are those of the workers that live here. `turn` is a number that no other
        average of this kind has. None where neither the hub lives nor a worker or follower.
        """
        ids, post = self.wires.d_ids, self.wires.post
        sketcher: Sketcher | None = None
        outbox: list[Message] = []
        for node, vector in vectors.items():
            with post.computing(node):
                packet = self._packet(node, vector, turn, [HUB])
                outbox.append(Message(source=node, target=HUB, kind=self.kind, packet=packet))
                if moments is not None and self.num_moments:
                    packet = post.packet(moments[node], NONE, node, MOMENT, turn)
                    outbox.append(Message(source=node, target=HUB, kind=MOMENT, packet=packet))
                if self.measures:
                    sketcher = sketcher or self._sketcher()
                    packet = post.packet(sketcher(vector), NONE, node, SKETCH, turn)
                    outbox.append(Message(source=node, target=HUB, kind=SKETCH, packet=packet))
        here = HUB in self.wires.here
        arrived = self._deliver(outbox, [(node, HUB) for node in ids], turn)
        outbox = []
        if here:
            with post.computing(HUB):
                packets = self._relayed(arrived, turn)
            targets = [*self.followers, *ids]
            outbox = [
                Message(source=HUB, target=target, kind=packet_kind, packet=packet)
                for target in targets
                for packet_kind, packet in packets.items()
            ]
        arrived = self._deliver(outbox, [(HUB, node) for node in (*self.followers, *ids)], turn)
        # All got the same packets, and the hub made them.
        known = packets if here else {message.kind: message.packet for message in arrived}
        if not known:
            return None
        moment = content(known[MOMENT]) if self.num_moments else None
        return Mean(vector=content(known[self.kind]), moment=moment)

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {"residual": self.residuals[node]} if node in self.residuals else {}
        if node == HUB and self.sketches is not None:
            tensors["sketches"] = self.sketches
        return tensors, {}

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        if node in self.residuals:
            self.residuals[node].copy_(tensors["residual"])
        if node == HUB and "sketches" in tensors:
            self.sketches = tensors["sketches"].clone()

    def _packet(self, node: int, vector: Tensor, turn: int, peers: Sequence[int]) -> Packet:
        codec = self.wires.choices[node].codec(self.kind, self.numel, turn, peers, every=self.every)
        seed = derive_seed(self.wires.post.seed, turn, node, self.kind, "packet")
        if node in self.residuals:
            return stamped(dance.encode_feedback(vector, self.residuals[node], codec, seed=seed), node, turn)
        packet = stamped(dance.encode(vector, codec, seed=seed), node, turn)
        self.sent[node] = content(packet)
        return packet

    def _relayed(self, arrived: Sequence[Message], turn: int) -> dict[str, Packet]:
        ids = self.wires.d_ids
        total = torch.zeros(self.numel)
        for message in arrived:
            if message.kind == self.kind:
                dance.decode(message.packet, out=total, add=True)
        packets = {self.kind: self._packet(HUB, total.div_(len(ids)), turn, ids)}
        moments = [content(message.packet) for message in arrived if message.kind == MOMENT]
        if moments:
            mean_moment = torch.stack(moments).mean(0)
            packets[MOMENT] = self.wires.post.packet(mean_moment, NONE, HUB, MOMENT, turn)
        if self.measures:
            before = self.sketches
            arrived_now = [content(message.packet) for message in arrived if message.kind == SKETCH]
            self.sketches = torch.stack(arrived_now)
            self.skew = None if before is None else skew(before, self.sketches)
        return packets

    def _sketcher(self) -> Sketcher:
        """The run's: equal at all nodes and in all turns, whose sketches are compared."""
        return Sketcher(self.numel, derive_seed(self.wires.post.seed, 0, HUB, SKETCH, "draw"))

    def _deliver(
        self, outbox: Sequence[Message], edges: Sequence[tuple[int, int]], turn: int
    ) -> list[Message]:
        expected = []
        for source, target in edges:
            if target not in self.wires.here:
                continue
            codec = self.wires.choices[target].expected(self.kind)
            kinds: list[tuple[str, int, Codec | None]] = [(self.kind, self.numel, codec)]
            if self.num_moments:
                kinds.append((MOMENT, self.num_moments, NONE))
            if self.measures and target == HUB:
                kinds.append((SKETCH, SIZE, NONE))
            expected += [
                Expected(source=source, target=target, kind=kind, shape=(numel,), codec=each, round=turn)
                for kind, numel, each in kinds
            ]
        reports = self.wires.reports
        due = reports.wanted if self.every > 1 else None
        return reports.deliver(outbox, expected, edges, turn, due=due)
