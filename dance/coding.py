"""Encode, decode, reduce and mix: arrays of any library in and out, checked and handed to the core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any, TypeAlias

import numpy as np

from dance import _native
from dance.arrays import CPU, KINDS, Kind, Memory, kind_of
from dance.codecs import Codec, Like, codec
from dance.packet import Packet, nonfinite_error, place_text

_ENCODE, _FEEDBACK, _DIFFERENCE = 0, 1, 2
_STATE = ("", "residual", "reference")
_SIZES = (4, 2, 2)  # bytes of an element, by dtype
_FLT_MAX = float(np.finfo(np.float32).max)

_Options: TypeAlias = "tuple[int, str, Packet | None]"  # seed, nonfinite, out


def encode(
    x: Any, codec: Like, *, seed: int = 0, nonfinite: str = "raise", out: Packet | None = None
) -> Packet:
    """Encodes ``x``: float32, float16 or bfloat16 of torch, NumPy (with ml_dtypes), CuPy or DLPack.

    It is copied first where it is not contiguous. float64 is accepted by conversion to float32, which is what
    a decode then gives back. A block that holds NaN or infinity (for none, fp16, bf16 and sparse codecs: the
    element) is sent as zeros; ``nonfinite="raise"`` then raises NonFiniteError, whose ``packet`` holds
    everything else, on CUDA when the packet is sent (`Packet.check_finite`). ``out`` is a packet in the same
    place whose memory is used again and which is returned; the input may not lie in it.
    """
    return _encode(_ENCODE, x, None, codec, (seed, nonfinite, out))


def encode_feedback(
    x: Any, residual: Any, codec: Like, *, seed: int = 0, nonfinite: str = "raise", out: Packet | None = None
) -> Packet:
    """Encodes v = x + residual and leaves residual = v - decoded, in place (Karimireddy et al. 2019).

    ``residual`` is contiguous float32, float16 or bfloat16, whatever x is, of the same size and place;
    float64 is refused, for a state must not be converted. A 16-bit residual is rounded to nearest and
    saturates. Where v is not finite it stays as it was. When NonFiniteError is raised everything else has
    been encoded and the residual has moved: send ``error.packet`` or restore the residual. The rest as
    `encode`.
    """
    return _encode(_FEEDBACK, x, residual, codec, (seed, nonfinite, out))


def encode_feedback_as(
    x: Any, residual: Any, codec: Like, options: _Options, prepare: Callable[[], Any] | None
) -> Packet:
    """`encode_feedback` with the array that ``prepare`` returns, which is like the residual, in the place of
    it; called when all is checked.
    """
    return _encode(_FEEDBACK, x, residual, codec, options, prepare)


def encode_difference(
    x: Any, reference: Any, codec: Like, *, seed: int = 0, nonfinite: str = "raise", out: Packet | None = None
) -> Packet:
    """Encodes x - reference; reference += what receivers decode, in place (Koloskova et al. 2019).

    ``reference`` is as the residual of `encode_feedback` and saturates at its largest finite value. Where
    x - reference is not finite it stays as it was. When NonFiniteError is raised everything else has been
    encoded and the reference has moved: send ``error.packet`` or restore the reference. The rest as `encode`.
    """
    return _encode(_DIFFERENCE, x, reference, codec, (seed, nonfinite, out))


def _encode(
    operation: int,
    x: Any,
    state: Any,
    like: Like,
    options: _Options,
    prepare: Callable[[], Any] | None = None,
) -> Packet:
    c = like if isinstance(like, Codec) else codec(like)
    seed, nonfinite, out = options
    seed = _checked(c.name, seed, nonfinite)
    kind = KINDS.get(type(x)) or kind_of(x, c.name)
    memory = kind.read(x, c.name)
    address, numel, device, _, dtype = memory
    state_address = state_dtype = 0
    if operation:
        state_address, state_dtype = _open_state(_STATE[operation], state, memory)
    # Inlined and not `_packet`: small calls count.
    layout = c._layouts[dtype].get(numel) or c.layout(numel, dtype)
    spec, num_bytes, fixed = layout
    if out is None:
        payload, payload_address = kind.new_payload(num_bytes, device)
        out = Packet(c, tuple(x.shape), spec, kind, (payload_address, num_bytes, device, payload, 0), numel)
    else:
        if not isinstance(out, Packet):
            raise _refused_out(c.name, out)
        shape = x.shape
        out._reuse(c, out.shape if shape == out.shape else tuple(shape), (kind, numel, device), layout)
        payload_address = out._memory[0]
    out.seed = seed
    out._dtype = dtype
    if prepare is not None:
        state = prepare()
        state_address = kind.write(state, _STATE[operation])[0]
    if device >= 0:
        _launch(operation, out, (address, dtype, state_address, state_dtype), nonfinite == "raise")
        return out
    if numel >= c.parallel_numel:
        _native.follow_torch()
    bad, count = _native.encode(
        spec,
        operation,
        address,
        dtype,
        state_address,
        state_dtype,
        numel,
        seed,
        payload_address,
        num_bytes,
        CPU,
        0,
        0,
        0,
    )
    if not fixed:
        out._trim(count)
    if bad >= 0 and nonfinite == "raise":
        raise nonfinite_error(out, bad)
    return out


def _open_state(name: str, state: Any, x: Memory) -> tuple[int, int]:
    kind = KINDS.get(type(state)) or kind_of(state, name)
    memory = kind.write(state, name)
    _check_same(name, memory, x[1], x[2])
    if _overlap(memory, x):
        what = "is the input itself" if memory[0] == x[0] else "overlaps the input"
        raise ValueError(f"{name}: {what}; pass an array of its own")
    return memory[0], memory[4]


def _overlap(a: Memory, b: Memory) -> bool:
    return _meet(a[0], _SIZES[a[4]] * a[1], b[0], _SIZES[b[4]] * b[1])


def _meet(a: int, a_nbytes: int, b: int, b_nbytes: int) -> bool:
    return a < b + b_nbytes and b < a + a_nbytes


def _launch(operation: int, packet: Packet, arrays: tuple[int, int, int, int], report: bool) -> None:
    """Puts an encode on the caller's CUDA stream; nothing waits: what it finds is left in device memory."""
    kind, spec, dtype, numel = packet._kind, packet._spec, packet._dtype, packet.numel
    to, num_bytes, device, _, _ = packet._memory
    flags, flags_address = kind.new_flags(device)
    scratch, scratch_address = _scratch(kind, _native.cuda_scratch_nbytes(spec, dtype, numel), device)
    packet._stream, stream = kind.stream(device)
    _native.encode(
        spec,
        operation,
        *arrays,
        numel,
        packet.seed,
        to,
        num_bytes,
        device,
        stream,
        flags_address,
        scratch_address,
    )
    del scratch  # the allocators of torch and CuPy give it out again in the order of the stream
    _keep_flags(packet, flags, report)


