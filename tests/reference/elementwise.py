"""none, fp16, bf16: a code an element, no blocks; a non-finite element is sent as +0.0."""

from __future__ import annotations

from typing import Any

import numpy as np

from reference.dense import Coded
from reference.floats import Floats, f32, finite, from_bfloat, to_bfloat, to_half
from reference.frame import Parameters


class Elementwise:
    name: str
    id: int

    @classmethod
    def of(cls, parameters: Parameters, kinds: Any) -> Elementwise:
        """The codec that a header names."""
        return cls()

    def format(self, dtype: str) -> str:
        """The type that elements are sent as."""
        raise NotImplementedError

    def encode(self, v: Floats, dtype: str = "float32", seed: int = 0) -> Coded:
        sound = finite(v)
        clean = np.where(sound, v, f32(0.0)).astype(f32)
        as_type = self.format(dtype)
        if as_type == "float32":
            payload = clean.astype("<f4").tobytes()
        elif as_type == "float16":
            payload = to_half(clean).astype("<f2").tobytes()
        else:
            payload = to_bfloat(clean).astype("<u2").tobytes()
        decoded = self.decode(payload, v.size, dtype)
        return Coded(payload=payload, decoded=decoded, sound=sound, sent=np.ones(v.size, np.bool_))

    def decode(self, payload: bytes, numel: int, dtype: str = "float32") -> Floats:
        as_type = self.format(dtype)
        if as_type == "bfloat16":
            return from_bfloat(np.frombuffer(payload, "<u2"))
        return np.frombuffer(payload, "<f4" if as_type == "float32" else "<f2").astype(f32)

    def nbytes(self, numel: int, dtype: str = "float32") -> int:
        return (4 if self.format(dtype) == "float32" else 2) * numel

    def parameters(self, numel: int, count: int = 0) -> Parameters:
        return Parameters()


class Uncompressed(Elementwise):
    name, id = "none", 0

    def format(self, dtype: str) -> str:
        return dtype


class Fp16(Elementwise):
    name, id = "fp16", 1

    def format(self, dtype: str) -> str:
        return "float16"


class Bf16(Elementwise):
    name, id = "bf16", 2

    def format(self, dtype: str) -> str:
        return "bfloat16"
