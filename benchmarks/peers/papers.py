"""What GRACE holds, which is not on PyPI: the papers' formulas in plain torch.

efsignsgd and qsgd come twice: as GRACE writes them, a new tensor for each step, and in place.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .peer import BLOCK, EVERYWHERE, Arrays, Step, peer


def _signs(a: Arrays, feedback: bool, in_place: bool) -> Step:
    """efsignsgd (Karimireddy et al. 2019): sign and mean magnitude, here of blocks of 256; a byte a sign."""
    import torch

    state, t = a.state.view(-1, BLOCK), a.scratch().view(-1, BLOCK)
    scale = a.buffer("scale", torch.float32, a.rows.shape[0], 1)
    bits = a.buffer("bits", torch.bool, *a.rows.shape)
    sent: list[Any] = [None]

    def as_grace() -> object:
        v = a.rows + state if feedback else a.rows
        mean = v.abs().mean(1, keepdim=True)
        codes = (v >= 0).to(torch.uint8)
        sent[0] = (codes, mean)
        if feedback:
            decoded = mean * (codes.float() * 2.0 - 1.0)
            state.copy_(v - decoded)
        return None

    def reusing() -> object:
        v = state.add_(a.rows) if feedback else a.rows
        torch.abs(v, out=t)
        torch.mean(t, 1, keepdim=True, out=scale)
        torch.ge(v, 0.0, out=bits)
        if feedback:
            torch.sign(v, out=t)
            state.addcmul_(t, scale, value=-1.0)
        return None

    def decoded() -> Any:
        codes, mean = (bits, scale) if in_place else sent[0]
        return mean * (codes.float() * 2.0 - 1.0)

    return Step(call=reusing if in_place else as_grace, nbytes=bits.nbytes + scale.nbytes, decoded=decoded)


for _operation in ("encode", "encode_feedback"):
    for _name, _in_place in (("efsignsgd in torch, as GRACE", False), ("efsignsgd in torch, in place", True)):
        peer(_name, "sign", _operation, devices=EVERYWHERE)(
            lambda a, f=_operation == "encode_feedback", i=_in_place: _signs(a, f, i)
        )


def _qsgd(a: Arrays, feedback: bool, in_place: bool) -> Step:
    """QSGD (Alistarh et al. 2017) of 8 bits with the largest magnitude of blocks of 256 as norm."""
    import torch

    state, t, u = a.state.view(-1, BLOCK), a.scratch().view(-1, BLOCK), a.scratch("noise").view(-1, BLOCK)
    scale = a.buffer("scale", torch.float32, a.rows.shape[0], 1)
    codes = a.buffer("codes", torch.int8, *a.rows.shape)
    sent: list[Any] = [None]

    def as_grace() -> object:
        v = a.rows + state if feedback else a.rows
        norm = v.abs().amax(1, keepdim=True).clamp(min=2.0**-126)
        level = 127.0 / norm * v.abs()
        lower = level.floor()
        up = (torch.rand_like(v) < level - lower).float()
        sent[0] = ((v.sign() * (lower + up)).to(torch.int8), norm / 127.0)
        if feedback:
            state.copy_(v - sent[0][0].float() * sent[0][1])
        return None

    def reusing() -> object:
        v = state.add_(a.rows) if feedback else a.rows
        torch.abs(v, out=t)
        torch.amax(t, 1, keepdim=True, out=scale)
        scale.div_(127.0).clamp_(min=2.0**-126)
        u.uniform_()
        torch.div(v, scale, out=t)
        codes.copy_(t.add_(u).floor_().clamp_(-127.0, 127.0))
        if feedback:
            state.addcmul_(t, scale, value=-1.0)
        return None

    def decoded() -> Any:
        code, step = (codes, scale) if in_place else sent[0]
        return code.float() * step

    return Step(call=reusing if in_place else as_grace, nbytes=codes.nbytes + scale.nbytes, decoded=decoded)


for _operation in ("encode", "encode_feedback"):
    for _name, _in_place in (("qsgd in torch, as GRACE", False), ("qsgd in torch, in place", True)):
        peer(_name, "qsgd", _operation, devices=EVERYWHERE)(
            lambda a, f=_operation == "encode_feedback", i=_in_place: _qsgd(a, f, i)
        )


def _scatter(a: Arrays, index: Any, values: Any) -> Any:
    import torch

    return torch.zeros_like(a.x).index_put_((index.long(),), values)


def _topk(a: Arrays, feedback: bool) -> Step:
    """torch.topk of the magnitudes, its outputs allocated; indices become int32."""
    import torch

    k = max(1, math.ceil(a.codec.ratio * a.x.numel()))
    t, v = a.scratch(), a.state if feedback else a.x
    largest, index = a.buffer("largest", torch.float32, k), a.buffer("index", torch.int64, k)
    short, values = a.buffer("short", torch.int32, k), a.buffer("values", torch.float32, k)

    def call() -> object:
        if feedback:
            a.state.add_(a.x)
        torch.abs(v, out=t)
        torch.topk(t, k, sorted=False, out=(largest, index))
        torch.index_select(v, 0, index, out=values)
        short.copy_(index)
        return a.state.index_fill_(0, index, 0.0) if feedback else None

    return Step(call=call, nbytes=8 * k, decoded=lambda: _scatter(a, short, values))


def _argpartition(a: Arrays, feedback: bool) -> Step:
    k = max(1, math.ceil(a.codec.ratio * a.x.numel()))
    x, state, t = a.x.numpy(), a.state.numpy(), a.scratch().numpy()
    v = state if feedback else x
    sent: list[Any] = [None]

    def call() -> object:
        if feedback:
            np.add(state, x, out=state)
        np.abs(v, out=t)
        index = np.argpartition(t, t.size - k)[t.size - k :]
        sent[0] = (index.astype(np.int32), v[index])
        if feedback:
            state[index] = 0.0
        return None

    def decoded() -> Any:
        y = np.zeros_like(x)
        y[sent[0][0]] = sent[0][1]
        return y

    return Step(call=call, nbytes=8 * k, decoded=decoded)


for _operation in ("encode", "encode_feedback"):
    _f = _operation == "encode_feedback"
    peer("torch.topk", "topk", _operation, devices=EVERYWHERE)(lambda a, f=_f: _topk(a, f))
    peer("numpy argpartition", "topk", _operation, package="numpy")(lambda a, f=_f: _argpartition(a, f))


@peer("torch mask and nonzero", "threshold", "encode", devices=EVERYWHERE)
def _threshold(a: Arrays) -> Step:
    import torch

    t, sent = a.scratch(), [None]

    def call() -> object:
        torch.abs(a.x, out=t)
        index = torch.ge(t, a.codec.value).nonzero().view(-1)
        sent[0] = (index.int(), a.x[index])
        return None

    call()
    return Step(call=call, nbytes=8 * sent[0][0].numel(), decoded=lambda: _scatter(a, *sent[0]))


@peer("dgc in torch, as GRACE", "dgc", "encode", devices=EVERYWHERE)
def _dgc(a: Arrays) -> Step:
    """DGC's sparsification (Lin et al. 2018): the threshold is the k-th largest magnitude of a 1 % sample."""
    import torch

    n, sent = a.x.numel(), [None]
    size = max(1, n // 100)

    def call() -> object:
        sample = a.x[torch.randint(n, (size,), device=a.x.device)].abs()
        least = torch.topk(sample, max(1, math.ceil(a.codec.ratio * size)))[0][-1]
        index = (a.x.abs() >= least).nonzero().view(-1)
        sent[0] = (index.int(), a.x[index])
        return None

    call()
    return Step(call=call, nbytes=8 * sent[0][0].numel(), decoded=lambda: _scatter(a, *sent[0]))


@peer("torch.randint and index_select", "randk", "encode", devices=EVERYWHERE)
def _randk(a: Arrays) -> Step:
    import torch

    k = max(1, math.ceil(a.codec.ratio * a.x.numel()))
    index, values = a.buffer("index", torch.int64, k), a.buffer("values", torch.float32, k)

    def call() -> object:
        index.random_(0, a.x.numel())
        return torch.index_select(a.x, 0, index, out=values)

    return Step(call=call, nbytes=4 * k)
