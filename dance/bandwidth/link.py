"""Access links of nodes: a rate, a delay or a trace, and the texts that name them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dance.bandwidth.generators import is_synthetic, parse_trace
from dance.bandwidth.groups import of_nodes
from dance.bandwidth.readers import read_trace
from dance.bandwidth.trace import Trace
from dance.bandwidth.units import BYTES_A_MEGABIT, parse_mbps, parse_seconds


@dataclass(frozen=True, kw_only=True, eq=False)
class Link:
    """The access link of one node: rates up and down in Mbit/s, one-way delay; a trace replaces the rates."""

    rate_mbps: float = math.inf
    down_mbps: float | None = None  # None: as up
    delay_s: float = 0.0
    trace: Trace | None = None

    def __post_init__(self) -> None:
        for what, rate in (("rate_mbps", self.rate_mbps), ("down_mbps", self.down_mbps)):
            if rate is not None and not rate > 0.0:
                raise ValueError(f"link: expected {what} above 0, got {rate}")
        if not 0.0 <= self.delay_s < math.inf:
            raise ValueError(f"link: expected a finite delay_s of at least 0, got {self.delay_s}")

    def sent_s(self, start_s: float, num_bytes: int) -> float:
        """Returns when ``num_bytes`` that start at ``start_s`` have gone up the link, without its delay."""
        return self._finish_s(start_s, num_bytes, self.rate_mbps)

    def received_s(self, start_s: float, num_bytes: int) -> float:
        """Returns when ``num_bytes`` that start at ``start_s`` have come down the link, without its delay."""
        down_mbps = self.rate_mbps if self.down_mbps is None else self.down_mbps
        return self._finish_s(start_s, num_bytes, down_mbps)

    def _finish_s(self, start_s: float, num_bytes: int, rate_mbps: float) -> float:
        if self.trace is not None:
            return self.trace.finish_s(start_s, num_bytes)
        return start_s + num_bytes / BYTES_A_MEGABIT / rate_mbps


def parse_link(text: str) -> Link:
    """Returns the link of a text, to which a delay may be added after a comma: ``10mbit,5ms``.

    ``10mbit``: a rate (kbit, mbit, gbit). ``10mbit/50mbit``: rates up and down. A path: the trace of that
    file (`read_trace`). ``steps:100,10,100@30s``, ``markov:100,10@10s,seed=1``, ``walk:20,volatility=0.2``,
    ``periodic:50,amplitude=0.8,period=60s``, ``cellular:20,deviation=0.5,seed=2``: a synthetic trace
    (`parse_trace`), with rates in Mbit/s.
    """
    head, comma, last = text.strip().rpartition(",")
    delay_s = parse_seconds(last) if comma else None
    rates = text.strip() if delay_s is None else head
    delay_s = delay_s or 0.0
    if is_synthetic(rates):
        return Link(trace=parse_trace(rates), delay_s=delay_s)
    mbps = [parse_mbps(rate) for rate in rates.split("/")]
    up, down = mbps[0], mbps[-1]
    if len(mbps) <= 2 and up is not None and down is not None:
        return Link(rate_mbps=up, down_mbps=down if len(mbps) == 2 else None, delay_s=delay_s)
    if Path(rates).is_file():
        return Link(trace=read_trace(rates), delay_s=delay_s)
    raise ValueError(
        f"link {text!r}: expected 10mbit,5ms or 10mbit/50mbit,5ms (up/down), a trace's path, or a synthetic "
        "trace such as steps:100,10@30s"
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Links:
    """The access links of all nodes: one for everybody, and those of nodes that differ."""

    default: Link = field(default_factory=Link)
    nodes: Mapping[int, Link] = field(default_factory=dict)

    def of(self, node: int) -> Link:
        return self.nodes.get(node, self.default)


def parse_links(text: str | None, num_nodes: int | None = None) -> Links:
    """Returns the access links of a text; None: without limit.

    With ``num_nodes`` it may have clauses for groups of nodes (`of_nodes`), and nodes that no clause names
    have no limit; without it is one link for everybody (`parse_link`).
    """
    if text is None:
        return Links()
    if num_nodes is None:
        return Links(default=parse_link(text))
    return Links(nodes=of_nodes(text, num_nodes, parse_link))
