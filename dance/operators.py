"""`torch.ops.dance`: the operations as operators that torch.compile keeps in its graphs.

Import this module to register them. Payloads are uint8 tensors without a header, and a codec is its text, so
whoever decodes names codec, shape, dtype and seed again. An operator costs several microseconds more than
`dance.encode` and its siblings: call those where nothing is compiled. Shapes are specialised: another size
compiles again. Codecs whose packets vary in size (threshold, dgc) are refused, because a graph must know the
size of a payload beforehand.

Seeds are int64 here; a negative one stands for seed + 2^64. With nonfinite="raise" an encode on CUDA waits
for its kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dance import coding
from dance.arrays import kind_of
from dance.codecs import Codec, codec
from dance.packet import Packet

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SEEDS = 1 << 64


def _codec(text: str) -> Codec:
    c = codec(text)
    if not c.fixed_size:
        raise ValueError(
            f"torch.ops.dance: the size of a {c.name} packet is not known beforehand; use topk, "
            "or dance.encode outside the compiled part"
        )
    return c


def _number(dtype: torch.dtype) -> int:
    if dtype is torch.float64:  # is converted
        return 0
    if dtype not in _DTYPES:
        raise ValueError(f"torch.ops.dance: expected float32, float16 or bfloat16, got {dtype}; cast first")
    return _DTYPES.index(dtype)


def _sent(packet: Packet) -> Tensor:
    packet.check_finite()
    payload: Tensor = packet.payload
    return payload


def _packet(payload: Tensor, text: str, shape: Sequence[int], dtype: torch.dtype, seed: int) -> Packet:
    c = _codec(text)
    numel, number = math.prod(shape), _number(dtype)
    kind = kind_of(payload, "payload")
    packet = Packet(
        c, tuple(shape), c.layout(numel, number)[0], kind, kind.payload(payload, "payload"), numel
    )
    packet.seed, packet._dtype = seed % _SEEDS, number
    return packet


def _check_some(payloads: Sequence[Tensor]) -> None:
    if not payloads:
        raise ValueError("torch.ops.dance.reduce: expected a list of at least one payload, got an empty one")


def _packets(
    payloads: Sequence[Tensor], text: str, shape: Sequence[int], dtype: torch.dtype, seeds: Sequence[int]
) -> list[Packet]:
    _check_some(payloads)
    if seeds and len(seeds) != len(payloads):
        raise ValueError(
            f"torch.ops.dance.reduce: expected {len(payloads)} seeds, one a payload, got {len(seeds)}"
        )
    return [
        _packet(payload, text, shape, dtype, seed)
        for payload, seed in zip(payloads, seeds or [0] * len(payloads), strict=True)
    ]


def _fake_payload(x: Tensor, text: str) -> Tensor:
    return x.new_empty(_codec(text).layout(int(x.numel()), _number(x.dtype))[1], dtype=torch.uint8)


def _fake_of_state(
    x: Tensor, state: Tensor, codec: str, *, seed: int = 0, nonfinite: str = "raise"
) -> Tensor:
    return _fake_payload(x, codec)


@torch.library.custom_op(
    "dance::encode",
    mutates_args=(),
    schema="(Tensor x, str codec, *, int seed=0, str nonfinite='raise') -> Tensor",
)
def encode(x: Tensor, codec: str, *, seed: int = 0, nonfinite: str = "raise") -> Tensor:
    """Returns the payload of `dance.encode`."""
    return _sent(coding.encode(x, _codec(codec), seed=seed % _SEEDS, nonfinite=nonfinite))


@encode.register_fake
def _(x: Tensor, codec: str, *, seed: int = 0, nonfinite: str = "raise") -> Tensor:
    return _fake_payload(x, codec)


@torch.library.custom_op(
    "dance::encode_feedback",
    mutates_args=("residual",),
    schema="(Tensor x, Tensor(a!) residual, str codec, *, int seed=0, str nonfinite='raise') -> Tensor",
)
def encode_feedback(
    x: Tensor, residual: Tensor, codec: str, *, seed: int = 0, nonfinite: str = "raise"
) -> Tensor:
    """Returns the payload of `dance.encode_feedback`; changes ``residual`` in place."""
    return _sent(coding.encode_feedback(x, residual, _codec(codec), seed=seed % _SEEDS, nonfinite=nonfinite))


@torch.library.custom_op(
    "dance::encode_difference",
    mutates_args=("reference",),
    schema="(Tensor x, Tensor(a!) reference, str codec, *, int seed=0, str nonfinite='raise') -> Tensor",
)
def encode_difference(
    x: Tensor, reference: Tensor, codec: str, *, seed: int = 0, nonfinite: str = "raise"
) -> Tensor:
    """Returns the payload of `dance.encode_difference`; changes ``reference`` in place."""
    return _sent(
        coding.encode_difference(x, reference, _codec(codec), seed=seed % _SEEDS, nonfinite=nonfinite)
    )


encode_feedback.register_fake(_fake_of_state)
encode_difference.register_fake(_fake_of_state)


@torch.library.custom_op(
    "dance::decode",
    mutates_args=(),
    schema=(
        "(Tensor payload, str codec, SymInt[] shape, *, ScalarType dtype=float32, int seed=0, "
        "float weight=1.0) -> Tensor"
    ),
)
def decode(
    payload: Tensor,
    codec: str,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    weight: float = 1.0,
) -> Tensor:
    """Returns ``weight`` times the array of a payload, of ``shape`` and ``dtype`` as it was encoded."""
    decoded: Tensor = coding.decode(_packet(payload, codec, shape, dtype, seed), weight=weight)
    return decoded


@decode.register_fake
def _(
    payload: Tensor,
    codec: str,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    weight: float = 1.0,
) -> Tensor:
    return payload.new_empty(shape, dtype=_DTYPES[_number(dtype)])


@torch.library.custom_op(
    "dance::decode_add",
    mutates_args=("out",),
    schema=(
        "(Tensor payload, Tensor(a!) out, str codec, *, ScalarType? dtype=None, int seed=0, "
        "float weight=1.0) -> ()"
    ),
)
def decode_add(
    payload: Tensor,
    out: Tensor,
    codec: str,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    weight: float = 1.0,
) -> None:
    """Adds ``weight`` times the array of a payload to ``out``; ``dtype`` as encoded, None: that of out."""
    dtype = out.dtype if dtype is None else dtype
    coding.decode(_packet(payload, codec, out.shape, dtype, seed), out=out, add=True, weight=weight)


@decode_add.register_fake
def _(
    payload: Tensor,
    out: Tensor,
    codec: str,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    weight: float = 1.0,
) -> None:
    _codec(codec)


@torch.library.custom_op(
    "dance::reduce",
    mutates_args=(),
    schema=(
        "(Tensor[] payloads, str codec, SymInt[] shape, *, ScalarType dtype=float32, int[] seeds=[], "
        "bool mean=False) -> Tensor"
    ),
)
def reduce(
    payloads: Sequence[Tensor],
    codec: str,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    seeds: Sequence[int] = (),
    mean: bool = False,
) -> Tensor:
    """Returns the sum or mean of the arrays of payloads of one codec; ``seeds`` of randk: one a payload."""
    total: Tensor = coding.reduce(_packets(payloads, codec, shape, dtype, seeds), mean=mean)
    return total


@reduce.register_fake
def _(
    payloads: Sequence[Tensor],
    codec: str,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    seeds: Sequence[int] = (),
    mean: bool = False,
) -> Tensor:
    _check_some(payloads)
    _codec(codec)
    return payloads[0].new_empty(shape, dtype=_DTYPES[_number(dtype)])


@torch.library.custom_op(
    "dance::reduce_encode",
    mutates_args=("residual",),
    schema=(
        "(Tensor[] payloads, str codec, SymInt[] shape, str again, Tensor(a!)? residual=None, *, "
        "ScalarType dtype=float32, int[] seeds=[], bool mean=False, int seed=0, str nonfinite='raise') "
        "-> Tensor"
    ),
)
def reduce_encode(
    payloads: Sequence[Tensor],
    codec: str,
    shape: Sequence[int],
    again: str,
    residual: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    seeds: Sequence[int] = (),
    mean: bool = False,
    seed: int = 0,
    nonfinite: str = "raise",
) -> Tensor:
    """Returns the payload of `dance.reduce` with a codec: the sum or mean, encoded by the codec ``again``
    with ``seed``; changes ``residual`` in place, if there is one. The others as `reduce`.
    """
    return _sent(
        coding.reduce(
            _packets(payloads, codec, shape, dtype, seeds),
            codec=_codec(again),
            mean=mean,
            seed=seed % _SEEDS,
            nonfinite=nonfinite,
            residual=residual,
        )
    )


@reduce_encode.register_fake
def _(
    payloads: Sequence[Tensor],
    codec: str,
    shape: Sequence[int],
    again: str,
    residual: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    seeds: Sequence[int] = (),
    mean: bool = False,
    seed: int = 0,
    nonfinite: str = "raise",
) -> Tensor:
    _check_some(payloads)
    _codec(codec)
    num_bytes = _codec(again).layout(math.prod(shape), _number(dtype))[1]
    return payloads[0].new_empty(num_bytes, dtype=torch.uint8)


@torch.library.custom_op(
    "dance::mix",
    mutates_args=("x",),
    schema="(Tensor(a!) x, Tensor neighbour_sum, Tensor reference, float step_size) -> ()",
)
def mix(x: Tensor, neighbour_sum: Tensor, reference: Tensor, step_size: float) -> None:
    """`dance.mix`: x += step_size * (neighbour_sum - reference), in place."""
    coding.mix(x, neighbour_sum, reference, step_size)


@mix.register_fake
def _(x: Tensor, neighbour_sum: Tensor, reference: Tensor, step_size: float) -> None:
    return None
