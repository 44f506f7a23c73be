"""The table of docs/reliability.md: whole, and every cell a success."""

from __future__ import annotations

from pathlib import Path

from harness.page import cells
from harness.scenarios import ALL, SCENARIOS

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text("utf-8")


def test_every_case_is_in_the_table():
    """A scenario that is new or has another title has to be tried: `nox -s faults -- -k its-key`."""
    found = cells(PAGE)
    for scenario in SCENARIOS:
        tried = {name for name, cell in zip(ALL, found[scenario.title], strict=False) if cell}
        assert set(scenario.integrations) == tried, scenario.key
        assert f"- **{scenario.title}.** {scenario.says}" in PAGE


def test_no_case_in_the_table_has_failed():
    """Nor a figure beside it."""
    assert "\u2717" not in PAGE
