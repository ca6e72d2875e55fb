"""The codecs as values: frozen, hashable, written as text such as ``int8:block=256``."""

from __future__ import annotations

import reprlib
from functools import lru_cache
from typing import TypeAlias

from dance import _native
from dance.codecs import dense, sparse
from dance.codecs.dense import *  # noqa: F403
from dance.codecs.dense import DENSE
from dance.codecs.sparse import *  # noqa: F403
from dance.codecs.sparse import SPARSE
from dance.codecs.value import DTYPES, HEADER_NBYTES, Codec, Layout, dtype_number, parse
from dance.errors import FrameError

__all__ = [
    "CODECS",
    "DENSE",
    "DTYPES",
    "HEADER_NBYTES",
    "SPARSE",
    "Codec",
    "Layout",
    "Like",
    "codec",
    "dtype_number",
    "from_header",
]
__all__ += dense.__all__
__all__ += sparse.__all__

Like: TypeAlias = "Codec | str"  # every codec argument takes the value or its text

CODECS: tuple[type[Codec], ...] = (*DENSE, *SPARSE)
_BY_NAME: dict[str, type[Codec]] = {kind.name: kind for kind in CODECS}
_BY_ID: dict[int, type[Codec]] = {kind.id: kind for kind in CODECS}


def codec(text: Like) -> Codec:
    """Returns the codec that ``text`` describes, ``name`` or ``name:option=value,...``; a codec is returned
    as it is.

    The codec of a sparse codec's values has its own options after a colon, separated by semicolons:
    ``topk:ratio=0.01,values=int8:block=64;rounding=stochastic``. ``str(c)`` gives the text back: the name,
    the principal option, the others where they are not the default. Raises ValueError naming what is wrong
    and what there is.
    """
    if isinstance(text, Codec):
        return text
    if not isinstance(text, str):
        raise ValueError(
            "codec: expected a text such as 'int8:block=256' or a codec, "
            f"got {type(text).__name__} {reprlib.repr(text)}"
        )
    return _parse(text)


@lru_cache(maxsize=256)
def _parse(text: str) -> Codec:
    name = text.strip().partition(":")[0]
    if name == "auto":
        raise ValueError("codec 'auto' is a policy, not a codec; only collectives and training accept it")
    if name == "powersgd":
        raise ValueError(
            f"codec {text!r} is an algorithm of gradients, not a codec; only dance.ddp accepts it"
        )
    return parse(text, _BY_NAME)


def from_header(spec: _native.Spec, numel: int) -> Codec:
    """Returns the codec that a wire header describes by its parameters; FrameError if there is none."""
    kind = _BY_ID.get(spec.id)
    if kind is None:
        raise FrameError(f"header: unknown codec {spec.id}; this version knows {', '.join(_BY_NAME)}")
    try:
        return kind.from_spec(spec, numel)
    except ValueError as error:
        raise FrameError(f"header: {error}") from None
