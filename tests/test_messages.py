"""The table of docs/algorithms.md: what each algorithm sends, by formula, as counted, as written there."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import messages

pytestmark = pytest.mark.usefixtures("one_thread")

# What low-rank and a ring send as the hub does.
LEFT_OUT = (
    "| ac-gan, low-rank | image",
    "| ac-gan, low-rank | feedback",
    "| ac-gan, ring, sign | image",
    "| ac-gan, ring, sign | feedback",
    "| ac-gan, ring, sign | control",
)
DOC = Path(__file__).parents[1] / "docs" / "algorithms.md"


def test_documented_formulas_are_what_is_sent() -> None:
    """Twenty rounds of each algorithm; `table` itself compares its formulas with what is counted."""
    printed = [line for line in messages.table() if not line.startswith(LEFT_OUT)]
    text = DOC.read_text(encoding="utf-8")
    assert text[text.index(printed[0]) :].split("\n\n")[0].splitlines() == printed
