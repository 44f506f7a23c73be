"""The harness's bench, and the table: printed at the end, and with --page written into docs/reliability.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.page import FIGURE, ROW, render, written
from harness.trying import Bench

from mlpipeline.testing.contract import shared_server


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked `faults`, unless -m names it: all of it takes the better part of an hour."""
    if "faults" not in (config.option.markexpr or ""):
        left_out = [item for item in items if item.get_closest_marker("faults")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def bench(request, tmp_path_factory, sqlite_template):
    """What the scenarios share: an empty store, a real server, undisturbed trainings to compare with."""
    return Bench(tmp_path_factory.mktemp("bench"), sqlite_template, lambda: shared_server(request.config))


PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_found = {}


def pytest_addoption(parser):
    parser.addoption("--page", action="store_true", help="write the table of faults into docs/reliability.md")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        for kind in (ROW, FIGURE):
            for content in [value for name, value in report.user_properties if name == kind]:
                _found[f"{kind} {content['key']}"] = {**content, "is_kept": report.passed}
    return report


def pytest_terminal_summary(terminalreporter, config):
    """Print what this session has found, in the table of what was found before."""
    if _found and "faults" in (config.option.markexpr or ""):
        page = PAGE.read_text("utf-8")
        text = render(_found.values(), page)
        terminalreporter.section("faults")
        terminalreporter.write_line(text)
        if config.getoption("--page", default=False):
            PAGE.write_text(written(page, text), "utf-8")
