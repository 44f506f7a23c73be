"""The table of a contract: what holds, for which integration.

::

    | Rule                                      | Lightning | XGBoost | Loop | broken on purpose         |
    |-------------------------------------------|-----------|---------|------|---------------------------|
    | Values are those the framework reports    | ✓         | ✓       | ✗    | ✗ rounds the values       |
    | A resumed training continues its steps    | ✓         | – ¹     | ✓    | ✗ begins again at step 0  |

    ¹ XGBoost: why there is no such thing
"""  # noqa: RUF002 - the same

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

KEPT, BROKEN, ABSENT = "✓", "✗", "–"  # noqa: RUF001 - what a table of text has
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹"
ON_PURPOSE = "broken on purpose"
PROPERTY = "mlpipeline.contract"


class Table:
    """What became of each rule for each integration.

    As a pytest plugin it fills itself from the reports of tests that have the property `PROPERTY`, and
    is printed at the end.

    Args:
        rules: Key and title of each rule, in the order of the rows.
    """

    def __init__(self, rules: Mapping[str, str]) -> None:
        self.rules = dict(rules)
        self.marks: dict[str, dict[str, list[str]]] = {}
        self.reasons: dict[tuple[str, str], str] = {}

    def enter(self, rule: str, column: str, mark: str, reason: str = "") -> None:
        """Enter a mark; with the reason why there is nothing to hold, where that is so."""
        cell = self.marks.setdefault(column, {}).setdefault(rule, [])
        if mark not in cell:
            cell.append(mark)
        if reason:
            self.reasons[rule, column] = reason

    def render(self) -> str:
        """Return the table in Markdown, with the reasons below."""
        columns = list(self.marks)
        notes: dict[str, str] = {}
        rows = [["Rule", *columns], ["---"] * (len(columns) + 1)]
        for rule, title in self.rules.items():
            row = [title]
            for column in columns:
                mark = ", ".join(self.marks[column].get(rule, []))
                if reason := self.reasons.get((rule, column)):
                    note = notes.setdefault(f"{column}: {reason}", _number(len(notes) + 1))
                    mark = f"{mark} {note}"
                row.append(mark)
            if any(row[1:]):
                rows.append(row)
        widths = [max(len(row[index]) for row in rows) for index in range(len(columns) + 1)]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in rows
        ]
        lines[1] = lines[1].replace(" ", "-")
        return "\n".join([*lines, "", *(f"{number} {text}  " for text, number in notes.items())]).rstrip()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Enter a test's outcome; what pytest calls a plugin's hook."""
        found = dict(report.user_properties).get(PROPERTY)
        if found is None or (report.when != "call" and report.passed):
            return
        rule, column, passed, failed = found
        if report.skipped:
            self.enter(rule, column, ABSENT, str(report.longrepr[2]).removeprefix("Skipped: "))
        else:
            self.enter(rule, column, passed if report.passed else failed)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the table; what pytest calls a plugin's hook."""
        terminalreporter.section("contract")
        terminalreporter.write_line(self.render())


def _number(number: int) -> str:
    return "".join(_RAISED[int(digit)] for digit in str(number))
