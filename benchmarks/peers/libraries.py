"""piquant, bitsandbytes, hivemind and torchao: one scale a tensor, or formats of their own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from .peer import BLOCK, EVERYWHERE, Arrays, Step, peer


def _piquant(operation: str, bits: int, rounding: str) -> Callable[[Arrays], Step]:
    def make(a: Arrays) -> Step:
        import piquant
        import torch

        ctx = piquant.Context(a.threads)
        f32 = piquant.DataType.F32
        kind = {8: piquant.DataType.UINT8, 4: piquant.DataType.UINT4, 2: piquant.DataType.UINT2}[bits]
        n = a.x.numel()
        codes = torch.zeros(n * bits // 8, dtype=torch.uint8)
        mode = piquant.RoundMode.STOCHASTIC if rounding == "stochastic" else piquant.RoundMode.NEAREST
        found: list[Any] = [None]

        def encode() -> None:
            scale, zero = ctx.compute_quant_params_ptr_float32(a.x.data_ptr(), kind, n)
            found[0] = (scale, zero)
            ctx.quantize_ptr(
                a.x.data_ptr(),
                f32,
                codes.data_ptr(),
                kind,
                numel=n,
                scale=scale,
                zero_point=zero,
                round_mode=mode,
            )

        def decode(out: Any, add: bool) -> Any:
            scale, zero = found[0]
            how = piquant.ReduceOp.ADD if add else piquant.ReduceOp.SET
            ctx.dequantize_ptr(
                codes.data_ptr(),
                kind,
                out.data_ptr(),
                f32,
                numel=n,
                scale=scale,
                zero_point=zero,
                reduce_op=how,
            )
            return out

        encode()
        calls: dict[str, Callable[[], object]] = {
            "encode": encode,
            "decode": lambda: decode(a.target, False),
            "decode_add": lambda: decode(a.target, True),
        }
        return Step(
            call=calls[operation], nbytes=codes.nbytes + 12, decoded=lambda: decode(a.scratch(), False)
        )

    return make


for _codec, _number in (("int8", 8), ("int4", 4), ("int2", 2)):
    for _operation in ("encode", "decode", "decode_add"):
        peer(f"piquant uint{_number}", _codec, _operation, package="pypiquant")(
            _piquant(_operation, _number, "nearest")
        )
peer("piquant uint8 stochastic", "qsgd", "encode", package="pypiquant")(_piquant("encode", 8, "stochastic"))


def _bitsandbytes(operation: str, bits: int) -> Callable[[Arrays], Step]:
    def make(a: Arrays) -> Step:
        import torch
        from bitsandbytes import functional

        n = a.x.numel()
        if bits == 8:
            codes = torch.zeros(n, dtype=torch.uint8, device=a.x.device)
            absmax = torch.zeros(n // BLOCK, dtype=torch.float32, device=a.x.device)

            def encode() -> Any:
                return functional.quantize_blockwise(a.x, blocksize=BLOCK, absmax=absmax, out=codes)

            def decode() -> Any:  # out= is not built for CPUs
                return functional.dequantize_blockwise(kept[0][0], kept[0][1])
        else:

            def encode() -> Any:
                return functional.quantize_4bit(a.x, blocksize=BLOCK, quant_type="fp4")

            def decode() -> Any:
                return functional.dequantize_4bit(kept[0][0], kept[0][1])

        kept = [encode()]
        nbytes = kept[0][0].nbytes + kept[0][1].absmax.nbytes
        calls: dict[str, Callable[[], object]] = {"encode": encode, "decode": decode}
        return Step(call=calls[operation], nbytes=nbytes, decoded=decode)

    return make


for _operation in ("encode", "decode"):
    peer("bitsandbytes blockwise", "int8", _operation, package="bitsandbytes", devices=EVERYWHERE)(
        _bitsandbytes(_operation, 8)
    )
    peer("bitsandbytes fp4", "int4", _operation, package="bitsandbytes", devices=EVERYWHERE)(
        _bitsandbytes(_operation, 4)
    )


def _hivemind(kind: str, operation: str) -> Callable[[Arrays], Step]:
    def make(a: Arrays) -> Step:
        compression: Any = importlib.import_module("hivemind.compression")
        codec = getattr(compression, kind)()
        info = compression.CompressionInfo.from_tensor(a.x)
        message = codec.compress(a.x, info)
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: codec.compress(a.x, info),
            "decode": lambda: codec.extract(message),
        }
        return Step(call=calls[operation], nbytes=message.ByteSize(), decoded=lambda: codec.extract(message))

    return make


for _operation in ("encode", "decode"):
    for _codec, _kind in (("int8", "Uniform8BitQuantization"), ("fp16", "Float16Compression")):
        peer(f"hivemind {_kind}", _codec, _operation, package="hivemind")(_hivemind(_kind, _operation))


@peer("torchao quantize_affine", "int8", "encode", package="torchao", devices=EVERYWHERE)
def _torchao_affine(a: Arrays) -> Step:
    import torch
    from torchao.quantization import quant_primitives as primitives

    block, kept = (1, BLOCK), [None]

    def call() -> object:
        scale, zero = primitives.choose_qparams_affine(
            a.rows, primitives.MappingType.SYMMETRIC, block, torch.int8, -127, 127
        )
        kept[0] = (primitives.quantize_affine(a.rows, block, scale, zero, torch.int8, -127, 127), scale, zero)
        return None

    call()
    codes, scale, _ = kept[0]
    return Step(
        call=call,
        nbytes=codes.nbytes + scale.nbytes,
        decoded=lambda: primitives.dequantize_affine(
            kept[0][0], block, kept[0][1], kept[0][2], torch.int8, -127, 127
        ),
    )


def _torchao_mx(kind: str, bits: int) -> Callable[[Arrays], Step]:
    def make(a: Arrays) -> Step:
        import torch
        from torchao.prototype.mx_formats import mx_tensor

        element = getattr(torch, kind)
        kept = [mx_tensor.to_mx(a.x, element, 32)]

        def call() -> object:
            kept[0] = mx_tensor.to_mx(a.x, element, 32)
            return None

        return Step(
            call=call,
            nbytes=a.x.numel() * bits / 8 + a.x.numel() / 32,
            decoded=lambda: mx_tensor.to_dtype(kept[0][1], kept[0][0], element, 32, torch.float32),
        )

    return make


peer("torchao to_mx", "mxfp8", "encode", package="torchao", devices=EVERYWHERE)(
    _torchao_mx("float8_e4m3fn", 8)
)
peer("torchao to_mx", "mxfp4", "encode", package="torchao", devices=EVERYWHERE)(
    _torchao_mx("float4_e2m1fn_x2", 4)
)
