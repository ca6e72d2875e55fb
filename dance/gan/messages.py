"""Tensors as messages between nodes: encoded with round, sender and seed; decoded into fresh memory."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import dance
from dance.codecs import Codec
from dance.exchange import Exchange, Message
from dance.gan.config import codec_text
from dance.packet import Packet, derive_seed


@dataclass(frozen=True, kw_only=True)
class Post:
    """Where the messages of a run's nodes are made; `seed` is the run's."""

    exchange: Exchange
    seed: int

    def packet(self, tensor: Tensor, codec: Codec, source: int, kind: str, round_index: int) -> Packet:
        """`tensor` as the one packet of its kind that `source` sends this round, to one target or several."""
        seed = derive_seed(self.seed, round_index, source, kind, "packet")
        return stamped(dance.encode(tensor, codec, seed=seed), source, round_index)

    def message(
        self, tensor: Tensor, codec: Codec, source: int, target: int, kind: str, round_index: int
    ) -> Message:
        """`tensor` as a message; not to be changed before it is delivered."""
        # The target is part of the key: what one node sends to several is rounded independently.
        seed = derive_seed(self.seed, round_index, source, f"{kind}.{target}", "packet")
        packet = stamped(dance.encode(tensor, codec, seed=seed), source, round_index)
        return Message(source=source, target=target, kind=kind, packet=packet)

    @contextmanager
    def computing(self, node: int, share: float = 0.0) -> Iterator[None]:
        """Charge the block's time to the node's clock: simulated nodes share a processor, not a clock.

        `share`: which part of the node's training of a round the block is, for clocks that model it.
        """
        began = time.perf_counter()
        yield
        self.exchange.compute(node, time.perf_counter() - began, share)

    @contextmanager
    def computing_together(self, nodes: Collection[int], share: float = 0.0) -> Iterator[None]:
        """The same for a block that computes for all of `nodes` at once: each is charged its part."""
        began = time.perf_counter()
        yield
        each = (time.perf_counter() - began) / max(1, len(nodes))
        for node in nodes:
            self.exchange.compute(node, each, share)


def stamped(packet: Packet, source: int, round_index: int) -> Packet:
    """`packet` with its sender and round in the header."""
    packet.sender, packet.round = source, round_index
    return packet


def content(packet: Packet) -> Tensor:
    """What a packet decodes to, in memory that nobody else has."""
    out = torch.empty(packet.shape)
    dance.decode(packet, out=out)
    return out


def resolve(text: str, image_numel: int) -> Codec:
    """The codec of a text in which `block=image` may stand."""
    return dance.codec(codec_text(text, image_numel))
