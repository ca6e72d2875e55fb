"""The collectives: arguments checked, codec chosen, handed to an algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from dance.codecs import Uncompressed
from dance.distributed import torch_names
from dance.distributed.call import Call, Options
from dance.distributed.choice import CodecLike, by_name, named_codec, policy_of
from dance.distributed.device import DeviceCall
from dance.distributed.member import member_of
from dance.distributed.reducing import all_reduce_tensors
from dance.distributed.section import Section
from dance.distributed.settings import Settings, check_op, check_tensors
from dance.distributed.shares import ReduceScatter
from dance.distributed.spread import Lane, Spread
from dance.distributed.submission import Submission
from dance.distributed.work import Work
from dance.feedback import ErrorFeedback

ReduceOp = dist.ReduceOp
MIN_BYTES = 65536


def all_reduce(
    tensor: torch.Tensor,
    op: Any = ReduceOp.SUM,
    *,
    codec: CodecLike = None,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    feedback: ErrorFeedback | None = None,
    key: str | None = None,
    min_bytes: int = MIN_BYTES,
    seed: int | None = None,
    nonfinite: str = "raise",
) -> Work | None:
    """Reduces ``tensor`` over all ranks, in place; every rank ends with the same bits.

    ``tensor``: float32, float16 or bfloat16 of any strides, CPU or CUDA; other dtypes with codec "none"
    only, as are MAX, MIN and other ops than SUM and AVG; a policy is not asked about those, nor about what is
    under ``min_bytes``: they go uncompressed, and `CallStats.reason` says why. The average is taken after
    decoding. ``feedback`` holds the residuals of ``key``: at the sender and, where the algorithm has shards,
    at their owner, in units of the sum. Give every tensor a key of its own: calls without one share a single
    residual. Tensors of less than ``min_bytes`` go uncompressed. ``seed`` is the run's: each packet's is
    derived from it. ``nonfinite="raise"``: where the input of any rank holds NaN or infinity, all ranks raise
    NonFiniteError after the pass (blocks that hold them count as zeros), "zero": nobody does, and
    `CallStats.nonfinite` tells.
    """
    settings = Settings(
        group=group,
        async_op=async_op,
        feedback=feedback,
        keys=[key],
        min_bytes=min_bytes,
        seed=seed,
        nonfinite=nonfinite,
    )
    return all_reduce_tensors([tensor], op, [codec], settings)


def all_reduce_coalesced(
    tensors: Sequence[torch.Tensor],
    op: Any = ReduceOp.SUM,
    *,
    codec: CodecLike | Sequence[CodecLike] = None,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    feedback: ErrorFeedback | None = None,
    keys: Sequence[str] | None = None,
    min_bytes: int = MIN_BYTES,
    seed: int | None = None,
    nonfinite: str = "raise",
) -> Work | None:
    """`all_reduce` of many tensors of one dtype in the same messages; ``codec``: one for all, or one each.

    Tensors with the same codec make up one vector, in their order: its blocks and selections do not stop at
    their borders. Tensors that lie one behind the other in memory (a DDP bucket) are not copied.
    ``keys`` name the residuals of each tensor, cut from those of the vector: another grouping of the same
    tensors finds them again. ``min_bytes`` is about all of them together.
    """
    each: list[CodecLike] = list(codec) if isinstance(codec, (list, tuple)) else [codec] * len(tensors)
    if not tensors or len(each) != len(tensors):
        raise ValueError(
            f"all_reduce_coalesced: expected a codec for each tensor, got {len(tensors)} and {len(each)}"
        )
    if feedback is not None and (keys is None or len(set(keys)) != len(tensors)):
        raise ValueError("all_reduce_coalesced: feedback needs keys, a different one for each tensor")
    settings = Settings(
        group=group,
        async_op=async_op,
        feedback=feedback,
        keys=[None] * len(tensors) if keys is None else keys,
        min_bytes=min_bytes,
        seed=seed,
        nonfinite=nonfinite,
    )
    return all_reduce_tensors(tensors, op, each, settings)


def reduce_scatter_tensor(
    output: torch.Tensor,
    input: torch.Tensor,
    op: Any = ReduceOp.SUM,
    *,
    codec: CodecLike = None,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    feedback: ErrorFeedback | None = None,
    key: str | None = None,
    min_bytes: int = MIN_BYTES,
    seed: int | None = None,
    nonfinite: str = "raise",
) -> Work | None:
    """Leaves in ``output`` this rank's share, of world size equal ones, of the reduced ``input``.

    ``feedback`` keeps what this rank could not send of the whole input.
    """
    check_tensors("reduce_scatter_tensor", output, input)
    check_op("reduce_scatter_tensor", op)
    average = op == ReduceOp.AVG
    member = member_of(group)[1]
    world = member.world
    codec = by_name(codec, key)
    if output.numel() * world != input.numel():
        raise ValueError(
            f"reduce_scatter_tensor: expected {world} times {output.numel()} elements to reduce, "
            f"got {input.numel()}"
        )
    sums = average or op == ReduceOp.SUM
    named = policy_of(member, codec, feedback=feedback is not None) is None
    if named and not sums and not isinstance(named_codec(codec, feedback, key), Uncompressed):
        raise ValueError(
            f"reduce_scatter_tensor: compressed there is SUM and AVG, got {op}; pass codec='none'"
        )
    if not sums and feedback is not None:
        raise ValueError(f"reduce_scatter_tensor: feedback keeps what is owed to a sum; got op {op}")
    settings = Settings(
        group=group,
        async_op=async_op,
        feedback=feedback,
        keys=[key],
        min_bytes=min_bytes,
        seed=seed,
        nonfinite=nonfinite,
    )
    if average:
        settings.check_average("reduce_scatter_tensor", input)
    plain = ReduceOp.SUM if average else op
    return Submission(
        collective="reduce_scatter",
        input=input,
        outputs=[output],
        settings=settings,
        mean=average,
        sums=sums,
    ).run(
        codec,
        lambda own, x, out, later: torch_names.reduce_scatter_tensor(
            out, x, plain, group=own, async_op=later
        ),
        lambda call, section, out, options: ReduceScatter(call, section, out, options).run(),
        lambda call, section, out: call.reduce_scatter(section, out),
    )


def all_gather_into_tensor(
    output: torch.Tensor,
    input: torch.Tensor,
    *,
    codec: CodecLike = None,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    feedback: ErrorFeedback | None = None,
    key: str | None = None,
    min_bytes: int = MIN_BYTES,
    seed: int | None = None,
    nonfinite: str = "raise",
) -> Work | None:
    """Gathers the inputs of all ranks in ``output``, in order of rank; this rank's own is decoded, too."""
    who = "all_gather_into_tensor"
    check_tensors(who, output, input)
    world = member_of(group)[1].world
    if output.numel() != world * input.numel():
        raise ValueError(
            f"{who}: expected an output of {world} times {input.numel()} elements, got {output.numel()}"
        )
    settings = Settings(
        group=group,
        async_op=async_op,
        feedback=feedback,
        keys=[key],
        min_bytes=min_bytes,
        seed=seed,
        nonfinite=nonfinite,
    )
    return _all_gather([output], input, codec, settings)


