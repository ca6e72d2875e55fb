"""The flat vectors of gossip: what is accepted as one, and the packet of what a public copy lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dance.codecs import Codec
from dance.coding import encode_difference
from dance.errors import NonFiniteError
from dance.packet import Packet, derive_seed


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What the seed and the header of a packet are made of."""

    run_seed: int
    round: int
    sender: int
    key: str

    @property
    def seed(self) -> int:
        return derive_seed(self.run_seed, self.round, self.sender, self.key, "gossip")


def encode_stamped(
    x: torch.Tensor, reference: torch.Tensor, codec: Codec, stamp: Stamp, nonfinite: str, out: Packet | None
) -> Packet:
    """Returns `encode_difference` with what ``stamp`` says, in the memory of ``out`` if it fits."""
    fits = out is not None and out.codec == codec and out.shape == tuple(x.shape)
    packet = encode_difference(
        x, reference, codec, seed=stamp.seed, nonfinite=nonfinite, out=out if fits else None
    )
    packet.round, packet.sender = stamp.round, stamp.sender
    return packet


def check_theta(theta: torch.Tensor) -> None:
    if theta.dtype != torch.float32 or theta.dim() != 1 or not theta.is_contiguous():
        raise ValueError(
            "gossip: expected one flat contiguous float32 tensor, "
            f"got {theta.dtype} of shape {tuple(theta.shape)}"
        )
    if theta.device.type != "cpu":
        raise ValueError(f"gossip: expected a tensor on the CPU, got one on {theta.device}; move it first")


def check_reference(theta: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    if reference is None:
        return theta.detach()
    check_theta(reference)
    if reference.shape != theta.shape:
        raise ValueError(
            f"gossip: expected a reference like theta {tuple(theta.shape)}, got {tuple(reference.shape)}"
        )
    return reference.detach()


def check_finite(theta: torch.Tensor, node: int, nonfinite: str) -> None:
    """Raises NonFiniteError before anything is encoded, unless ``nonfinite`` is "zero".

    An encode that raises has already moved the public copy, which nobody else would get to see.
    """
    theta = theta.detach()
    if nonfinite != "raise" or theta.numel() == 0:
        return
    low, high = torch.aminmax(theta)  # NaN if any is
    if math.isfinite(low) and math.isfinite(high):
        return
    index = int(torch.isfinite(theta).logical_not().nonzero()[0])
    raise NonFiniteError(
        f"gossip: element {index} of node {node} is {float(theta[index])}; nothing was sent: mend it and go "
        "on, or pass nonfinite='zero'",
        index,
    )


def load_vectors(vectors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Copies ``state`` into ``vectors``; ValueError where one is missing or has another shape."""
    for name, vector in vectors.items():
        if name not in state or state[name].shape != vector.shape:
            raise ValueError(
                f"gossip: the state has no {name} of {tuple(vector.shape)}; is it another graph or model?"
            )
    for name, vector in vectors.items():
        vector.copy_(state[name])
