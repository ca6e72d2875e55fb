"""The arguments of encode, decode and mix: what is wrong is named with the remedy; a packet is used again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from values import wave

import dance


def test_sizes_must_agree() -> None:
    x = wave()
    p = dance.encode(x, "int8")
    with pytest.raises(ValueError, match="residual: expected 70 elements, got 69"):
        dance.encode_feedback(x, np.zeros(69, np.float32), "int8")
    with pytest.raises(ValueError, match="out: expected 70 elements, got 71"):
        dance.decode(p, out=np.zeros(71, np.float32))
    with pytest.raises(ValueError, match="reference: expected 70 elements, got 1"):
        dance.mix(x, x.copy(), np.zeros(1, np.float32), 0.5)
    with pytest.raises(ValueError, match="residual: is the input itself"):
        dance.encode_feedback(x, x, "int8")
    with pytest.raises(ValueError, match="reference: overlaps the input"):
        dance.encode_difference(x[1:], x[:-1], "int8")
    with pytest.raises(ValueError, match="reference: overlaps x"):
        dance.mix(x[1:], x[1:].copy(), x[:-1], 0.5)


def test_numbers_must_be_sane() -> None:
    x = wave()
    p = dance.encode(x, "int8")
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed"):
            dance.encode(x, "int8", seed=seed)
    assert dance.encode(x, "int8", seed=2**64 - 1).seed == 2**64 - 1
    with pytest.raises(ValueError, match="add needs out"):
        dance.decode(p, add=True)
    for weight in (np.nan, np.inf, -1e39):  # the last is finite, but not in float32
        with pytest.raises(ValueError, match="finite weight"):
            dance.decode(p, weight=weight)
        with pytest.raises(ValueError, match="finite step_size"):
            dance.mix(x, x.copy(), x.copy(), weight)
    p.round = 2**32
    with pytest.raises(ValueError, match=r"4294967296"):
        p.to_bytes()
    for wrong in (1.5, "a", None, -1):
        p.round = wrong  # type: ignore[assignment]
        with pytest.raises(ValueError, match=rf"integers in \[0, 2\^32\), got {wrong!r} and 0"):
            p.to_bytes()
    p.round, p.sender = np.int64(7), 3  # type: ignore[assignment]
    assert dance.Packet.from_bytes(p.to_bytes()).round == 7
    with pytest.raises(AttributeError):
        p.payload = None  # type: ignore[misc]


def test_what_is_no_number_is_refused() -> None:
    x = wave()
    p = dance.encode(x, "int8")
    assert dance.encode(x, "int8", seed=np.int64(5)).seed == 5  # type: ignore[arg-type]
    for seed in (1.5, None, "1", np.float32(2.0)):
        for call in (
            lambda seed=seed: dance.encode(x, "int8", seed=seed),
            lambda seed=seed: dance.reduce([p], codec="int8", seed=seed),
        ):
            with pytest.raises(ValueError, match=r"expected an integer seed in \[0, 2\^64\), got "):
                call()
    for wrong in ("a", "1", None, [1.0], 10**400):
        with pytest.raises(ValueError, match="decode: expected a finite weight of float32, got "):
            dance.decode(p, weight=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="mix: expected a finite step_size of float32, got "):
            dance.mix(x, x.copy(), x.copy(), wrong)  # type: ignore[arg-type]
    assert np.array_equal(dance.decode(p, weight=np.float32(0.5)), dance.decode(p, weight=0.5))
    for threads in (2.5, "2", None, 0):
        with pytest.raises(ValueError, match=f"integer of at least 1, got {threads!r}"):
            dance.set_num_threads(threads)  # type: ignore[arg-type]
    for out in (np.zeros(70, np.float32), torch.zeros(70), b"", [p]):
        with pytest.raises(
            ValueError, match=f"out is a Packet to use again, got {type(out).__name__}; pass a"
        ):
            dance.encode(x, "int8", out=out)  # type: ignore[arg-type]


def test_what_came_is_named() -> None:
    x, p = wave(), dance.encode(wave(), "int8")
    read_only = x.copy()
    read_only.flags.writeable = False
    for state, says in (
        (np.zeros((70, 2), np.float32)[:, 0], r"shape \(70,\) with strides \(8,\)"),
        (torch.zeros(70, 2)[:, 0], r"shape \(70,\) with strides \(2,\)"),
        (read_only, "a read-only array"),
        (np.frombuffer(bytearray(281), np.float32, offset=1), "not aligned"),
        (torch.zeros(70, dtype=torch.complex64).conj().imag, "lazily negated: True"),
        (torch.zeros(70).to_sparse(), "layout torch.sparse_coo"),
    ):
        with pytest.raises(ValueError, match=rf"^residual: .*, got .*{says}.*; pass a contiguous array"):
            dance.encode_feedback(x[: state.shape[0]], state, "int8")
    for payload, says in (
        (x, r"got float32 in shape \(70,\)"),
        (torch.zeros(140, dtype=torch.uint8)[::2], r"got uint8 in shape \(70,\) with strides \(2,\)"),
    ):
        with pytest.raises(ValueError, match=rf"expected a payload of contiguous uint8, {says}"):
            dance.Packet.from_parts(p.header(), payload)
    for data in ([1, 2], p.to_bytes().hex(), torch.zeros(100, dtype=torch.uint8), None, x[::2]):
        with pytest.raises(ValueError, match=f"got {type(data).__name__}; .*Packet.from_parts") as caught:
            dance.Packet.from_bytes(data)
        assert not isinstance(caught.value, dance.FrameError)
    with pytest.raises(dance.FrameError, match="at least 64 bytes, got 0"):
        dance.Packet.from_bytes(b"")


def test_the_wrong_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match="'raise' or 'zero', got 'ignore'"):
        dance.encode(np.ones(3, np.float32), "int8", nonfinite="ignore")


def test_out_reuses_a_packet() -> None:
    p = dance.encode(wave(), "int8:block=32", seed=1)
    memory = p.payload
    again = dance.encode(-wave().reshape(7, 10), "int8:block=32", seed=2, out=p)
    assert again is p
    assert p.payload is memory
    assert (p.seed, p.shape) == (2, (7, 10))
    assert p.to_bytes() == dance.encode(-wave(), "int8:block=32", seed=2).to_bytes()
    # A packet takes whatever finds room in it, and keeps its room.
    for x, codec in ((wave(64), "int8:block=32"), (wave(), "sign:block=32"), (wave(), "int8:block=32")):
        assert dance.encode(x, codec, out=p) is p
        assert p.to_bytes() == dance.encode(x, codec).to_bytes()
    with pytest.raises(ValueError, match=r"out: expected a packet with room for 280 .* on the CPU, got 84"):
        dance.encode(wave(), "none", out=p)
    with pytest.raises(ValueError, match="out: its payload is of another library"):
        dance.encode(torch.from_numpy(wave()), "int8:block=32", out=p)
    data = p.to_bytes()
    with pytest.raises(ValueError, match="out: its payload is read-only"):
        dance.encode(wave(), "int8:block=32", out=dance.Packet.from_bytes(data))
    assert data == p.to_bytes()