def all_gather(
    tensor_list: Sequence[torch.Tensor],
    tensor: torch.Tensor,
    *,
    codec: CodecLike = None,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    feedback: ErrorFeedback | None = None,
    key: str | None = None,
    min_bytes: int = MIN_BYTES,
    seed: int | None = None,
    nonfinite: str = "raise",
) -> Work | None:
    """Gathers the tensors of all ranks in ``tensor_list``, one of the shape of ``tensor`` for each rank."""
    check_tensors("all_gather", tensor, *tensor_list)
    world, sizes = member_of(group)[1].world, [each.numel() for each in tensor_list]
    if sizes != [tensor.numel()] * world:
        raise ValueError(
            f"all_gather: expected {world} tensors of {tensor.numel()} elements for the results, "
            f"got {len(sizes)} of {sizes}"
        )
    settings = Settings(
        group=group,
        async_op=async_op,
        feedback=feedback,
        keys=[key],
        min_bytes=min_bytes,
        seed=seed,
        nonfinite=nonfinite,
    )
    return _all_gather(tensor_list, tensor, codec, settings)


def _all_gather(
    outputs: Sequence[torch.Tensor], tensor: torch.Tensor, codec: CodecLike, settings: Settings
) -> Work | None:
    world, numel = member_of(settings.group)[1].world, tensor.numel()

    def gather(call: Call, section: Section, out: torch.Tensor, options: Options) -> None:
        places = [out[rank * numel : (rank + 1) * numel] for rank in range(world)]
        peers = {rank: places[rank] for rank in call.peers}
        lane = Lane(span=(0, numel), targets=list(peers))
        Spread(call=call, section=section, lanes=[lane], places=peers, own=places[call.rank]).run()

    return Submission(collective="all_gather", input=tensor, outputs=outputs, settings=settings).run(
        codec,
        lambda own, x, out, later: torch_names.all_gather_into_tensor(out, x, group=own, async_op=later),
        gather,
        lambda call, section, out: call.all_gather(section, out),
    )


