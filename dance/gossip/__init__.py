"""Compressed gossip (CHOCO, Koloskova et al. 2019): nodes average parameters in compressed packets."""

from dance.gossip.choco import ChocoGossip
from dance.gossip.guard import DivergenceGuard
from dance.gossip.hub import HubNode, HubRelay
from dance.gossip.node import GossipNode
from dance.gossip.options import GossipOptions
from dance.gossip.pace import AGREE_EVERY
from dance.gossip.step_size import default_step_size, theory_step_size

__all__ = [
    "AGREE_EVERY",
    "ChocoGossip",
    "DivergenceGuard",
    "GossipNode",
    "GossipOptions",
    "HubNode",
    "HubRelay",
    "default_step_size",
    "theory_step_size",
]
