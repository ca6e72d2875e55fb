"""The verbs of torch.distributed with a codec, error feedback and a policy (docs/collectives.md).

import dance.distributed as dd
dd.all_reduce(t, codec="int8")
"""

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