def broadcast(
    tensor: torch.Tensor,
    src: int | None = None,
    *,
    group_src: int | None = None,
    codec: CodecLike = None,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    feedback: ErrorFeedback | None = None,
    key: str | None = None,
    min_bytes: int = MIN_BYTES,
    seed: int | None = None,
    nonfinite: str = "raise",
) -> Work | None:
    """Sends ``tensor`` of global rank ``src`` (``group_src``: of the group) to all, who decode it, as src."""
    check_tensors("broadcast", tensor)
    of, member = member_of(group)
    if (src is None) == (group_src is None):
        raise ValueError(f"broadcast: expected either src or group_src, got {src} and {group_src}")
    name, given, ranks = "group_src", group_src, list(range(member.world))
    if src is not None:
        name, given, ranks = "src", src, dist.get_process_group_ranks(of)
    if given not in ranks:
        raise ValueError(f"broadcast: expected as {name} one of the ranks {ranks}, got {given!r}")
    root = ranks.index(given)
    settings = Settings(
        group=group,
        async_op=async_op,
        feedback=feedback,
        keys=[key],
        min_bytes=min_bytes,
        seed=seed,
        nonfinite=nonfinite,
    )

    def spread(call: Call, section: Section, out: torch.Tensor, options: Options) -> None:
        if call.rank != root:
            Spread(call=call, section=section, lanes=[], places={root: out}).run()
            return
        lane = Lane(span=(0, out.numel()), targets=call.peers)
        Spread(call=call, section=section, lanes=[lane], places={}, own=out).run()

    return Submission(
        collective="broadcast",
        input=tensor,
        outputs=[tensor],
        settings=settings,
        targets=None if member.rank == root else 0,
        source=root,
    ).run(
        codec,
        lambda own, x, out, later: dist.broadcast(x, group=own, group_src=root, async_op=later),
        spread,
        lambda call, section, out: call.broadcast(section, root),
    )


def all_to_all_single(
    output: torch.Tensor,
    input: torch.Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    *,
    codec: CodecLike = None,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    min_bytes: int = MIN_BYTES,
    seed: int | None = None,
    nonfinite: str = "raise",
) -> Work | None:
    """Sends part r of ``input`` (along dimension 0) to rank r and leaves in ``output`` what came from each.

    Without split sizes the parts are equal. The rank's own part stays as it is. With split sizes, which all
    ranks then pass, ``min_bytes`` counts for nothing and a policy is refused: inputs differ in size, so that
    ranks would not decide alike.
    """
    check_tensors("all_to_all_single", output, input)
    _, member = member_of(group)
    if input_split_sizes is not None or output_split_sizes is not None:
        min_bytes = 0
        if policy_of(member, codec, feedback=False) is not None:
            raise ValueError(
                "all_to_all_single: with split sizes ranks would ask a policy about inputs of different "
                f"sizes; pass a codec such as 'int8' or 'none', got {codec!r}"
            )
    given = _splits("input", input, input_split_sizes, member.world)
    taken = _splits("output", output, output_split_sizes, member.world)
    settings = Settings(group=group, async_op=async_op, min_bytes=min_bytes, seed=seed, nonfinite=nonfinite)

    def spread(call: Call, section: Section, out: torch.Tensor, options: Options) -> None:
        lanes = [Lane(span=given[rank], targets=[rank]) for rank in call.peers]
        places = {rank: out[taken[rank][0] : taken[rank][1]] for rank in call.peers}
        own = section.values[given[call.rank][0] : given[call.rank][1]]
        Spread(call=call, section=section, lanes=lanes, places=places, hold=True).run()
        out[taken[call.rank][0] : taken[call.rank][1]].copy_(own)

    def on_device(call: DeviceCall, section: Section, out: torch.Tensor) -> None:
        places = {rank: out[start:stop] for rank, (start, stop) in enumerate(taken)}
        call.all_to_all(section, given, places)
        own = section.values[given[call.rank][0] : given[call.rank][1]]
        places[call.rank].copy_(own)

    def start(own: dist.ProcessGroup, x: torch.Tensor, out: torch.Tensor, later: bool) -> Any:
        to, of = ([stop - start for start, stop in spans] for spans in (taken, given))
        return dist.all_to_all_single(out, x, to, of, group=own, async_op=later)

    return Submission(collective="all_to_all", input=input, outputs=[output], settings=settings).run(
        codec, start, spread, on_device
    )


