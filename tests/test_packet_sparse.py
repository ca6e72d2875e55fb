"""Packets that hold some of the elements: their indices, and sizes that are known after the encode alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from values import wave

import dance
from dance import codecs

SPARSE = [text for kind in codecs.SPARSE for text in kind.examples]


@pytest.mark.parametrize("codec", SPARSE)
def test_indices_are_where_a_packet_changes_an_array(codec: str) -> None:
    x = np.random.default_rng(5).standard_normal(1000).astype(np.float32)
    for array in (x, torch.from_numpy(x)):
        p = dance.encode(array, codec, seed=77)
        found = p.indices()
        assert found.dtype == np.int64
        assert (np.diff(found) > 0).all()
        untouched = np.full(1000, np.float32(-0.0))
        dance.decode(p, out=untouched, add=True, weight=0.0)
        # -0.0 + 0.0 = +0.0 where something is held, and that alone; +0.0 * -v is -0.0 again.
        held = set(np.flatnonzero(~np.signbit(untouched)).tolist())
        assert held <= set(found.tolist())
        assert dance.Packet.from_bytes(p.to_bytes()).indices().tolist() == found.tolist()
        if codecs.codec(codec).values == codecs.Uncompressed():
            decoded = np.zeros(1000, np.float32)
            decoded[found] = x[found]
            assert np.array_equal(dance.decode(p, out=np.empty(1000, np.float32)), decoded)


def test_indices_are_of_sparse_packets_alone() -> None:
    with pytest.raises(ValueError, match="int8: sends every element"):
        dance.encode(wave(), "int8").indices()
    assert dance.encode(np.zeros(0, np.float32), "topk").indices().size == 0
    assert dance.encode(wave(), "threshold:value=2").indices().size == 0


def test_randk_is_decoded_by_the_seed_of_the_packet() -> None:
    x = np.arange(1, 1001, dtype=np.float32)
    p = dance.encode(x, "randk:ratio=0.1", seed=3)
    first = p.indices()
    p.seed = 4
    assert p.indices().tolist() != first.tolist()
    assert not np.array_equal(np.flatnonzero(dance.decode(p)), first)
    p.seed = 3
    assert np.flatnonzero(dance.decode(p)).tolist() == first.tolist()


@pytest.mark.parametrize("codec", ["threshold:value=0.5", "dgc:ratio=0.05,values=int8:block=32"])
def test_packets_of_varying_size_are_trimmed_and_reused(codec: str) -> None:
    rng = np.random.default_rng(8)
    p = dance.encode(np.zeros(1000, np.float32), codec)
    room = p._buffer
    for numel in (1000, 1000, 300, 0, 1, 999):
        x = rng.standard_normal(numel).astype(np.float32)
        assert dance.encode(x, codec, out=p) is p
        fresh = dance.encode(x, codec)
        assert p.to_bytes() == fresh.to_bytes()
        assert p.payload.size == p.nbytes - 64 == len(p.to_bytes()) - 64
        assert p.nbytes <= dance.codec(codec).packet_nbytes(numel)
        assert np.array_equal(dance.decode(p), dance.decode(fresh))
    assert p._buffer == room
    with pytest.raises(ValueError, match="room for"):
        dance.encode(rng.standard_normal(1100).astype(np.float32), codec, out=p)


@pytest.mark.parametrize("codec", SPARSE)
def test_packets_of_varying_size_pass_an_exchange(codec: str) -> None:
    from dance.exchange import Expected, Message, SimulatedExchange

    exchange = SimulatedExchange(2)
    x = torch.from_numpy(np.random.default_rng(8).standard_normal(500).astype(np.float32))
    p = dance.encode(x.bfloat16(), codec, seed=5)
    for shape in ((500,), (5, 100)):
        expected = Expected(
            source=0, target=1, kind="g", shape=shape, dtype="bfloat16", codec=dance.codec(codec)
        )
        (message,) = exchange.deliver([Message(source=0, target=1, kind="g", packet=p)], [expected])
        assert torch.equal(dance.decode(message.packet).ravel(), dance.decode(p))
    assert exchange.counts.bytes_sent == 2 * len(p.to_bytes())
    assert exchange.counts.raw_bytes == 2 * (64 + 2 * 500)
