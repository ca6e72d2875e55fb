"""A switch that holds every frame for a set time: the delay of the links, as many kernels have no netem.

    python -m benchmarks.testbed.switch SECONDS PORT...

Runs in the namespace of the ports, in place of the bridge, until its standard input closes. Port i leads to
the node whose hardware address ends in i. Frames are read and written together with the kernel's notes on
segmentation and checksums (PACKET_VNET_HDR in packet(7)), so that a frame is a TCP segment of up to 64 KB.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from select import select

_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_ETH_P_ALL = 3
_VNET_HEADER_NBYTES = 10
_FRAME_NBYTES = 1 << 17
_BUFFER_NBYTES = 32 << 20  # a quarter of a second at 1 Gbit/s
_BROADCAST = 0xFF


def main(delay_s: float, ports: list[str]) -> None:
    sockets = [_open(port) for port in ports]
    numbers = {each: number for number, each in enumerate(sockets)}
    held: deque[tuple[float, int, bytes]] = deque()  # due, port to leave by, frame: in order of arrival
    print("switching", flush=True)
    while True:
        wait_s = max(0.0, held[0][0] - time.monotonic()) if held else None
        readable = select([sys.stdin, *sockets], [], [], wait_s)[0]
        if sys.stdin in readable:
            return
        due = time.monotonic() + delay_s
        for each in readable:
            for frame in _frames(each):
                last = frame[_VNET_HEADER_NBYTES + 5]  # of the destination's address
                others = [number for number in range(len(ports)) if number != numbers[each]]
                held.extend((due, port, frame) for port in others if last in (port, _BROADCAST))
        while held and held[0][0] <= time.monotonic():
            _, port, frame = held.popleft()
            try:
                sockets[port].send(frame)
            except OSError as error:  # the port's queue is full: a switch drops the frame
                if error.errno not in (errno.ENOBUFS, errno.EAGAIN):
                    raise


def _open(port: str) -> socket.socket:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    raw.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
        raw.setsockopt(socket.SOL_SOCKET, option, _BUFFER_NBYTES)
    raw.setblocking(False)
    raw.bind((port, _ETH_P_ALL))
    return raw


def _frames(raw: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield raw.recv(_FRAME_NBYTES)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
