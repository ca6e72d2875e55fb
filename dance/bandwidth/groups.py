"""What differs between nodes, as one text: a value for all, then values for groups of nodes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_SOME = r"\d+\s*(?:-\s*\d*\s*)?"
_CLAUSE = re.compile(rf"(?P<nodes>{_SOME}(?:,\s*{_SOME})*):(?P<value>.*)")
_HERE = "{node}"


def of_nodes(text: str, num_nodes: int, parse: Callable[[str], T]) -> dict[int, T]:
    """Returns the value of each node that ``text`` speaks of, made by ``parse`` from the text of the value.

    Clauses are separated by ``;``: ``10mbit,5ms; 0: 1gbit; 3,5-7: 1mbit; 8-: 2mbit``. One without nodes is
    for all, later ones replace earlier ones, ``8-`` goes to the last node. ``{node}`` in a value becomes the
    node's number, so that seeds or files may differ: ``cellular:20,seed={node}``. ``@FILE`` reads the clauses
    from the lines of a file, where # begins a comment. Nodes of equal text share one value. Raises ValueError
    for nodes that there are not, and what ``parse`` raises.
    """
    texts: dict[int, str] = {}
    for clause in _clauses(text):
        match = _CLAUSE.fullmatch(clause)
        nodes = range(num_nodes) if match is None else _numbers(match["nodes"], num_nodes)
        value = (clause if match is None else match["value"]).strip()
        texts.update({node: value.replace(_HERE, str(node)) for node in nodes})
    parsed = {value: parse(value) for value in dict.fromkeys(texts.values())}
    return {node: parsed[value] for node, value in sorted(texts.items())}


def _clauses(text: str) -> list[str]:
    text = text.strip()
    parts = text.split(";")
    if text.startswith("@"):
        path = Path(text[1:].strip())
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{text}: cannot be read ({error}); expected a file of lines such as '0: 1gbit'"
            ) from error
        parts = [part for line in lines for part in line.split("#", 1)[0].split(";")]
    clauses = [part.strip() for part in parts if part.strip()]
    if not clauses:
        raise ValueError(f"{text!r}: found no value; expected one for all nodes or some such as '0: 1gbit'")
    return clauses


def _numbers(text: str, num_nodes: int) -> list[int]:
    """Returns the numbers of ``3,5-7,9-``."""
    numbers: list[int] = []
    for item in text.split(","):
        first, dash, last = (word.strip() for word in item.partition("-"))
        begin, end = int(first), int(last) if last else num_nodes - 1 if dash else int(first)
        if not begin <= end < num_nodes:
            raise ValueError(
                f"nodes {text.strip()!r}: there are nodes 0 to {num_nodes - 1}; G-Nodes come first"
            )
        numbers += range(begin, end + 1)
    return numbers
