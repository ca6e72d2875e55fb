"""One command run as every rank of a group, with the environment that torchrun gives."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType
from typing import Protocol, TextIO

_POLL_S = 0.02
_GRACE_S = 5.0  # between asking a rank to end and making it


class Bed(Protocol):
    """Where ranks run: namespaces joined by links, or this machine's loopback."""

    num_nodes: int
    device: str
    port: int  # free at node 0

    def address(self, node: int) -> str: ...

    def command(self, node: int, command: Sequence[str]) -> list[str]: ...


class Loopback:
    """No links: all ranks in this machine's own network, over its loopback device. Needs no root."""

    device = "lo"

    def __init__(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        with socket.create_server((self.address(0), 0)) as free:
            self.port = int(free.getsockname()[1])

    def address(self, node: int) -> str:
        return "127.0.0.1"

    def command(self, node: int, command: Sequence[str]) -> list[str]:
        return list(command)


class Ranks:
    """``command`` run once in every node of ``bed``, node i as rank i on a machine of its own.

    Every line that a rank prints comes out on ``output`` as ``[rank] line``. To be used as a context, which
    ends all ranks and what they started, in a thread that outlives it.
    """

    def __init__(
        self,
        bed: Bed,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        output: TextIO | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._bed = bed
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._pass_fds = tuple(pass_fds)
        self._output = sys.stdout if output is None else output
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []

    def wait(self, timeout_s: float | None = None) -> int:
        """Returns 0 once all ranks have ended well, or else the exit status of the first that failed, as a
        shell has it; TimeoutError after ``timeout_s``."""
        ends_at = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while (status := self.poll()) is None:
            if time.monotonic() > ends_at:
                raise TimeoutError(f"{' '.join(self._command)}: not done after {timeout_s} s")
            time.sleep(_POLL_S)
        return status

    def poll(self) -> int | None:
        """Returns what `wait` would, or None while ranks run and none has failed."""
        codes = [process.poll() for process in self._processes]
        for rank, code in enumerate(codes):
            if code:
                self._end()
                how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with {code}"
                print(f"rank {rank} {how}; all ranks were ended", file=sys.stderr)
                return 128 - code if code < 0 else code
        if any(code is None for code in codes):
            return None
        self._end()
        return 0

    def __enter__(self) -> Ranks:
        try:
            for rank in range(self._bed.num_nodes):
                self._start(rank)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self, rank: int) -> None:
        size = str(self._bed.num_nodes)
        ours = {
            "RANK": str(rank),
            "GROUP_RANK": str(rank),
            "WORLD_SIZE": size,
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": self._bed.address(0),
            "MASTER_PORT": str(self._bed.port),
            "GLOO_SOCKET_IFNAME": self._bed.device,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        process = subprocess.Popen(
            self._bed.command(rank, _dies_with_us(self._command)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**self._environment, **ours},
            pass_fds=self._pass_fds,
            start_new_session=True,  # a group to end with all that it starts, which Ctrl-C does not reach
        )
        self._processes.append(process)
        reader = threading.Thread(target=self._copy, args=(rank, process), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _copy(self, rank: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._lock:
                self._output.write(f"[{rank}] {line.rstrip()}\n")
                self._output.flush()

    def _end(self) -> None:
        """Ends what still runs, and takes in the rest of what was printed."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sent)
            ends_at = time.monotonic() + _GRACE_S
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, ends_at - time.monotonic()))
        for reader in self._readers:
            reader.join(timeout=_GRACE_S)
        self._processes.clear()
        self._readers.clear()


def end_on_sigterm() -> None:
    """Lets SIGTERM leave all contexts as an error does, so that links and ranks go."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _dies_with_us(command: Sequence[str]) -> list[str]:
    """The command, killed by the kernel where this process dies without a chance to end it (SIGKILL)."""
    if shutil.which("setpriv") is None:
        return list(command)
    return ["setpriv", "--pdeathsig", "KILL", *command]
