"""Model parallel AC-GAN: generators and discriminators on different nodes.

One round:
    1. every G-Node sends each D-Node that serves it a batch of images of its own; D-Nodes serve all G-Nodes
       (attachment "all": Stackelberg GAN) or one, the next one every R rounds (attachment "partition")
    2. D-Nodes take L local steps against them and their private images
    3. D-Nodes aggregate (dance.gan.acgan.team)
    4. every D-Node answers the G-Nodes it serves with the gradient of its loss at the images; all G-Nodes
       take one step. With feedback weights all D-Nodes judge one and the same batch, and answer with their
       logits and the gradient of these (dance.gan.weighting)
Order "overlap" sends the gossip of 3 together with the answers of 4, which are then computed before
discriminators move: a round waits for fewer messages in a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dance.exchange import Exchange, Expected, Message
from dance.gan.acgan.team import Team, d_nodes
from dance.gan.acgan.wires import NONE, Wires, wires
from dance.gan.computing import ABSORB, FEEDBACK, GENERATE
from dance.gan.config import RunConfig
from dance.gan.controller import Controller, guide_of
from dance.gan.losses import loss_named
from dance.gan.messages import content
from dance.gan.models import FlatModule
from dance.gan.nodes import DNode, GNode, build_generator, discriminator_net
from dance.gan.parts import Part
from dance.gan.weighting import Weighting

# What a batch for all D-Nodes is called where otherwise a D-Node's id stands, and so its noise.
_ALL = -1
_LOGIT = "logit"
_ANSWERS = ("feedback", _LOGIT)


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The G-Nodes and D-Nodes of this process, and the discriminator that all of the run have now."""

    generators: dict[int, GNode]
    discriminators: dict[int, DNode]
    discriminator: FlatModule


