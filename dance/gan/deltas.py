"""Models that travel as differences to the last average, with error feedback: both ends hold that average.

With P_i the model of worker i, a_i its weight, and ref the average that all of them hold:
    worker:  e_i += P_i - ref;  q_i = C(e_i);  e_i -= q_i;  send q_i
    server:  u = sum_i a_i q_i + e_s;  p = C(u);  e_s = u - p;  send p to all
    all:     ref += p;  P_i = ref
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

import dance
from dance.codecs import Codec
from dance.packet import Packet


class Deltas:
    """What one node remembers: `reference`, equal at all nodes, and `residual`, what its packets lost."""

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference.clone()
        self.residual = torch.zeros_like(reference)

    def out(self, difference: Tensor, codec: Codec, seed: int) -> Packet:
        """The packet of a difference to `reference`; what it loses stays in `residual`, changed in place."""
        return dance.encode_feedback(difference, self.residual, codec, seed=seed)

    def in_(self, packet: Packet) -> Tensor:
        """Moves `reference`, in place, by the server's packet, and returns it."""
        dance.decode(packet, out=self.reference, add=True)
        return self.reference

    def state_dict(self) -> dict[str, Tensor]:
        return {"reference": self.reference, "residual": self.residual}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.reference.copy_(state["reference"])
        self.residual.copy_(state["residual"])
