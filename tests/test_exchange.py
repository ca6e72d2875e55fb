"""The simulated exchange: messages, counts and errors, and the virtual clock against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dance
from dance.bandwidth import Link, Links
from dance.exchange import Exchange, Expected, Message, SimulatedExchange, Traffic

NUMEL = 1000
NONE, INT8 = dance.codec("none"), dance.codec("int8")


def message(
    source: int, target: int, kind: str = "gossip", codec: str = "none", numel: int = NUMEL
) -> Message:
    x = torch.full((numel,), float(10 * source + target))
    return Message(source=source, target=target, kind=kind, packet=dance.encode(x, codec))


def expect(source: int, target: int, kind: str = "gossip", **options: object) -> Expected:
    return Expected(source=source, target=target, kind=kind, **{"shape": (NUMEL,), **options})  # type: ignore[arg-type]


def test_messages_come_in_the_order_expected() -> None:
    exchange: Exchange = SimulatedExchange(3)
    outbox = [message(0, 2), message(1, 2), message(1, 0, "image"), message(1, 2, numel=NUMEL)]
    received = exchange.deliver(outbox, [expect(1, 2), expect(1, 0, "image"), expect(0, 2), expect(1, 2)])
    assert [(m.source, m.target, m.kind) for m in received] == [
        (1, 2, "gossip"),
        (1, 0, "image"),
        (0, 2, "gossip"),
        (1, 2, "gossip"),
    ]
    assert received[0].packet is outbox[1].packet
    assert received[3].packet is outbox[3].packet
    assert float(dance.decode(received[2].packet)[0]) == 2.0
    assert exchange.deliver([], []) == []


def test_counts_are_of_packets_with_their_headers() -> None:
    exchange = SimulatedExchange(3)
    exchange.deliver(
        [message(0, 1, codec="int8"), message(0, 2, codec="int8"), message(1, 0, "image")],
        [expect(0, 1), expect(0, 2), expect(1, 0, "image")],
    )
    int8, raw = INT8.packet_nbytes(NUMEL), 64 + 4 * NUMEL
    counts = exchange.counts
    assert counts.of(0, "gossip").sent_bytes == 2 * int8
    assert counts.of(0, "gossip").raw_sent_bytes == 2 * raw
    assert counts.of(1, "gossip").received_bytes == int8
    assert counts.of(0).received_bytes == raw
    assert counts.of(0).received_messages == 1
    assert counts.bytes_sent == 2 * int8 + raw == counts.of().received_bytes
    assert counts.raw_bytes == 3 * raw
    assert counts.kinds == ("gossip", "image")
    assert exchange.any(True)
    assert not exchange.any(False)
    assert counts.of(kind="control").sent_bytes == 8 == counts.of(kind="control").received_bytes
    copy = Traffic()
    copy.load_state_dict(counts.state_dict())
    assert list(copy.items()) == list(counts.items())


def test_what_does_not_match_is_refused() -> None:
    exchange = SimulatedExchange(2)
    for outbox, expected, message_text in (
        ([], [expect(0, 1)], "nobody sends the gossip from node 0 to node 1"),
        ([message(0, 1)], [], "nobody expects the gossip from node 0 to node 1"),
        ([message(0, 1, "image")], [expect(0, 1)], "nobody sends"),
        ([message(0, 2)], [], "cannot send 'gossip' with node 2 of 2"),
        ([message(0, 0)], [], "cannot send 'gossip' with node 0 of 2"),
        ([], [expect(0, 5)], "node 5 of receive 'gossip' does not live here"),
    ):
        with pytest.raises(ValueError, match=message_text):
            exchange.deliver(outbox, expected)
    assert exchange.counts.bytes_sent == 0


def test_a_packet_that_is_not_as_expected_names_the_peer() -> None:
    exchange = SimulatedExchange(2)
    for options, text in (
        ({"codec": INT8}, "gossip from node 0 to node 1.*expected codec int8:block=256, got none"),
        ({"shape": (NUMEL + 1,)}, "expected 1001 elements"),
        ({"round": 3}, "gossip of round 3 from node 0 to node 1.*is of round 0"),
    ):
        with pytest.raises(dance.PeerError, match=text):
            exchange.deliver([message(0, 1)], [expect(0, 1, **options)])
    # Refused, but it came.
    assert exchange.counts.of(1).received_bytes == 3 * (64 + 4 * NUMEL) == exchange.counts.of(0).sent_bytes
    # Far longer than expected: a receiver over a process group does not even ask for the payload.
    with pytest.raises(dance.PeerError, match="expected 1000 elements"):
        exchange.deliver([message(0, 1, numel=100_000)], [expect(0, 1)])
    assert exchange.counts.of(1).received_bytes == 3 * (64 + 4 * NUMEL) + 64
    received = exchange.deliver([message(0, 1)], [expect(0, 1, shape=(10, 100), codec=NONE, round=0)])
    assert received[0].packet.shape == (10, 100)
    assert received[0].packet.sender == 0


def seconds(num_bytes: int, mbps: float) -> float:
    return num_bytes * 8 / (mbps * 1e6)


def test_virtual_clock_of_one_message() -> None:
    size = NONE.packet_nbytes(NUMEL)
    links = Links(default=Link(rate_mbps=1.0, delay_s=0.01), nodes={1: Link(rate_mbps=0.5, delay_s=0.02)})
    exchange = SimulatedExchange(2, links)
    exchange.compute(0, 2.0)
    exchange.deliver([message(0, 1)], [expect(0, 1)])
    # The transfer begins when both are ready; the slower of up and down link decides, both delays add.
    assert exchange.elapsed_s(1) == pytest.approx(2.0 + 0.03 + seconds(size, 0.5))
    assert exchange.elapsed_s(0) == pytest.approx(2.0 + seconds(size, 1.0))
    meter = exchange.links[0, 1]
    # The meter is fed the payload's bytes and the seconds of the payload.
    assert meter.predict_s(size - 64) == pytest.approx(0.03 + seconds(size - 64, 0.5))
    exchange.deliver([message(1, 0)], [expect(1, 0)])
    start = 2.0 + 0.03 + seconds(size, 0.5)
    assert exchange.elapsed_s(0) == pytest.approx(start + 0.03 + seconds(size, 0.5))


def test_messages_share_the_up_link_of_a_hub_and_its_down_link() -> None:
    size = NONE.packet_nbytes(NUMEL)
    exchange = SimulatedExchange(5, Links(default=Link(rate_mbps=100.0), nodes={0: Link(rate_mbps=1.0)}))
    exchange.deliver([message(0, k) for k in range(1, 5)], [expect(0, k) for k in range(1, 5)])
    for k in range(1, 5):
        assert exchange.elapsed_s(k) == pytest.approx(k * seconds(size, 1.0))
        # What waited for its turn was not slower on its way.
        assert exchange.links[0, k].rate_mbps == pytest.approx(1.0)
    exchange = SimulatedExchange(5, Links(default=Link(rate_mbps=100.0), nodes={0: Link(rate_mbps=1.0)}))
    exchange.deliver([message(k, 0) for k in range(1, 5)], [expect(k, 0) for k in range(1, 5)])
    assert exchange.elapsed_s(0) == pytest.approx(4 * seconds(size, 1.0))
    assert [exchange.links[k, 0].rate_mbps for k in range(1, 5)] == pytest.approx([1.0] * 4)
    # Slow senders do not add up at a fast hub.
    exchange = SimulatedExchange(5, Links(default=Link(rate_mbps=1.0), nodes={0: Link(rate_mbps=1000.0)}))
    exchange.deliver([message(k, 0) for k in range(1, 5)], [expect(k, 0) for k in range(1, 5)])
    assert exchange.elapsed_s(0) == pytest.approx(seconds(size, 1.0), rel=0.01)


def test_a_late_target_does_not_hold_up_others_and_no_limit_is_measured() -> None:
    exchange = SimulatedExchange(3)
    exchange.compute(1, 10.0)
    exchange.deliver([message(0, 1), message(0, 2)], [expect(0, 1), expect(0, 2)])
    assert [exchange.elapsed_s(k) for k in range(3)] == [10.0, 10.0, 0.0]
    assert exchange.links[0, 2].predict_s(10**6) == pytest.approx(0.0, abs=1e-3)


def test_clocks_repeat_and_resume() -> None:
    def rounds(exchange: SimulatedExchange, count: int) -> None:
        for k in range(count):
            exchange.compute(k % 3, 0.1 * k)
            edges = [(0, 1), (1, 2), (2, 0), (0, 2)]
            exchange.deliver([message(*edge) for edge in edges], [expect(*edge) for edge in edges])

    links = Links(default=Link(rate_mbps=3.0, down_mbps=7.0, delay_s=0.004))
    whole, first, second = (SimulatedExchange(3, links) for _ in range(3))
    rounds(whole, 6)
    rounds(first, 6)
    assert [whole.elapsed_s(k) for k in range(3)] == [first.elapsed_s(k) for k in range(3)]
    assert np.all(np.diff([whole.elapsed_s(k) for k in range(3)]) != 0)
    second.load_state_dict(first.state_dict())
    assert second.elapsed_s(2) == first.elapsed_s(2)
    rounds(first, 2)
    rounds(second, 2)
    assert second.state_dict() == first.state_dict()
    with pytest.raises(ValueError, match="expected seconds of at least 0, got -1"):
        whole.compute(0, -1.0)
    with pytest.raises(ValueError, match="at least 1 node, got 0"):
        SimulatedExchange(0)