def _scratch(kind: Kind, num_bytes: int, device: int) -> tuple[Any, int]:
    return kind.new_payload(num_bytes, device) if num_bytes else (None, 0)


def _keep_flags(packet: Packet, flags: Any, report: bool) -> None:
    packet._report = report
    packet._flags = flags if report or not packet.codec.fixed_size else None


def decode(p: Packet, *, out: Any = None, add: bool = False, weight: float = 1.0) -> Any:
    """Returns ``weight`` times the decoded array, of the library, device, shape and dtype that went in.

    ``out`` (contiguous float32, float16 or bfloat16 of the same number of elements, on the payload's device,
    of any library, apart from the payload) is written in place and returned; with ``add`` it grows by that
    instead. A sparse packet then touches only what it holds. A payload on the CPU is validated first:
    FrameError leaves ``out`` untouched. On CUDA it is trusted, but its indices are bounds-checked.
    """
    if not isinstance(p, Packet):
        raise ValueError(f"decode: expected a Packet, got {type(p).__name__}; see Packet.from_bytes")
    if p._flags is not None:
        p._size()
    address, num_bytes, device, _, _ = p._memory
    if type(weight) is not float or not abs(weight) <= _FLT_MAX:  # small calls count
        weight = _finite("decode", "weight", weight)
    if out is None:
        if add:
            raise ValueError("decode: add needs out, the array to add to")
        kind = p._kind
        target = kind.new_output(p.shape, device, p._dtype)
    else:
        kind = KINDS.get(type(out)) or kind_of(out, "out")
        target = kind.write(out, "out")
        _check_same("out", target, p.numel, device)
    stream = scratch_address = 0
    scratch = None
    if device >= 0:
        _, stream = kind.stream(device)
        scratch_nbytes = _native.cuda_scratch_nbytes(p._spec, p._dtype, p.numel)
        scratch, scratch_address = _scratch(kind, scratch_nbytes, device)
    elif p.numel >= p.codec.parallel_numel:
        _native.follow_torch()
    _native.decode(
        p._spec,
        p._dtype,
        p.seed,
        address,
        num_bytes,
        target[0],
        target[4],
        p.numel,
        add,
        weight,
        device,
        stream,
        scratch_address,
    )
    del scratch
    return kind.result(target[3]) if out is None else out


