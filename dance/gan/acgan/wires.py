"""What all parts of one AC-GAN share: the exchange, the codecs of its nodes, and who is who."""

from __future__ import annotations

from dataclasses import dataclass

import dance
from dance.exchange import Exchange
from dance.gan.choice import POINT, Choice
from dance.gan.config import RunConfig
from dance.gan.messages import Post
from dance.gan.reports import Reports

# G-Node 0: the hub of gossip, of averages and of what data parallel workers exchange.
HUB = 0
NONE = dance.codec("none")


@dataclass(frozen=True, kw_only=True)
class Wires:
    """`choices` has the nodes of this process; `d_ids` are the D-Nodes, or workers, of the whole run."""

    exchange: Exchange
    post: Post
    choices: dict[int, Choice]
    reports: Reports
    g_ids: list[int]
    d_ids: list[int]

    @property
    def here(self) -> tuple[int, ...]:
        return self.exchange.nodes


def _texts(config: RunConfig, image_numel: int) -> dict[str, str]:
    """The codec of each kind of message, as the config names it."""
    settings = config.acgan
    texts = {
        "image": config.image_codec or ("int8" if image_numel <= POINT else "int4"),
        "feedback": config.feedback_codec,
        "gossip": config.gossip_codec or "sign",
        "delta": settings.sync_codec,
        "g-gossip": settings.sync_codec,
        "d-gradient": settings.gradient_codec,
        "g-gradient": settings.gradient_codec,
        "d-factor-p": settings.factor_codec,
        "d-factor-q": settings.factor_codec,
    }
    texts = {kind: config.codec or text for kind, text in texts.items()}
    return texts | ({"g-gradient": "none"} if settings.g_sync == "exact" else {})


def _phases(config: RunConfig) -> int:
    """Messages of a round that follow each other: images, what D-Nodes average up and down, feedback."""
    ways = {"parameters": 2, "gradient": 2 * config.local_steps, "low-rank": 4 * config.local_steps}
    return 2 + ways[config.aggregation]


def wires(config: RunConfig, exchange: Exchange, image_numel: int) -> Wires:
    """The wires of a run: G-Nodes (none where no hub is needed) come first, then D-Nodes."""
    num_generators = config.num_nodes - config.d_nodes
    post = Post(exchange=exchange, seed=config.seed)
    texts = _texts(config, image_numel)
    choices = {
        node: Choice(config, exchange, node, image_numel, texts, phases=_phases(config))
        for node in exchange.nodes
    }
    return Wires(
        exchange=exchange,
        post=post,
        choices=choices,
        reports=Reports(post, choices),
        g_ids=list(range(num_generators)),
        d_ids=list(range(num_generators, config.num_nodes)),
    )
