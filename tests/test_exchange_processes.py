"""The exchange over real gloo processes: bytes, errors of peers, timeouts, and simulated equals real."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_ranks

import dance
from dance import topology
from dance.exchange import Expected, Message, ProcessGroupExchange, SimulatedExchange
from dance.gossip import GossipNode, GossipOptions

NUMEL = 5003


class Recorder:
    """Counts the bytes of every buffer handed to an operation, and hands it on."""

    def __init__(self, operation: Callable[..., Any]) -> None:
        self.operation = operation
        self.num_bytes = 0

    def __call__(self, buffer: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.num_bytes += buffer.numel() * buffer.element_size()
        return self.operation(buffer, *args, **kwargs)


def _input(node: int, numel: int = NUMEL) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(node).standard_normal(numel).astype(np.float32))


def _round(exchange: ProcessGroupExchange | SimulatedExchange, node: int, number: int) -> tuple[Any, Any]:
    """What one node of a ring of 4 sends and expects: several kinds, codecs and messages a pair."""
    after, before = (node + 1) % 4, (node - 1) % 4
    x = _input(node)
    packets = [dance.encode(x, text, seed=number) for text in ("int8", "none", "sign", "topk:ratio=0.05")]
    kinds = ["gossip", "image", "gossip", "moment"]
    for packet in packets:
        packet.round = number
    outbox = [
        Message(source=node, target=after, kind=kind, packet=packet)
        for kind, packet in zip(kinds, packets, strict=True)
    ]
    small = dance.encode(x[: node + 1], "fp16")
    outbox.append(Message(source=node, target=before, kind="control", packet=small))
    expected = [
        Expected(source=before, target=node, kind=kind, shape=(NUMEL,), codec=packet.codec, round=number)
        for kind, packet in zip(kinds, packets, strict=True)
    ]
    expected.insert(1, Expected(source=after, target=node, kind="control", shape=(after + 1,)))
    return outbox, expected


def _ring(rank: int) -> dict[str, Any]:
    send, receive = Recorder(dist.isend), Recorder(dist.irecv)
    setattr(dist, "isend", send)  # noqa: B010  # a pass-through: the real operations run
    setattr(dist, "irecv", receive)  # noqa: B010
    exchange = ProcessGroupExchange()
    contents, addresses = [], set()
    for number in range(3):
        outbox, expected = _round(exchange, rank, number)
        received = exchange.deliver(outbox, expected)
        contents.append([message.packet.to_bytes() for message in received])
        addresses.add(tuple(message.packet.payload.data_ptr() for message in received))
    flags = [exchange.any(rank == raised) for raised in (0, 2, 9)]
    total = exchange.counts.of(rank)
    return {
        "contents": contents,
        "sent": (total.sent_bytes, send.num_bytes),
        "received": (total.received_bytes, receive.num_bytes),
        "rows": exchange.counts.state_dict()["rows"],
        "flags": flags,
        "buffers": len(addresses),
        "meters": {edge: meter.num_observations for edge, meter in exchange.links.items()},
        "elapsed": exchange.elapsed_s(rank),
    }


def test_a_ring_of_processes_equals_the_simulation_and_its_bytes_are_those_handed_over() -> None:
    results = run_ranks(_ring, 4)
    exchange = SimulatedExchange(4)
    contents: list[list[list[bytes]]] = [[] for _ in range(4)]
    for number in range(3):
        boxes = [_round(exchange, node, number) for node in range(4)]
        received = exchange.deliver(
            [m for box in boxes for m in box[0]], [e for box in boxes for e in box[1]]
        )
        for node in range(4):
            mine = [message.packet.to_bytes() for message in received if message.target == node]
            contents[node].append(mine)
    for raised in (True, True, False):
        exchange.any(raised)
    rows = exchange.counts.state_dict()["rows"]
    for node, result in enumerate(results):
        assert result["contents"] == contents[node]
        assert result["sent"][0] == result["sent"][1] > 0
        assert result["received"][0] == result["received"][1] > 0
        assert result["rows"] == [row for row in rows if row[0] == node]
        assert result["flags"] == [True, True, False]
        assert result["buffers"] == 1, "receive buffers are reused"
        assert result["meters"] == {((node - 1) % 4, node): 12, ((node + 1) % 4, node): 3}
        assert result["elapsed"] > 0.0


def _raw(exchange: ProcessGroupExchange, *buffers: bytes) -> None:
    """Sends bytes to node 1 as the next message of the pair, as a faulty peer might."""
    tag = exchange._tag(0, 1)
    works = []
    for k, buffer in enumerate(buffers):
        tensor = torch.frombuffer(bytearray(buffer), dtype=torch.uint8)
        works.append((dist.isend(tensor, 1, tag=tag + k), tensor))
    for work, _ in works:
        assert work is not None
        work.wait()


def _faulty(rank: int) -> list[str]:
    exchange = ProcessGroupExchange(timeout_s=30)
    x = _input(7)
    errors: list[str] = []

    def good(number: int, text: str = "int8", sender: int = 0) -> dance.Packet:
        packet = dance.encode(x, text)
        packet.round, packet.sender = number, sender
        return packet

    if rank == 0:
        whole = good(1).to_bytes()
        torn = bytearray(whole)
        torn[200] ^= 1
        long = dance.encode(torch.zeros(10 * NUMEL), "none").to_bytes()
        _raw(exchange, b"\xa5" * 64)  # no header
        _raw(exchange, whole[:64], bytes(torn[64:]))  # a payload that is not its header's
        wrong_codec = good(2, "sign").to_bytes()
        _raw(exchange, wrong_codec[:64], wrong_codec[64:])
        wrong_round = good(77).to_bytes()
        _raw(exchange, wrong_round[:64], wrong_round[64:])
        wrong_sender = good(4, sender=5).to_bytes()
        _raw(exchange, wrong_sender[:64], wrong_sender[64:])
        _raw(exchange, long[:64])  # ten times as long: its payload is not asked for
        for number in (6, 7):
            packet = good(number)
            exchange.deliver([Message(source=0, target=1, kind="gossip", packet=packet)], [])
        return errors
    for number in range(8):
        expect = Expected(
            source=0, target=1, kind="gossip", shape=(NUMEL,), codec=dance.codec("int8"), round=number
        )
        try:
            received = exchange.deliver([], [expect])
        except dance.DanceError as error:
            errors.append(f"{type(error).__name__}: {error}")
            continue
        assert torch.equal(dance.decode(received[0].packet), dance.decode(good(number)))
        errors.append("")
    return errors


def test_a_receiver_outlives_what_faulty_peers_send() -> None:
    errors = run_ranks(_faulty, 2)[1]
    assert len(errors) == 8
    for number, error in enumerate(errors[:6]):
        assert f"gossip of round {number} from node 0 to node 1" in error
    assert errors[0].startswith("FrameError")
    assert "checksum" in errors[1].lower() or "crc" in errors[1].lower()
    assert "expected codec int8:block=256, got sign:block=256" in errors[2]
    assert "round 77" in errors[3]
    assert "says that it is from node 5" in errors[4]
    assert errors[5].startswith("PeerError")
    assert errors[6:] == ["", ""]


def _alone(rank: int) -> list[str]:
    if rank == 0:
        time.sleep(2.5)
        return []
    exchange = ProcessGroupExchange(timeout_s=0.5)
    expect = Expected(source=0, target=1, kind="gossip", shape=(NUMEL,))
    errors = []
    for _ in range(2):
        try:
            exchange.deliver([], [expect])
        except dance.PeerError as error:  # noqa: PERF203
            errors.append(str(error))
    return errors


def test_a_silent_peer_ends_the_exchange_with_its_name() -> None:
    errors = run_ranks(_alone, 2)[1]
    assert len(errors) == 2
    for error in errors:
        assert "gossip from node 0 to node 1 did not get through" in error
        assert "of no more use" in error


def _nodes(count: int, text: str) -> list[GossipNode]:
    options = GossipOptions(codec=text, run_seed=5, guard=True)
    ring = topology.ring(count)
    return [GossipNode(_input(k), ring, k, options, reference=torch.zeros(NUMEL)) for k in range(count)]


def _update(node: GossipNode, number: int) -> None:
    noise = np.random.default_rng((number, node.position)).standard_normal(NUMEL).astype(np.float32)
    node.theta.add_(torch.from_numpy(noise) * 0.01)


def _gossip(rank: int, text: str, rounds: int) -> tuple[bytes, Any]:
    exchange = ProcessGroupExchange()
    node = _nodes(4, text)[rank]
    for number in range(rounds):
        _update(node, number)
        if number == rounds // 2:
            node.codec = "int8" if rank % 2 else "topk:ratio=0.1"
        received = exchange.deliver(node.messages(), node.expected())
        node.in_({message.source: message.packet for message in received})
    return node.theta.numpy().tobytes(), exchange.counts.state_dict()["rows"]


def test_simulated_gossip_equals_real_gossip_to_the_bit() -> None:
    rounds = 12
    real = run_ranks(_gossip, 4, "sign", rounds)
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exchange = SimulatedExchange(4)
        nodes = _nodes(4, "sign")
        for number in range(rounds):
            for node in nodes:
                _update(node, number)
                if number == rounds // 2:
                    node.codec = "int8" if node.position % 2 else "topk:ratio=0.1"
            outbox = [message for node in nodes for message in node.messages()]
            received = exchange.deliver(outbox, [expect for node in nodes for expect in node.expected()])
            for node in nodes:
                node.in_({m.source: m.packet for m in received if m.target == node.position})
    finally:
        torch.set_num_threads(torch_threads)
    rows = exchange.counts.state_dict()["rows"]
    for node in nodes:
        assert real[node.position][0] == node.theta.numpy().tobytes()
        assert real[node.position][1] == [row for row in rows if row[0] == node.position]


def test_without_a_process_group_the_remedy_is_named() -> None:
    with pytest.raises(ValueError, match="run under torchrun"):
        ProcessGroupExchange()
