"""A measurement by the ranks of a group over a link: rank 0 tells its parent what was measured.

    with trial("benchmarks.collectives", bed, work) as records:      # in the parent
        for record in records: ...
    sys.exit(0 if at_rank(measure) else main())                      # in the module

Ranks run ``python -m MODULE --rank WORK FD``; rank 0 talks to the parent through a pipe, so that nothing of
it goes over the link.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.testbed.namespaces import Testbed, why_unavailable
from benchmarks.testbed.ranks import Bed, Loopback, Ranks
from dance.bandwidth import parse_link

LOOPBACK = "loopback"
_FLAG = "--rank"
_GROUP_TIMEOUT_S = 300.0
_POLL_S = 0.02


@contextlib.contextmanager
def bed_of(link: str, ranks: int) -> Iterator[Bed]:
    """The bed of a link such as ``100mbit`` or ``loopback``; RuntimeError where there are no links."""
    if link == LOOPBACK:
        yield Loopback(ranks)
        return
    reason = why_unavailable()
    if reason is not None:
        raise RuntimeError(f"no shaped links here: {reason}")
    with Testbed(ranks, rate_mbps=parse_link(link).rate_mbps) as bed:
        yield bed


class Records:
    """What rank 0 says, one record after another, until all ranks have ended."""

    def __init__(self, ranks: Ranks, connection: Connection, timeout_s: float) -> None:
        self._ranks = ranks
        self._connection = connection
        self._timeout_s = timeout_s
        self._ends_at = time.monotonic() + timeout_s

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """RuntimeError where a rank fails, TimeoutError where it takes too long, after what came before."""
        while True:
            status = self._ranks.poll()  # asked before the pipe: what an ended rank said is in it
            while self._connection.poll(_POLL_S):
                yield self._connection.recv()
            if status is not None:
                if status:
                    raise RuntimeError(f"a rank ended with status {status}")  # and said why
                return
            if time.monotonic() > self._ends_at:
                raise TimeoutError(f"no result within {self._timeout_s:g} s")

    def answer(self, reply: object = None) -> None:
        """Lets a rank 0 that asked (`Parent.ask`) go on."""
        self._connection.send(reply)


@contextlib.contextmanager
def trial(module: str, bed: Bed, work: Mapping[str, Any], *, timeout_s: float = 600.0) -> Iterator[Records]:
    """Runs ``module`` as every rank of ``bed`` with ``work``; leaving the context ends what still runs."""
    ours, theirs = Pipe()
    command = [sys.executable, "-m", module, _FLAG, json.dumps(dict(work)), str(theirs.fileno())]
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # warnings: that addresses of namespaces have no host names
    with ours, theirs, Ranks(bed, command, environment=quiet, pass_fds=[theirs.fileno()]) as ranks:
        yield Records(ranks, ours, timeout_s)


class Parent:
    """The way to the parent, as a rank sees it; only rank 0 says anything."""

    def __init__(self, rank: int, fd: int) -> None:
        self._connection = Connection(fd) if rank == 0 else None

    def tell(self, record: Mapping[str, Any]) -> None:
        if self._connection is not None:
            self._connection.send(dict(record))

    def ask(self, record: Mapping[str, Any]) -> object:
        """Tells ``record`` and waits for the parent's answer, which rank 0 alone returns."""
        self.tell(record)
        return None if self._connection is None else self._connection.recv()


def at_rank(measure: Callable[[dict[str, Any], Parent], None]) -> bool:
    """Runs ``measure(work, parent)`` in a gloo group if this process is a rank; else returns False."""
    if sys.argv[1:2] != [_FLAG]:
        return False
    import torch
    import torch.distributed as dist

    import dance

    torch.set_num_threads(1)
    dance.set_num_threads(1)
    parent = Parent(int(os.environ["RANK"]), int(sys.argv[3]))
    dist.init_process_group("gloo", timeout=timedelta(seconds=_GROUP_TIMEOUT_S))
    measure(json.loads(sys.argv[2]), parent)
    dist.destroy_process_group()
    return True
