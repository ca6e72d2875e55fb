"""The command of a benchmark, as its results tell it: they are published."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence


def command_of(words: Sequence[str]) -> str:
    """Returns the command, in which files and folders have their last name alone."""
    bare = [re.sub(r"[^=]*/(?=[^/])", "", argument.rstrip("/")) for argument in words]
    return shlex.join(bare)
