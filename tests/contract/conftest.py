"""The rules that need a server or a process of their own are marked as the tests that do."""

from __future__ import annotations

import pytest

from mlpipeline.testing import IntegrationContract

_MARKS = {
    **dict.fromkeys(("test_server_", "test_threads"), pytest.mark.server),
    **dict.fromkeys(("test_cost", "test_globals", "test_interrupted", "test_killed"), pytest.mark.process),
}


def pytest_collection_modifyitems(items):
    """The contract itself uses no marks: a third party's pytest may not know them."""
    for item in items:
        if issubclass(getattr(item, "cls", None) or object, IntegrationContract):
            for name, mark in _MARKS.items():
                if item.name.startswith(name):
                    item.add_marker(mark)
