"""Codecs as values: text and back, sizes, and the contraction each one states."""

from __future__ import annotations

import copy
import pickle

import cases
import numpy as np
import pytest
import reference

import dance
from dance import _native, codecs

TEXTS = [
    "none",
    "fp16",
    "bf16",
    "int8:block=256",
    "int8:block=100",
    "sign:block=256",
    "sign:block=784",
    "topk:ratio=0.01",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_back(text: str) -> None:
    c = dance.codec(text)
    assert str(c) == text
    assert dance.codec(str(c)) == c
    assert hash(dance.codec(text)) == hash(c)
    assert dance.codec(c) is c
    assert c in {c}
    assert copy.deepcopy(c) == pickle.loads(pickle.dumps(c)) == c


def test_defaults_and_other_spellings() -> None:
    assert str(dance.codec("int8")) == "int8:block=256"
    assert dance.codec("int8") == codecs.Int8() == dance.codec("int8:rounding=nearest,block=256")
    assert str(dance.codec("sign")) == "sign:block=256"
    assert str(dance.codec("topk")) == "topk:ratio=0.01"
    assert dance.codec("topk:ratio=1") == dance.codec("topk:ratio=1.0") == codecs.TopK(ratio=1)
    assert dance.codec("topk:ratio=1e-3,scope=global,values=none") == codecs.TopK(ratio=0.001)
    assert dance.codec("int8:block=32") != dance.codec("sign:block=32")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int9", "int9.*none, fp16, bf16, int8, sign, topk"),
        ("", "unknown codec ''"),
        ("auto", "policy"),
        ("int8:", "block=256"),
        ("int8:blok=256", "blok=256.*block=256"),
        ("int8:256", "256.*block=256"),
        ("int8:block=many", "integer for block.*many"),
        ("int8:block=31", "31"),
        ("int8:block=4097", "4097"),
        ("int8:block=64,block=64", "twice"),
        ("int8:rounding=stochastic", "nearest.*stochastic"),
        ("sign:block=0", "0"),
        ("topk:ratio=0", "ratio"),
        ("topk:ratio=1.5", "ratio"),
        ("topk:ratio=nan", "ratio"),
        ("topk:ratio=x", "number for ratio"),
        ("topk:scope=block", "global"),
        ("fp16:block=32", "no options"),
    ],
)
def test_a_wrong_text_names_the_value_and_the_remedy(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dance.codec(text)


def test_wrong_values() -> None:
    with pytest.raises(ValueError, match=r"integer block.*32\.0"):
        codecs.Int8(block=32.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got NoneType"):
        dance.codec(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float16; cast first"):
        dance.codec("int8").packet_nbytes(8, "float16")
    with pytest.raises(ValueError, match="-1"):
        dance.codec("int8").packet_nbytes(-1)
    with pytest.raises(ValueError, match="4294967297 elements exceed"):
        dance.codec("topk:ratio=0.5").packet_nbytes(2**32 + 1)
    for c in (dance.codec(text) for text in TEXTS):
        with pytest.raises(ValueError, match="elements"):
            c.packet_nbytes(2**64)


@pytest.mark.parametrize("text", TEXTS)
def test_packet_nbytes_is_exact(text: str) -> None:
    c = dance.codec(text)
    for numel in (0, 1, 31, 32, 33, 99, 100, 101, 255, 256, 257, cases.PRIME, 4097):
        p = dance.encode(np.ones(numel, np.float32), c)
        assert (
            p.nbytes
            == c.packet_nbytes(numel)
            == len(p.to_bytes())
            == 64 + reference.codec(text).nbytes(numel)
        )


def test_topk_count() -> None:
    for ratio in (1e-9, 0.01, 0.07, 0.1, 1 / 3, 0.999999, 1.0):
        for numel in (0, 1, 2, 99, 100, 101, 1000, cases.PRIME):
            assert codecs.TopK(ratio=ratio).count(numel) == reference.TopK(ratio).count(numel)


def test_a_topk_packet_without_expectation_keeps_its_count() -> None:
    for numel in (1, 3, 7, 10, 49, 1000, 4095):
        for count in {1, 2, 3, numel // 3, numel - 1, numel} - {0, -1}:
            if count <= numel:
                assert codecs.TopK.of_count(count, numel).count(numel) == count


def test_flags() -> None:
    for entry in _native.codecs():
        c = dance.codec(entry["name"])
        assert c.id == entry["id"]
        assert c.fixed_size
        assert not c.stochastic
    assert dance.codec("none").unbiased
    assert not dance.codec("int8").unbiased


def worst_cases(codec: dance.Codec, n: int) -> list[np.ndarray]:
    """Vectors on which a codec contracts least."""
    one = np.zeros(n, np.float32)
    one[n // 2] = 3.0
    half_steps = np.full(n, 63.5, np.float32)  # int8: every element but the largest halfway between two codes
    half_steps[0] = 127.0
    low = np.full(n, 0.5, np.float32)
    low[0] = 127.0
    between = np.full(n, 1.0 + 2.0**-8, np.float32)  # bf16: a tie right above a power of two
    return [one, half_steps, low, between, np.full(n, 1.0 + 2.0**-11, np.float32), np.ones(n, np.float32)]


@pytest.mark.parametrize(
    "text", [*TEXTS, "int8:block=4096", "sign:block=4096", "sign:block=32", "topk:ratio=0.5"]
)
def test_contraction(text: str) -> None:
    c = dance.codec(text)
    assert c.contraction is not None
    assert 0.0 < c.contraction <= 1.0
    rng = np.random.default_rng(5)
    vectors = [x for n in (1, 31, 256, 784, 4096, 5000) for x in worst_cases(c, n)]
    for n in (1, 33, 4096, 10_000):
        vectors += [rng.standard_normal(n).astype(np.float32), rng.standard_cauchy(n).astype(np.float32)]
        vectors.append(cases._magnitudes(rng, n, -12, 15))  # the normal range of float16
    for x in vectors:
        if text == "fp16":
            x = x[(np.abs(x) >= 2.0**-14) & (np.abs(x) <= 65504)]
        decoded = dance.decode(dance.encode(x, c)).astype(np.float64)
        error = np.sum((decoded - x) ** 2)
        norm = np.sum(x.astype(np.float64) ** 2)
        # The bound is of exact arithmetic. The scale of sign is the result of up to 128 additions in a lane,
        # 5 across lanes and 3 further operations, each within 2^-24; the others take a handful. Squares
        # double it.
        roundings = 128 + 5 + 3 if text.startswith("sign") else 8
        assert error <= (1.0 - c.contraction) * norm * (1.0 + 2 * roundings * 2.0**-24), (text, x.size)
