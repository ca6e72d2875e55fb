"""The user's own networks: functions that make a module for a NetShape, given by name or as they are.

A text is "module:function", importable in every process of a run. A function without such a name (a lambda,
or one of a script) is known in this process only, and while `known` is open.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from dance.gan.models.shape import NetShape

Factory = Callable[[NetShape], nn.Module]

_HERE = "this-process:"
_known: dict[str, Factory] = {}


@dataclass(frozen=True, kw_only=True)
class Models:
    """Own networks for `run(config, models=...)`; None keeps the one that the config names.

    generator(shape) makes a module called with noise (n, latent) that gives images (n, *shape.image) in
    [-1, 1]; discriminator(shape) one called with images that gives logits (n, 1). In a conditional run
    (shape.classes > 0) both are called with labels, int64 (n,), as a second argument.
    All state must be float32 parameters: no BatchNorm, whose statistics nodes could not average.
    """

    generator: Factory | None = None
    discriminator: Factory | None = None


@contextmanager
def known(factory: Factory | None, role: str) -> Iterator[str | None]:
    """The text that names `factory`; one that cannot be imported by name is known while the block runs."""
    if factory is None:
        yield None
        return
    name = f"{getattr(factory, '__module__', '')}:{getattr(factory, '__qualname__', '')}"
    if _imported(name) is factory:
        yield name
        return
    name = f"{_HERE}{role}"
    _known[name] = factory
    try:
        yield name
    finally:
        del _known[name]


def is_own(text: str) -> bool:
    """Whether the text names a function of the user's."""
    return ":" in text


def is_here_only(text: str) -> bool:
    """Whether other processes could not find it."""
    return text.startswith(_HERE)


def factory_named(text: str) -> Factory:
    """The function of that name. Raises ValueError naming what cannot be found and the remedy."""
    if is_here_only(text):
        if text not in _known:
            raise ValueError(
                f"model {text}: the run was made with a function given from Python; give it again as "
                "run(config, models=Models(...))"
            )
        return _known[text]
    factory = _imported(text)
    if factory is None:
        raise ValueError(
            f"model {text!r}: cannot import that; name a function as module:function, in a module that "
            "`python -c 'import module'` finds from this folder"
        )
    if not callable(factory):
        raise ValueError(f"model {text!r} is a {type(factory).__name__}, not a function of a NetShape")
    made: Factory = factory
    return made


def _imported(text: str) -> Any:
    module, _, name = text.partition(":")
    if not module or not name or module == "__main__" or "<" in name:
        return None
    if "" not in sys.path:  # `dance train` as an installed script does not look here by itself
        sys.path.append("")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found
