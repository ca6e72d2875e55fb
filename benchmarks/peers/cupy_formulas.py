"""Our codecs with CuPy's own functions, on the memory of torch's tensors: on a GPU, where CuPy is installed.

CuPy works on the default stream, as torch does unless told otherwise.
"""

from __future__ import annotations

import math
from typing import Any

from .peer import BLOCK, Arrays, Step, peer

CUDA = ("cuda",)


def _int8(a: Arrays, feedback: bool) -> Step:
    """Blocks of 256 with their largest magnitude / 127 as scale."""
    import cupy as cp
    import torch

    scratch, kept = a.scratch().view(-1, BLOCK), a.buffer("scale", torch.float32, a.rows.shape[0], 1)
    rows, state, t, scale = map(cp.asarray, (a.rows, a.state.view(-1, BLOCK), scratch, kept))
    codes = cp.asarray(a.buffer("codes", torch.int8, *a.rows.shape))
    v = state if feedback else rows

    def call() -> object:
        if feedback:
            cp.add(state, rows, out=state)
        cp.abs(v, out=t)
        cp.amax(t, axis=1, keepdims=True, out=scale)
        cp.divide(scale, 127.0, out=scale)
        cp.maximum(scale, 2.0**-126, out=scale)
        cp.divide(v, scale, out=t)
        cp.rint(t, out=t)
        codes[...] = t
        if feedback:
            cp.multiply(t, scale, out=t)
            cp.subtract(state, t, out=state)
        return None

    def decoded() -> Any:
        cp.multiply(codes, scale, out=t)
        return scratch

    return Step(call=call, nbytes=codes.nbytes + scale.nbytes, decoded=decoded)


def _sign(a: Arrays, feedback: bool) -> Step:
    """efsignsgd (Karimireddy et al. 2019) of blocks of 256; a bit a sign."""
    import cupy as cp
    import torch

    scratch, kept = a.scratch().view(-1, BLOCK), a.buffer("scale", torch.float32, a.rows.shape[0], 1)
    rows, state, t, scale = map(cp.asarray, (a.rows, a.state.view(-1, BLOCK), scratch, kept))
    v = state if feedback else rows
    sent: list[Any] = [None]

    def call() -> object:
        if feedback:
            cp.add(state, rows, out=state)
        cp.abs(v, out=t)
        cp.mean(t, axis=1, keepdims=True, out=scale)
        sent[0] = cp.packbits(v >= 0.0)
        if feedback:
            cp.copysign(scale, v, out=t)
            cp.subtract(state, t, out=state)
        return None

    def decoded() -> Any:
        signs = cp.unpackbits(sent[0]).reshape(t.shape).astype(cp.float32) * 2.0 - 1.0
        cp.multiply(signs, scale, out=t)
        return scratch

    return Step(call=call, nbytes=a.x.numel() / 8 + scale.nbytes, decoded=decoded)


def _argpartition(a: Arrays, feedback: bool) -> Step:
    """The largest magnitudes, which CuPy finds by sorting."""
    import cupy as cp

    k = max(1, math.ceil(a.codec.ratio * a.x.numel()))
    scratch = a.scratch()
    x, state, t = map(cp.asarray, (a.x, a.state, scratch))
    v = state if feedback else x
    sent: list[Any] = [None]

    def call() -> object:
        if feedback:
            cp.add(state, x, out=state)
        cp.abs(v, out=t)
        index = cp.argpartition(t, t.size - k)[t.size - k :]
        sent[0] = (index.astype(cp.int32), v[index])
        if feedback:
            state[index] = 0.0
        return None

    def decoded() -> Any:
        t[...] = 0.0
        t[sent[0][0]] = sent[0][1]
        return scratch

    return Step(call=call, nbytes=8 * k, decoded=decoded)


for _operation in ("encode", "encode_feedback"):
    _f = _operation == "encode_feedback"
    peer("cupy", "int8", _operation, package="cupy", devices=CUDA)(lambda a, f=_f: _int8(a, f))
    peer("cupy, efsignsgd", "sign", _operation, package="cupy", devices=CUDA)(lambda a, f=_f: _sign(a, f))
    peer("cupy argpartition", "topk", _operation, package="cupy", devices=CUDA)(
        lambda a, f=_f: _argpartition(a, f)
    )
