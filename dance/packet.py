"""Packets: one encoded array each, its stamp, and its form on the wire (docs/format.md)."""

from __future__ import annotations

from hashlib import blake2b
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from dance import _native
from dance.arrays import CPU, Kind, Memory, kind_of
from dance.codecs import DTYPES, HEADER_NBYTES, Codec, Layout
from dance.errors import NonFiniteError
from dance.header import Expect, Header, parse_header

if TYPE_CHECKING:
    from numpy.typing import NDArray  # takes longer to import than all of this package


class Packet:
    """One encoded array: codec, shape, dtype, payload (uint8, where and of what library the input was),
    stamp.

    ``seed``, ``round`` and ``sender`` go into the header; set ``round`` and ``sender`` before sending.
    Packets come from `dance.encode` and its siblings, `dance.reduce`, `from_bytes` and `from_parts`. On CUDA
    the size of a packet of threshold or dgc is known when the kernel is done: whatever needs it waits. What
    waits does so for the stream that the packet was encoded on, whichever is the current one.
    """

    __slots__ = (
        "_bad",
        "_buffer",
        "_dtype",
        "_flags",
        "_kind",
        "_memory",
        "_report",
        "_spec",
        "_stream",
        "codec",
        "numel",
        "round",
        "seed",
        "sender",
        "shape",
    )

    def __init__(
        self, codec: Codec, shape: tuple[int, ...], spec: _native.Spec, kind: Kind, memory: Memory, numel: int
    ) -> None:
        self.codec = codec
        self.shape = shape
        self.numel = numel
        self.seed = 0
        self.round = 0
        self.sender = 0
        self._dtype = 0  # of the array, its number in DTYPES
        self._spec = spec
        self._kind = kind
        self._memory = memory  # address, bytes, device, payload
        self._buffer: tuple[int, Any] | None = None  # bytes and array, where the payload is the head of it
        self._flags: Any = None  # on CUDA: what the kernel leaves for `_settle`
        self._stream: Any = None  # on CUDA: where the encode may still be running
        self._report = False  # whether a non-finite input is an error
        self._bad = -1

    @property
    def dtype(self) -> str:
        """float32, float16 or bfloat16: of the array that was encoded, and that decode gives back."""
        return DTYPES[self._dtype]

    @property
    def payload(self) -> Any:
        """The encoded bytes: a uint8 array."""
        self._size()
        return self._memory[3]

    @property
    def nbytes(self) -> int:
        """Bytes on the wire: the 64-byte header and the payload."""
        self._size()
        return HEADER_NBYTES + self._memory[1]

    def indices(self) -> NDArray[np.int64]:
        """Returns the increasing indices of the elements that a sparse packet holds; waits for a GPU.

        ValueError for a dense codec, FrameError where the payload is not what an encoder makes.
        """
        self._size()
        address, num_bytes, device, _, _ = self._memory
        found = np.empty(_native.num_values(self._spec, self.numel), np.int64)
        host = None if device < 0 else self._to_host()
        if self.numel >= self.codec.parallel_numel:
            _native.follow_torch()
        _native.indices(
            self._spec,
            self._dtype,
            self.seed,
            address if host is None else _native.address(host),
            num_bytes,
            self.numel,
            _native.address(found),
        )
        return found

    def check_finite(self) -> None:
        """Raises NonFiniteError if the input was not finite and ``nonfinite`` was "raise".

        On the CPU the encode has already done so; on CUDA this waits for the kernel. `header` and `to_bytes`
        call it. It raises once: who calls again means to send what could be encoded.
        """
        if self._flags is not None:
            self._settle()
        if self._bad >= 0:
            bad, self._bad = self._bad, -1
            raise nonfinite_error(self, bad)

    def header(self) -> bytes:
        """Returns the 64 bytes that go in front of the payload, both checksums included; waits for a GPU."""
        self.check_finite()
        return self._header(None if self._memory[2] < 0 else self._to_host())

    def to_bytes(self) -> bytes:
        """Returns header and payload as they go over the wire; waits for a GPU."""
        header, payload = self._on_host()
        return b"".join((header, payload.data))

    def _on_host(self) -> tuple[bytes, NDArray[np.uint8]]:
        """The two parts of `to_bytes`; the payload itself where it lies on the CPU."""
        self.check_finite()
        host = self._to_host()
        return self._header(host), host

    def _header(self, host: NDArray[np.uint8] | None) -> bytes:
        """`header`, of an encode that is done; ``host`` is the payload where it does not lie on the CPU."""
        try:
            stamped = 0 <= index(self.round) < 1 << 32 and 0 <= index(self.sender) < 1 << 32
        except TypeError:
            stamped = False
        if not stamped:
            raise ValueError(
                "packet: round and sender must be integers in [0, 2^32), "
                f"got {self.round!r} and {self.sender!r}"
            )
        address, num_bytes, _, _, _ = self._memory
        return _native.header_write(
            self._spec,
            self._dtype,
            self.numel,
            self.seed,
            self.round,
            self.sender,
            address if host is None else _native.address(host),
            num_bytes,
        )

    @classmethod
    def from_bytes(cls, data: Any, expect: Expect | None = None) -> Packet:
        """Returns the packet in ``data`` (bytes-like, untrusted), its payload a NumPy view of ``data``.

        ``expect`` is (codec, shape, dtype) as the receiver knows them; whatever differs is refused. Without
        it the packet may hold up to 2^28 elements and is one-dimensional. Raises FrameError for what these
        bytes are, ValueError for what is no contiguous buffer and for a malformed ``expect``.
        """
        try:
            view = np.frombuffer(data, np.uint8)
        except (TypeError, ValueError, BufferError):  # no buffer, or one with gaps
            raise ValueError(
                f"from_bytes: expected contiguous bytes-like data, got {type(data).__name__}; "
                "pass bytes(...) of it, or header and payload to Packet.from_parts (arrays of any library)"
            ) from None
        return cls.from_parts(view[:HEADER_NBYTES], view[HEADER_NBYTES:], expect=expect)

    @classmethod
    def from_parts(cls, header: Any, payload: Any, *, expect: Expect | None = None) -> Packet:
        """Returns the packet of a header (its 64 bytes, or a `Header`) and a payload apart from it.

        ``payload`` is a contiguous uint8 array of any library, or bytes-like; it is not copied, so leave it
        alone while the packet lives. Checks every field, the payload's length, its checksum and its content:
        what `encode` could not have made is refused. Raises FrameError.
        """
        fields = header if isinstance(header, Header) else parse_header(header)
        codec = fields.check(expect)
        return cls.of_header(fields, payload, codec, (fields.numel,) if expect is None else tuple(expect[1]))

    @classmethod
    def of_header(cls, fields: Header, payload: Any, codec: Codec, shape: tuple[int, ...]) -> Packet:
        """`from_parts` for a header that was found to be one of ``codec`` and of an array of ``shape``."""
        if isinstance(payload, (bytes, bytearray, memoryview)):
            payload = np.frombuffer(payload, np.uint8) if len(payload) else np.empty(0, np.uint8)
        kind = kind_of(payload, "payload")
        memory = kind.payload(payload, "payload")
        if fields.numel >= codec.parallel_numel:
            _native.follow_torch()
        if memory[2] < 0:
            if memory[0] % 4:  # the kernels read 4-byte words
                memory = kind.payload(kind.copy(payload), "payload")
            _native.payload_check(fields.raw, memory[0], memory[1])
        else:
            host = kind.to_host(payload)
            _native.payload_check(fields.raw, _native.address(host), host.size)
        packet = cls(codec, shape, fields.spec, kind, memory, fields.numel)
        packet._dtype = DTYPES.index(fields.dtype)
        packet.seed, packet.round, packet.sender = fields.seed, fields.round, fields.sender
        return packet

    def _reuse(
        self, codec: Codec, shape: tuple[int, ...], place: tuple[Kind, int, int], layout: Layout
    ) -> None:
        """Makes this the packet of another array in the same place whose payload finds room here."""
        kind, numel, device = place
        if kind is not self._kind and type(kind) is not type(self._kind):
            raise ValueError(
                "out: its payload is of another library than the input; use a packet of the same"
            )
        address, num_bytes, own_device, payload, _ = self._memory
        capacity, buffer = self._buffer or (num_bytes, payload)
        spec, needed, _ = layout
        if needed > capacity or device != own_device:
            raise ValueError(
                f"out: expected a packet with room for {needed} payload bytes on {place_text(device)}, "
                f"got {capacity} on {place_text(own_device)}"
            )
        if isinstance(payload, np.ndarray) and not payload.flags.writeable:
            raise ValueError("out: its payload is read-only, as that of a packet made of bytes; use another")
        if needed != num_bytes:
            self._buffer = (capacity, buffer)
            self._memory = (address, needed, device, kind.slice(buffer, needed), 0)
        self.codec, self.shape, self.numel, self._spec, self._kind = codec, shape, numel, spec, kind
        self.round = self.sender = 0
        self._flags, self._stream, self._report, self._bad = None, None, False, -1

    def _trim(self, count: int) -> None:
        """Ends the payload where so many values end; for codecs of varying size."""
        address, capacity, device, payload, _ = self._memory
        self._buffer = self._buffer or (capacity, payload)
        self._spec = self._spec.with_count(count)
        num_bytes = _native.payload_nbytes(self._spec, self._dtype, self.numel)
        self._memory = (address, num_bytes, device, self._kind.slice(payload, num_bytes), 0)

    def _size(self) -> None:
        if self._flags is not None and not self.codec.fixed_size:
            self._settle()

    def _settle(self) -> None:
        """Takes over what a CUDA kernel left in its flags; waits for it."""
        self._wait()
        bad, count = self._kind.read_flags(self._flags)
        self._flags = None
        self._bad = bad if self._report else -1
        if not self.codec.fixed_size:
            self._trim(count)

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
            self._stream = None

    def _to_host(self) -> NDArray[np.uint8]:
        if self._stream is not None:
            self._wait()
        return self._kind.to_host(self._memory[3])

    def __repr__(self) -> str:
        size = "" if self._flags is not None and not self.codec.fixed_size else f", nbytes={self.nbytes}"
        return f"Packet({str(self.codec)!r}, shape={self.shape}, dtype={self.dtype}{size}, seed={self.seed})"


def derive_seed(run_seed: int, step: int, sender: int, key: str | int, phase: str | int) -> int:
    """Returns the 64-bit seed of one packet: a hash, so that the noise of nodes and steps is independent.

    ``key`` names what is sent (a parameter), ``phase`` the part of the round; equal arguments give equal
    seeds anywhere.
    """
    kinds = f"{'text' if isinstance(key, str) else 'int'} {'text' if isinstance(phase, str) else 'int'}"
    text = f"{run_seed} {step} {sender} {kinds} {len(str(key))} {key} {phase}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def place_text(device: int) -> str:
    return "the CPU" if device == CPU else f"cuda:{device}"


def nonfinite_error(packet: Packet, index: int) -> NonFiniteError:
    return NonFiniteError(
        f"{packet.codec.name}: element {index} to be sent is NaN or infinite; "
        "mend the input or pass nonfinite='zero'",
        index,
        packet,
    )
