"""Packets that must be refused: every field, every rule of every payload, one wrong thing at a time."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import reference
from reference import Fields, Packet, Parameters, elias_fano, frame
from reference.dense import largest_scale

SEED = 7
WAVE = ((np.arange(70) * 37 % 101) - 50).astype(np.float32) / np.float32(16.0)


def entries() -> list[dict[str, Any]]:
    """``says`` is a word of the error, ``refused_by`` header, payload (what decode refuses as well) or codes.

    ``sound`` is a packet with the same header that is valid, where only the payload is wrong.
    """
    return [
        *(
            _entry(name, data, "header", says)
            for name, data, says in (*_lengths(), *_fields(), *_parameters())
        ),
        *(_of_payload(*case, "payload") for case in (*_dense_payloads(), *_sparse_payloads())),
        *(_of_payload(*case, "codes") for case in _codes()),
    ]


def _entry(name: str, data: bytes, refused_by: str, says: str, sound: bytes = b"") -> dict[str, Any]:
    return {"name": name, "packet": data.hex(), "refused_by": refused_by, "says": says, "sound": sound.hex()}


def _of_payload(name: str, packet: Packet, payload: bytes, says: str, refused_by: str) -> dict[str, Any]:
    """The checksums are right: what is wrong is the content."""
    assert len(payload) == len(packet.payload), name
    assert payload != packet.payload, name
    whole = frame(reference.fields(packet), payload)
    return _entry(name, whole, refused_by, says, reference.wire(packet))


def _packet(codec: str, numel: int = 70, dtype: str = "float32") -> Packet:
    raw = reference.store(WAVE[:numel], dtype)
    return reference.encode(reference.codec(codec), raw, dtype=dtype, seed=SEED).packet


def _put(data: bytes, at: int, piece: bytes) -> bytes:
    """``data`` with ``piece`` at an offset, which counts from the end where it is negative."""
    at %= len(data)
    return data[:at] + piece + data[at + len(piece) :]


def _flip(data: bytes, bit: int) -> bytes:
    return _put(data, bit // 8, bytes([data[bit // 8] ^ 1 << bit % 8]))


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


# ---- the header


def _lengths() -> Iterator[tuple[str, bytes, str]]:
    whole = reference.wire(_packet("int8:block=32"))
    yield "no bytes", b"", "64"
    yield "half a header", whole[:32], "64"
    yield "a header alone", whole[:64], "payload"
    yield "one byte short", whole[:-1], "payload"
    yield "one byte long", whole + b"\0", "payload"


def _fields() -> Iterator[tuple[str, bytes, str]]:
    packet = _packet("int8:block=32")
    fields, payload = reference.fields(packet), packet.payload
    wrong: dict[str, tuple[dict[str, Any], str]] = {
        "magic": ({"magic": b"DANC"}, "DNCE"),
        "version 0": ({"version": 0}, "version"),
        "version 2": ({"version": 2}, "version"),
        "unknown codec": ({"codec": 77}, "codec"),
        "unknown dtype": ({"dtype": 3}, "dtype"),
        "a flag": ({"flags": 1}, "flags"),
        "numel too small": ({"numel": packet.numel - 40}, "bytes"),
        "numel too large": ({"numel": packet.numel + 40}, "bytes"),
        "numel 2^64 - 1": ({"numel": 2**64 - 1}, "elements"),
        "payload length": ({"payload_nbytes": len(payload) - 4}, "bytes"),
        "payload length 2^64 - 4": ({"payload_nbytes": 2**64 - 4}, "bytes"),
        "payload checksum": ({"payload_crc": 0x12345678}, "checksum"),
        "header checksum": ({"header_crc": 0x12345678}, "checksum"),
    }
    for name, (change, says) in wrong.items():
        yield name, frame(replace(fields, **change), payload), says
    # A header that is consistent in itself but announces more than anybody asked for.
    none = reference.IDS["none"]
    for name, numel in (("2^28 + 1", 2**28 + 1), ("2^40 + 1", 2**40 + 1), ("2^62", 2**62)):
        fields = Fields(codec=none, numel=numel, payload_nbytes=4 * numel % 2**64)
        yield f"numel {name}", frame(fields, b""), "elements"
    # A stray dtype: the payload is that of float32.
    plain = _packet("none")
    yield "none of float16", frame(replace(reference.fields(plain), dtype=1), plain.payload), "bytes"


def _parameters() -> Iterator[tuple[str, bytes, str]]:
    stray = ({"levels": 15}, {"values": 3}, {"scope": 64}, {"count": 1}, {"argument": 1})
    wrong: dict[str, tuple[dict[str, int], ...]] = {
        "none": ({"block": 32}, {"mode": 1}, *stray),
        "fp16": ({"block": 256}, {"mode": 1}, *stray),
        "bf16": ({"block": 256}, {"mode": 1}, *stray),
        "int8:block=32": ({"block": 0}, {"block": 31}, {"block": 4097}, {"mode": 2}, *stray),
        "int4:block=32": ({"block": 31}, {"mode": 2}, *stray),
        "int2:block=32": ({"block": 31}, {"mode": 2}, *stray),
        "sign:block=32": ({"block": 31}, {"mode": 1}, *stray),
        "fp8:block=32": ({"block": 31}, {"mode": 2}, *stray),
        "mxfp8": ({"block": 0}, {"block": 64}, {"mode": 2}, *stray),
        "mxfp4": ({"block": 0}, {"block": 64}, {"mode": 1}, *stray),
        "qsgd:levels=15,block=32": (
            {"block": 31},
            {"mode": 2},
            *({"levels": levels} for levels in (0, 1, 2, 14, 256, 257)),
            *stray[1:],
        ),
        "topk:ratio=0.1": (
            *({"values": number} for number in (5, 13, 77)),
            {"block": 32},
            {"levels": 15},
            {"mode": 1},
            {"argument": 1},
            {"scope": 63},
            {"scope": 32769},
            {"count": 0},
            {"count": 71},
            {"scope": 64, "count": 65},
        ),
        "topk:ratio=0.1,scope=block,block=64": ({"count": 0}, {"count": 65}, {"scope": 6}),
        "topk:ratio=0.1,values=int8:block=32": ({"block": 0}, {"mode": 2}, {"levels": 15}),
        "topk:ratio=0.1,values=qsgd:levels=15;block=32": ({"levels": 0}, {"levels": 14}),
        "randk:ratio=0.1": ({"values": 13}, {"argument": 1}, {"count": 0}, {"count": 71}, {"scope": 63}),
        "threshold:value=1.5": (
            *({"argument": _bits(value)} for value in (0.0, -1.0, np.inf, np.nan)),
            {"count": 71},
            {"scope": 64},
            {"values": 14},
        ),
        "dgc:ratio=0.1": (
            *({"argument": _bits(value)} for value in (0.0, -0.5, 1.5, np.nan)),
            {"count": 71},
            {"scope": 64},
        ),
    }
    for codec, changes in wrong.items():
        packet = _packet(codec)
        sound = packet.codec.parameters(packet.numel, packet.count)
        for change in changes:
            words = ", ".join(f"{key} {value}" for key, value in change.items())
            fields = replace(reference.fields(packet), parameters=bytes(replace(sound, **change)))
            yield f"{codec} with {words}", frame(fields, packet.payload), codec.partition(":")[0]
    for count in (0, 1):  # as long as the length says
        many = Parameters(count=count)
        nbytes, topk = 12 * count, reference.IDS["topk"]
        fields = Fields(codec=topk, numel=2**32, payload_nbytes=nbytes, parameters=bytes(many))
        yield f"topk of 2^32 elements, count {count}", frame(fields, bytes(nbytes)), "topk"


# ---- the payload


def _scales(codec: str, top: float) -> Iterator[tuple[str, Packet, bytes, str]]:
    """The last scale of a packet, each as no encoder makes it."""
    packet = _packet(codec)
    wrong = {
        "infinite": _bits(np.inf),
        "NaN": _bits(np.nan),
        "negative": _bits(-1.0),
        "-0.0": _bits(-0.0),
        "subnormal": 0x007FFFFF,
        "above the largest": int(largest_scale(top).view(np.uint32)) + 1,
    }
    for name, bits in wrong.items():
        yield f"{codec} scale {name}", packet, _put(packet.payload, -4, struct.pack("<I", bits)), "scale"


def _dense_payloads() -> Iterator[tuple[str, Packet, bytes, str]]:
    for codec, top in (
        ("int8:block=32", 127),
        ("int4:block=32", 7),
        ("int2:block=32", 1),
        ("sign:block=32", 1),
        ("fp8:block=32", 448),
        ("fp8:format=e5m2,block=32", 57344),
        ("qsgd:levels=255,block=32", 127),
        ("qsgd:levels=255,norm=l2,block=32", 127),
        ("qsgd:levels=5,block=32", 2),
        ("qsgd:levels=3,block=32", 1),
        ("topk:ratio=0.3,values=int8:block=32", 127),
        ("randk:ratio=0.3,values=int4:block=32", 7),
    ):
        yield from _scales(codec, top)
    for codec, exponent in (("mxfp8", 8), ("mxfp8:format=e5m2", 15), ("mxfp4", 2)):
        packet = _packet(codec)
        for byte in (254 - exponent + 1, 255):
            yield f"{codec} scale {byte}", packet, _put(packet.payload, -2, bytes([byte])), "scale"
    for codec in ("int8:block=32", "fp8:block=32", "mxfp8", "qsgd:levels=255,block=32"):
        packet = _packet(codec, 69)
        for at in (69, 71):
            yield f"{codec} padding at {at}", packet, _put(packet.payload, at, b"\1"), "padding"
    for codec, bits in (  # numbers of bits that belong to no element
        # 70 elements in blocks of 32: the third block has 6, in words of its own
        ("sign:block=32", (2 * 32 + 6, 2 * 32 + 31)),
        # 50 elements in 2 words of 25; 20 in 1
        ("sign:block=50", (25, 63, 64 + 20)),
        ("int4:block=32", (2 * 128 + 24,)),
        ("int2:block=50", (26, 4 * 32 + 20, 4 * 32 + 63)),
        ("mxfp4", (2 * 128 + 24,)),
        # 3 bits: fields of 2 (1 word for 6 elements) and of 1
        ("qsgd:levels=7,block=32", (2 * 96 + 12, 2 * 96 + 32 + 6)),
        ("qsgd:levels=127,block=32", (2 * 224 + 24, 2 * 224 + 32 + 12, 2 * 224 + 64 + 6)),
    ):
        packet = _packet(codec)
        for bit in bits:
            yield f"{codec} unused bit {bit}", packet, _flip(packet.payload, bit), "bits"


def _elias_fano() -> Iterator[tuple[str, Packet, bytes, str]]:
    for codec in ("topk:ratio=0.1", "threshold:value=2.9", "dgc:ratio=0.1"):
        packet = _packet(codec)
        k = packet.count
        at, high_nbytes = elias_fano.sizes(70, k)
        low = elias_fano.low_bits(70, k)
        indices = elias_fano.read(packet.payload[: at + high_nbytes], 70, k)
        vector = int.from_bytes(packet.payload[at : at + high_nbytes], "little")

        def with_vector(value: int, p: Packet = packet, at: int = at, n: int = high_nbytes) -> bytes:
            return _put(p.payload, at, value.to_bytes(n, "little"))

        def with_indices(values: Any, p: Packet = packet) -> bytes:
            return _put(p.payload, 0, elias_fano.write(np.array(values), 70))

        used = ((70 - 1) >> low) + k
        zero = next(bit for bit in range(used) if not vector >> bit & 1)
        yield f"{codec} one index too few", packet, with_vector(vector & (vector - 1)), "ind"
        yield f"{codec} one index too many", packet, with_vector(vector | 1 << zero), "ind"
        yield f"{codec} no index at all", packet, with_vector(0), "ind"
        yield f"{codec} all indices", packet, with_vector((1 << used) - 1), "ind"
        yield f"{codec} unused bit of the vector", packet, with_vector(vector | 1 << used), "bits"
        yield f"{codec} index {70}", packet, with_indices([*indices[:-1], 70]), "ind"
        yield f"{codec} equal indices", packet, with_indices([indices[0], indices[0], *indices[2:]]), "ind"
        if k * low % 32:
            yield f"{codec} unused low bit", packet, _flip(packet.payload, k * low), "bits"
    # Two indices with equal high bits whose low bits fall: 8 + 3, 8 + 1 instead of 9, 11.
    packet = _packet("topk:ratio=0.1")
    low = elias_fano.low_bits(70, 7)
    assert low == 3
    wrong = elias_fano.write(np.array([9, 11, 20, 30, 40, 50, 60]), 70)
    lows = int.from_bytes(wrong[:4], "little") & ~0x3F | 3 | 1 << 3
    yield "topk falling low bits", packet, _put(packet.payload, 0, struct.pack("<I", lows) + wrong[4:]), "ind"


def _sparse_payloads() -> Iterator[tuple[str, Packet, bytes, str]]:
    yield from _elias_fano()
    # Blocks of 64 and 6 elements send 7 and 1: eight u16, no padding.
    packet = _packet("topk:ratio=0.1,scope=block,block=64")
    indices = list(struct.unpack_from("<8H", packet.payload))

    def scoped(values: list[int]) -> bytes:
        return _put(packet.payload, 0, struct.pack("<8H", *values))

    yield "topk of blocks, index 64", packet, scoped([*indices[:6], 64, indices[7]]), "ind"
    yield "topk of blocks, index 65535", packet, scoped([*indices[:6], 65535, indices[7]]), "ind"
    yield "topk of blocks, index 6 of 6", packet, scoped([*indices[:7], 6]), "ind"
    yield "topk of blocks, equal indices", packet, scoped([indices[0], *indices[:6], indices[7]]), "ind"
    yield "topk of blocks, falling indices", packet, scoped([*indices[6::-1], indices[7]]), "ind"
    odd = _packet("topk:ratio=0.1,scope=block,block=64", 64)
    for at in (14, 15):
        yield f"topk of blocks, padding at {at}", odd, _put(odd.payload, at, b"\1"), "padding"
    padded = _packet("topk:ratio=0.1,values=int8:block=32")  # 7 codes, a byte of padding, a scale
    yield "topk with int8, padding", padded, _put(padded.payload, -5, b"\1"), "padding"
    signs = _packet("randk:ratio=0.1,values=sign:block=32")
    yield "randk with sign, unused bit", signs, _flip(signs.payload, 7), "bits"


def _codes() -> Iterator[tuple[str, Packet, bytes, str]]:
    """Codes that no encoder makes."""
    for codec, field, codes in (
        ("int8:block=32", 8, (-128,)),
        ("int8:block=32,rounding=stochastic", 8, (-128,)),
        ("int4:block=32", 4, (-8,)),
        ("int2:block=32", 2, (-2,)),
        ("qsgd:levels=255,block=32", 8, (-128,)),
        ("qsgd:levels=201,block=32", 8, (-101, 101, -128, 127)),
        ("qsgd:levels=3,block=32", 2, (-2,)),
        ("qsgd:levels=11,block=32", 4, (-6, 6, 7, -8)),
        ("topk:ratio=0.3,values=int8:block=32", -1, (-128,)),
        ("ternary:block=32", 2, (-2,)),
    ):
        packet = _packet(codec)
        for code in codes:
            if field == 8:
                payload = _put(packet.payload, 5, bytes([code & 0xFF]))
            elif field < 0:  # the last code: 21 of them, 3 bytes of padding, a scale
                payload = _put(packet.payload, -8, bytes([code & 0xFF]))
            else:  # element 0 has the low bits of the first word
                mask = (1 << field) - 1
                payload = _put(packet.payload, 0, bytes([packet.payload[0] & ~mask & 0xFF | code & mask]))
            yield f"{codec} code {code}", packet, payload, "code"
    # 5 levels are 3 bits: element 0 has 2 in the low bits of word 0 and 1 in the lowest bit of word 2.
    packet = _packet("qsgd:levels=5,block=32")
    for code in (3, -3, -4):
        payload = _put(packet.payload, 0, bytes([packet.payload[0] & ~3 & 0xFF | (code & 7) >> 1]))
        payload = _put(payload, 8, bytes([payload[8] & ~1 & 0xFF | code & 1]))
        yield f"qsgd:levels=5,block=32 code {code}", packet, payload, "code"
    e4m3, e5m2 = (0x7F, 0xFF), (0x7C, 0x7D, 0x7F, 0xFC)
    for codec, wrong in (
        ("fp8:block=32", e4m3),
        ("fp8:format=e5m2,block=32", e5m2),
        ("mxfp8", e4m3),
        ("mxfp8:format=e5m2", e5m2),
    ):
        packet = _packet(codec)
        for byte in wrong:
            yield f"{codec} code {byte:#x}", packet, _put(packet.payload, 33, bytes([byte])), "code"
    for codec, dtype, code in (
        ("none", "float32", b"\0\0\x80\x7f"),
        ("none", "float32", b"\0\0\xc0\xff"),
        ("none", "float16", b"\0\x7c"),
        ("none", "bfloat16", b"\xc0\xff"),
        ("fp16", "float32", b"\1\x7e"),
        ("bf16", "float32", b"\x80\xff"),
        ("topk:ratio=0.1", "float32", b"\0\0\xc0\xff"),
        ("topk:ratio=0.1", "float16", b"\0\x7c"),
        ("topk:ratio=0.1,scope=block,block=64", "float32", b"\0\0\x80\xff"),
        ("randk:ratio=0.1,values=bf16", "float32", b"\x80\x7f"),
        ("threshold:value=1.5,values=fp16", "float32", b"\0\x7c"),
        ("dgc:ratio=0.1", "bfloat16", b"\x80\x7f"),
    ):
        packet = _packet(codec, dtype=dtype)
        payload = _put(packet.payload, -len(code), code)
        yield f"{codec} {dtype} not finite {code.hex()}", packet, payload, "NaN or infinite"
