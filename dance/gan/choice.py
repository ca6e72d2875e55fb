"""Which codec each of a node's messages takes: the one that the config names, or what a policy chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dance.bandwidth import LinkMeter
from dance.codecs import Codec
from dance.exchange import Exchange
from dance.gan.config import RunConfig, image_block
from dance.gan.messages import resolve
from dance.policy import Auto, Send

# Messages of a round that follow each other: images, gossip up, gossip down, feedback.
_PHASES = 4


class Choice:
    """The codecs of one node. With "auto" a policy chooses for each kind and group of receivers.

    It judges the way to a peer by the meter of the way back (dance.policy).
    """

    def __init__(self, config: RunConfig, exchange: Exchange, node: int, image_numel: int) -> None:
        settings = config.acgan
        texts = {
            "image": config.image_codec,
            "feedback": config.feedback_codec,
            "gossip": config.gossip_codec,
            "model": settings.sync_codec,
            "g-gossip": settings.sync_codec,
            "d-gradient": settings.gradient_codec,
            "g-gradient": settings.gradient_codec,
        }
        self.texts = {kind: config.codec or text for kind, text in texts.items()}
        if settings.g_sync == "exact":
            self.texts["g-gradient"] = "none"
        self.fixed = {kind: resolve(text, image_numel) for kind, text in self.texts.items() if text != "auto"}
        self.used: dict[str, str] = {}
        self.exchange = exchange
        self.node = node
        per_image = f"sign:block={image_block(image_numel)}"
        # Least lossy first. Images bear no sign; gossip through a hub bears no 1 % top-k (it ends in NaN).
        models = ("none", "fp16", "int8", "int4")
        self.candidates = {
            "model": models,
            "g-gossip": models,
            "d-gradient": models,
            "g-gradient": models,
            "image": ("none", "fp16", "int8"),
            "feedback": ("none", "fp16", "int8", per_image),
            "gossip": ("none", "fp16", "int8", "sign"),
        }
        self._budget_s = config.round_ms / 1e3 / _PHASES
        self._policy = Auto(self.candidates)
        # What is sent once in a period may take a whole period's share of the time.
        self._periods = {"model": settings.sync_period, "g-gossip": settings.sync_period}

    def expected(self, kind: str) -> Codec | None:
        """What a receiver may insist on; None where the sender chooses."""
        return self.fixed.get(kind)

    def codec(self, kind: str, numel: int, round_index: int, peers: Sequence[int]) -> Codec:
        """The codec of one packet of `numel` elements to all of `peers`; the slowest link counts."""
        codec = self.fixed.get(kind)
        if codec is None:
            # A link without a meter yet is as good as an empty meter: the policy sends the smallest packet.
            links = [self.exchange.links.get((peer, self.node), LinkMeter()) for peer in peers]
            target = ",".join(map(str, peers))
            budget_s = self._budget_s * self._periods.get(kind, 1)
            send = Send(
                kind=kind, target=target, round=round_index, numel=numel, links=links, budget_s=budget_s
            )
            codec = self._policy.choose(send)
        self.used[kind] = str(codec)
        return codec

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self._policy.state_dict(), "used": dict(self.used)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._policy.load_state_dict(state["policy"])
        self.used = dict(state["used"])
