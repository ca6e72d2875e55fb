"""What this rank keeps of a group: totals, the policy of "auto", the meters of links; and a probe."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from dance.bandwidth import LinkMeter
from dance.distributed.choice import policy_of
from dance.distributed.member import member_of
from dance.distributed.verbs import neighbor_exchange
from dance.policy import Policy

_PROBES = 3  # of each size
_PROBE_NUMELS = (1 << 14, 1 << 18)  # 64 KiB and 1 MiB: two sizes tell latency and rate apart


def stats(group: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """Returns running totals of this rank in ``group``: calls, compressed, direct, failed, nonfinite,
    bytes_sent, bytes_received, raw_bytes, seconds, encode_s, decode_s, check_s, wire_s, agreements,
    under_min_bytes, by_reason, by_codec, by_collective.
    """
    return member_of(group)[1].totals.read()


def policy(group: dist.ProcessGroup | None = None, *, feedback: bool = False) -> Policy:
    """Returns the policy that ``codec="auto"`` stands for in ``group``, in calls without or with feedback.

    It is made here if no call has. Its `explain` tells of any `Send` what it would choose and why, its log
    what it chose; `state_dict` and `load_state_dict` carry it to a resumed run (at all ranks alike).
    """
    found: Policy = policy_of(member_of(group)[1], "auto", feedback=feedback)
    return found


def links(group: dist.ProcessGroup | None = None) -> dict[int, LinkMeter]:
    """Returns the meters of the links to this rank, by the group rank at the other end; only to be read.

    Compressed collectives feed them: payload bytes and the seconds that these were on their way. A link that
    nothing came over yet is not in it. ValueError in a group without gloo, which moves no messages of ours.
    """
    member = member_of(group)[1]
    meters = dict(member.wire.links)
    return {source: meter for (source, target), meter in sorted(meters.items()) if target == member.rank}


def probe(group: dist.ProcessGroup | None = None) -> None:
    """Measures the link from the previous rank of the ring, for `links`, before there is anything to send.

    All ranks call it together. Each sends the next one 64 KiB and 1 MiB in turn, three times, uncompressed;
    the receiver times every payload from its header on. `stats` counts them as neighbor_exchange. In
    one small all-reduce the ranks then agree on the slowest link, which ``codec="auto"`` believes in until it
    has measured a call.
    """
    of, member = member_of(group)
    if member.world == 1:
        return
    following, previous = (member.rank + 1) % member.world, (member.rank - 1) % member.world
    for _ in range(_PROBES):
        for numel in _PROBE_NUMELS:
            came, sent = torch.empty(numel), torch.zeros(numel)
            neighbor_exchange([came], sent, [following], sources=[previous], codec="none", group=of)
    estimate = member.wire.links[previous, member.rank].estimate()
    slowest = torch.zeros(2, dtype=torch.float64)  # seconds of 10^6 bits, and of none
    if estimate is not None:
        slowest = torch.tensor([1.0 / estimate.rate_mbps, estimate.latency_s], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group=of)
    seconds, latency_s = slowest.tolist()
    for feedback in (False, True):
        auto = policy_of(member, "auto", feedback=feedback)
        if seconds > 0.0 and auto.link_estimate() is None:
            auto.believe(rate_mbps=1.0 / seconds, latency_s=latency_s)