def reduce(
    packets: Sequence[Packet],
    *,
    codec: Like | None = None,
    mean: bool = False,
    out: Any = None,
    seed: int = 0,
    nonfinite: str = "raise",
    residual: Any = None,
) -> Any:
    """Returns the sum of the packets' arrays, in their order, in one pass over memory.

    ``mean`` multiplies each by float32(1 / number of packets). The packets may be of different codecs, but of
    one size, in one place. Without ``codec`` the result is an array like that of the first packet, or
    ``out``, which is overwritten. With ``codec`` it is a `Packet` of the sum, of the dtype of the first
    packet, ``out`` the packet whose memory is used again; with ``residual`` what is encoded is sum +
    residual, and the residual keeps what is lost, in place (`encode_feedback`, at the owner of a
    reduce-scatter). When NonFiniteError is raised everything else has been encoded and the residual has
    moved: send ``error.packet`` or restore the residual. The sum is float32 whatever the dtypes are.
    FrameError, for a bad payload on the CPU, leaves everything untouched. Neither ``out`` nor the residual
    may lie in the memory of a packet that is read.
    """
    if type(packets) is not list or not packets or not all(type(p) is Packet for p in packets):
        _check_packets(packets)
    seed = _checked("reduce", seed, nonfinite)
    first = packets[0]
    place = first._kind, first.numel, first._memory[2]
    kind, numel, device = place
    weight = float(np.float32(1.0 / len(packets))) if mean else 1.0
    stream = kind.stream(device) if device >= 0 else (None, 0)
    task = _native.Reduction(numel, weight, device, stream[1])
    least = _native.PARALLEL_NUMEL if codec is None else _native.PARALLEL_SPARSE_NUMEL
    for k, p in enumerate(packets):
        p._size()
        if p.codec.parallel_numel < least:
            least = p.codec.parallel_numel
        address, num_bytes, _, _, _ = p._memory
        _check_same(f"packet {k}", (address, p.numel, p._memory[2], None, 0), numel, device)
        task.add(p._spec, p._dtype, p.seed, address, num_bytes, p.numel)
    if device < 0 and numel * len(packets) >= least:
        _native.follow_torch()
    if codec is not None:
        packet = _reduce_encode(task, packets, codec, residual, (seed, nonfinite, out))
        packet._stream = stream[0]
        return packet
    if residual is not None:
        raise ValueError("reduce: a residual keeps what an encode loses; pass codec, too")
    if out is None:
        target = kind.new_output(first.shape, device, first._dtype)
    elif isinstance(out, Packet):
        raise ValueError("reduce: without codec the sum is an array, but out is a Packet; pass codec, too")
    else:
        # The stream and the scratch memory stay those of the packets' library.
        target = (KINDS.get(type(out)) or kind_of(out, "out")).write(out, "out")
        _check_same("out", target, numel, device)
        _check_apart("out", target[0], _SIZES[target[4]] * numel, packets)
    task.store(target[0], target[4])
    _run(task, kind, device)
    return kind.result(target[3]) if out is None else out


def _reduce_encode(
    task: _native.Reduction, packets: Sequence[Packet], like: Like, residual: Any, options: _Options
) -> Packet:
    c = like if isinstance(like, Codec) else codec(like)
    seed, nonfinite, out = options
    if out is not None and not isinstance(out, Packet):
        raise _refused_out("reduce: with codec", out)
    first = packets[0]
    kind, numel, device = first._kind, first.numel, first._memory[2]
    residual_address = residual_dtype = 0
    if residual is not None:
        state = (KINDS.get(type(residual)) or kind_of(residual, "residual")).write(residual, "residual")
        _check_same("residual", state, numel, device)
        residual_address, residual_dtype = state[0], state[4]
        _check_apart("residual", state[0], _SIZES[state[4]] * numel, packets)
    layout = c.layout(numel, first._dtype)
    if out is None:
        payload, payload_address = kind.new_payload(layout[1], device)
        memory = (payload_address, layout[1], device, payload, 0)
        out = Packet(c, first.shape, layout[0], kind, memory, numel)
    else:
        room = out._memory[0], (out._buffer or out._memory[1:])[0]  # all of it, also past the payload
        _check_apart("out", *room, packets)
        if residual is not None and _meet(*room, residual_address, _SIZES[residual_dtype] * numel):
            raise ValueError("reduce: residual lies in the memory of out; pass an array of its own")
        out._reuse(c, first.shape, (kind, numel, device), layout)
    out.seed, out._dtype = seed, first._dtype
    address, num_bytes, _, _, _ = out._memory
    flags, flags_address = kind.new_flags(device) if device >= 0 else (None, 0)
    task.encode(
        out._spec, out._dtype, residual_address, residual_dtype, seed, address, num_bytes, flags_address
    )
    bad, count = _run(task, kind, device)
    if device >= 0:
        _keep_flags(out, flags, nonfinite == "raise")
        return out
    if not layout[2]:
        out._trim(count)
    if bad >= 0 and nonfinite == "raise":
        raise nonfinite_error(out, bad)
    return out


