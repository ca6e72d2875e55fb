"""Compressed gossip (CHOCO, Koloskova et al. 2019): nodes average parameters in compressed packets."""

from dance.gossip.choco import ChocoGossip
from dance.gossip.guard import DivergenceGuard
from dance.gossip.hub import HubNode, HubRelay
from dance.gossip.node import GossipNode, GossipOptions
from dance.gossip.step_size import default_step_size, theory_step_size

__all__ = [
    "ChocoGossip",
    "DivergenceGuard",
    "GossipNode",
    "GossipOptions",
    "HubNode",
    "HubRelay",
    "default_step_size",
    "theory_step_size",
]
