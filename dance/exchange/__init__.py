"""One phase of messages between nodes, over a process group or over simulated links."""

from dance.exchange.message import Exchange, Expected, Message
from dance.exchange.process_group import ProcessGroupExchange
from dance.exchange.simulated import SimulatedExchange
from dance.exchange.traffic import Count, Meters, Traffic

__all__ = [
    "Count",
    "Exchange",
    "Expected",
    "Message",
    "Meters",
    "ProcessGroupExchange",
    "SimulatedExchange",
    "Traffic",
]
