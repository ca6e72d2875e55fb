"""The communication hook of DDP: what becomes of a bucket of gradients."""

# No `from __future__ import annotations`: DDP compares the annotations of a hook with these types.

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

import dance.distributed as dd
from dance.codecs import DTYPES
from dance.ddp.layout import Part
from dance.ddp.state import NONE, Algorithm, CompressionState
from dance.distributed.residual import pay
from dance.powersgd import Matrix, PowerSGD

_FLOATS = tuple(getattr(torch, name) for name in DTYPES)


def attach(
    ddp: DistributedDataParallel,
    codec: Algorithm = "auto",
    *,
    state: CompressionState | None = None,
    **options: Any,
) -> CompressionState:
    """Compresses the gradients of ``ddp`` from now on, and returns the state that does it.

    ``codec`` and ``options`` are those of `CompressionState`. ``state`` is one to go on with instead, on a
    new DDP module around the same model, or one with the same names. ValueError where ``ddp`` has a hook.
    """
    if not isinstance(ddp, DistributedDataParallel):
        raise ValueError(
            f"attach: expected a DistributedDataParallel, got {type(ddp).__name__}; wrap the model in one"
        )
    if ddp._comm_hooks:
        hook, other = ddp._comm_hooks[0]
        remedy = "wrap the model in a new DistributedDataParallel"
        if isinstance(other, CompressionState):
            remedy = f"change its codec with state.codec = {str(codec)!r}, or {remedy} for another state"
        raise ValueError(
            f"attach: DDP takes one hook for good, and this module has {hook.__name__}; {remedy}"
        )
    if getattr(ddp, "skip_all_reduce_unused_params", False):
        raise ValueError("attach: skip_all_reduce_unused_params hides the end of a step; leave it False")
    if state is None:
        state = CompressionState(codec, **options)
    elif options or codec != "auto":
        raise ValueError("attach: state has a codec and options of its own; pass no others, set state.codec")
    state.check_loaded(ddp)
    try:
        ddp.register_comm_hook(state, compress_hook)
    except RuntimeError as error:  # of hooks that are built in DDP keeps no list
        ddp._comm_hooks.clear()
        raise ValueError(
            "attach: DDP takes one hook for good, and this module has a built-in one; "
            "wrap the model in a new DistributedDataParallel"
        ) from error
    state.serve(ddp)
    return state


def compress_hook(state: CompressionState, bucket: dist.GradBucket) -> Future[torch.Tensor]:  # type: ignore[name-defined]
    """Replaces the gradients in ``bucket`` by their mean over all ranks, in place, as ``state`` has it.

    It waits for no peer, except, with PowerSGD, at the last bucket of a step and, under a policy that learns,
    for what ranks tell each other of earlier buckets. A gradient that is not finite
    at some rank becomes NaN at all ranks, and so does what was encoded with it: what a GradScaler finds at
    one rank it finds at all of them. Residuals stay finite. Sparse gradients, float64 and complex ones are
    reduced as without a hook.
    """
    buffer = bucket.buffer()
    names = state.names_of(bucket.parameters())
    state.begin()
    if buffer.layout != torch.strided or buffer.dtype not in _FLOATS:
        future = allreduce_hook(state.names.group, bucket)  # type: ignore[arg-type]
    else:
        parts = _parts(names, bucket)
        if state.layout.holds:
            future = state.layout.hold(parts, buffer)
        else:
            state.layout.arrive(parts)
            future = torch.futures.collect_all(_reduce(state, parts)).then(partial(_result, buffer))
    if bucket.is_last():
        if state.layout.holds:
            futures = [each for group in state.layout.groups() for each in _reduce(state, group)]
            torch.futures.collect_all(futures).then(state.layout.release)
        state.factors.finish()
        state.end_step()
    return future


def _parts(names: Sequence[str], bucket: Any) -> list[Part]:
    buffer = bucket.buffer()
    parts = []
    for name, gradient in zip(names, bucket.gradients(), strict=True):
        first = gradient.storage_offset() - buffer.storage_offset()
        parts.append(Part(name=name, flat=buffer[first : first + gradient.numel()], shape=gradient.shape))
    return parts


def _result(buffer: torch.Tensor, done: Future[list[Future[Any]]]) -> torch.Tensor:
    for each in done.value():
        each.value()  # raises what went wrong
    return buffer


def _reduce(state: CompressionState, parts: Sequence[Part]) -> list[Future[Any]]:
    """Makes means of ``parts``, in place, when all the futures are done and `LowRank.finish` was called."""
    compress = state.step >= state.start_step and dist.get_world_size(state.names.group) > 1
    large = sum(part.flat.nbytes for part in parts) >= state.min_bytes
    if compress and large and isinstance(state.codec, PowerSGD):
        return _factor(state, parts, state.codec)
    return _encode(state, parts, compress=compress)


def _encode(state: CompressionState, parts: Sequence[Part], *, compress: bool) -> list[Future[Any]]:
    """Reduces ``parts`` through `dance.distributed`: in one call, or in two where some keep no residual."""
    world = dist.get_world_size(state.names.group)
    chosen = [(part, state.codec_of(part.name, len(part.shape)) if compress else NONE) for part in parts]
    futures = []
    for keeps in (True, False):
        some = [(part, codec) for part, codec in chosen if state.keeps_residual(codec) is keeps]
        if not some:
            continue
        tensors = [part.flat for part, _ in some]
        torch._foreach_div_(tensors, world)
        work = dd.all_reduce_coalesced(
            tensors,
            codec=[codec for _, codec in some],
            group=state.names.group,
            async_op=True,
            feedback=state.residuals if keeps else None,
            keys=[part.name for part, _ in some] if keeps else None,
            min_bytes=state.min_bytes,
            seed=state.seed,
            nonfinite="zero",
        )
        assert work is not None
        futures.append(work.get_future().then(partial(_end, state, work)))
    return futures


def _end(state: CompressionState, work: dd.Work, done: Future[list[torch.Tensor]]) -> None:
    """Counts the call, and makes NaN of all that was encoded together with a value that is not finite."""
    state.count(work)
    for tensor in done.value():
        work.stats().spoil(tensor)


def _factor(state: CompressionState, parts: Sequence[Part], settings: PowerSGD) -> list[Future[Any]]:
    """Sends the left factors of matrices and, with them, vectors; what a rule names goes as in `_encode`."""
    world = dist.get_world_size(state.names.group)
    matrices: list[Matrix] = []
    dense: list[torch.Tensor] = []
    ruled: list[Part] = []
    for part in parts:
        if state.codec_of(part.name, len(part.shape)) != NONE:
            ruled.append(part)
        elif settings.rank_of(part.shape):
            residual = state.residual(part.name, part.flat)
            matrices.append(Matrix(name=part.name, gradient=part.flat, residual=residual, rows=part.shape[0]))
        else:
            if state.residuals.owes(part.name):  # what another codec has left
                owed = state.residual(part.name, part.flat)
                pay(part.flat, owed.view(-1), world)
                if part.flat.dtype == torch.float32 and not owed.any():  # 16 bits have no room for all of it
                    state.residuals.paid(part.name)
            dense.append(part.flat)
    futures = _encode(state, ruled, compress=True)
    if matrices or dense:
        state.factors.settings, state.factors.group = settings, state.names.group
        futures.append(state.factors.start(matrices, dense))
        flats = [*(each.gradient for each in matrices), *dense]
        state.count_factored(sum(each.numel() for each in flats), str(flats[0].dtype).removeprefix("torch."))
    return futures
