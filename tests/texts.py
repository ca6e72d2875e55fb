"""Codec texts to test with: the examples of every codec, and options that are awkward for any of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import reference

SIZES = (0, 1, 31, 32, 33, 1009)
BLOCKS = (32, 100, 784, 4096)
LEVELS = (3, 5, 7, 9, 17, 33, 65, 129, 253)
RATIOS = (0.001, 0.3, 1.0)
SCOPES = (64, 100, 1000)


def dense_texts() -> Iterator[str]:
    from dance import codecs

    for kind in codecs.CODECS:
        options = {option.name for option in fields(kind) if option.init}
        if "values" in options:
            continue
        for i, example in enumerate(kind.examples):
            yield example
            value: Any = codecs.codec(example)
            if "block" in options:
                for block in BLOCKS[i % 2 :: 2] if i else BLOCKS:
                    yield str(replace(value, block=block))
            if "levels" in options:
                for levels in LEVELS[i % 2 :: 2]:
                    yield str(replace(value, levels=levels, block=100))


def sparse_texts() -> Iterator[str]:
    """Selectors with values as they are, then with every dense codec."""
    from dance import codecs

    dense = [example for kind in codecs.CODECS if not sparse(kind) for example in kind.examples]
    for kind in codecs.CODECS:
        if not sparse(kind):
            continue
        options = {option.name for option in fields(kind) if option.init}
        plain: list[Any] = []
        for example in kind.examples:
            value: Any = codecs.codec(example)
            yield example
            plain.append(value)
            if "ratio" in options and value is plain[0]:
                plain += [replace(value, ratio=ratio) for ratio in RATIOS]
            if {"scope", "block"} <= options and value is plain[0]:
                plain += [replace(value, scope="block", block=block, ratio=0.11) for block in SCOPES]
        yield from (str(value) for value in plain)
        for i, text in enumerate(dense):
            yield str(replace(plain[i % len(plain)], values=codecs.codec(text)))


def sparse(kind: Any) -> bool:
    return any(option.name == "values" for option in fields(kind))


@lru_cache(maxsize=1)
def texts() -> tuple[str, ...]:
    from dance import codecs

    return tuple(dict.fromkeys(str(codecs.codec(text)) for text in (*dense_texts(), *sparse_texts())))


def in_small_blocks() -> list[Any]:
    """The examples of every codec as values, those of dense codecs in blocks of 32."""
    from dance import codecs

    values: list[Any] = [codecs.codec(text) for kind in codecs.CODECS for text in kind.examples]
    return [
        replace(c, block=32) if isinstance(c, codecs.DENSE) and hasattr(c, "block") else c for c in values
    ]


def block_of(text: str) -> int:
    """What a codec takes together: its scope or its block, and 256 where it has neither."""
    c = reference.codec(text)
    return getattr(c, "scope", 0) or getattr(c, "block", 0) or 256


def sizes(text: str) -> list[int]:
    block = block_of(text)
    return sorted({*SIZES, block - 1, block, block + 1, 2 * block + 7})
