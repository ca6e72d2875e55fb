"""One line that makes a sharded model send less."""

from __future__ import annotations

from typing import Any

import torch

from dance.codecs import SPARSE, Codec
from dance.codecs import codec as to_codec
from dance.distributed.verbs import MIN_BYTES
from dance.errors import UnavailableError
from dance.fsdp.collectives import AllGather, ReduceScatter
from dance.fsdp.compression import Compression


def attach(
    module: torch.nn.Module,
    codec: str | Codec | Any = "int8",
    *,
    feedback: bool = True,
    gather_codec: str | Codec | Any | None = None,
    min_bytes: int = MIN_BYTES,
    seed: int = 0,
) -> Compression:
    """Compresses what the FSDP2 modules in ``module`` send; call it after `fully_shard`, at all ranks alike.

        fully_shard(model)
        compression = dance.fsdp.attach(model, "int8")

    ``codec``: text, codec or policy, "auto" included, of the gradients. ``feedback`` keeps what it loses at
    this rank for the next step, in float32 memory of the size of the trained parameters, unsharded: pass
    False where that is what FSDP was to save. ``gather_codec``: a dense codec, or a policy, of the weights
    that forward and backward see (the shards that the optimizer updates stay exact); None sends them as they
    are. Messages of less than ``min_bytes`` pass uncompressed. ``seed`` is the run's, for stochastic codecs.

    UnavailableError where torch cannot do it (2.9 and newer can). ValueError where no module is sharded,
    where one is compressed already (`Compression.detach` ends that) and for a sparse ``gather_codec``. In
    HSDP the all-reduce between replicas is torch's own, uncompressed.
    """
    from torch.distributed import fsdp

    if not hasattr(getattr(fsdp, "FSDPModule", None), "set_custom_reduce_scatter"):
        raise UnavailableError(
            f"fsdp: torch {torch.__version__} has no FSDPModule.set_custom_reduce_scatter; install torch 2.9 "
            "or newer, or use DistributedDataParallel and dance.ddp.attach"
        )
    if isinstance(gather_codec, str) and gather_codec != "auto":
        gather_codec = to_codec(gather_codec)
    if isinstance(gather_codec, SPARSE):
        raise ValueError(
            f"fsdp: {gather_codec} leaves out most of the weights; pass a dense gather_codec such as int8"
        )
    compression = Compression(module, codec, feedback=feedback, min_bytes=min_bytes, seed=seed)
    for message in compression.messages:
        for each in message.modules:
            each.set_custom_reduce_scatter(ReduceScatter(compression, message))
            if gather_codec is not None:
                each.set_custom_all_gather(AllGather(compression, gather_codec))
    return compression
