"""Which codec each of a node's messages takes: the one that the config names, or what a policy chooses."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from dance.bandwidth import LinkEstimate, LinkMeter, Measured
from dance.codecs import Codec
from dance.exchange import Exchange
from dance.gan.config import RunConfig, image_block
from dance.gan.messages import resolve
from dance.policy import Auto, Send

# Images of so few numbers are points in the plane, whose 16 steps in a direction would show.
POINT = 2
_ROUND_MS = 100.0  # where the config has none
# By kind of message, least lossy first; `image` stands for the block of one scale an image. Images bear no
# sign; gossip through a hub bears no 1 % top-k (it ends in NaN); a model that takes another's place, or half
# of it, bears nothing coarser than int8; with error feedback a gradient bears int4 and a model's difference
# sign.
_MODEL = ("none", "fp16", "int8")
_CANDIDATES = {
    "image": (*_MODEL, "int4"),
    "point": _MODEL,
    "feedback": ("none", "fp16", "int8", "sign:block=image"),
    "gossip": ("none", "fp16", "int8", "sign"),
    **dict.fromkeys(("delta", "step", "g-gossip"), (*_MODEL, "int4", "sign")),
    **dict.fromkeys(("d-gradient", "g-gradient"), (*_MODEL, "int4")),
}


class Choice:
    """The codecs of one node: a text for each kind of message; with "auto" a policy chooses for each kind and
    group of receivers, within the time that a round's messages may take, an equal share for each of `phases`.

    The way to a peer is judged by what the peer reported of it (dance.gan.reports), until then by the meter
    of the way back.
    """

    def __init__(
        self,
        config: RunConfig,
        exchange: Exchange,
        node: int,
        image_numel: int,
        texts: Mapping[str, str],
        *,
        phases: int,
    ) -> None:
        self.texts = dict(texts)
        self.fixed = {kind: resolve(text, image_numel) for kind, text in self.texts.items() if text != "auto"}
        self.used: dict[str, str] = {}
        self.exchange = exchange
        self.node = node
        self.reported: dict[int, LinkEstimate] = {}  # what peers measured of the way to them
        self.candidates = {
            kind: tuple(
                text.replace("block=image", f"block={image_block(image_numel)}")
                for text in _CANDIDATES.get(
                    "point" if kind == "image" and image_numel <= POINT else kind, _MODEL
                )
            )
            for kind in self.texts
        }
        self._budget_s = (config.round_ms or _ROUND_MS) / 1e3 / phases
        self._policy = Auto(self.candidates)

    @property
    def is_auto(self) -> bool:
        """Whether a policy chooses any codec; equal at all nodes of a run."""
        return any(kind not in self.fixed for kind in self.texts)

    def send_only(self, kinds: Container[str]) -> None:
        """From now on there are no messages of other kinds, for which a policy would need to know links."""
        self.texts = {kind: text for kind, text in self.texts.items() if kind in kinds}

    def expected(self, kind: str) -> Codec | None:
        """What a receiver may insist on; None where the sender chooses."""
        return self.fixed.get(kind)

    def codec(
        self, kind: str, numel: int, round_index: int, peers: Sequence[int], *, every: int = 1
    ) -> Codec:
        """The codec of one packet of `numel` elements to all of `peers`, sent once in `every` rounds, whose
        time it may take; the slowest link counts.
        """
        codec = self.fixed.get(kind)
        if codec is None:
            send = Send(
                kind=kind,
                target=",".join(map(str, peers)),
                round=round_index,
                numel=numel,
                links=[self._link(peer) for peer in peers],
                budget_s=self._budget_s * every,
            )
            codec = self._policy.choose(send)
        self.used[kind] = str(codec)
        return codec

    def _link(self, peer: int) -> Measured:
        # A link without a meter yet is as good as an empty meter: the policy sends the smallest packet.
        return self.reported.get(peer) or self.exchange.links.get((peer, self.node), LinkMeter())

    def state_dict(self) -> dict[str, Any]:
        reported = [[peer, vars(link)] for peer, link in sorted(self.reported.items())]
        return {"policy": self._policy.state_dict(), "used": dict(self.used), "reported": reported}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._policy.load_state_dict(state["policy"])
        self.used = dict(state["used"])
        self.reported = {int(peer): LinkEstimate(**values) for peer, values in state["reported"]}
