"""The table of docs/reliability.md: whole, and every cell a success."""

from __future__ import annotations

from pathlib import Path

from harness.page import BEGIN, END
from harness.scenarios import ALL, SCENARIOS

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text("utf-8")


def rows():
    """The cells of each row of the first table, by the fault in its first cell."""
    table = PAGE.split(BEGIN)[1].split(END)[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    return {line[0]: line[1 : 1 + len(ALL)] for line in lines}


def test_every_case_is_in_the_table():
    """A scenario that is new or has another title has to be tried: `nox -s faults -- -k its-key`."""
    found = rows()
    for scenario in SCENARIOS:
        tried = {name for name, cell in zip(ALL, found[scenario.title], strict=True) if cell}
        assert set(scenario.integrations) == tried, scenario.key
        assert f"- **{scenario.title}.** {scenario.says}" in PAGE


def test_no_case_in_the_table_has_failed():
    """Nor a figure beside it."""
    assert "\u2717" not in PAGE
