"""The errors of dance; each message names the value that was refused and the remedy."""

from __future__ import annotations

from typing import Any


class DanceError(Exception):
    """What every error of this package is, except plain ``ValueError`` for wrong arguments."""


class FrameError(DanceError, ValueError):
    """Bytes that are not a valid packet, or not the packet that was expected."""


class NonFiniteError(DanceError, ValueError):
    """The input of an encode held NaN or infinity; ``index`` is the first such element of the flattened
    input, ``packet`` (of an encode) holds everything else: send it, or restore the state that moved.
    """

    def __init__(self, message: str, index: int = -1, packet: Any = None) -> None:
        super().__init__(message)
        self.index = index
        self.packet = packet


class UnavailableError(DanceError):
    """This build or this machine lacks what the call needs, for example a GPU."""


class DeviceError(DanceError):
    """A GPU reported a failure; results of the stream since the last success are undefined."""


class PeerError(DanceError):
    """A peer sent what it should not have, or nothing at all."""
