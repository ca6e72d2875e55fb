"""Which codec each parameter takes: the user's rules by name, then bf16 for vectors, else the state's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from dance.codecs import Codec, Like
from dance.codecs import codec as to_codec

_SIZE = 1 << 20  # elements at which two codecs are compared
_VECTORS = to_codec("bf16")


class Rules:
    """Patterns of names (fnmatch: ``*.bias``) to codecs; the first that fits counts."""

    def __init__(self, patterns: Mapping[str, Like] | None) -> None:
        self._patterns = [(pattern, to_codec(like)) for pattern, like in (patterns or {}).items()]

    def idle(self, names: Iterable[str]) -> list[str]:
        """Returns the patterns that fit none of ``names``."""
        known = list(names)
        return [each for each, _ in self._patterns if not any(fnmatchcase(name, each) for name in known)]

    def choose(self, name: str, ndim: int, default: Any) -> Any:
        """Returns the codec of a parameter of ``ndim`` dimensions; ``default`` is a codec or a policy.

        Biases and norms are few and matter: vectors take bf16, except where the default has no fewer bytes.
        """
        for pattern, codec in self._patterns:
            if fnmatchcase(name, pattern):
                return codec
        if ndim > 1 or (isinstance(default, Codec) and _nbytes(default) >= _nbytes(_VECTORS)):
            return default
        return _VECTORS


def _nbytes(codec: Codec) -> int:
    return codec.packet_nbytes(_SIZE)
