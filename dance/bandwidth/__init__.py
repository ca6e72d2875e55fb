"""What a link can carry: links with a rate, a delay or a trace, and a meter that estimates it."""

from dance.bandwidth.generators import cellular, markov, parse_trace, periodic, steps, walk
from dance.bandwidth.link import Link, Links, parse_link, parse_links
from dance.bandwidth.meter import LinkEstimate, LinkMeter, Measured
from dance.bandwidth.readers import read_trace
from dance.bandwidth.trace import Trace

__all__ = [
    "Link",
    "LinkEstimate",
    "LinkMeter",
    "Links",
    "Measured",
    "Trace",
    "cellular",
    "markov",
    "parse_link",
    "parse_links",
    "parse_trace",
    "periodic",
    "read_trace",
    "steps",
    "walk",
]
