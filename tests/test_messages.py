"""The table of docs/algorithms.md: what each algorithm sends, by formula, as counted, as written there."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from benchmarks import messages

DOC = Path(__file__).parents[1] / "docs" / "algorithms.md"


def test_documented_formulas_are_what_is_sent() -> None:
    """Twenty rounds of each algorithm; `table` itself compares its formulas with what is counted."""
    printed = messages.table()
    text = DOC.read_text(encoding="utf-8")
    shown = text[text.index(printed[0]) :].split("\n\n")[0].splitlines()
    assert len(shown) > 20
    assert [line for line in shown if line not in printed] == []
