"""A world for policies to be driven in, as `dance.distributed` does: closed-form links and coding speeds.

It knows how long everything takes, which no policy does: what a call takes follows from the plan, the link at
that time, coding speeds, a fixed time a call, noise, and how much later than the others each rank begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dance.bandwidth import Trace
from dance.codec_speed import Speed
from dance.codecs import Codec
from dance.plan import plan
from dance.policy import Figures, Outcome, Policy, Send

# Seconds an element to encode and decode, about what one core of 2026 does from memory.
SPEEDS = {
    "none": (0.0, 0.0),
    "fp16": (0.40e-9, 0.40e-9),
    "bf16": (0.30e-9, 0.30e-9),
    "int8": (0.25e-9, 0.20e-9),
    "int4": (0.25e-9, 0.25e-9),
    "sign": (0.25e-9, 0.20e-9),
    "topk": (0.50e-9, 0.10e-9),
}


def steady(mbps: float) -> Trace:
    return Trace(times_s=np.array([0.0]), mbps=np.array([mbps]))


def steps(*pairs: tuple[float, float]) -> Trace:
    """A trace of (Mbit/s, seconds)."""
    starts = np.concatenate(([0.0], np.cumsum([seconds for _, seconds in pairs])))
    rates = [mbps for mbps, _ in pairs]
    return Trace(times_s=starts, mbps=np.array([*rates, rates[-1]]))


@dataclass(kw_only=True)
class World:
    """world ranks, all behind links of one trace."""

    trace: Trace
    world: int = 2
    latency_s: float = 1e-4  # of a phase
    call_s: float = 3e-4  # of a compressed call, beside coding and wire
    direct_call_s: float = 5e-5
    direct_share: float = 0.93  # of the link's rate that torch's own collectives reach ...
    direct_mbps: float = 1.6e4  # ... and their limit
    wire_mbps: float = 2.4e4  # the limit of compressed messages
    speeds: Mapping[str, tuple[float, float]] = field(default_factory=lambda: SPEEDS)
    noise: float = 0.03
    stall: float = 0.0  # the share of calls that take three times as long
    cold: float = 2.0  # how many times as long the first call of each codec takes, up to 20 ms more
    late_s: float = 0.0  # how much later than the first a rank may begin
    compute_s: float = 0.0  # between calls
    seed: int = 0
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.seen: set[Codec] = set()

    def speed(self, codec: Codec) -> Speed:
        encode_s, decode_s = self.speeds[codec.name]
        return Speed(encode_s=encode_s, decode_s=decode_s)

    def _noisy(self, seconds: float) -> float:
        seconds *= math.exp(self.noise * self.rng.standard_normal())
        return 3.0 * seconds if self.rng.random() < self.stall else seconds

    def call(self, send: Send, codec: Codec) -> list[Outcome]:
        """Takes the time of a call and returns what each rank measures of it."""
        parts = plan(send.kind, codec, send.numel, send.world, dtype=send.dtype)
        lates = self.rng.random(self.world) * self.late_s
        begin_s = self.now_s + float(lates.max())
        direct = parts.algorithm == "direct"
        share, limit = (self.direct_share, self.direct_mbps) if direct else (1.0, self.wire_mbps)
        wire_s = self.trace.finish_s(begin_s, parts.bytes_sent / share) - begin_s
        wire_s = self._noisy(max(wire_s, parts.bytes_sent * 8e-6 / limit) + parts.phases * self.latency_s)
        speed = self.speed(codec)
        encode_s = parts.encoded * speed.encode_s * math.exp(self.noise * self.rng.standard_normal())
        decode_s = parts.decoded * speed.decode_s * math.exp(self.noise * self.rng.standard_normal())
        longer, shorter = max(wire_s, encode_s + decode_s), min(wire_s, encode_s + decode_s)
        seconds = longer + shorter / parts.chunks + self._noisy(self.direct_call_s if direct else self.call_s)
        if codec not in self.seen:
            self.seen.add(codec)
            seconds += min((self.cold - 1.0) * seconds, 0.02)
        self.now_s = begin_s + seconds + self.compute_s
        return [
            Outcome(
                seconds=seconds + float(lates.max() - late),
                encode_s=encode_s,
                decode_s=decode_s,
                wire_bytes=0 if direct else parts.bytes_sent,
                wire_s=None if direct else wire_s * (1.0 + 0.01 * float(self.rng.random())),
            )
            for late in lates
        ]

    def share(self, *, hidden: bool) -> None:
        """Takes the time of an exchange of figures; where it is due later, a call hides its wire."""
        self.now_s += 1e-4 if hidden else 2e-4 + 2.0 * self.latency_s


@dataclass(kw_only=True)
class Drive:
    """What came of driving a policy: the codec of each call, when it ended, and the time it all took."""

    codecs: list[Codec] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    num_shares: int = 0

    @property
    def names(self) -> list[str]:
        return [codec.name for codec in self.codecs]


def drive(
    world: World,
    make: Callable[[], Policy],
    sends: Sequence[tuple[int, str]] | int,
    *,
    calls: int | None = None,
    until_s: float | None = None,
    feedback: bool = False,
) -> Drive:
    """Drives one policy a rank through calls: ``sends`` is a numel, or (numel, key) in turn."""
    turns = [(sends, "")] if isinstance(sends, int) else list(sends)
    policies = [make() for _ in range(world.world)]
    done, number = Drive(), 0
    pending: dict[int, Figures] = {}  # by the call before which they are handed over
    while (calls is None or number < calls) and (until_s is None or world.now_s < until_s):
        number += 1
        numel, key = turns[(number - 1) % len(turns)]
        send = Send(
            kind="all_reduce", target=key, round=number, numel=numel, world=world.world, feedback=feedback
        )
        if number in pending:
            for policy in policies:
                policy.agree(pending[number])
        chosen = {policy.choose(send) for policy in policies}
        assert len(chosen) == 1, f"ranks chose differently in call {number}: {chosen}"
        codec = chosen.pop()
        for policy, outcome in zip(policies, world.call(send, codec), strict=True):
            policy.observe(send, codec, outcome)
        shares = {policy.shares(number) for policy in policies}
        assert len(shares) == 1
        if shares.pop():
            due = number + (1 if number <= 3 else 2)
            pending[due] = np.max([policy.figures() for policy in policies], axis=0)
            world.share(hidden=number > 3)
            done.num_shares += 1
        done.codecs.append(codec)
        done.ends_s.append(world.now_s)
    return done
