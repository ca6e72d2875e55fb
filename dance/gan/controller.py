"""Which recipe all nodes of an AC-GAN follow now: looked up in a table for the links as they are measured.

Every `DWELL` rounds each D-Node tells the hub what it measured of the way from there; the hub knows the way
back by its own meters, looks up the slowest link and answers with a recipe's number. Then all change
together: codecs, the gossip's period, and with the codec its step size. A link is what its meter believes
since the last change that it noticed (dance.bandwidth), its rate less 0.84 of its standard deviation: the
lower fifth. It costs 96 bytes up and 72 down for each D-Node, every 20 rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import dance
from dance.bandwidth import LinkEstimate
from dance.errors import PeerError
from dance.exchange import Expected, Message
from dance.gan.choice import Choice
from dance.gan.messages import Post, content, resolve
from dance.gan.recipes import Recipe, RecipeTable
from dance.gan.reports import Reports

HUB = 0
DWELL = 20
RECIPE = "recipe"
_GAIN = 0.04  # another recipe must promise so much, or noise would make recipes come and go
_QUANTILE = 0.84  # standard deviations below the mean: the lower fifth of a normal rate
_NONE = dance.codec("none")
_LOG = logging.getLogger("dance.gan")


class Controller:
    """Sets the codecs of `choices`, this process's; the first recipe is that of the slowest link."""

    def __init__(
        self,
        table: RecipeTable,
        post: Post,
        choices: Mapping[int, Choice],
        d_ids: Sequence[int],
        image_numel: int,
    ) -> None:
        self.table = table
        self.post = post
        self.choices = choices
        self.d_ids = list(d_ids)
        self.image_numel = image_numel
        self.reports = Reports(post, choices)
        self.index = int(table.seconds[0, -1].argmin())
        self._set()

    @property
    def recipe(self) -> Recipe:
        return self.table.recipes[self.index]

    def tick(self, round_index: int) -> bool:
        """Before a round: now and then, what is measured there, and a recipe back; whether that was now."""
        if round_index == 0 or round_index % DWELL:
            return False
        ways = [(node, HUB) for node in self.d_ids]
        self.reports.deliver([], [], ways, round_index, due=True)
        targets = [node for node in range(self.post.exchange.num_nodes) if node != HUB]
        outbox: list[Message] = []
        if HUB in self.choices:
            self._decide(round_index)
            told = torch.tensor([self.index, self.table.digest], dtype=torch.float32)
            packet = self.post.packet(told, _NONE, HUB, RECIPE, round_index)
            outbox = [Message(source=HUB, target=node, kind=RECIPE, packet=packet) for node in targets]
        expected = [
            Expected(source=HUB, target=node, kind=RECIPE, shape=(2,), codec=_NONE, round=round_index)
            for node in targets
            if node in self.choices
        ]
        for message in self.post.exchange.deliver(outbox, expected):
            index, digest = map(int, content(message.packet).tolist())
            if digest != self.table.digest or not 0 <= index < len(self.table.recipes):
                raise PeerError(
                    f"node {message.target} and node {HUB} have different tables; give all the same --table"
                )
            self.index = index
        self._set()
        return True

    def _decide(self, round_index: int) -> None:
        """At the hub: the best recipe for the slowest link, if it promises enough."""
        link = self._slowest()
        if link is None:
            return
        mbps = max(link.rate_mbps - _QUANTILE * link.rate_deviation_mbps, 0.1 * link.rate_mbps)
        seconds = self.table.at(mbps, link.deviation)
        best = int(seconds.argmin())
        if seconds[best] < (1.0 - _GAIN) * seconds[self.index]:
            _LOG.info(
                "round %d: %.3g Mbit/s, deviation %.0f%%: from %s to %s",
                round_index,
                mbps,
                100 * link.deviation,
                self.recipe,
                self.table.recipes[best],
            )
            self.index = best

    def _slowest(self) -> LinkEstimate | None:
        links = self.post.exchange.links
        up = [links[node, HUB].estimate() for node in self.d_ids if (node, HUB) in links]
        known = [link for link in (*up, *self.choices[HUB].reported.values()) if link is not None]
        return min(known, key=lambda link: link.rate_mbps, default=None)

    def _set(self) -> None:
        for choice in self.choices.values():
            for kind in ("gossip", "image", "feedback"):
                choice.fixed[kind] = resolve(getattr(self.recipe, kind), self.image_numel)

    def state_dict(self) -> dict[str, Any]:
        return {"recipe": self.index, "digest": self.table.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; ValueError where it is of a run with another table."""
        if state["digest"] != self.table.digest:
            raise ValueError("table: not the one that the run began with; resume with that --table")
        self.index = int(state["recipe"])
        self._set()
