"""docs/contract.md shows the table of the integrations whose tests are in this folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mlpipeline.testing.contract import table_of
from mlpipeline.testing.table import Table

HERE = Path(__file__).parent


def integrations():
    """The modules of this folder, and the contract's classes in them."""
    for path in sorted(HERE.glob("test_*.py")):
        if path != Path(__file__):
            spec = importlib.util.spec_from_file_location(f"table_{path.stem}", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            yield module, [kind for name, kind in vars(module).items() if name.startswith("Test")]


def test_the_page_shows_the_table():
    """The one that `nox -s contract` prints when all is well; copy it from there when a column is new."""
    found = list(integrations())
    broken = [case.values[:2] for module, _ in found for case in getattr(module, "BROKEN", ())]
    table = table_of(*(kind for _, kinds in found for kind in kinds), broken=broken)
    page = (HERE.parents[1] / "docs" / "contract.md").read_text("utf-8")
    assert table in page, f"docs/contract.md should have\n{table}"


def test_a_table_numbers_the_reasons():
    """One number per reason, also beyond nine; a rule that nobody has an entry for has no row."""
    table = Table({"a": "First", "b": "Second", "c": "Third"})
    for number in range(1, 11):
        table.enter("a", f"of {number}", "–", f"reason {number}")  # noqa: RUF001 - as the table has it
    table.enter("c", "of 1", "✗")
    text = table.render()
    assert "Second" not in text
    assert "¹⁰ of 10: reason 10" in text
    assert "| ✗ " in text.splitlines()[3]
