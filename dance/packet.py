"""Packets: encode, decode and mix arrays of any library; their form on the wire (docs/format.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, TypeAlias

import numpy as np

from dance import _native
from dance.arrays import CPU, KINDS, Kind, Memory, kind_of
from dance.codecs import DTYPES, HEADER_NBYTES, Codec, Like, codec, from_header
from dance.errors import FrameError, NonFiniteError

# Without an expectation, a receiver makes room for no more than this many elements (1 GiB of float32).
MAX_NUMEL = 1 << 28

# What a receiver expects: codec (None: any that this version knows), shape, dtype.
Expect: TypeAlias = "tuple[Like | None, tuple[int, ...], str]"

_ENCODE, _FEEDBACK, _DIFFERENCE = 0, 1, 2
_STATE = ("", "residual", "reference")
_FLT_MAX = float(np.finfo(np.float32).max)


class Packet:
    """One encoded array: codec, shape, payload (uint8, where and of what library the input was), stamp.

    ``seed``, ``round`` and ``sender`` go into the header; set ``round`` and ``sender`` before sending.
    Packets come from `encode` and its siblings, `from_bytes` and `from_parts`.
    """

    __slots__ = (
        "_count",
        "_kind",
        "_memory",
        "_nonfinite",
        "codec",
        "numel",
        "round",
        "seed",
        "sender",
        "shape",
    )

    dtype: ClassVar[str] = "float32"

    def __init__(self, codec: Codec, shape: tuple[int, ...], numel: int, kind: Kind, memory: Memory) -> None:
        self.codec = codec
        self.shape = shape
        self.numel = numel
        self.seed = 0
        self.round = 0
        self.sender = 0
        self._kind = kind
        self._memory = memory  # address, bytes, device, payload
        self._count = codec.sizes(numel)[0]
        self._nonfinite: Any = None  # on CUDA: where the kernel leaves the first non-finite index

    @property
    def payload(self) -> Any:
        """The encoded bytes: a uint8 array."""
        return self._memory[3]

    @property
    def nbytes(self) -> int:
        """Bytes on the wire: the 64-byte header and the payload."""
        return HEADER_NBYTES + self._memory[1]

    def check_finite(self) -> None:
        """Raises NonFiniteError if the input was not finite and ``nonfinite`` was "raise".

        On the CPU the encode has already done so; on CUDA this waits for the kernel. `header` and `to_bytes`
        call it.
        """
        if self._nonfinite is not None:
            index = self._kind.read_flag(self._nonfinite)
            self._nonfinite = None
            if index >= 0:
                raise _nonfinite(self.codec, index)

    def header(self) -> bytes:
        """Returns the 64 bytes that go in front of the payload, both checksums included; waits for a GPU."""
        self.check_finite()
        if not 0 <= self.round < 1 << 32 or not 0 <= self.sender < 1 << 32:
            raise ValueError(
                f"packet: round and sender must be in [0, 2^32), got {self.round} and {self.sender}"
            )
        address, num_bytes, device, payload = self._memory
        host = None if device < 0 else self._kind.to_host(payload)
        return _native.header_write(
            self.codec.id,
            self.codec.native_block,
            self._count,
            DTYPES.index(self.dtype),
            self.numel,
            self.seed,
            self.round,
            self.sender,
            address if host is None else _native.address(host),
            num_bytes,
        )

    def to_bytes(self) -> bytes:
        """Returns header and payload as they go over the wire; waits for a GPU."""
        return b"".join((self.header(), self._kind.to_host(self.payload).data))

    @classmethod
    def from_bytes(cls, data: Any, expect: Expect | None = None) -> Packet:
        """Returns the packet in ``data`` (bytes-like, untrusted), its payload a NumPy view of ``data``.

        ``expect`` is (codec, shape, dtype) as the receiver knows them; whatever differs is refused. Without
        it the packet may hold up to 2^28 elements and is one-dimensional. Raises FrameError.
        """
        try:
            view = np.frombuffer(data, np.uint8)
        except (ValueError, TypeError, BufferError):  # empty, or no buffer
            raise FrameError(
                f"a packet has at least {HEADER_NBYTES} bytes, got an empty or unreadable buffer"
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
        if isinstance(payload, (bytes, bytearray, memoryview)):
            payload = np.frombuffer(payload, np.uint8) if len(payload) else np.empty(0, np.uint8)
        kind = kind_of(payload, "payload")
        memory = kind.payload(payload, "payload")
        if memory[2] < 0:
            if memory[0] % 4:  # the kernels read 4-byte words
                memory = kind.payload(kind.copy(payload), "payload")
            _native.payload_check(fields.raw, memory[0], memory[1])
        else:
            host = kind.to_host(payload)
            _native.payload_check(fields.raw, _native.address(host), host.size)
        packet = cls(
            codec, (fields.numel,) if expect is None else tuple(expect[1]), fields.numel, kind, memory
        )
        packet.seed, packet.round, packet.sender = fields.seed, fields.round, fields.sender
        return packet

    def _reuse(self, codec: Codec, shape: tuple[int, ...], place: tuple[Kind, int, int]) -> None:
        """Makes this the packet of another array whose payload has the same size and place."""
        kind, numel, device = place
        if type(kind) is not type(self._kind):
            raise ValueError(
                "out: its payload is of another library than the input; use a packet of the same"
            )
        count, num_bytes = codec.sizes(numel)
        if num_bytes != self._memory[1] or device != self._memory[2]:
            raise ValueError(
                f"out: expected a packet with {num_bytes} payload bytes on {_place(device)}, "
                f"got {self._memory[1]} on {_place(self._memory[2])}"
            )
        payload = self._memory[3]
        if isinstance(payload, np.ndarray) and not payload.flags.writeable:
            raise ValueError("out: its payload is read-only, as that of a packet made of bytes; use another")
        self.codec, self.shape, self.numel, self._count, self._kind = codec, shape, numel, count, kind
        self.round = self.sender = 0
        self._nonfinite = None

    def __repr__(self) -> str:
        return f"Packet({str(self.codec)!r}, shape={self.shape}, nbytes={self.nbytes}, seed={self.seed})"


@dataclass(frozen=True, kw_only=True)
class Header:
    """A header whose every field was checked by itself; `check` compares it with an expectation."""

    codec: Codec
    dtype: str
    numel: int
    payload_nbytes: int
    seed: int
    round: int
    sender: int
    raw: bytes = field(repr=False)

    def check(self, expect: Expect | None) -> Codec:
        """Returns the codec to decode with; FrameError where the header is not what ``expect`` says.

        Call it before making room for the payload. Without ``expect`` only the number of elements is limited.
        """
        if self.dtype != "float32":
            raise FrameError(f"header: dtype {self.dtype} is not supported by this version; send float32")
        if expect is None:
            if self.numel > MAX_NUMEL:
                raise FrameError(
                    f"header: {self.numel} elements exceed 2^28; pass expect=(codec, shape, dtype)"
                )
            return self.codec
        like, shape, dtype = expect
        if dtype != self.dtype:
            raise FrameError(f"header: expected dtype {dtype}, got {self.dtype}")
        if math.prod(shape) != self.numel:
            raise FrameError(
                f"header: expected {math.prod(shape)} elements of shape {tuple(shape)}, got {self.numel}"
            )
        if like is None:
            return self.codec
        expected = like if isinstance(like, Codec) else codec(like)
        # A sparse codec's header carries its count, so codecs are compared by what they do to this many
        # elements.
        if (
            expected.id != self.codec.id
            or expected.native_block != self.codec.native_block
            or expected.sizes(self.numel) != self.codec.sizes(self.numel)
        ):
            raise FrameError(f"header: expected codec {expected}, got {self.codec}")
        return expected


def parse_header(data: Any) -> Header:
    """Returns the header in the first 64 bytes of ``data`` (bytes-like or a uint8 array); FrameError if bad.

    Nothing is allocated on its word: call `Header.check`, then make room for ``payload_nbytes``.
    """
    if not isinstance(data, (bytes, bytearray, memoryview, np.ndarray)):
        data = kind_of(data, "header").to_host(data)
    raw = bytes(data[:HEADER_NBYTES])
    fields = _native.header_parse(raw)
    numel = fields["numel"]
    return Header(
        codec=from_header(fields["codec"], fields["block"], fields["count"], numel),
        dtype=DTYPES[fields["dtype"]],
        numel=numel,
        payload_nbytes=fields["payload_nbytes"],
        seed=fields["seed"],
        round=fields["round"],
        sender=fields["sender"],
        raw=raw,
    )


def encode(
    x: Any, codec: Like, *, seed: int = 0, nonfinite: str = "raise", out: Packet | None = None
) -> Packet:
    """Encodes ``x``: float32 of torch, NumPy, CuPy or DLPack, copied first where it is not contiguous.

    A block that holds NaN or infinity (for none, fp16, bf16 and topk: the element) is sent as zeros;
    ``nonfinite="raise"`` then raises NonFiniteError, on CUDA when the packet is sent (`Packet.check_finite`).
    ``out`` is a packet of the same size and place whose memory is used again and which is returned.
    """
    return _encode(_ENCODE, x, None, codec, (seed, nonfinite, out))


def encode_feedback(
    x: Any, residual: Any, codec: Like, *, seed: int = 0, nonfinite: str = "raise", out: Packet | None = None
) -> Packet:
    """Encodes v = x + residual and leaves residual = v - decoded, in place (Karimireddy et al. 2019).

    ``residual`` is contiguous float32 of the same size and place. Where v is not finite it stays as it was,
    also when NonFiniteError is raised. The rest as `encode`.
    """
    return _encode(_FEEDBACK, x, residual, codec, (seed, nonfinite, out))


def encode_difference(
    x: Any, reference: Any, codec: Like, *, seed: int = 0, nonfinite: str = "raise", out: Packet | None = None
) -> Packet:
    """Encodes x - reference; reference += what receivers decode, in place (Koloskova et al. 2019).

    ``reference`` is contiguous float32 of the same size and place and saturates at +-FLT_MAX. Where x -
    reference is not finite it stays as it was, also when NonFiniteError is raised. The rest as `encode`.
    """
    return _encode(_DIFFERENCE, x, reference, codec, (seed, nonfinite, out))


def _encode(
    operation: int, x: Any, state: Any, like: Like, options: tuple[int, str, Packet | None]
) -> Packet:
    c = like if isinstance(like, Codec) else codec(like)
    seed, nonfinite, out = options
    if nonfinite != "raise" and nonfinite != "zero":
        raise ValueError(f"{c.name}: expected nonfinite 'raise' or 'zero', got {nonfinite!r}")
    if seed >> 64:
        raise ValueError(f"{c.name}: expected a seed in [0, 2^64), got {seed}")
    kind = KINDS.get(type(x)) or kind_of(x, c.name)
    memory = kind.read(x, c.name)
    address, numel, device, _ = memory
    state_address = 0
    if operation:
        state_address = _open_state(_STATE[operation], state, memory)
    if out is None:
        num_bytes = c.sizes(numel)[1]
        payload, payload_address = kind.new_payload(num_bytes, device)
        out = Packet(c, tuple(x.shape), numel, kind, (payload_address, num_bytes, device, payload))
    else:
        out._reuse(c, tuple(x.shape), (kind, numel, device))
    out.seed = seed
    to = out._memory
    if device >= 0:
        _launch(operation, out, (address, state_address), nonfinite == "raise")
        return out
    if numel >= _native.PARALLEL_NUMEL:
        _native.follow_torch()
    bad = _native.encode(
        operation, c.id, c.native_block, out._count, address, state_address, to[0], to[1], numel, seed, CPU, 0
    )
    if bad >= 0 and nonfinite == "raise":
        raise _nonfinite(c, bad)
    return out


def _open_state(name: str, state: Any, x: Memory) -> int:
    kind = KINDS.get(type(state)) or kind_of(state, name)
    memory = kind.write(state, name)
    _check_same(name, memory, x[1], x[2])
    if abs(memory[0] - x[0]) < 4 * x[1]:
        what = "is the input itself" if memory[0] == x[0] else "overlaps the input"
        raise ValueError(f"{name}: {what}; pass an array of its own")
    return memory[0]


def _launch(operation: int, packet: Packet, addresses: tuple[int, int], report: bool) -> None:
    """Puts an encode on the caller's CUDA stream; nothing waits, so a non-finite index is left in device
    memory.
    """
    c, kind = packet.codec, packet._kind
    to, num_bytes, device, _ = packet._memory
    flag, flag_address = kind.new_flag(device)
    scratch_nbytes = _native.cuda_scratch_nbytes(c.id, c.native_block, packet._count, packet.numel)
    scratch, scratch_address = kind.new_payload(scratch_nbytes, device) if scratch_nbytes else (None, 0)
    _native.encode(
        operation,
        c.id,
        c.native_block,
        packet._count,
        *addresses,
        to,
        num_bytes,
        packet.numel,
        packet.seed,
        device,
        kind.stream(device),
        flag_address,
        scratch_address,
    )
    del scratch  # the allocators of torch and CuPy give it out again in the order of the stream
    packet._nonfinite = flag if report else None


def decode(p: Packet, *, out: Any = None, add: bool = False, weight: float = 1.0) -> Any:
    """Returns ``weight`` times the decoded array, of the library, device, shape and dtype that went in.

    ``out`` (contiguous float32 of the same number of elements, on the payload's device, of any library) is
    written in place and returned; with ``add`` it grows by that instead. A sparse packet then touches only
    what it holds. A payload on the CPU is validated first: FrameError leaves ``out`` untouched. On CUDA it is
    trusted, but its indices are bounds-checked.
    """
    if not isinstance(p, Packet):
        raise ValueError(f"decode: expected a Packet, got {type(p).__name__}; see Packet.from_bytes")
    c = p.codec
    address, num_bytes, device, _ = p._memory
    if not abs(weight) <= _FLT_MAX:
        raise ValueError(f"decode: expected a finite weight of float32, got {weight}")
    if out is None:
        if add:
            raise ValueError("decode: add needs out, the array to add to")
        kind = p._kind
        target = kind.new_output(p.shape, device)
    else:
        kind = KINDS.get(type(out)) or kind_of(out, "out")
        target = kind.write(out, "out")
        _check_same("out", target, p.numel, device)
    if device < 0 and p.numel >= _native.PARALLEL_NUMEL:
        _native.follow_torch()
    _native.decode(
        c.id,
        c.native_block,
        p._count,
        address,
        num_bytes,
        target[0],
        p.numel,
        add,
        weight,
        device,
        kind.stream(device) if device >= 0 else 0,
    )
    return kind.result(target[3]) if out is None else out


def mix(x: Any, neighbour_sum: Any, reference: Any, step_size: float) -> None:
    """Moves x by step_size * (neighbour_sum - reference), in place (CHOCO-SGD, Koloskova et al. 2019,
    algorithm 2).

    All are float32 of one size on one device, x contiguous; the others are copied if they are not.
    """
    if not abs(step_size) <= _FLT_MAX:
        raise ValueError(f"mix: expected a finite step_size of float32, got {step_size}")
    kind = KINDS.get(type(x)) or kind_of(x, "x")
    address, numel, device, _ = kind.write(x, "x")
    others = []  # whole memories: they own the copies of what was not contiguous
    for name, y in (("neighbour_sum", neighbour_sum), ("reference", reference)):
        memory = (KINDS.get(type(y)) or kind_of(y, name)).read(y, name)
        _check_same(name, memory, numel, device)
        if memory[0] != address and abs(memory[0] - address) < 4 * numel:
            raise ValueError(f"{name}: overlaps x; pass an array of its own")
        others.append(memory)
    if device < 0 and numel >= _native.PARALLEL_NUMEL:
        _native.follow_torch()
    _native.mix(
        address,
        others[0][0],
        others[1][0],
        step_size,
        numel,
        device,
        kind.stream(device) if device >= 0 else 0,
    )


def derive_seed(run_seed: int, step: int, sender: int, key: str | int, phase: str | int) -> int:
    """Returns the 64-bit seed of one packet: a hash, so that the noise of nodes and steps is independent.

    ``key`` names what is sent (a parameter), ``phase`` the part of the round; equal arguments give equal
    seeds anywhere.
    """
    kinds = f"{'text' if isinstance(key, str) else 'int'} {'text' if isinstance(phase, str) else 'int'}"
    text = f"{run_seed} {step} {sender} {kinds} {len(str(key))} {key} {phase}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _check_same(name: str, memory: Memory, numel: int, device: int) -> None:
    if memory[1] != numel:
        raise ValueError(f"{name}: expected {numel} elements, got {memory[1]}")
    if memory[2] != device:
        raise ValueError(f"{name}: expected {_place(device)}, got {_place(memory[2])}; move one of the two")


def _place(device: int) -> str:
    return "the CPU" if device < 0 else f"cuda:{device}"


def _nonfinite(c: Codec, index: int) -> NonFiniteError:
    return NonFiniteError(
        f"{c.name}: element {index} to be sent is NaN or infinite; mend the input or pass nonfinite='zero'",
        index,
    )
