"""Which recipe all nodes of an AC-GAN follow now: the one that reaches the target first over the links as
they are measured, by a forecast (dance.gan.forecast) or looked up in a table (dance.gan.recipes).

Every `DWELL` rounds each D-Node tells the hub what it measured of the way from there; the hub knows the way
back by its own meters, judges by the slowest links and answers with a recipe's number. Then all change
together: those codecs that the config leaves to "auto", the gossip's period, and with the codec its step
size. A link is what its meter believes since the last change that it noticed (dance.bandwidth), its rate
less 0.84 of its standard deviation: the lower fifth. It costs 96 bytes up for each D-Node and 72 down for
each node, each time. Links of G-Nodes other than the hub are not judged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

import dance
from dance.bandwidth import LinkEstimate
from dance.codecs import Codec
from dance.errors import PeerError
from dance.exchange import Expected, Message
from dance.gan.choice import POINT, Choice
from dance.gan.config import RunConfig
from dance.gan.forecast import Forecast, RoundTraffic
from dance.gan.messages import Post, content, resolve
from dance.gan.recipes import KINDS, Recipe, RecipeTable, read_recipes
from dance.gan.reports import Reports
from dance.gan.rounds import ROUNDS

HUB = 0
DWELL = 30  # a multiple of every period, so that each window has as many gossips a round
RECIPE = "recipe"
_GAIN = 0.04  # another recipe must promise so much, or noise would make recipes come and go
_QUANTILE = 0.84  # standard deviations below the mean: the lower fifth of a normal rate
_NONE = dance.codec("none")
_LOG = logging.getLogger("dance.gan")


def guide_of(
    config: RunConfig, texts: Mapping[str, str], image_numel: int, theta_numel: int
) -> RecipeTable | Forecast:
    """What the recipes of a run are chosen by: its table, or a forecast.

    `texts`: its codecs by kind, which take a recipe's place where they are not "auto"; `theta_numel`:
    parameters of a discriminator.
    """
    if config.table is not None:
        return read_recipes(config.table)
    batches = config.g_nodes if config.acgan.attachment == "all" else 1
    batch_numel = (config.acgan.fake_batch_size or config.batch_size) * image_numel

    rounds: dict[Recipe, float] = {}
    traffic: list[RoundTraffic] = []
    known: set[tuple[str, ...]] = set()
    for recipe, needed in sorted(ROUNDS.items(), key=lambda each: -each[1]):
        codecs = {
            kind: recipe_codec(recipe, kind, image_numel)
            if texts[kind] == "auto"
            else resolve(texts[kind], image_numel)
            for kind in KINDS
        }
        sent = (*map(str, codecs.values()), str(recipe.period))
        # Equal but for what stays as it is: the rounds that a finer codec there would save are not to be had.
        if sent in known:
            continue
        known.add(sent)
        rounds[recipe] = needed
        gossip = codecs["gossip"].packet_nbytes(theta_numel) / recipe.period
        traffic.append(
            RoundTraffic(
                down=batches * codecs["image"].packet_nbytes(batch_numel) + gossip,
                up=batches * codecs["feedback"].packet_nbytes(batch_numel) + gossip,
                messages=1 + 1 / recipe.period,
            )
        )
    return Forecast(rounds, traffic, config.d_nodes)


def _cautious(link: LinkEstimate) -> LinkEstimate:
    """The same with the lower fifth of its rate."""
    mbps = max(link.rate_mbps - _QUANTILE * link.rate_deviation_mbps, 0.1 * link.rate_mbps)
    return replace(link, rate_mbps=mbps)


def recipe_codec(recipe: Recipe, kind: str, image_numel: int) -> Codec:
    """The codec of a kind of message of a recipe, for images of so many elements."""
    text = getattr(recipe, kind)
    if kind == "image" and image_numel <= POINT and text == "int4":
        text = "int8"  # as the config's default: 16 steps in a direction would show
    return resolve(text, image_numel)


class Controller:
    """Sets the codecs of `choices`, this process's, that are left to "auto"; begins with a cautious recipe.

    `image_numel`: elements of one image, by which block=image is resolved.
    """

    def __init__(
        self,
        guide: RecipeTable | Forecast,
        post: Post,
        choices: Mapping[int, Choice],
        d_ids: Sequence[int],
        image_numel: int,
    ) -> None:
        self.guide = guide
        self.forecast = guide if isinstance(guide, Forecast) else None
        self.post = post
        self.choices = choices
        self.d_ids = list(d_ids)
        self.image_numel = image_numel
        self.reports = Reports(post, choices)
        self.index = guide.first
        for choice in choices.values():
            choice.send_only(KINDS)
        self._set()

    @property
    def recipe(self) -> Recipe:
        return self.guide.recipes[self.index]

    def tick(self, round_index: int) -> bool:
        """Before a round: now and then, what is measured there, and a recipe back; whether that was now."""
        if HUB in self.choices and self.forecast is not None and not self.forecast.begun:
            self.forecast.begin(round_index, self.post.exchange.elapsed_s(HUB))
        if round_index == 0 or round_index % DWELL:
            return False
        ways = [(node, HUB) for node in self.d_ids]
        self.reports.deliver([], [], ways, round_index, due=True)
        targets = [node for node in range(self.post.exchange.num_nodes) if node != HUB]
        outbox: list[Message] = []
        if HUB in self.choices:
            self._decide(round_index)
            told = torch.tensor([self.index, self.guide.digest], dtype=torch.float32)
            packet = self.post.packet(told, _NONE, HUB, RECIPE, round_index)
            outbox = [Message(source=HUB, target=node, kind=RECIPE, packet=packet) for node in targets]
        expected = [
            Expected(source=HUB, target=node, kind=RECIPE, shape=(2,), codec=_NONE, round=round_index)
            for node in targets
            if node in self.choices
        ]
        for message in self.post.exchange.deliver(outbox, expected):
            index, digest = map(int, content(message.packet).tolist())
            if digest != self.guide.digest or not 0 <= index < len(self.guide.recipes):
                raise PeerError(
                    f"node {message.target} and node {HUB} know different recipes; give all the same --table "
                    "and run the same version of dance"
                )
            self.index = index
        self._set()
        return True

    def _decide(self, round_index: int) -> None:
        """At the hub: the best recipe for the slowest links, if it promises enough."""
        links = self._slowest()
        if links is None:
            return
        if self.forecast is not None:
            self.forecast.note(round_index, self.post.exchange.elapsed_s(HUB), self.index, *links)
            if not self.forecast.measured:
                return
        down, up = map(_cautious, links)
        seconds = self.guide.seconds_over(down, up)
        best = int(seconds.argmin())
        if seconds[best] < (1.0 - _GAIN) * seconds[self.index]:
            _LOG.info(
                "round %d: %.3g Mbit/s down, %.3g up: from %s to %s",
                round_index,
                down.rate_mbps,
                up.rate_mbps,
                self.recipe,
                self.guide.recipes[best],
            )
            self.index = best

    def _slowest(self) -> tuple[LinkEstimate, LinkEstimate] | None:
        """The slowest way down and up; one stands for the other where nothing is known of that."""
        links = self.post.exchange.links
        measured = [links[node, HUB].estimate() for node in self.d_ids if (node, HUB) in links]
        ups = [link for link in measured if link is not None]
        downs = list(self.choices[HUB].reported.values())
        if not (ups or downs):
            return None
        down, up = (min(ways, key=lambda way: way.rate_mbps) for ways in (downs or ups, ups or downs))
        return down, up

    def _set(self) -> None:
        for choice in self.choices.values():
            for kind in KINDS:
                if choice.texts[kind] == "auto":
                    choice.fixed[kind] = recipe_codec(self.recipe, kind, self.image_numel)

    def state_dict(self) -> dict[str, Any]:
        forecast = None if self.forecast is None else self.forecast.state_dict()
        return {"recipe": self.index, "digest": self.guide.digest, "forecast": forecast}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state; ValueError where it is of a run with another table."""
        if state["digest"] != self.guide.digest:
            raise ValueError(
                "recipes: not those that the run began with; resume with its version of dance, and with its "
                "--table if it had one"
            )
        if self.forecast is not None:
            self.forecast.load_state_dict(state["forecast"])
        self.index = int(state["recipe"])
        self._set()
