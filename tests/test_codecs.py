"""Codecs as values: text and back, sizes, and the contraction, bias and bounds each one states."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
import reference
from values import magnitudes

import dance
from dance import _native, codecs

# What each class shows, and blocks of other sizes: a new codec joins by itself.
TEXTS = [text for kind in codecs.CODECS for text in kind.examples]
DENSE = [text for kind in codecs.DENSE for text in kind.examples]
SIZES = (0, 1, 31, 32, 33, 63, 64, 65, 99, 100, 101, 255, 256, 257, cases.PRIME, 4097)


def blocks_of(texts: list[str]) -> list[str]:
    """The texts, and their codecs with the least and the largest block."""
    more = list(texts)
    for text in texts:
        c: Any = dance.codec(text)
        if isinstance(c, codecs.DENSE) and any(option.name == "block" for option in fields(c)):
            more += [str(replace(c, block=block)) for block in (32, 4096)]
    return list(dict.fromkeys(more))


# ---- text


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_back(text: str) -> None:
    c = dance.codec(text)
    assert str(c) == text
    assert dance.codec(str(c)) == c
    assert hash(dance.codec(text)) == hash(c)
    assert dance.codec(c) is c
    assert c in {c}
    assert copy.deepcopy(c) == pickle.loads(pickle.dumps(c)) == c


@pytest.mark.parametrize("kind", codecs.CODECS, ids=lambda kind: kind.name)
def test_examples_show_every_option(kind: type[dance.Codec]) -> None:
    shown = [dance.codec(text) for text in kind.examples]
    assert all(type(c) is kind for c in shown)
    for option in fields(kind):
        if option.init and not (kind is codecs.Dgc and option.name == "scope"):  # global alone
            values = {getattr(c, option.name) for c in shown}
            assert len(values) > 1, f"{kind.name}: the examples show only {option.name}={values}"


def test_every_codec_is_exported() -> None:
    for kind in codecs.CODECS:
        assert getattr(codecs, kind.__name__) is kind
        assert kind.__name__ in codecs.__all__
    assert len(codecs.__all__) == len(set(codecs.__all__))


def test_defaults_and_other_spellings() -> None:
    for short, text in {
        "int8": "int8:block=256",
        "int2": "int2:block=256",
        "fp8": "fp8:format=e4m3",
        "mxfp8": "mxfp8:format=e4m3",
        "qsgd": "qsgd:levels=255",
        "sign": "sign:block=256",
        "topk": "topk:ratio=0.01",
        "dgc:scope=global": "dgc:ratio=0.01",
        "randk:scope=block": "randk:ratio=0.01,scope=block",
        "threshold:value=1e-3": "threshold:value=0.001",
        "topk:values=int8:block=256": "topk:ratio=0.01,values=int8",
        "topk:values=int8:rounding=stochastic;block=64": (
            "topk:ratio=0.01,values=int8:block=64;rounding=stochastic"
        ),
    }.items():
        assert str(dance.codec(short)) == text
        assert dance.codec(short) == dance.codec(text)
    assert dance.codec("int8") == codecs.Int8() == dance.codec("int8:rounding=nearest,block=256")
    assert dance.codec("topk:ratio=1") == dance.codec("topk:ratio=1.0") == codecs.TopK(ratio=1)
    assert dance.codec("topk:ratio=1e-3,scope=global,values=none") == codecs.TopK(ratio=0.001)
    assert dance.codec("int8:block=32") != dance.codec("sign:block=32")
    inner = codecs.Int4(block=64, rounding="stochastic")
    assert (
        codecs.Dgc(values=inner)
        == codecs.Dgc(values="int4:block=64,rounding=stochastic")
        == dance.codec("dgc:values=int4:block=64;rounding=stochastic")
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int9", "int9.*none, fp16, bf16, fp8, int8"),
        ("int9", r"did you mean int8:block=256\? choose from none"),
        ("Top-K", "did you mean topk:ratio="),
        ("int8,block=64", "did you mean int8:block=256"),
        ("", "unknown codec ''; choose from none"),
        ("auto", "policy"),
        ("powersgd:rank=4", "only dance.ddp accepts it"),
        ("int8:", "block=256"),
        ("int8:blok=256", "blok=256.*block=256"),
        ("int8:256", "expected option=value, got '256'; int8 has block=256"),
        ("int8:block", "expected option=value, got 'block'"),
        ("int8:block=64,", "remove the superfluous comma"),
        ("int8:block=many", "integer for block.*many"),
        ("int8:block=31", "31"),
        ("int8:block=4097", "4097"),
        ("int8:block=64,block=64", "twice"),
        ("int8:rounding=up", r"rounding=nearest\|stochastic, got 'up'"),
        ("sign:block=0", "0"),
        ("fp8:format=e3m4", r"format=e4m3\|e5m2, got 'e3m4'"),
        ("mxfp8:block=32", "unknown option.*format=e4m3"),
        ("mxfp4:block=32", "no options"),
        ("qsgd:levels=4", "odd number of levels, got 4"),
        ("qsgd:levels=257", r"\[3, 255\], got 257"),
        ("qsgd:norm=l1", r"max\|l2, got 'l1'"),
        ("topk:ratio=0", "ratio"),
        ("topk:ratio=1.5", "ratio"),
        ("topk:ratio=nan", "ratio"),
        ("topk:ratio=x", "number for ratio"),
        ("topk:scope=row", r"global\|block, got 'row'"),
        ("topk:block=64", "add scope=block"),
        ("topk:scope=block,block=63", r"\[64, 32768\], got 63"),
        ("topk:values=topk", "values must be a dense codec.*'topk'.*none, fp16"),
        ("topk:values=int8:block=3", "values must be a dense codec.*got 3"),
        (
            "topk:values=int8:block=64,rounding=stochastic",
            "unknown option 'rounding=stochastic'.*semicolons: values=int8:block=64;rounding=stochastic",
        ),
        ("topk:values=int8,rounding=nearest", "semicolons: values=int8:rounding=nearest"),
        ("topk:values=int8,levels=7", "unknown option 'levels=7'; topk has [^;]*$"),
        ("dgc:scope=block", "dgc.*topk:scope=block"),
        ("dgc:block=64", "unknown option 'block=64'"),
        ("threshold", "needs value=..., such as threshold:value=0.5"),
        ("threshold:value=0", "positive, finite"),
        ("threshold:value=-1", "positive, finite"),
        ("threshold:value=1e-50", "positive, finite"),
        ("threshold:value=1e39", "positive, finite"),
        ("fp16:block=32", "no options"),
    ],
)
def test_a_wrong_text_names_the_value_and_the_remedy(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dance.codec(text)


def test_wrong_values() -> None:
    with pytest.raises(ValueError, match=r"integer block.*32\.0"):
        codecs.Int8(block=32.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dense codec for values, got TopK"):
        codecs.TopK(values=codecs.TopK())
    with pytest.raises(ValueError, match="got NoneType None"):
        dance.codec(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float64; cast first"):
        dance.codec("int8").packet_nbytes(8, "float64")
    with pytest.raises(ValueError, match="-1"):
        dance.codec("int8").packet_nbytes(-1)
    assert dance.codec("int8").packet_nbytes(np.int64(10)) == dance.codec("int8").packet_nbytes(10)
    for numel in (10.5, 10.0, "10", None):  # 10.0 is equal to a size that is remembered
        with pytest.raises(ValueError, match=f"int8:block=256: expected an integer .*, got {numel!r}; pass"):
            dance.codec("int8").packet_nbytes(numel)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="elements exceed"):
        dance.codec("topk:ratio=0.5").packet_nbytes(2**32 + 1)
    for c in (dance.codec(text) for text in TEXTS):
        with pytest.raises(ValueError, match="elements"):
            c.packet_nbytes(2**64)
        with pytest.raises(ValueError, match="elements"):
            c.packet_nbytes(2**61)


# ---- sizes


@pytest.mark.parametrize("dtype", codecs.DTYPES)
@pytest.mark.parametrize("text", TEXTS)
def test_packet_nbytes_is_exact_or_a_bound(text: str, dtype: str) -> None:
    c = dance.codec(text)
    for numel in SIZES:
        x = reference.store(np.ones(numel, np.float32), dtype)
        p = dance.encode(cases.to_torch(x, dtype), c)
        assert p.nbytes == len(p.to_bytes())
        if c.fixed_size:
            assert p.nbytes == c.packet_nbytes(numel, dtype)
        else:
            assert p.nbytes <= c.packet_nbytes(numel, dtype)
        assert p.to_bytes() == reference.packet(text, x, dtype=dtype)


@pytest.mark.parametrize("text", ["threshold:value=1.0", "threshold:value=1.0,values=int8:block=32"])
def test_the_bound_of_threshold_is_the_largest_packet(text: str) -> None:
    for numel in (1, 2, 3, 7, 63, 64, 65, 200):
        sizes = []
        for count in range(numel + 1):
            x = np.zeros(numel, np.float32)
            x[:count] = 2.0
            sizes.append(dance.encode(x, text).nbytes)
        assert max(sizes) == dance.codec(text).packet_nbytes(numel), numel


def test_counts() -> None:
    for ratio in (1e-9, 0.01, 0.07, 0.1, 1 / 3, 0.999999, 1.0):
        for numel in (0, 1, 2, 99, 100, 101, 1000, cases.PRIME):
            least = min(numel, max(1, math.ceil(ratio * numel)))
            for kind in (codecs.TopK, codecs.RandK, codecs.Dgc):
                assert kind(ratio=ratio).count(numel) == least
        assert codecs.TopK(ratio=ratio, scope="block", block=100).count(7) == max(1, math.ceil(ratio * 100))


@pytest.mark.parametrize("kind", [codecs.TopK, codecs.RandK])
def test_a_packet_without_expectation_keeps_its_count(kind: Any) -> None:
    for numel in (1, 3, 7, 10, 49, 1000, 4095):
        for count in {1, 2, 3, numel // 3, numel - 1, numel} - {0, -1}:
            if count <= numel:
                spec = _native.Spec(id=kind.id, count=count)
                assert kind.from_spec(spec, numel).count(numel) == count
    for count in range(1, 101):
        spec = _native.Spec(id=kind.id, scope=100, count=count)
        assert kind.from_spec(spec, 5000).count(5000) == count


def test_a_sender_of_dgc_is_held_to_its_ratio() -> None:
    x = np.arange(1, 1001, dtype=np.float32)
    data = dance.encode(x, "dgc:ratio=0.1").to_bytes()
    for ratio, accepted in (("0.1", True), ("0.2", False), ("0.04", False)):
        expect = (f"dgc:ratio={ratio}", (1000,), "float32")
        if accepted:
            assert 100 <= dance.Packet.from_bytes(data, expect=expect).indices().size <= 200
        else:
            with pytest.raises(dance.FrameError, match="expected codec dgc"):
                dance.Packet.from_bytes(data, expect=expect)


# ---- what codecs say about themselves


def test_flags() -> None:
    native = {entry["name"]: entry for entry in _native.codecs()}
    assert {kind.name: kind.id for kind in codecs.CODECS} == {name: e["id"] for name, e in native.items()}
    for kind in codecs.CODECS:
        entry = native[kind.name]
        assert entry["sparse"] == (kind in codecs.SPARSE)
        for c in map(dance.codec, kind.examples):
            assert c.fixed_size == entry["fixed_size"]
            assert c.stochastic or not entry["seeded"]
            assert not c.unbiased or c.stochastic or c.name == "none"
            assert c.bounded or c.contraction is None


@pytest.mark.parametrize("text", TEXTS)
def test_seeds_matter_to_stochastic_codecs_alone(text: str) -> None:
    x = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    payloads = {bytes(dance.encode(x, text, seed=seed).payload) for seed in range(3)}
    same = {dance.decode(dance.encode(x, text, seed=seed)).tobytes() for seed in range(3)}
    if dance.codec(text).stochastic:
        assert len(payloads) == len(same) == 3
    else:
        assert len(payloads) == len(same) == 1


def vectors(n: int) -> list[np.ndarray]:
    """Inputs on which codecs contract least: each is the worst case of some codec."""
    rng = np.random.default_rng(n)
    one = np.zeros(n, np.float32)
    one[n // 2] = 3.0  # sign, randk: all of it in one place
    found = [one, np.ones(n, np.float32)]  # topk: no element larger than another
    for largest in (
        1.0,
        5.0,
        7.0,
        127.0,
        448.0,
    ):  # all but one element at a fraction of a step of integers, of a unit of floats
        for fraction in (0.1, 0.25, 0.2865, 0.4999, 0.5001, 0.9, 1.5):
            x = np.full(n, fraction, np.float32)
            x[0] = largest
            found.append(x)
    ties = (1.0 + 2.0**-11, 1.0 + 2.0**-8, 1.0625, 1.125, 1.25, 1.999, 2.5)  # and saturation of mx
    found += [np.full(n, value, np.float32) for value in ties]
    tiny = np.full(n, 2.0**-10, np.float32)  # subnormal in 8-bit floats
    tiny[0] = 448.0
    found += [tiny, rng.standard_normal(n).astype(np.float32), rng.standard_cauchy(n).astype(np.float32)]
    return [*found, magnitudes(rng, n, -12, 15)]  # the normal range of float16


@pytest.mark.parametrize(
    "text", [text for text in blocks_of(TEXTS) if dance.codec(text).contraction is not None]
)
def test_contraction(text: str) -> None:
    c = dance.codec(text)
    w = c.contraction
    assert w is not None
    assert 0.0 < w <= 1.0
    num_seeds = 40 if c.stochastic else 1
    for n in (1, 31, 32, 256, 1000, 4096):
        for k, x in enumerate(vectors(n)):
            if c.name == "fp16" or getattr(c, "values", None) == codecs.Fp16():
                x = x[(np.abs(x) >= 2.0**-14) & (np.abs(x) <= 65504)]
            norm = np.sum(x.astype(np.float64) ** 2)
            errors = np.array(
                [
                    np.sum((dance.decode(dance.encode(x, c, seed=seed + 1)).astype(np.float64) - x) ** 2)
                    for seed in range(num_seeds)
                ]
            )
            # Of a stochastic codec the bound is on the mean: four standard errors of it are allowed for.
            slack = 4.0 * errors.std(ddof=1) / math.sqrt(num_seeds) if num_seeds > 1 else 0.0
            if isinstance(c, codecs.RandK):  # rare events; the error lies between 0 and norm
                slack = 4.0 * math.sqrt(w * (1.0 - w) / num_seeds) * norm
            assert errors.mean() - slack <= (1.0 - w) * norm, (text, n, k, errors.mean() / norm, 1.0 - w)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("int4:block=4096,rounding=stochastic", 0.014),
        ("qsgd:levels=3", 0.06),
        ("qsgd:levels=3,norm=l2", 1.0),
    ],
)
def test_a_codec_that_does_not_contract_says_so(text: str, value: float) -> None:
    c: Any = dance.codec(text)
    assert c.contraction is None
    assert not c.bounded
    x = np.full(4096, value, np.float32)  # in the fraction of a step where the variance is largest
    x[:: c.block] = 1.0
    errors = [np.sum((dance.decode(dance.encode(x, c, seed=seed)) - x) ** 2) for seed in range(20)]
    assert np.mean(errors) > np.sum(x**2)


def test_the_bound_of_threshold_is_absolute() -> None:
    for values in (None, "int8"):
        c = codecs.Threshold(value=0.7) if values is None else codecs.Threshold(value=0.7, values=values)
        assert c.contraction is None
        assert c.bounded
        for x in vectors(1000):
            decoded = dance.decode(dance.encode(x, c))
            sent = np.abs(x) >= np.float32(0.7)
            assert (decoded[~sent] == 0.0).all()
            if values is None:
                assert np.abs(decoded - x).max() < 0.7
    assert not codecs.Threshold(value=1.0, values="qsgd:levels=3").bounded


def steps_of(c: Any, x: np.ndarray) -> np.ndarray:
    """The distance of two neighbouring levels at each element."""
    steps = np.zeros(x.size)
    for start in range(0, x.size, c.block):
        part = x[start : start + c.block].astype(np.float64)
        l2 = getattr(c, "norm", "max") == "l2"
        largest = c.levels if not isinstance(c, codecs.Qsgd) else (c.levels - 1) // 2
        steps[start : start + c.block] = (np.sqrt(np.sum(part**2)) if l2 else np.abs(part).max()) / largest
    return steps


@pytest.mark.parametrize(
    "text",
    [text for text in blocks_of(DENSE) if dance.codec(text).unbiased and dance.codec(text).stochastic],
)
def test_unbiased_codecs_are_unbiased(text: str) -> None:
    """The mean over seeds is x, within four sigma along several directions.

    An element rounded at random between levels a step apart has a variance of at most step^2 / 4. Noise of 16
    bits may shift its mean by step 2^-17, float32 arithmetic that of at most 127 steps by 2^-22 of them.
    """
    c: Any = dance.codec(text)
    num_seeds, n = 400, 1000
    rng = np.random.default_rng(11)
    for x in (rng.standard_normal(n), rng.standard_cauchy(n), np.linspace(-1.0, 1.0, n), np.full(n, 0.3)):
        x = x.astype(np.float32)
        mean = sum(
            dance.decode(dance.encode(x, c, seed=seed)).astype(np.float64) for seed in range(num_seeds)
        )
        off = mean / num_seeds - x
        steps = steps_of(c, x)
        for direction in (
            np.ones(n),
            np.sign(x),
            np.where(np.arange(n) % 2, 1.0, -1.0),
            rng.standard_normal(n),
        ):
            sigma = np.sqrt(np.sum((direction * steps) ** 2) / 4.0 / num_seeds)
            bias = np.sum(np.abs(direction) * steps) * (2.0**-17 + 127 * 2.0**-22)
            assert abs(np.sum(direction * off)) <= 4.0 * sigma + bias, text
        # Each element, too: 6.5 sigma, since there are 4,000 of them for each codec.
        assert (np.abs(off) <= 6.5 * steps / 2.0 / math.sqrt(num_seeds) + steps * 2.0**-14).all(), text


def test_randk_takes_each_element_equally_often() -> None:
    counts = np.zeros(1000)
    for seed in range(2000):
        counts[dance.encode(np.ones(1000, np.float32), "randk:ratio=0.1", seed=seed).indices()] += 1
    # Binomial with probability 1/10; 1,000 elements: 5 sigma.
    assert np.abs(counts - 200).max() <= 5 * math.sqrt(2000 * 0.1 * 0.9)


# ---- the table of the README


def readme_table() -> str:
    """A row a codec: its options with their defaults, the size of a packet of 2^20 float32, what it is."""
    rows = [
        "| codec, options and their defaults | bits an element | contraction | |",
        "|---|---|---|---|",
    ]
    for kind in codecs.CODECS:
        c = dance.codec(kind.examples[0])
        options = ",".join(
            f"{option.name}={'...' if option.default is MISSING else option.default}"
            for option in fields(kind)
            if option.init
        )
        size = f"{8 * c.packet_nbytes(1 << 20) / (1 << 20):.2f}" if c.fixed_size else "as it comes"
        if isinstance(c, codecs.Dgc):
            size = f"up to {8 * c.packet_nbytes(1 << 20) / (1 << 20):.2f}"
        w = "" if c.contraction is None else f"{c.contraction:.4f}"
        what = (
            " ".join((kind.__doc__ or "").split()).partition(": ")[2].replace("|", "\\|").replace("``", "`")
        )
        rows.append(f"| `{kind.name}{':' if options else ''}{options}` | {size} | {w} | {what} |")
    return "\n".join(rows)


def test_the_table_of_the_readme_is_that_of_the_codecs() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert readme_table() in readme, f"README.md must hold this table:\n{readme_table()}"
