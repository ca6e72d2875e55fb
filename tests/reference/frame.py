"""The frame: the header of 64 bytes, its parameters, CRC32C."""

from __future__ import annotations

import struct
from dataclasses import dataclass


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), reflected, as in RFC 3720: crc32c(b"123456789") == 0xE3069283."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Parameters:
    """Bytes 24 to 39 of the header."""

    block: int = 0
    levels: int = 0
    mode: int = 0
    values: int = 0
    scope: int = 0
    count: int = 0
    argument: int = 0  # bits of a float32

    def __bytes__(self) -> bytes:
        return struct.pack(
            "<HHBBHII", self.block, self.levels, self.mode, self.values, self.scope, self.count, self.argument
        )


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Every field of the header, so that a test can write a wrong one."""

    magic: bytes = b"DNCE"
    version: int = 1
    codec: int = 0
    dtype: int = 0
    flags: int = 0
    numel: int = 0
    payload_nbytes: int = 0
    parameters: bytes = bytes(16)
    seed: int = 0
    round: int = 0
    sender: int = 0
    payload_crc: int | None = None  # None: the right one
    header_crc: int | None = None


def frame(fields: Fields, payload: bytes) -> bytes:
    """Header and payload as they go over the wire."""
    head = struct.pack(
        "<4sBBBBQQ16sQII",
        fields.magic,
        fields.version,
        fields.codec,
        fields.dtype,
        fields.flags,
        fields.numel,
        fields.payload_nbytes,
        fields.parameters,
        fields.seed,
        fields.round,
        fields.sender,
    )
    head += struct.pack("<I", crc32c(payload) if fields.payload_crc is None else fields.payload_crc)
    head += struct.pack("<I", crc32c(head) if fields.header_crc is None else fields.header_crc)
    return head + payload