def _check_packets(packets: Any) -> None:
    if isinstance(packets, Packet):
        raise ValueError("reduce: expected a list of at least one Packet, got a single one; pass [packet]")
    if not isinstance(packets, Sequence) or isinstance(packets, (str, bytes)):
        raise ValueError(
            f"reduce: expected a list of at least one Packet, got {type(packets).__name__}; "
            "pass list(...) of it"
        )
    if not packets:
        raise ValueError("reduce: expected a list of at least one Packet, got an empty one")
    for k, p in enumerate(packets):
        if not isinstance(p, Packet):
            raise ValueError(
                f"reduce: expected a list of at least one Packet, got {type(p).__name__} at {k}; "
                "see Packet.from_bytes"
            )


def _check_apart(name: str, address: int, num_bytes: int, packets: Sequence[Packet]) -> None:
    """ValueError where these bytes, to be written, are some that a reduce still reads."""
    for k, p in enumerate(packets):
        if _meet(address, num_bytes, p._memory[0], p._memory[1]):
            own = "a packet" if name == "out" else "an array"
            what = f"is packet {k}" if address == p._memory[0] else f"lies in the memory of packet {k}"
            raise ValueError(f"reduce: {name} {what}; pass {own} of its own")


def _run(task: _native.Reduction, kind: Kind, device: int) -> tuple[int, int]:
    scratch, scratch_address = _scratch(kind, task.scratch_nbytes() if device >= 0 else 0, device)
    found = task.run(scratch_address)
    del scratch
    return found


def mix(x: Any, neighbour_sum: Any, reference: Any, step_size: float) -> None:
    """Moves x by step_size * (neighbour_sum - reference), in place (CHOCO-SGD, Koloskova et al. 2019,
    algorithm 2).

    All are of one dtype (float32, float16 or bfloat16), one size and one device, x contiguous; the others are
    copied if they are not.
    """
    step_size = _finite("mix", "step_size", step_size)
    kind = KINDS.get(type(x)) or kind_of(x, "x")
    moved = kind.write(x, "x")
    address, numel, device, _, dtype = moved
    others = []  # whole memories: they own the copies of what was not contiguous
    for name, y in (("neighbour_sum", neighbour_sum), ("reference", reference)):
        memory = (KINDS.get(type(y)) or kind_of(y, name)).read(y, name)
        _check_same(name, memory, numel, device)
        if memory[4] != dtype:
            raise ValueError(f"{name}: expected the dtype of x; cast one of the two")
        if memory[0] != address and _overlap(memory, moved):
            raise ValueError(f"{name}: overlaps x; pass an array of its own")
        others.append(memory)
    if device < 0 and numel >= _native.PARALLEL_NUMEL:
        _native.follow_torch()
    _native.mix(
        address,
        others[0][0],
        others[1][0],
        dtype,
        step_size,
        numel,
        device,
        kind.stream(device)[1] if device >= 0 else 0,
    )


def _check_same(name: str, memory: Memory, numel: int, device: int) -> None:
    if memory[1] != numel:
        raise ValueError(f"{name}: expected {numel} elements, got {memory[1]}")
    if memory[2] != device:
        raise ValueError(
            f"{name}: expected {place_text(device)}, got {place_text(memory[2])}; move one of the two"
        )


def _checked(who: str, seed: int, nonfinite: str) -> int:
    """Returns the seed; ValueError where it or the policy is none."""
    if nonfinite != "raise" and nonfinite != "zero":
        raise ValueError(f"{who}: expected nonfinite 'raise' or 'zero', got {nonfinite!r}")
    try:
        number = seed if type(seed) is int else index(seed)  # index: of NumPy, too
    except TypeError:
        number = -1
    if number >> 64:
        raise ValueError(f"{who}: expected an integer seed in [0, 2^64), got {seed!r}")
    return number


def _finite(who: str, name: str, value: Any) -> float:
    try:
        number = float("nan") if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) <= _FLT_MAX:
        raise ValueError(f"{who}: expected a finite {name} of float32, got {value!r}")
    return number


def _refused_out(who: str, out: Any) -> ValueError:
    return ValueError(
        f"{who}: out is a Packet to use again, got {type(out).__name__}; "
        "pass a Packet, or decode into an array"
    )
