"""FBGEMM's rows, inside torch and by themselves: 8, 4 or 2 bits an element, scale and bias a row of 256."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .peer import BLOCK, Arrays, Step, peer

_BITS = {"int8": "byte", "int4": "4bit", "int2": "2bit"}


def _torch_rows(bits: str, operation: str) -> Callable[[Arrays], Step]:
    def make(a: Arrays) -> Step:
        import torch

        pack = getattr(torch.ops.quantized, f"embedding_bag_{bits}_prepack")
        unpack = getattr(torch.ops.quantized, f"embedding_bag_{bits}_unpack")
        packed = pack(a.rows)
        state, target = a.state.view(-1, BLOCK), a.target.view(-1, BLOCK)

        def feedback() -> object:
            a.state.add_(a.x)
            return state.sub_(unpack(pack(state)))

        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: pack(a.rows),
            "encode_feedback": feedback,
            "decode": lambda: unpack(packed),
            "decode_add": lambda: target.add_(unpack(packed), alpha=2.0**-20),
        }
        return Step(call=calls[operation], nbytes=packed.nbytes, decoded=lambda: unpack(packed))

    return make


def _fbgemm_rows(bits: int, operation: str) -> Callable[[Arrays], Step]:
    def make(a: Arrays) -> Step:
        import torch

        ops: Any = torch.ops.fbgemm
        state, target = a.state.view(-1, BLOCK), a.target.view(-1, BLOCK)
        y = a.scratch().view(-1, BLOCK)
        if bits == 8:
            packed = ops.FloatToFused8BitRowwiseQuantized(a.rows)

            def pack(x: Any) -> Any:
                return ops.FloatToFused8BitRowwiseQuantizedOut(packed, x)

            def unpack(out: Any) -> Any:
                ops.Fused8BitRowwiseQuantizedToFloatOut(out, packed)
                return out
        else:
            packed = ops.FloatToFusedNBitRowwiseQuantizedSBHalf(a.rows, bits)
            kept = [packed]

            def pack(x: Any) -> Any:
                kept[0] = ops.FloatToFusedNBitRowwiseQuantizedSBHalf(x, bits)

            def unpack(out: Any) -> Any:
                return ops.FusedNBitRowwiseQuantizedSBHalfToFloat(kept[0], bits)

        def feedback() -> object:
            a.state.add_(a.x)
            pack(state)
            return state.sub_(unpack(y))

        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: pack(a.rows),
            "encode_feedback": feedback,
            "decode": lambda: unpack(target),
            "decode_add": lambda: target.add_(unpack(y), alpha=2.0**-20),
        }
        return Step(call=calls[operation], nbytes=packed.nbytes, decoded=lambda: unpack(y))

    return make


for _codec, _bits in _BITS.items():
    for _operation in ("encode", "encode_feedback", "decode", "decode_add"):
        _plus = {"encode_feedback": ", add, sub", "decode_add": ", add"}.get(_operation, "")
        _verb = {"encode": "prepack", "encode_feedback": "prepack, unpack"}.get(_operation, "unpack")
        peer(f"torch embedding_bag_{_bits}_{_verb}{_plus}", _codec, _operation)(
            _torch_rows(_bits, _operation)
        )
        _number = {"byte": 8, "4bit": 4, "2bit": 2}[_bits]
        _name = f"fbgemm {'Fused8Bit' if _number == 8 else f'Fused{_number}Bit'}Rowwise{_plus}"
        peer(_name, _codec, _operation, package="fbgemm-gpu-cpu")(_fbgemm_rows(_number, _operation))
