"""docs/reliability.md has what the scenarios say, and the command writes only between its markers."""

from __future__ import annotations

from pathlib import Path

from harness.page import BEGIN, END, render, written
from harness.scenarios import ALL, SCENARIOS
from harness.trainings import INTEGRATIONS

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text("utf-8")


def test_the_page_explains_every_scenario_and_has_a_row_for_it():
    """A new scenario is on the page when `nox -s faults` has written it."""
    for scenario in SCENARIOS:
        assert f"- **{scenario.title}.** {scenario.says}" in PAGE
        assert f"| {scenario.title} | " in PAGE
    assert len(SCENARIOS) == len({scenario.key for scenario in SCENARIOS})
    assert set(ALL) == set(INTEGRATIONS)


def test_the_page_shows_nothing_that_is_not_kept():
    """What breaks its promise is marked, and is a defect."""
    assert "✗" not in PAGE


def test_the_command_writes_between_the_markers():
    """And what a row says."""
    row = {
        "scenario": "refused",
        "integration": "tracker",
        "exit_codes": [0, 0],
        "is_same_result": True,
        "longer_s": 0.26,
        "lost": 0,
        "doubled": 0,
        "told": 3,
        "taken_back": 0,
        "statuses": ["FINISHED"],
        "is_kept": True,
    }
    page = written(f"before\n{BEGIN}\nold\n{END}\nafter", render([row]))
    assert page.startswith(f"before\n{BEGIN}\n")
    assert page.endswith(f"{END}\nafter")
    assert "old" not in page
    assert "| same · +0.3 s · 0 (3 told) / 0 · FINISHED |" in page
    assert "| ✗ same" in written(PAGE, render([{**row, "is_kept": False}]))
