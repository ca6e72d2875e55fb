"""An all-reduce by hand, between processes: NumPy, queues as the network, and no torch.

    python examples/all_reduce_by_hand.py --world 4 --numel 1000003 --codec int8

Two phases: every rank encodes its array in shards, one for each rank, and sends them to their owners; an
owner decodes, adds up and encodes again in one pass (`dance.reduce`), and sends that to everybody.
"""

import argparse
import sys
import zlib
from multiprocessing import Process, Queue

import numpy as np

import dance


def exchange(rank, inboxes, outbox):
    """Sends outbox[r] to each rank r, itself included; returns what came, in order of ranks."""
    for inbox, data in zip(inboxes, outbox, strict=True):
        inbox.put((rank, data))
    return [data for _, data in sorted(inboxes[rank].get(timeout=60) for _ in inboxes)]


def work(rank, phases, results, numel, codec):
    world, seed = len(phases[0]), dance.derive_seed(0, 0, rank, "x", "all_reduce")
    arrays = [np.random.default_rng(r).standard_normal(numel, dtype="float32") for r in range(world)]
    shards = np.array_split(arrays[rank], world)
    outbox = [dance.encode(shard, codec, seed=seed).to_bytes() for shard in shards]
    expect = (codec, shards[rank].shape, "float32")  # what comes from a peer is checked before it is decoded
    inbox = [dance.Packet.from_bytes(data, expect=expect) for data in exchange(rank, phases[0], outbox)]

    total = dance.reduce(inbox, codec=codec, seed=seed).to_bytes()
    sums = [dance.Packet.from_bytes(data) for data in exchange(rank, phases[1], [total] * world)]
    result = np.concatenate([dance.decode(packet) for packet in sums])  # its own, too: equal bits everywhere

    num_bytes = sum(map(len, outbox)) - len(outbox[rank]) + (world - 1) * len(total)
    lost = np.linalg.norm(result - sum(arrays)) / np.linalg.norm(sum(arrays))
    assert "torch" not in sys.modules
    results.put(
        f"rank {rank}: checksum {zlib.crc32(result):08x}, {num_bytes} bytes, relative error {lost:.5f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", type=int, default=4, help="ranks")
    parser.add_argument("--numel", type=int, default=1_000_003, help="float32 elements")
    parser.add_argument("--codec", default="int8")
    options = parser.parse_args()
    results, phases = Queue(), [[Queue() for _ in range(options.world)] for _ in range(2)]
    for rank in range(options.world):
        arguments = (rank, phases, results, options.numel, dance.codec(options.codec))
        Process(target=work, args=arguments, daemon=True).start()
    print(*sorted(results.get(timeout=60) for _ in range(options.world)), sep="\n")


if __name__ == "__main__":
    main()
