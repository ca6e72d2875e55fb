"""Our codecs with torch's own operators: casts, scaled integers, in place and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from .peer import BLOCK, EVERYWHERE, Arrays, Step, peer


@peer("torch e.add_(g), nothing sent", "int8", "encode_feedback", devices=EVERYWHERE)
def _add(a: Arrays) -> Step:
    return Step(call=lambda: a.state.add_(a.x))


def _cast(kind: str, operation: str) -> Callable[[Arrays], Step]:
    def make(a: Arrays) -> Step:
        import torch

        half = a.buffer("half", getattr(torch, kind), a.x.numel())

        def feedback() -> object:
            a.state.add_(a.x)
            half.copy_(a.state)
            return a.state.sub_(half)

        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: half.copy_(a.x),
            "encode_feedback": feedback,
            "decode": lambda: a.target.copy_(half),
            "decode_add": lambda: a.target.add_(half, alpha=2.0**-20),
        }
        return Step(call=calls[operation], nbytes=half.nbytes, decoded=lambda: half.float())

    return make


for _codec, _kind in (("fp16", "float16"), ("bf16", "bfloat16")):
    for _operation in ("encode", "encode_feedback", "decode", "decode_add"):
        peer(f"torch copy_ {_kind}", _codec, _operation, devices=EVERYWHERE)(_cast(_kind, _operation))


def _scaled(a: Arrays, v: Any, limit: float, dtype: Any) -> tuple[Callable[[], None], Any, Any]:
    """Codes of v in blocks of 256 that share max |v| / limit as scale: (encode, codes, scales)."""
    import torch

    rows, t = v.view(-1, BLOCK), a.scratch().view(-1, BLOCK)
    scale = a.buffer("scale", torch.float32, rows.shape[0], 1)
    codes = a.buffer("codes", dtype, *rows.shape)

    def encode() -> None:
        torch.abs(rows, out=t)
        torch.amax(t, 1, keepdim=True, out=scale)
        scale.div_(limit).clamp_(min=2.0**-126)
        torch.div(rows, scale, out=t)
        codes.copy_(t if dtype.is_floating_point else t.round_())

    return encode, codes, scale


def _torch_scaled(limit: float, kind: str, operation: str) -> Callable[[Arrays], Step]:
    def make(a: Arrays) -> Step:
        import torch

        t = a.scratch().view(-1, BLOCK)
        target = a.target.view(-1, BLOCK)
        feedback = operation == "encode_feedback"
        encode, codes, scale = _scaled(a, a.state if feedback else a.x, limit, getattr(torch, kind))

        def decode(out: Any) -> Any:
            return torch.mul(codes.float() if codes.is_floating_point() else codes, scale, out=out)

        def with_feedback() -> object:
            a.state.add_(a.x)
            encode()
            return a.state.view(-1, BLOCK).sub_(decode(t))

        encode()
        calls: dict[str, Callable[[], object]] = {
            "encode": encode,
            "encode_feedback": with_feedback,
            "decode": lambda: decode(target),
            "decode_add": lambda: target.add_(decode(t), alpha=2.0**-20),
        }
        return Step(call=calls[operation], nbytes=codes.nbytes + scale.nbytes, decoded=lambda: decode(t))

    return make


for _operation in ("encode", "encode_feedback", "decode", "decode_add"):
    peer("torch, in place", "int8", _operation, devices=EVERYWHERE)(_torch_scaled(127.0, "int8", _operation))
    peer("torch, in place", "fp8", _operation, devices=EVERYWHERE)(
        _torch_scaled(448.0, "float8_e4m3fn", _operation)
    )


@cache
def _compiled(operation: str) -> Any:
    import torch

    def encode(x: Any, codes: Any, scale: Any) -> None:
        scale.copy_(x.abs().amax(1, keepdim=True) / 127.0)
        codes.copy_((x * (127.0 / (scale * 127.0).clamp(min=2.0**-126))).round())

    def encode_feedback(x: Any, state: Any, codes: Any, scale: Any) -> None:
        v = x + state
        s = v.abs().amax(1, keepdim=True) / 127.0
        code = (v / s.clamp(min=2.0**-126)).round()
        scale.copy_(s)
        codes.copy_(code)
        state.copy_(v - code * s)

    def decode_add(target: Any, codes: Any, scale: Any) -> None:
        target.add_(codes.float() * scale, alpha=2.0**-20)

    found = {"encode": encode, "encode_feedback": encode_feedback, "decode_add": decode_add}
    return torch.compile(found[operation], dynamic=True)


def _torch_compiled(operation: str) -> Callable[[Arrays], Step]:
    def make(a: Arrays) -> Step:
        import torch

        codes = a.buffer("compiled codes", torch.int8, *a.rows.shape)
        scale = a.buffer("compiled scale", torch.float32, a.rows.shape[0], 1)
        function = _compiled(operation)
        given = {
            "encode": (a.rows,),
            "encode_feedback": (a.rows, a.state.view(-1, BLOCK)),
            "decode_add": (a.target.view(-1, BLOCK),),
        }[operation]
        return Step(
            call=lambda: function(*given, codes, scale),
            nbytes=codes.nbytes + scale.nbytes,
            decoded=lambda: codes.float() * scale,
        )

    return make


for _operation in ("encode", "encode_feedback", "decode_add"):
    peer("torch.compile", "int8", _operation, package="torch.compile")(_torch_compiled(_operation))
