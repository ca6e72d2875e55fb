"""Network namespaces joined by a bridge, each behind a link of a set rate (veth and tbf); needs root.

The namespaces have no names. Each lives for as long as a process that holds it, which ends when our end of a
pipe closes: however this process ends, SIGKILL included, the kernel takes all of it away.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

DEVICE = "eth0"  # the name of its link inside each namespace
LOWEST_MBPS = 0.01  # a rate of zero would stall TCP until its retransmission timer, minutes later
# A token bucket lets as many bytes through at once after every pause, and after every change of rate: 72 KB,
# which any segment fits in, is half of what 4 MB become as signs, so small messages would come for free. tbf
# cuts segments to packets where it must, and with 2 ms of its rate it keeps to that rate within 1 %, also
# beside four busy loops on two cores.
_BUCKET_S = 0.002
_LEAST_BUCKET_BYTES = 6144  # four packets
_QUEUE_S = 0.2
_LEAST_QUEUE_BYTES = 262_144
_MOST_NODES = 200
_TOOLS = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}


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
        return "network namespaces need root: run it with sudo"
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            return f"the tool {tool} is missing; install {package}"
    try:
        with Testbed(1, rate_mbps=10.0):
            return None
    except RuntimeError as error:
        return str(error)


class Testbed:
    """``num_nodes`` namespaces with addresses 10.77.0.1, 10.77.0.2, ..., each behind a link of ``rate_mbps``
    (10^6 bits a second, all headers included) in both directions; every frame takes ``delay_s`` more.

    To be used as a context. RuntimeError where the machine refuses.
    """

    __test__ = False  # not a test, whatever its name says to pytest
    device = DEVICE
    port = 29500

    def __init__(self, num_nodes: int, *, rate_mbps: float, delay_s: float = 0.0) -> None:
        if not 1 <= num_nodes <= _MOST_NODES:
            raise ValueError(f"testbed: expected 1 to {_MOST_NODES} nodes, got {num_nodes}")
        if not 0.0 <= delay_s <= 1.0:
            raise ValueError(f"testbed: expected a delay of 0 to 1 s, got {delay_s}")
        self.num_nodes = num_nodes
        self.rate_mbps = _checked(rate_mbps)
        self.delay_s = delay_s
        self._holders: list[subprocess.Popen[bytes]] = []  # of each node, and of the bridge last
        self._switch: subprocess.Popen[bytes] | None = None

    def address(self, node: int) -> str:
        return f"10.77.0.{node + 1}"

    def command(self, node: int, command: Sequence[str]) -> list[str]:
        """Returns ``command`` so that it runs in the namespace of ``node``."""
        return self._inside(self._holders[node], command)

    def counters(self, node: int) -> Counters:
        shown = _run(self.command(node, ["ip", "-json", "-statistics", "link", "show", "dev", DEVICE]))
        counted = json.loads(shown)[0]["stats64"]
        names = {"sent": "tx", "received": "rx"}
        return Counters(
            **{
                f"{ours}_{what}": counted[theirs][what]
                for ours, theirs in names.items()
                for what in ("bytes", "packets")
            }
        )

    def set_rate(self, rate_mbps: float) -> None:
        """Changes the rate of every link, both directions, while packets are under way."""
        self.rate_mbps = _checked(rate_mbps)
        self._shape("change")

    def __enter__(self) -> Testbed:
        try:
            for _ in range(self.num_nodes + 1):
                self._holders.append(_hold_namespace())
            # The bridge lives in a namespace too: nothing of this shows up in the machine's own network.
            *_, bridge = self._holders
            _run(self._inside(bridge, ["ip", "link", "add", "bridge", "type", "bridge"]))
            _run(self._inside(bridge, ["ip", "link", "set", "bridge", "up"]))
            for node, holder in enumerate(self._holders[:-1]):
                self._join(node, holder, bridge)
            self._shape("add")
            if self.delay_s:
                self._switch = self._start_switch(bridge)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _join(self, node: int, holder: subprocess.Popen[bytes], bridge: subprocess.Popen[bytes]) -> None:
        port = f"port{node}"
        peer = ["type", "veth", "peer", "name", DEVICE, "netns", str(holder.pid)]
        _run(self._inside(bridge, ["ip", "link", "add", port, *peer]))
        master = [] if self.delay_s else ["master", "bridge"]
        _run(self._inside(bridge, ["ip", "link", "set", port, *master, "addrgenmode", "none", "up"]))
        address, route = (
            f"{self.address(node)}/24",
            ["10.77.0.0/24", "dev", DEVICE, "src", self.address(node)],
        )
        for command in (
            ["link", "set", "lo", "up"],
            ["address", "add", address, "dev", DEVICE, "noprefixroute"],
            # The hardware address is how a switch knows a node. No IPv6, and none of its chatter.
            ["link", "set", DEVICE, "address", f"02:00:00:00:00:{node:02x}", "addrgenmode", "none", "up"],
            ["route", "add", *route, *_congestion_control()],
        ):
            _run(self._inside(holder, ["ip", *command]))

    def _shape(self, verb: str) -> None:
        """Sets the rate where nodes send and, at the ports of the bridge, where they receive."""
        bits_per_second = self.rate_mbps * 1e6
        bucket = max(_LEAST_BUCKET_BYTES, int(bits_per_second / 8 * _BUCKET_S))
        queue = max(_LEAST_QUEUE_BYTES, int(bits_per_second / 8 * _QUEUE_S))
        tbf = f"root tbf rate {bits_per_second:.0f}bit burst {bucket} limit {queue}"
        *nodes, bridge = self._holders
        for node in nodes:
            _run(self._inside(node, ["tc", "qdisc", verb, "dev", DEVICE, *tbf.split()]))
        lines = [f"qdisc {verb} dev port{node} {tbf}" for node in range(self.num_nodes)]
        _run(self._inside(bridge, ["tc", "-batch", "-"]), "\n".join(lines) + "\n")

    def _start_switch(self, bridge: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        ports = [f"port{node}" for node in range(self.num_nodes)]
        # Ahead of the ranks, as the kernel's bridge is.
        switch = [
            "nice",
            "-n",
            "-15",
            sys.executable,
            "-m",
            "benchmarks.testbed.switch",
            str(self.delay_s),
            *ports,
        ]
        return _started(self._inside(bridge, switch), Path(__file__).parents[2])

    def _inside(self, holder: subprocess.Popen[bytes], command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/proc/{holder.pid}/ns/net", *command]

    def _remove(self) -> None:
        holders, self._holders = self._holders, []
        if self._switch is not None:
            holders.append(self._switch)
            self._switch = None
        for holder in holders:
            assert holder.stdin is not None
            holder.stdin.close()
        for holder in holders:
            holder.wait()


def _checked(rate_mbps: float) -> float:
    if not LOWEST_MBPS <= rate_mbps < math.inf:
        raise ValueError(f"testbed: expected a rate of at least {LOWEST_MBPS} Mbit/s, got {rate_mbps}")
    return rate_mbps


def _hold_namespace() -> subprocess.Popen[bytes]:
    """Returns a process with a network namespace of its own, that ends when its standard input closes."""
    return _started(["unshare", "--net", "sh", "-c", "echo held; exec cat"])


def _started(command: Sequence[str], folder: Path | None = None) -> subprocess.Popen[bytes]:
    """Returns a process that has printed its first line.

    In a session of its own, so that the Ctrl-C of a terminal leaves the order of things to us.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd=folder,
    )
    assert process.stdout is not None
    if not process.stdout.readline():
        reason = process.communicate()[1].decode().strip()
        raise RuntimeError(f"{command[0]}: {reason}; network namespaces need the capability SYS_ADMIN")
    return process


def _congestion_control() -> list[str]:
    """Cubic where there is a choice, as on most machines: BBR's model of a link lags behind its changes."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    return ["congctl", "cubic"] if "cubic" in available else []


def _run(command: Sequence[str], text: str = "") -> str:
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip() or result.returncode}")
    return result.stdout