class ModelParallel:
    """G-Nodes are 0..M-1, D-Nodes M..M+N-1; `generators` and `discriminators` hold those of this process.

    `nodes` and `ways` (their wires) go on from another layout; None: all begin.
    """

    def __init__(
        self,
        config: RunConfig,
        exchange: Exchange,
        parts: Sequence[Part],
        *,
        nodes: Nodes | None = None,
        ways: Wires | None = None,
    ) -> None:
        shape = tuple(parts[0].shape[1:])
        self.wires = ways or wires(config, exchange, math.prod(shape))
        if nodes is None:
            nodes = Nodes(
                generators={
                    node: build_generator(config, shape, node)
                    for node in self.wires.g_ids
                    if node in exchange.nodes
                },
                discriminators=d_nodes(config, self.wires, parts),
                discriminator=discriminator_net(config, shape),
            )
        self.exchange = exchange
        self.overlaps = config.acgan.order == "overlap"
        self.partitions = config.acgan.attachment == "partition"
        self.rotate_every = config.acgan.rotate_every
        self.batch_shape = (config.acgan.fake_batch_size or config.batch_size, *shape)
        self.generators = nodes.generators
        for g in self.generators.values():
            g.batch_size = self.batch_shape[0]
        self.discriminators = nodes.discriminators
        for d in self.discriminators.values():
            d.fakes_of_one = self.batch_shape[0]
        self.controller: Controller | None = None
        if config.follows_recipes:
            image_numel = math.prod(shape)
            choices = self.wires.choices
            texts = next(iter(choices.values())).texts
            guide = guide_of(config, texts, image_numel, nodes.discriminator.theta.numel())
            self.controller = Controller(guide, self.wires.post, choices, self.wires.d_ids, image_numel)
        self.team = Team(config, self.wires, self.discriminators, nodes.discriminator)
        self._follow()
        self.weighting: Weighting | None = None
        self.shares = dict(zip(self.wires.d_ids, map(len, parts), strict=True))
        if config.acgan.feedback_weights != "mean":
            self.weighting = Weighting(
                scheme=config.acgan.feedback_weights,
                loss=loss_named(config.loss).generator,
                sharpness=config.acgan.weight_sharpness,
            )

    def round(self, round_index: int) -> None:
        if self.controller is not None and self.controller.tick(round_index):
            self._follow()
        images = self._images(round_index)
        fakes = {
            node: torch.cat([images[g, node] for g in self.served(node, round_index)])
            for node in self.discriminators
        }
        self.team.update(round_index, fakes)
        if self.overlaps:
            answers, awaited = self._answers(round_index, images)
            gossip, expected = self.team.begin(round_index)
            inbox = self._delivered(gossip + answers, expected + awaited, "feedback", round_index)
            self.team.end([message for message in inbox if message.kind not in _ANSWERS], round_index)
        else:
            self.team.aggregate(round_index)
            answers, awaited = self._answers(round_index, images)
            inbox = self._delivered(answers, awaited, "feedback", round_index)
        self._absorb([message for message in inbox if message.kind in _ANSWERS])

    def _follow(self) -> None:
        """Takes over the period of the recipe in use; its codecs are at the choices already."""
        if self.controller is not None and self.team.gossip is not None:
            self.team.gossip.period = self.controller.recipe.period

    def served(self, node: int, round_index: int) -> list[int]:
        """The G-Nodes that a D-Node serves in a round."""
        g_ids = self.wires.g_ids
        if not self.partitions:
            return g_ids
        turn = round_index // self.rotate_every if self.rotate_every else 0
        return [g_ids[(self.wires.d_ids.index(node) + turn) % len(g_ids)]]

    def _serving(self, g_id: int, round_index: int) -> list[int]:
        """The D-Nodes that serve a G-Node in a round."""
        return [node for node in self.wires.d_ids if g_id in self.served(node, round_index)]

    def _images(self, round_index: int) -> dict[tuple[int, int], Tensor]:
        """G-Node -> D-Nodes: a batch for each, or one for all; (G-Node, D-Node) -> images as they arrived."""
        outbox = []
        for g_id, g in self.generators.items():
            serving = self._serving(g_id, round_index)
            with self.wires.post.computing(g_id, GENERATE):
                if self.weighting is None:
                    for d_id, batch in g.generate(round_index, serving).items():
                        outbox.append(self._message(batch, g_id, d_id, "image", round_index))
                    continue
                batch = g.generate(round_index, [_ALL])[_ALL]
                codec = self.wires.choices[g_id].codec("image", batch.numel(), round_index, serving)
                packet = self.wires.post.packet(batch, codec, g_id, "image", round_index)
                outbox += [Message(source=g_id, target=d_id, kind="image", packet=packet) for d_id in serving]
        edges = [(g_id, d_id) for d_id in self.discriminators for g_id in self.served(d_id, round_index)]
        inbox = self._delivered(outbox, self._expected("image", edges, round_index), "image", round_index)
        return {(message.source, message.target): content(message.packet) for message in inbox}

    def _answers(
        self, round_index: int, images: Mapping[tuple[int, int], Tensor]
    ) -> tuple[list[Message], list[Expected]]:
        """D-Node -> the G-Nodes it serves: the gradient of its loss at the images, or of its logits."""
        served = {d_id: self.served(d_id, round_index) for d_id in self.discriminators}
        at = {d_id: [images[g_id, d_id] for g_id in g_ids] for d_id, g_ids in served.items()}
        edges = [(d_id, g_id) for g_id in self.generators for d_id in self._serving(g_id, round_index)]
        expected = self._expected("feedback", edges, round_index)
        outbox: list[Message] = []
        if self.weighting is None:
            found = self.team.workers.feedback(at)
        else:
            found, logits = self._judged(at)
            shape = (self.batch_shape[0],)
            for d_id, g_ids in served.items():
                for g_id, row in zip(g_ids, logits[d_id], strict=True):
                    outbox.append(self.wires.post.message(row, NONE, d_id, g_id, _LOGIT, round_index))
            expected += [
                Expected(source=s, target=t, kind=_LOGIT, shape=shape, codec=NONE, round=round_index)
                for s, t in edges
            ]
        for d_id, gradients in found.items():
            with self.wires.post.computing(d_id):
                for g_id, gradient in zip(served[d_id], gradients, strict=True):
                    outbox.append(self._message(gradient, d_id, g_id, "feedback", round_index))
        return outbox, expected

    def _judged(
        self, images: Mapping[int, Sequence[Tensor]]
    ) -> tuple[dict[int, list[Tensor]], dict[int, list[Tensor]]]:
        """Each D-Node's gradients of its logits at each of its batches, and the logits."""
        gradients: dict[int, list[Tensor]] = {}
        logits: dict[int, list[Tensor]] = {}
        for node, batches in images.items():
            with self.wires.post.computing(node, FEEDBACK):
                judged = [self.discriminators[node].judge(batch) for batch in batches]
            gradients[node], logits[node] = ([each[k] for each in judged] for k in (0, 1))
        return gradients, logits

    def _absorb(self, inbox: Sequence[Message]) -> None:
        """All G-Nodes step together, each along what its D-Nodes answered."""
        for g_id, g in self.generators.items():
            with self.wires.post.computing(g_id, ABSORB):
                answers = {(m.kind, m.source): content(m.packet) for m in inbox if m.target == g_id}
                feedback = {source: answer for (kind, source), answer in answers.items() if kind != _LOGIT}
                if self.weighting is None:
                    g.absorb(feedback, len(feedback) * self.batch_shape[0])
                    continue
                total = sum(self.shares[source] for source in feedback)
                weighting = replace(
                    self.weighting, shares=[self.shares[source] / total for source in feedback]
                )
                logits = [answers[_LOGIT, source] for source in feedback]
                joined = weighting.joined(list(feedback.values()), logits)
                g.absorb({_ALL: joined}, self.batch_shape[0])

    def _delivered(
        self, outbox: Sequence[Message], expected: Sequence[Expected], kind: str, round_index: int
    ) -> list[Message]:
        """Delivers images or answers, and with them what nodes measured of each other's links."""
        ways = [(g_id, d_id) for g_id in self.wires.g_ids for d_id in self._serving(g_id, round_index)]
        if kind == "feedback":
            ways = [(d_id, g_id) for g_id, d_id in ways]
        return self.wires.reports.deliver(outbox, expected, ways, round_index)

    def _message(self, batch: Tensor, source: int, target: int, kind: str, round_index: int) -> Message:
        codec = self.wires.choices[source].codec(kind, batch.numel(), round_index, [target])
        return self.wires.post.message(batch, codec, source, target, kind, round_index)

    def _expected(self, kind: str, edges: Sequence[tuple[int, int]], round_index: int) -> list[Expected]:
        return [
            Expected(
                source=source,
                target=target,
                kind=kind,
                shape=self.batch_shape,
                codec=self.wires.choices[target].expected(kind),
                round=round_index,
            )
            for source, target in edges
        ]

    def sample(self, num_images: int, *, raw: bool = False) -> Tensor:
        return self.generators[0].sample(num_images, raw=raw)

    def losses(self, node: int) -> tuple[float, float] | None:
        d = self.discriminators.get(node)
        return None if d is None else (d.d_loss, d.g_loss)

    def codecs(self, node: int) -> dict[str, str]:
        used = dict(self.wires.choices[node].used)
        return used if self.controller is None else {**used, "period": str(self.controller.recipe.period)}

    def state(self, node: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        owner = self.discriminators.get(node) or self.generators[node]
        tensors, meta = self.team.state(node)
        return {**owner.state_dict(), **tensors}, {
            "choice": self.wires.choices[node].state_dict(),
            "team": meta,
            "controller": None if self.controller is None else self.controller.state_dict(),
        }

    def restore(self, node: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self.wires.choices[node].load_state_dict(meta["choice"])
        owner = self.discriminators.get(node) or self.generators[node]
        owner.load_state_dict(tensors)
        self.team.restore(node, tensors, meta["team"])
        if self.controller is not None:
            self.controller.load_state_dict(meta["controller"])
            self._follow()
