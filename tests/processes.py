"""Runs a function in real processes joined by a gloo process group."""

from __future__ import annotations

import multiprocessing
import queue
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

_TIMEOUT_S = 90.0


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Returns what ``function(rank, *args)`` returns at each rank; it must be importable by name.

    A failure at any rank fails the test with that rank's traceback.
    """
    context = multiprocessing.get_context("forkserver")
    assert isinstance(context, ForkServerContext)
    # DistributedDataParallel imports torch._dynamo when it is first made: 2 s a process.
    context.set_forkserver_preload(["torch.distributed", "torch._dynamo", "dance.gossip", "dance.ddp"])
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            context.Process(
                target=_work, args=(function, rank, world_size, str(Path(folder) / "store"), results, args)
            )
            for rank in range(world_size)
        ]
        try:
            for worker in workers:
                worker.start()
            answers = {}
            for _ in workers:
                try:
                    rank, result, error = results.get(timeout=_TIMEOUT_S)
                except queue.Empty:
                    codes = [worker.exitcode for worker in workers]
                    raise AssertionError(f"no answer in {_TIMEOUT_S} s; exit codes {codes}") from None
                assert error is None, f"rank {rank}:\n{error}"
                answers[rank] = result
            for worker in workers:
                worker.join(timeout=_TIMEOUT_S)
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.kill()
                    worker.join()
    return [answers[rank] for rank in range(world_size)]


def run_once(function: Callable[[int, int], Any], world_size: int) -> list[Any]:
    """What ``function(rank, world_size)`` returned at each rank, of one run for all tests that ask.

    Processes are dear to start. A failure fails each of these tests, without running it again.
    """
    answers = _ran(function, world_size)
    if isinstance(answers, AssertionError):
        raise answers
    return answers


@cache
def _ran(function: Callable[[int, int], Any], world_size: int) -> list[Any] | AssertionError:
    try:
        return run_ranks(function, world_size, world_size)
    except AssertionError as error:
        return error


def _work(
    function: Callable[..., Any], rank: int, world_size: int, store: str, results: Any, args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    import dance

    try:
        torch.set_num_threads(1)
        dance.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        results.put((rank, function(rank, *args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
