"""FSDP2 with compressed collectives: gradients are reduce-scattered, and weights gathered, through a codec.

As in ZeRO++ (Wang et al. 2023) and QSDP (Markov et al. 2023), with error feedback for the gradients on top.
"""

from dance.fsdp.attach import attach
from dance.fsdp.compression import Compression

__all__ = ["Compression", "attach"]
