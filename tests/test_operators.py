"""`torch.ops.dance`: each operator does what its function does, and torch.compile keeps it in its graph."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import dance
import dance.operators
from dance import codecs

OPS = torch.ops.dance
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FIXED = [text for kind in codecs.CODECS for text in kind.examples if dance.codec(text).fixed_size]
VARYING = [text for kind in codecs.CODECS for text in kind.examples if not dance.codec(text).fixed_size]


def wave(numel: int = 300, phase: float = 0.0) -> torch.Tensor:
    return torch.sin(torch.arange(numel) + phase)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", FIXED)
def test_operators_do_what_the_functions_do(text: str, dtype: torch.dtype) -> None:
    x = wave().to(dtype).reshape(15, 20)
    p = dance.encode(x, text, seed=2**63 + 5)
    payload = OPS.encode(x, text, seed=5 - 2**63)  # the same seed, as an int64
    assert torch.equal(payload, p.payload)
    stamp = {"dtype": dtype, "seed": 5 - 2**63}
    assert torch.equal(OPS.decode(payload, text, x.shape, **stamp, weight=0.5), dance.decode(p, weight=0.5))
    out, expected = wave(300, 1.0), wave(300, 1.0)
    OPS.decode_add(payload, out, text, **stamp, weight=2.0)
    assert torch.equal(out, dance.decode(p, out=expected, add=True, weight=2.0))
    for operator, function in (
        (OPS.encode_feedback, dance.encode_feedback),
        (OPS.encode_difference, dance.encode_difference),
    ):
        state, expected = wave(300, 2.0), wave(300, 2.0)
        payload = operator(x, state, text, seed=7)
        p = function(x, expected, text, seed=7)
        assert torch.equal(payload, p.payload)
        assert torch.equal(state, expected)
    packets = [dance.encode(wave(300, k).to(dtype), text, seed=k) for k in range(3)]
    for mean in (False, True):
        total = OPS.reduce([p.payload for p in packets], text, [300], dtype=dtype, seeds=[0, 1, 2], mean=mean)
        assert torch.equal(total, dance.reduce(packets, mean=mean))
        for again in ("int8", "randk:ratio=0.1"):
            for residual in (None, wave(300, 4.0)):
                kept = None if residual is None else residual.clone()
                payload = OPS.reduce_encode(
                    [p.payload for p in packets],
                    text,
                    [300],
                    again,
                    residual,
                    dtype=dtype,
                    seeds=[0, 1, 2],
                    mean=mean,
                    seed=5 - 2**63,
                )
                p = dance.reduce(packets, codec=again, mean=mean, residual=kept, seed=2**63 + 5)
                assert torch.equal(payload, p.payload)
                assert residual is None or torch.equal(residual, kept)


def test_mix() -> None:
    x, expected = wave(), wave()
    OPS.mix(x, wave(300, 1.0), wave(300, 2.0), 0.25)
    dance.mix(expected, wave(300, 1.0), wave(300, 2.0), 0.25)
    assert torch.equal(x, expected)


FIRST = [kind.examples[0] for kind in codecs.CODECS if kind.examples[0] in FIXED]


@pytest.mark.parametrize(
    ("text", "dtype"),
    [(text, DTYPES[i % 3]) for i, text in enumerate((*FIRST, "int8:block=64", "topk:ratio=0.1,values=int4"))],
)
def test_opcheck(text: str, dtype: torch.dtype) -> None:
    """The checks of torch: schema, what is mutated, fake kernels, AOT dispatch, static and dynamic shapes."""
    x = wave().to(dtype)
    payload = dance.encode(x, text, seed=3).payload
    for operator, arguments, options in (
        (OPS.encode, (x, text), {"seed": 3}),
        (OPS.encode_feedback, (x, wave(300, 1.0), text), {"nonfinite": "zero"}),
        (OPS.encode_difference, (x, wave(300, 1.0), text), {"seed": 3}),
        (OPS.decode, (payload, text, [15, 20]), {"dtype": dtype, "seed": 3}),
        (OPS.decode_add, (payload, wave(300, 1.0), text), {"dtype": dtype, "weight": 0.5}),
        (OPS.reduce, ([payload, payload.clone()], text, [300]), {"dtype": dtype, "mean": True}),
        (
            OPS.reduce_encode,
            ([payload, payload.clone()], text, [300], "int4", wave(300, 1.0)),
            {"dtype": dtype, "seeds": [3, 3]},
        ),
        (OPS.reduce_encode, ([payload, payload.clone()], text, [300], "topk"), {"dtype": dtype}),
    ):
        torch.library.opcheck(operator, arguments, options)


def test_opcheck_of_mix() -> None:
    torch.library.opcheck(OPS.mix, (wave(), wave(300, 1.0), wave(300, 2.0), 0.25))


class Compressed(torch.nn.Module):
    """A layer whose activations pass through a codec with feedback."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.linear = torch.nn.Linear(16, 16)
        self.register_buffer("residual", torch.zeros(8 * 16))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = self.linear(x).detach().reshape(-1)
        payload = OPS.encode_feedback(h, self.residual, self.text, seed=3)
        return h, payload, OPS.decode(payload, self.text, [h.numel()], seed=3).reshape(x.shape) * 2.0


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_model_keeps_the_operators(backend: str) -> None:
    """Bit for bit, given what the compiled layer made: inductor may sum a product in its own order."""
    text = "topk:ratio=0.2,values=int8:block=32"
    torch.manual_seed(0)
    compiled = Compressed(text)
    run: Any = torch.compile(compiled, fullgraph=True, backend=backend)
    residual = torch.zeros(8 * 16)
    for step in range(3):
        x = wave(8 * 16, step).reshape(8, 16)
        with torch.no_grad():
            h, payload, y = run(x)
            if backend == "aot_eager":
                assert torch.equal(h, compiled.linear(x).reshape(-1))
        p = dance.encode_feedback(h, residual, text, seed=3)
        assert torch.equal(payload, p.payload)
        assert torch.equal(y, dance.decode(p).reshape(8, 16) * 2.0)
        assert torch.equal(compiled.residual, residual)
        assert residual.count_nonzero() > 0


