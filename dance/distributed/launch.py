"""How a collective is executed: compressed ones by the group's worker, direct ones by torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from dance.distributed.choice import Choice
from dance.distributed.member import Member
from dance.distributed.work import CallStats, Work, guarded
from dance.exchange.waiting import why_lost
from dance.plan import plan

Body = Callable[[], "torch.cuda.Event | None"]


@dataclass(kw_only=True)
class Launch:
    """One collective about to be executed in ``group``; results are in ``tensors``."""

    group: dist.ProcessGroup
    member: Member
    stats: CallStats
    tensors: Sequence[torch.Tensor]
    choices: Sequence[Choice] = ()
    async_op: bool = False

    def compressed(self, body: Body) -> Work | None:
        """Executes ``body`` in its turn: at once, if nothing of the group is under way and nobody waits."""
        work = Work(self.stats, self.tensors)

        def task() -> None:
            event: list[torch.cuda.Event | None] = []
            start_s = time.monotonic()
            error = guarded(lambda: event.append(body()))
            self.stats.seconds = time.monotonic() - start_s
            work.finish(self._told(error), event[0] if event else None)

        if self.async_op:
            self._share()
            self.member.worker.submit(task)
            return work
        self.member.worker.run(task)
        try:
            self._share()  # whatever happened here: a packet may be bad at one rank only
        finally:
            work.wait()  # its own error first
        return None

    def on_device(self, body: Callable[[], None]) -> Work | None:
        """Puts ``body`` on the caller's stream; nothing waits for it."""
        work = Work(self.stats, self.tensors)
        start_s = time.monotonic()
        error = guarded(body)
        event = None
        if self.tensors[0].is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self.stats.seconds = time.monotonic() - start_s
        work.finish(self._told(error), event)
        self._share()
        if self.async_op:
            return work
        work.wait()
        return None

    def direct(self, start: Callable[[bool], Any], after: Body) -> Work | None:
        """Executes torch's own collective (``start(async_op)``) and, when it is done, ``after``."""
        on_gpu = self.tensors[0].is_cuda
        timed = on_gpu and bool(self.choices)
        if timed:
            torch.cuda.synchronize()  # for a policy wants to know what the call takes
        start_s = time.monotonic()
        if on_gpu or not self.async_op:
            error = guarded(lambda: _wait(start(self.async_op)))
            if error is not None:
                raise _explained(error)
            after()
            if timed:
                torch.cuda.synchronize()
            end_s = time.monotonic()
            self.stats.seconds = end_s - start_s if on_gpu else self._taken_s(start_s, end_s)
            error = self._told(None)
            self._share()
            if not self.async_op:
                if error is not None:
                    raise error
                return None
            event = None
            if on_gpu:
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
            work = Work(self.stats, self.tensors)
            work.finish(error, event)
            return work
        work = Work(self.stats, self.tensors)
        pending = start(True)
        self._share()
        del self.group  # gloo's thread, which drops ``done``, would wait for itself if it ended the group

        def done(future: Any) -> None:
            error = guarded(future.wait)
            error = guarded(after) if error is None else _explained(error)
            self.stats.seconds = self._taken_s(start_s, time.monotonic())
            work.finish(self._told(error))

        try:
            future = pending.get_future()
        except RuntimeError:  # gloo's reduce_scatter has none
            done(pending)
        else:
            future.add_done_callback(done)
        return work

    def _taken_s(self, start_s: float, end_s: float) -> float:
        return self.member.turns.taken_s(start_s, end_s, self.stats.raw_bytes)

    def _told(self, error: BaseException | None) -> BaseException | None:
        """Counts the call and tells policies what came of it; returns what went wrong, there or before."""
        stats = self.stats
        self.member.totals.add(stats, failed=error is not None)
        if error is not None:
            return error

        def tell() -> None:
            for choice in self.choices:
                choice.observe(stats)

        return guarded(tell)

    def _share(self) -> None:
        for choice in self.choices:
            if choice.policy is not None and self.member.agreement(choice.policy).share(self.group):
                self.member.totals.agreed()


def _wait(pending: Any) -> None:
    if pending is not None:
        pending.wait()  # of NCCL it is in a stream, and the host goes on; of gloo it waits


def _explained(error: BaseException) -> BaseException:
    """Adds to torch's error, as a note (from Python 3.11 on), what may be the matter with a lost peer."""
    why = why_lost(error)
    if why and hasattr(error, "add_note"):
        error.add_note(f"dance.distributed: {why}")
    return error


def direct_stats(stats: CallStats) -> CallStats:
    """Makes ``stats`` those of torch's own collective."""
    stats.algorithm, stats.codec = "direct", "none"
    stats.bytes_sent = stats.bytes_received = stats.raw_bytes
    return stats


def new_stats(collective: str, world: int, numel: int, tensor: torch.Tensor) -> CallStats:
    """Returns the stats of a call that is not decided yet."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    raw = plan(collective, "none", numel, world, dtype=dtype).bytes_sent
    raw_bytes = raw if dtype in ("float32", "float16", "bfloat16") else raw * tensor.element_size() // 4
    return CallStats(
        collective=collective, algorithm="", codec="", world=world, numel=numel, raw_bytes=raw_bytes
    )
