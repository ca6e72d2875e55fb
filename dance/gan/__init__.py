"""Training GANs over edge nodes: AC-GAN, its rivals MD-GAN, FL-GAN, Gossip GAN, and a standalone GAN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dance.gan.config import RunConfig
from dance.gan.settings import AcganConfig, FlganConfig, GossipganConfig, MdganConfig

if TYPE_CHECKING:
    from dance.gan.engine import Result as Result
    from dance.gan.engine import run as run

__all__ = ["AcganConfig", "FlganConfig", "GossipganConfig", "MdganConfig", "Result", "RunConfig", "run"]


def __getattr__(name: str) -> Any:
    """Imports the engine, and torch with it, when it is first named: configs and `--help` need neither."""
    if name in ("Result", "run"):
        from dance.gan import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'dance.gan' has no attribute {name!r}")
