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
    (10^6 bits a second, all headers included) in both directions.

    To be used as a context. RuntimeError where the machine refuses.
    """

    __test__ = False  # not a test, whatever its name says to pytest

    def __init__(self, num_nodes: int, *, rate_mbps: float) -> None:
        if num_nodes < 1:
            raise ValueError(f"testbed: expected at least 1 node, got {num_nodes}")
        self.num_nodes = num_nodes
        self.rate_mbps = _checked(rate_mbps)
        self._holders: list[subprocess.Popen[bytes]] = []  # of each node, and of the bridge last

    device = DEVICE

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
        _run(self._inside(bridge, ["ip", "link", "set", port, "master", "bridge", "up"]))
        address, route = (
            f"{self.address(node)}/24",
            ["10.77.0.0/24", "dev", DEVICE, "src", self.address(node)],
        )
        for command in (
            ["link", "set", "lo", "up"],
            ["address", "add", address, "dev", DEVICE, "noprefixroute"],
            ["link", "set", DEVICE, "addrgenmode", "none", "up"],  # no IPv6, and none of its chatter
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

    def _inside(self, holder: subprocess.Popen[bytes], command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/proc/{holder.pid}/ns/net", *command]

    def _remove(self) -> None:
        holders, self._holders = self._holders, []
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
    """Returns a process with a network namespace of its own, that ends when its standard input closes.

    In a session of its own, so that the Ctrl-C of a terminal leaves the order of things to us.
    """
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo held; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert holder.stdout is not None
    assert holder.stderr is not None
    if not holder.stdout.readline():
        reason = holder.communicate()[1].decode().strip()
        raise RuntimeError(
            f"this machine gives no network namespace ({reason}); it needs the capability SYS_ADMIN"
        )
    return holder


def _congestion_control() -> list[str]:
    """Cubic where there is a choice, as on most machines: BBR's model of a link lags behind its changes."""
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    return ["congctl", "cubic"] if "cubic" in available else []


def _run(command: Sequence[str], text: str = "") -> str:
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip() or result.returncode}")
    return result.stdout
