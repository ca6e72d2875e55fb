"""dance: compression for training over slow links - codecs, packets, collectives, gossip, and AC-GAN on top.

Importing this package needs NumPy alone. What needs torch is imported when it is first named,
``dance.gossip`` say.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dance._native import info, set_num_threads
from dance._native import version as __version__
from dance.codecs import Codec, codec
from dance.coding import decode, encode, encode_difference, encode_feedback, mix, reduce
from dance.errors import DanceError, DeviceError, FrameError, NonFiniteError, PeerError, UnavailableError
from dance.feedback import ErrorFeedback
from dance.header import Header, parse_header
from dance.packet import Packet, derive_seed

if TYPE_CHECKING:
    from dance.gossip import ChocoGossip as ChocoGossip

# Without what is imported lazily: `from dance import *` needs NumPy alone, too.
__all__ = [
    "Codec",
    "DanceError",
    "DeviceError",
    "ErrorFeedback",
    "FrameError",
    "Header",
    "NonFiniteError",
    "Packet",
    "PeerError",
    "UnavailableError",
    "__version__",
    "codec",
    "decode",
    "derive_seed",
    "encode",
    "encode_difference",
    "encode_feedback",
    "info",
    "mix",
    "parse_header",
    "reduce",
    "set_num_threads",
]

_LAZY = {"ChocoGossip": "gossip"}  # the submodule that holds it

# Imported when first named.
_ROOMS = (
    "bandwidth",
    "ddp",
    "distributed",
    "exchange",
    "fsdp",
    "gan",
    "gossip",
    "local_sgd",
    "operators",
    "policy",
    "powersgd",
    "topology",
)


def __getattr__(name: str) -> Any:
    """Imports a submodule, or what is re-exported from one, when it is first named."""
    if name.startswith("_"):
        raise AttributeError(f"module 'dance' has no attribute {name!r}")
    if name in _LAZY:
        value = getattr(__getattr__(_LAZY[name]), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"dance.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"dance.{name}":  # the submodule is there, but something it needs is not
            raise ImportError(
                f"dance.{name} needs {error.name}: pip install 'dance-gan[gan]' "
                "(or [torch] for all but training)"
            ) from error
        raise AttributeError(f"module 'dance' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, *_ROOMS})
