"""Network namespaces joined by a bridge, each behind a link of a set rate (veth and tbf); needs root.

Every name carries the process id and a random part, and leaving the context removes all of it, also after an
error.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

DEVICE = "eth0"  # the name of its link inside each namespace


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What the kernel counted at one interface: bytes with all headers, and packets."""

    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int

    def __sub__(self, other: Counters) -> Counters:
        return Counters(**{name: value - vars(other)[name] for name, value in vars(self).items()})


def why_unavailable() -> str | None:
    """Returns why shaped links cannot be had here, or None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"the tool {tool} is missing; install iproute2"
    try:
        with Testbed(1, rate_mbps=10.0):
            return None
    except RuntimeError as error:
        return str(error)


class Testbed:
    """``num_nodes`` namespaces with addresses 10.77.0.1, 10.77.0.2, ...; each sends at ``rate_mbps``."""

    __test__ = False  # not a test, whatever its name says to pytest

    def __init__(self, num_nodes: int, *, rate_mbps: float) -> None:
        self.num_nodes = num_nodes
        self.rate_mbps = rate_mbps
        self._prefix = f"dance-{os.getpid()}-{secrets.token_hex(3)}"
        self._namespaces: list[str] = []

    def address(self, node: int) -> str:
        return f"10.77.0.{node + 1}"

    def command(self, node: int, command: Sequence[str]) -> list[str]:
        """Returns ``command`` so that it runs in the namespace of ``node``."""
        return ["ip", "netns", "exec", self._name(node), *command]

    def counters(self, node: int) -> Counters:
        values = {}
        for direction, name in (("tx", "sent"), ("rx", "received")):
            for what in ("bytes", "packets"):
                path = f"/sys/class/net/{DEVICE}/statistics/{direction}_{what}"
                values[f"{name}_{what}"] = int(_run(self.command(node, ["cat", path])))
        return Counters(**values)

    def __enter__(self) -> Testbed:
        try:
            # The bridge lives in a namespace too: nothing of this shows up in the machine's own network.
            bridge = self._add(f"{self._prefix}-bridge")
            inside = ["ip", "-n", bridge]
            _run([*inside, "link", "add", "bridge", "type", "bridge"])
            _run([*inside, "link", "set", "bridge", "up"])
            for node in range(self.num_nodes):
                namespace = self._add(self._name(node))
                port = f"port{node}"
                _run(
                    [*inside, "link", "add", port, "type", "veth", "peer", "name", DEVICE, "netns", namespace]
                )
                _run([*inside, "link", "set", port, "master", "bridge", "up"])
                own = ["ip", "-n", namespace]
                _run([*own, "address", "add", f"{self.address(node)}/24", "dev", DEVICE])
                _run([*own, "link", "set", DEVICE, "up"])
                _run([*own, "link", "set", "lo", "up"])
                rate = ["rate", f"{self.rate_mbps}mbit", "burst", "64kb", "latency", "200ms"]
                _run(["tc", "-n", namespace, "qdisc", "add", "dev", DEVICE, "root", "tbf", *rate])
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _name(self, node: int) -> str:
        return f"{self._prefix}-{node}"

    def _add(self, namespace: str) -> str:
        _run(["ip", "netns", "add", namespace])
        self._namespaces.append(namespace)
        return namespace

    def _remove(self) -> None:
        while self._namespaces:  # with its namespace a veth goes, and with it its peer
            subprocess.run(["ip", "netns", "del", self._namespaces.pop()], capture_output=True, check=False)


def _run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip() or result.returncode}")
    return result.stdout