def _splits(
    name: str, tensor: torch.Tensor, sizes: Sequence[int] | None, world: int
) -> list[tuple[int, int]]:
    """Returns the span of elements of each rank's part."""
    rows = tensor.shape[0] if tensor.dim() else 1
    if sizes is None:
        if rows % world:
            raise ValueError(
                f"all_to_all_single: {rows} rows of the {name} make no {world} equal parts; "
                f"pass {name}_split_sizes"
            )
        sizes = [rows // world] * world
    if len(sizes) != world or sum(sizes) != rows or min(sizes) < 0:
        raise ValueError(
            f"all_to_all_single: expected {name}_split_sizes for {world} ranks that sum up to {rows}, "
            f"got {list(sizes)}"
        )
    row = tensor.numel() // rows if rows else 0
    ends = [row * sum(sizes[: rank + 1]) for rank in range(world)]
    return [(end - row * size, end) for end, size in zip(ends, sizes, strict=True)]


def neighbor_exchange(
    tensor_list: Sequence[torch.Tensor],
    tensor: torch.Tensor,
    neighbors: Sequence[int],
    *,
    sources: Sequence[int] | None = None,
    codec: CodecLike = None,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    feedback: ErrorFeedback | None = None,
    key: str | None = None,
    seed: int | None = None,
    nonfinite: str = "raise",
) -> Work | None:
    """Sends ``tensor`` to the group ranks ``neighbors`` and leaves in ``tensor_list`` what ``sources`` sent.

    ``sources`` (None: the neighbors) must be those that name this rank as a neighbor; all ranks of the group
    call it, those without any neighbor, too. Nothing goes uncompressed for being small.
    """
    check_tensors("neighbor_exchange", tensor, *tensor_list)
    _, member = member_of(group)
    given = list(neighbors) if sources is None else list(sources)
    for rank in (*neighbors, *given):
        if not 0 <= rank < member.world or rank == member.rank:
            raise ValueError(
                f"neighbor_exchange: expected other ranks of the group's {member.world}, got {rank} "
                f"at rank {member.rank}"
            )
    if len(set(given)) != len(given) or len(set(neighbors)) != len(neighbors):
        raise ValueError("neighbor_exchange: expected each neighbor once; send more in one tensor")
    numel = tensor.numel()
    if len(tensor_list) != len(given) or any(each.numel() != numel for each in tensor_list):
        raise ValueError(
            f"neighbor_exchange: expected {len(given)} tensors of {numel} elements for the results"
        )
    settings = Settings(
        group=group, async_op=async_op, feedback=feedback, keys=[key], seed=seed, nonfinite=nonfinite
    )

    def spread(call: Call, section: Section, out: torch.Tensor, options: Options) -> None:
        places = {rank: out[k * numel : (k + 1) * numel] for k, rank in enumerate(given)}
        lanes = [Lane(span=(0, numel), targets=list(neighbors))] if neighbors else []
        Spread(call=call, section=section, lanes=lanes, places=places, greet=False).run()

    def on_device(call: DeviceCall, section: Section, out: torch.Tensor) -> None:
        places = {rank: out[k * numel : (k + 1) * numel] for k, rank in enumerate(given)}
        call.neighbors(section, neighbors, places)

    return Submission(
        collective="neighbor_exchange",
        input=tensor,
        outputs=list(tensor_list) or [tensor.new_empty(0)],
        settings=settings,
        targets=len(neighbors),
    ).run(codec, None, spread, on_device)
