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
    """The codecs of one node. With "auto" a policy for each kind and group of receivers.

    A meter sits at the receiving end of a link. A sender therefore judges its way to a peer by the way back,
    which is right for links with equal rates in both directions, and too hopeful for others.
    """

    def __init__(self, config: RunConfig, exchange: Exchange, node: int, image_numel: int) -> None:
        texts = {
            "image": config.image_codec,
            "feedback": config.feedback_codec,
            "gossip": config.gossip_codec,
        }
        self.texts = {kind: config.codec or text for kind, text in texts.items()}
        self.fixed = {kind: resolve(text, image_numel) for kind, text in self.texts.items() if text != "auto"}
        self.used: dict[str, str] = {}
        self.exchange = exchange
        self.node = node
        self._budget_s = config.round_ms / 1e3 / _PHASES
        per_image = f"sign:block={image_block(image_numel)}"
        # Least lossy first. Images bear no sign; gossip through a hub bears no 1 % top-k (it ends in NaN).
        self._candidates = {
            "image": ("none", "fp16", "int8"),
            "feedback": ("none", "fp16", "int8", per_image),
            "gossip": ("none", "fp16", "int8", "sign"),
        }
        self._policies: dict[str, Auto] = {}

    def expected(self, kind: str) -> Codec | None:
        """What a receiver may insist on; None where the sender chooses."""
        return self.fixed.get(kind)

    def codec(self, kind: str, numel: int, round_index: int, peers: Sequence[int]) -> Codec:
        """The codec of one packet of `numel` elements to all of `peers`; the slowest link counts."""
        codec = self.fixed.get(kind)
        if codec is None:
            # A link without a meter yet is as good as an empty meter: the policy sends the smallest packet.
            links = [self.exchange.links.get((peer, self.node), LinkMeter()) for peer in peers]
            send = Send(kind=kind, round=round_index, numel=numel, links=links, budget_s=self._budget_s)
            codec = self._policy(kind, peers).choose(send)
        self.used[kind] = str(codec)
        return codec

    def _policy(self, kind: str, peers: Sequence[int]) -> Auto:
        key = f"{kind} to {','.join(map(str, peers))}"
        if key not in self._policies:
            self._policies[key] = Auto(self._candidates[kind])
        return self._policies[key]

    def state_dict(self) -> dict[str, Any]:
        return {key: policy.state_dict() for key, policy in self._policies.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for key, policy_state in state.items():
            self._policies[key] = Auto(self._candidates[key.split()[0]])
            self._policies[key].load_state_dict(policy_state)
