"""The exchange over real gloo processes: bytes, errors of peers, timeouts, and simulated equals real."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import run_ranks

import dance
from dance import topology
from dance.arrays import KINDS
from dance.exchange import Expected, Message, ProcessGroupExchange, SimulatedExchange
from dance.gossip import AGREE_EVERY, GossipNode, GossipOptions, HubNode, HubRelay

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


def _faulty(rank: int) -> Any:
    receive = Recorder(dist.irecv)
    setattr(dist, "irecv", receive)  # noqa: B010  # a pass-through: the real operations run
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
    return errors, exchange.counts.of(1).received_bytes, receive.num_bytes


def test_a_receiver_outlives_what_faulty_peers_send() -> None:
    errors, counted, handed_over = run_ranks(_faulty, 2)[1]
    assert len(errors) == 8
    assert counted == handed_over > 6 * dance.codec("sign").packet_nbytes(NUMEL), "refused or not, it came"
    for number, error in enumerate(errors[:6]):
        assert f"gossip of round {number} from node 0 to node 1" in error
    assert errors[0].startswith("FrameError")
    assert "checksum" in errors[1].lower() or "crc" in errors[1].lower()
    assert "expected codec int8:block=256, got sign:block=256" in errors[2]
    assert "round 77" in errors[3]
    assert "says that it is from node 5" in errors[4]
    assert errors[5].startswith("PeerError")
    assert errors[6:] == ["", ""]


def _left_over(rank: int) -> list[str]:
    one, two = ProcessGroupExchange(timeout_s=30), ProcessGroupExchange(timeout_s=30)
    packet = dance.encode(_input(3), "int8")
    if rank == 0:
        payload = dance.encode(_input(4), "int8").to_bytes()[64:]
        tag = one._tag(0, 1)
        works = [
            dist.isend(torch.frombuffer(bytearray(part), dtype=torch.uint8), 1, tag=tag + k)
            for k, part in enumerate((bytes(64), payload))  # no header, so the payload is not asked for
        ]
        two.deliver([Message(source=0, target=1, kind="gossip", packet=packet)], [])
        return [str(len(works))]
    answers = []
    for exchange in (one, two):
        expect = Expected(source=0, target=1, kind="gossip", shape=(NUMEL,))
        try:
            received = exchange.deliver([], [expect])[0].packet
            answers.append(str(torch.equal(dance.decode(received), dance.decode(packet))))
        except dance.DanceError as error:
            answers.append(str(error))
    return answers


def test_what_is_left_of_one_exchange_is_not_taken_by_another_of_its_group() -> None:
    broken, good = run_ranks(_left_over, 2)[1]
    assert "no dance packet" in broken
    assert good == "True"


def _subgroup(rank: int) -> Any:
    group = dist.new_group([1, 3])
    if rank not in (1, 3):
        with pytest.raises(ValueError, match="no member of the group"):
            ProcessGroupExchange(group)
        return None
    exchange = ProcessGroupExchange(group)
    (node,) = exchange.nodes
    packet = dance.encode(_input(rank), "int8")
    outbox = [Message(source=node, target=1 - node, kind="gossip", packet=packet)]
    (received,) = exchange.deliver(
        outbox, [Expected(source=1 - node, target=node, kind="gossip", shape=(NUMEL,))]
    )
    equal = torch.equal(dance.decode(received.packet), dance.decode(dance.encode(_input(4 - rank), "int8")))
    parameter = torch.full((3,), float(rank))
    dance.ChocoGossip({"a": parameter}, topology.ring(2), "none", 1.0, group=group).step()
    return node, exchange.num_nodes, equal, exchange.any(rank == 3), parameter.tolist()


def test_nodes_of_a_subgroup_are_its_ranks() -> None:
    results = run_ranks(_subgroup, 4)
    assert results == [None, (0, 2, True, True, [2.0] * 3), None, (1, 2, True, True, [2.0] * 3)]


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


def _hub_nodes(count: int) -> tuple[list[HubNode], HubRelay]:
    options, zero = GossipOptions(codec="sign", run_seed=5), torch.zeros(NUMEL)
    nodes = [HubNode(_input(k), k, options, reference=zero) for k in range(1, count)]
    return nodes, HubRelay(zero, 0, count - 1, options)


def _hub_round(
    exchange: ProcessGroupExchange | SimulatedExchange, nodes: list[HubNode], relay: HubRelay, number: int
) -> None:
    """One round of those of ``nodes`` and the relay that live here, as an algorithm would do it."""
    here = [node for node in nodes if node.node in exchange.nodes]
    for node in here:
        noise = np.random.default_rng((number, node.node)).standard_normal(NUMEL).astype(np.float32)
        node.theta.add_(torch.from_numpy(noise) * 0.01)
        if number == 5:
            node.codec = "int8"
    shape: Any = {"kind": "gossip", "shape": (NUMEL,), "round": number}
    up = [Message(source=node.node, target=0, kind="gossip", packet=node.out()) for node in here]
    expected = [Expected(source=node.node, target=0, **shape) for node in nodes if 0 in exchange.nodes]
    inbox = exchange.deliver(up, expected)
    down = []
    if 0 in exchange.nodes:
        relay.in_([message.packet for message in inbox])
        packet = relay.out()
        down = [Message(source=0, target=node.node, kind="gossip", packet=packet) for node in nodes]
    for message in exchange.deliver(down, [Expected(source=0, target=node.node, **shape) for node in here]):
        next(node for node in here if node.node == message.target).in_(message.packet)
    if number == 3 and 2 in exchange.nodes:
        nodes[1].pace.alarm = True  # as if its guard had fired, at one node only
    if relay_round_ends(number) and exchange.any(any(node.alarm for node in here)):
        for node in here:
            node.halve()


def relay_round_ends(number: int) -> bool:
    return (number + 1) % AGREE_EVERY == 0


def _hub_process(rank: int, rounds: int) -> tuple[Any, ...]:
    exchange = ProcessGroupExchange()
    nodes, relay = _hub_nodes(4)
    for number in range(rounds):
        _hub_round(exchange, nodes, relay, number)
    counted = exchange.counts.state_dict()["rows"]
    if rank == 0:
        return relay.mean.numpy().tobytes(), relay.relayed.numpy().tobytes(), None, counted
    node = nodes[rank - 1]
    return node.theta.numpy().tobytes(), node.relayed.numpy().tobytes(), node.step_size, counted


def test_a_simulated_hub_equals_a_real_one_to_the_bit_and_halves_with_it() -> None:
    rounds = 12
    real = run_ranks(_hub_process, 4, rounds)
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exchange = SimulatedExchange(4)
        nodes, relay = _hub_nodes(4)
        for number in range(rounds):
            _hub_round(exchange, nodes, relay, number)
    finally:
        torch.set_num_threads(torch_threads)
    rows = exchange.counts.state_dict()["rows"]
    mine = [[row for row in rows if row[0] == node] for node in range(4)]
    assert real[0] == (relay.mean.numpy().tobytes(), relay.relayed.numpy().tobytes(), None, mine[0])
    for node in nodes:
        theta, relayed = node.theta.numpy().tobytes(), node.relayed.numpy().tobytes()
        assert real[node.node] == (theta, relayed, 0.45, mine[node.node])


class _OnDevice:
    """Stands for a CuPy array: no memory of the host, so only its kind knows how to get at the bytes."""


class _DeviceKind:
    def __init__(self, payload: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.payload = payload

    def to_host(self, _: _OnDevice) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return self.payload


def _any_payload(rank: int) -> list[bool]:
    """Payloads in memory that torch does not take: on a device, and read-only."""
    exchange = ProcessGroupExchange(timeout_s=30)
    x = _input(3).numpy()
    expect = Expected(source=0, target=1, kind="gossip", shape=(NUMEL,))
    if rank == 1:
        packets = [exchange.deliver([], [expect])[0].packet for _ in range(2)]
        return [
            bool(np.array_equal(dance.decode(p).numpy(), dance.decode(dance.encode(x, "int8"))))
            for p in packets
        ]
    packet = dance.encode(x, "int8")
    frozen = dance.Packet.from_bytes(packet.to_bytes(), expect=("int8", (NUMEL,), "float32"))
    KINDS[_OnDevice] = _DeviceKind(packet.payload)  # type: ignore[assignment]
    packet._memory = (*packet._memory[:3], _OnDevice(), 0)
    packet._kind = KINDS[_OnDevice]
    for each in (packet, frozen):
        exchange.deliver([Message(source=0, target=1, kind="gossip", packet=each)], [])
    return []


def test_payloads_are_sent_from_whatever_memory_they_lie_in() -> None:
    assert run_ranks(_any_payload, 2)[1] == [True, True]


def _surprise(rank: int) -> list[str]:
    """An error that nobody foresaw, in one of several threads: the others finish, and it is raised."""
    exchange = ProcessGroupExchange(timeout_s=30)
    packet = dance.encode(_input(rank), "int8")
    if rank:
        for _ in range(2):
            exchange.deliver([Message(source=rank, target=0, kind="gossip", packet=packet)], [])
        return []
    received, done = exchange._received, []

    def faulty(each: Any) -> Any:
        if each.expect.source == 1 and not done:
            received(each)
            raise ZeroDivisionError("unforeseen")
        time.sleep(0.2)
        done.append(each.expect.source)
        return received(each)

    setattr(exchange, "_received", faulty)  # noqa: B010
    expected = [Expected(source=k, target=0, kind="gossip", shape=(NUMEL,)) for k in (1, 2, 3)]
    with pytest.raises(ZeroDivisionError, match="unforeseen"):
        exchange.deliver([], expected)
    first = sorted(done)
    messages = exchange.deliver([], expected)
    return [
        str(first),
        *(
            str(torch.equal(dance.decode(m.packet), dance.decode(dance.encode(_input(m.source), "int8"))))
            for m in messages
        ),
    ]


def test_an_unforeseen_error_leaves_no_thread_behind() -> None:
    assert run_ranks(_surprise, 4)[0] == ["[2, 3]", "True", "True", "True"]


def test_a_group_without_a_cpu_backend_is_refused(tmp_path: Path) -> None:
    dist.init_process_group("cuda:gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(
            ValueError, match=r"the group has cuda:gloo only; .*init_process_group\('cpu:gloo"
        ):
            ProcessGroupExchange()
    finally:
        dist.destroy_process_group()


def test_without_a_process_group_the_remedy_is_named() -> None:
    with pytest.raises(ValueError, match="run under torchrun"):
        ProcessGroupExchange()