def test_other_sizes_compile_again() -> None:
    def through(x: torch.Tensor) -> torch.Tensor:
        return OPS.decode(OPS.encode(x, "int4"), "int4", list(x.shape))

    run: Any = torch.compile(through, fullgraph=True, backend="aot_eager", dynamic=True)
    for numel in (100, 200, 300):
        x = wave(numel)
        assert torch.equal(run(x), dance.decode(dance.encode(x, "int4")))


@pytest.mark.parametrize("text", VARYING)
def test_packets_of_varying_size_are_refused(text: str) -> None:
    for call in (
        lambda: OPS.encode(wave(), text),
        lambda: OPS.encode_feedback(wave(), wave(300, 1.0), text),
        lambda: OPS.decode(torch.zeros(8, dtype=torch.uint8), text, [300]),
        lambda: OPS.reduce([torch.zeros(8, dtype=torch.uint8)], text, [300]),
        lambda: OPS.reduce_encode([OPS.encode(wave(), "int8")], "int8", [300], text),
    ):
        with pytest.raises(ValueError, match=r"not known beforehand; use topk, or dance\.encode outside"):
            call()


def test_errors_pass_through() -> None:
    x = wave()
    payload = OPS.encode(x, "int8")
    with pytest.raises(ValueError, match="unknown codec 'int9'"):
        OPS.encode(x, "int9")
    with pytest.raises(ValueError, match="cast first"):
        OPS.encode(x.to(torch.int32), "int8")
    with pytest.raises(dance.NonFiniteError, match="element 3"):
        OPS.encode(torch.where(torch.arange(300) == 3, torch.nan, x), "int8")
    with pytest.raises(ValueError, match="payload of 290 elements"):
        OPS.decode(payload, "int8", [290])
    payload[-1] = 0xFF
    with pytest.raises(dance.FrameError, match="scale"):
        OPS.decode(payload, "int8", [300])
    with pytest.raises(ValueError, match="expected 2 seeds, one a payload, got 1"):
        OPS.reduce([payload, payload], "int8", [300], seeds=[1])


def test_importing_dance_registers_nothing() -> None:
    code = """
import sys
import dance
assert "torch" not in sys.modules
import torch
assert not hasattr(torch.ops.dance, "encode")
dance.operators
assert torch.ops.dance.encode(torch.ones(300), "int8").numel() == 308
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_no_payloads_are_refused_alike_in_a_graph_and_outside() -> None:
    def calls() -> None:
        for call in (
            lambda: OPS.reduce([], "int8", [4]),
            lambda: OPS.reduce_encode([], "int8", [4], "int8"),
        ):
            with pytest.raises(ValueError, match="expected a list of at least one payload, got an empty one"):
                call()

    calls()
    with FakeTensorMode():
        calls()
