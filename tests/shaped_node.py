"""One process of the shaped-link test: sends around a ring between two readings of the interface's counters.

Talks to the test over its pipes, a word a line: it says "ready", waits for "go", says what it counted, waits
for "end".
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

import dance
from dance.exchange import Expected, Message, ProcessGroupExchange


def main(rank: int, world_size: int, store: str, numel: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    exchange = ProcessGroupExchange(timeout_s=60.0)
    before, after = (rank - 1) % world_size, (rank + 1) % world_size
    x = torch.randn(numel, generator=torch.Generator().manual_seed(rank))
    say("ready")
    for number in range(rounds):
        text = ("int8", "none", "sign")[number % 3]
        packet = dance.encode(x, text)
        outbox = [Message(source=rank, target=after, kind="gossip", packet=packet)]
        exchange.deliver(outbox, [Expected(source=before, target=rank, kind="gossip", shape=(numel,))])
    count = exchange.counts.of(rank)
    meter = exchange.links[before, rank]
    counted = {"sent": count.sent_bytes, "received": count.received_bytes, "rate_mbps": meter.rate_mbps}
    say(json.dumps(counted))
    dist.destroy_process_group()


def say(text: str) -> None:
    print(text, flush=True)
    assert sys.stdin.readline()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
