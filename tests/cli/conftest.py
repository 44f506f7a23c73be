"""What the tests of the command line share: they run it in this process, which remembers credentials."""

from __future__ import annotations

import pytest

from mlpipeline.core import credentials


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test knows the credentials of another."""
    monkeypatch.setattr(credentials, "_credentials", {})
