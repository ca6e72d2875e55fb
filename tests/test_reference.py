"""The oracle against what others publish, and against second formulations element by element."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import reference
import torch
from reference import elias_fano, noise
from reference.dense import largest_scale, striped_sum
from reference.floats import bits_of, floats_of, from_bfloat, store, to_bfloat
from reference.minifloat import E2M1, E4M3, E5M2
from reference.packing import pack, unpack, words_of
from reference.selectors import seeds_of, stratified

# The lines "philox4x32 7" of kat_vectors in the Random123 distribution: counter, key, result.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: list[int], key: list[int], words: list[int]) -> None:
    got = noise.philox(tuple(np.array([c]) for c in counter), (np.array(key[0]), np.array(key[1])))
    assert [int(w[0]) for w in got] == words


def test_noise_of_one_element_by_the_words_of_the_document() -> None:
    seed = 0xFEDCBA9876543210
    r, u = noise.random_halves(seed, 1003), noise.dither(seed, 1003)
    for i in (0, 1, 6, 7, 8, 500, 1002):
        zero = np.zeros(1)
        words = noise.philox(
            (np.array([i // 8]), zero, zero, zero), (np.array(seed & 0xFFFFFFFF), np.array(seed >> 32))
        )
        word = int(words[i % 8 // 2][0])
        assert r[i] == (word >> 16 if i % 2 else word & 0xFFFF)
        assert u[i] == (int(r[i]) - 32767.5) / 65536
    assert (np.abs(u) < 0.5).all()


@pytest.mark.parametrize(
    ("minifloat", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)], ids=["e4m3", "e5m2"]
)
def test_eight_bit_floats_are_those_of_torch(minifloat, dtype) -> None:  # type: ignore[no-untyped-def]
    codes = np.arange(256, dtype=np.uint8)
    theirs = torch.from_numpy(codes).view(dtype).float().numpy()
    mine = minifloat.value(codes.astype(np.uint32))
    ok = np.isfinite(theirs)
    assert np.array_equal(bits_of(mine[ok]), bits_of(theirs[ok]))
    assert np.isnan(mine[~ok]).all()  # infinity has no use here
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal(50_000) * np.exp2(rng.uniform(-22, 16, 50_000)), theirs[ok]])
    middles = (np.sort(theirs[ok])[:-1] + np.sort(theirs[ok])[1:]) / 2
    x = np.concatenate([x, middles]).astype(np.float32)
    x = x[np.abs(x) <= minifloat.largest]
    expected = torch.from_numpy(x).to(dtype).view(torch.uint8).numpy()
    assert np.array_equal(minifloat.code(x.astype(np.float64), x), expected)


def test_four_bit_floats_are_those_of_the_specification() -> None:
    assert E2M1.table.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    x = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, -0.0, -5.1], np.float32)
    assert E2M1.code(x.astype(np.float64), x).tolist() == [0, 2, 2, 4, 4, 6, 6, 7, 8, 15]


def test_bfloat16_is_that_of_torch() -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    x = floats_of(bits)
    x = x[np.isfinite(x) & (np.abs(x) < 3.38e38)]
    expected = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(to_bfloat(x), expected)
    assert np.array_equal(bits_of(from_bfloat(expected)), expected.astype(np.uint32) << 16)
    assert store(np.array([reference.FLT_MAX, -np.inf], np.float32), "bfloat16").tolist() == [0x7F7F, 0xFF80]
    assert store(np.array([1e9, -np.inf], np.float32), "float16").tolist() == [65504, -math.inf]


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("n", [1, 7, 31, 32, 33, 100, 256])
def test_packed_codes_lie_where_the_document_says(bits: int, n: int) -> None:
    codes = np.random.default_rng(n).integers(0, 1 << bits, (2, n), dtype=np.uint32)
    data = pack(codes, bits)
    assert len(data) == 2 * 4 * words_of(n, bits)
    assert np.array_equal(unpack(data, 2, n, bits), codes)
    words: list[int] = []
    for row in codes.tolist():
        left = bits
        for f in (4, 2, 1):
            if not bits & f:
                continue
            left -= f
            width = math.ceil(n * f / 32)
            field = [0] * width
            for e, code in enumerate(row):
                field[e % width] |= (code >> left & ((1 << f) - 1)) << f * (e // width)
            words += field
    assert data == struct.pack(f"<{len(words)}I", *words)


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (5, 5), (70, 7), (1000, 1), (1000, 333), (2**32 - 1, 40), (64, 16)]
)
def test_elias_fano_bit_by_bit(n: int, k: int) -> None:
    rng = np.random.default_rng(k)
    for indices in (np.sort(rng.choice(min(n, 10**6), k, replace=False)), np.arange(k), np.arange(n - k, n)):
        data = elias_fano.write(indices.astype(np.int64), n)
        assert len(data) == sum(elias_fano.sizes(n, k))
        assert elias_fano.read(data, n, k).tolist() == indices.tolist()
        low = max(exponent for exponent in range(33) if k << exponent <= n)
        lows = sum((int(index) % 2**low) << low * i for i, index in enumerate(indices))
        highs = sum(1 << (int(index) >> low) + i for i, index in enumerate(indices))
        widths = (math.ceil(k * low / 32), math.ceil(((n - 1 >> low) + k) / 32))
        expected = b"".join(v.to_bytes(4 * w, "little") for v, w in zip((lows, highs), widths, strict=True))
        assert data == expected
    assert elias_fano.write(np.zeros(0, np.int64), n) == b""


def test_striped_sum_of_one_block_lane_by_lane() -> None:
    f32 = np.float32
    x = np.abs(np.random.default_rng(2).standard_normal((3, 101))).astype(f32)
    for row, total in zip(x, striped_sum(x), strict=True):
        lanes = [f32(0.0)] * 32
        for i, value in enumerate(row):
            lanes[i % 32] = f32(lanes[i % 32] + value)
        for half in (16, 8, 4, 2, 1):
            lanes = [f32(lanes[i] + lanes[i + half]) for i in range(half)]
        assert total == lanes[0]


@pytest.mark.parametrize(("n", "k"), [(1, 1), (10, 3), (1000, 1000), (4096, 41), (2**32 - 1, 5)])
def test_one_element_of_each_stratum(n: int, k: int) -> None:
    words = noise.random_words(77, k).tolist()
    for i, index in enumerate(stratified(seeds_of(77, 1), n, k)[0].tolist()):
        begin, end = i * n // k, (i + 1) * n // k
        assert index == begin + (words[i] * (end - begin) >> 32)
        assert begin <= index < end


def test_the_largest_scale_times_the_largest_code_is_finite() -> None:
    for top in [*range(1, 128), 448, 57344]:
        with np.errstate(over="ignore"):
            scale = largest_scale(top)
            assert np.isfinite(scale * np.float32(top))
            assert (
                not np.isfinite(np.nextafter(np.nextafter(scale, np.inf), np.inf) * np.float32(top))
                or top == 1
            )


def test_int8_by_hand() -> None:
    e = reference.encode(reference.codec("int8:block=32"), np.array([1, -2, 0.5, 4], np.float32))
    assert e.packet.payload == bytes([32, 192, 16, 127]) + struct.pack("<f", np.float32(4) / np.float32(127))


def test_checksum_of_the_specification() -> None:
    assert reference.crc32c(b"123456789") == 0xE3069283
    assert reference.crc32c(b"") == 0
