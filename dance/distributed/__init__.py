"""The verbs of torch.distributed with a codec, error feedback and a policy (docs/collectives.md).

import dance.distributed as dd
dd.all_reduce(t, codec="int8")
"""

from typing import Any

import torch.distributed

from dance.distributed.kept import links, policy, probe, stats
from dance.distributed.verbs import (
    all_gather,
    all_gather_into_tensor,
    all_reduce,
    all_reduce_coalesced,
    all_to_all_single,
    broadcast,
    neighbor_exchange,
    reduce_scatter_tensor,
)
from dance.distributed.work import CallStats, Work

__all__ = [
    "CallStats",
    "Work",
    "all_gather",
    "all_gather_into_tensor",
    "all_reduce",
    "all_reduce_coalesced",
    "all_to_all_single",
    "broadcast",
    "links",
    "neighbor_exchange",
    "policy",
    "probe",
    "reduce_scatter_tensor",
    "stats",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Tells what there is instead of one of torch's verbs that is not here."""
    if name.startswith("_") or not callable(getattr(torch.distributed, name, None)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    near = {"reduce_scatter": "reduce_scatter_tensor", "all_to_all": "all_to_all_single"}.get(name)
    remedy = f"use dance.distributed.{near}" if near else f"use torch.distributed.{name}"
    raise AttributeError(f"dance.distributed has no compressed {name}; {remedy}")
