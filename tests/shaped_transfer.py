"""One process of the testbed's tests: sends bytes over TCP, or receives them and says when how many had come.

    python shaped_transfer.py receive SENDERS | send ADDRESS BYTES | knock ADDRESS TIMES

Standard library only, so that it starts in a moment. The receiver prints "ready", and at the end a JSON list
of [time.monotonic(), bytes so far]. Who knocks prints how many seconds it takes to be refused: a round trip.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import sys
import time

PORT = 5000


def receive(senders: int) -> None:
    listener = socket.create_server(("0.0.0.0", PORT))
    print("ready", flush=True)
    selector = selectors.DefaultSelector()
    for _ in range(senders):
        selector.register(listener.accept()[0], selectors.EVENT_READ)
    count, log = 0, []
    while selector.get_map():
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            part = key.fileobj.recv(1 << 20)
            if not part:
                selector.unregister(key.fileobj)
                continue
            count += len(part)
            log.append((time.monotonic(), count))
    print(json.dumps(log), flush=True)


def send(address: str, num_bytes: int) -> None:
    with socket.create_connection((address, PORT)) as connection:
        connection.sendall(bytes(num_bytes))


def knock(address: str, times: int) -> None:
    seconds = []
    for _ in range(times):
        start = time.monotonic()
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((address, PORT)).close()
        seconds.append(time.monotonic() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]))
    elif sys.argv[1] == "knock":
        knock(sys.argv[2], int(sys.argv[3]))
    else:
        send(sys.argv[2], int(sys.argv[3]))
