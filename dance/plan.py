"""What a collective does on the wire: its algorithm, how a tensor is cut, what bytes and elements it costs.

Policies predict with a plan and `dance.distributed` executes it, so the two cannot drift apart. All is a pure
function of what every rank knows, so that all ranks make the same plan.

Direct: torch's own collective, uncompressed. One-shot: everybody sends its packets to everybody, who adds
them up in order of rank. Two-shot: rank r owns shard r; everybody sends it that shard, it adds up, encodes
the sum and sends that to everybody (reduce-scatter, then all-gather): 2 / N of the bytes of one-shot, but two
phases and two roundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dance.codecs import SPARSE, Codec, Like, Uncompressed, codec

SHARD_ALIGN = 256  # shards and chunks start at multiples of it, whatever the codec: residuals outlive codecs
CHUNK_NUMEL = 1 << 19  # a part: 2 MiB of float32, 4 ms of int8 at 1 Gbit/s
MAX_CHUNKS = 64  # of one shard; larger shards have larger chunks
ONE_SHOT_NBYTES = 8192  # up to so large a packet a second phase costs more than the bytes it saves

COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "all_to_all",
    "neighbor_exchange",
)
_ITEM_NBYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
Span = tuple[int, int]  # of elements: first, and one past the last


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a collective costs. ``bytes_sent`` are those of the busiest rank, headers included (for codecs of
    varying size: the most), ``phases`` the number of times that ranks wait for each other's messages,
    ``encoded`` and ``decoded`` the elements that the busiest rank puts through an encoder and a decoder, and
    ``chunks`` in how many parts a message goes, so that coding overlaps the wire.
    """

    algorithm: str
    bytes_sent: int
    phases: int
    encoded: int
    decoded: int
    chunks: int = 1


def shards(numel: int, world: int) -> tuple[Span, ...]:
    """Returns the span of elements that each rank owns; the last ones may be shorter, or empty."""
    size = _aligned(-(-numel // world))
    return tuple((min(r * size, numel), min((r + 1) * size, numel)) for r in range(world))


def chunks(c: Codec, span: Span) -> tuple[Span, ...]:
    """Returns the parts in which ``span`` is sent: one packet each; none of an empty span.

    A codec that selects from the whole array, or whose size varies, has one part.
    """
    start, stop = span
    numel = stop - start
    if numel <= CHUNK_NUMEL or isinstance(c, SPARSE):
        return (span,) if numel else ()
    size = max(CHUNK_NUMEL, _aligned(-(-numel // MAX_CHUNKS)))
    return tuple((first, min(first + size, stop)) for first in range(start, stop, size))


def plan(collective: str, codec_or_text: Like, numel: int, world: int, *, dtype: str = "float32") -> Plan:
    """Returns what ``collective`` of ``numel`` elements of ``dtype`` (the input of a rank) costs.

    ValueError for an unknown collective. A neighbor_exchange is planned with world - 1 neighbours.
    """
    if collective not in COLLECTIVES:
        raise ValueError(f"plan: unknown collective {collective!r}; there is {', '.join(COLLECTIVES)}")
    if world < 1 or numel < 0:
        raise ValueError(f"plan: expected numel >= 0 and world >= 1, got {numel} and {world}")
    return _plan(collective, codec(codec_or_text), numel, world, dtype)


@lru_cache(maxsize=4096)
def _plan(collective: str, c: Codec, numel: int, world: int, dtype: str) -> Plan:
    if isinstance(c, Uncompressed) or world == 1 or numel == 0:
        return _direct(collective, numel, world, dtype)
    peers = world - 1
    if collective in ("all_to_all", "reduce_scatter"):
        share = -(-numel // world)
        sent = peers * _nbytes(c, (0, share), dtype)
        return Plan(
            algorithm="one-shot",
            bytes_sent=sent,
            phases=1,
            encoded=numel,
            decoded=numel,
            chunks=len(chunks(c, (0, share))),
        )
    whole = _nbytes(c, (0, numel), dtype)
    if collective == "all_reduce" and two_shot(c, numel, world, dtype):
        spans = shards(numel, world)
        sizes = [_nbytes(c, span, dtype) for span in spans]
        sent = max(sum(sizes) - own + peers * own for own in sizes)
        largest = spans[0][1]
        return Plan(
            algorithm="two-shot",
            bytes_sent=sent,
            phases=2,
            encoded=numel,
            decoded=world * largest + numel,
            chunks=len(chunks(c, spans[0])),
        )
    decoded = numel if collective == "broadcast" else world * numel
    return Plan(
        algorithm="one-shot",
        bytes_sent=peers * whole,
        phases=1,
        encoded=numel,
        decoded=decoded,
        chunks=len(chunks(c, (0, numel))),
    )


def _aligned(numel: int) -> int:
    return -(-numel // SHARD_ALIGN) * SHARD_ALIGN


def two_shot(c: Codec, numel: int, world: int, dtype: str) -> bool:
    """Whether an all_reduce of a dense codec sends shards; with two ranks both ways send the same bytes."""
    return world > 2 and not isinstance(c, SPARSE) and c.packet_nbytes(numel, dtype) > ONE_SHOT_NBYTES


def _nbytes(c: Codec, span: Span, dtype: str) -> int:
    return sum(c.packet_nbytes(stop - start, dtype) for start, stop in chunks(c, span))


def _direct(collective: str, numel: int, world: int, dtype: str) -> Plan:
    """What torch's own collectives send: rings, and a tree for broadcast."""
    raw = numel * _ITEM_NBYTES.get(dtype, 4)
    factor = {
        "all_reduce": 2 * (world - 1) / world,
        "all_gather": world - 1,
        "reduce_scatter": (world - 1) / world,
        "broadcast": (world - 1).bit_length(),
        "all_to_all": (world - 1) / world,
        "neighbor_exchange": world - 1,
    }[collective]
    phases = 2 if collective == "all_reduce" else 1
    return Plan(algorithm="direct", bytes_sent=round(factor * raw), phases=phases, encoded=0, decoded=0)
