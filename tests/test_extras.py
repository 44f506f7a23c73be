"""A framework that is not installed: an error at import that says what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mlpipeline

SOURCE = Path(mlpipeline.__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "missing"), [("lightning", "lightning"), ("sklearn", "sklearn"), ("xgboost", "xgboost")]
)
def test_a_missing_framework_names_its_extra(module: str, missing: str) -> None:
    """An interpreter without site-packages stands for a fresh environment."""
    code = f"import sys; sys.path.append({str(SOURCE)!r}); import mlpipeline.{module}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert 1 == done.returncode
    assert f'pip install "mlpipeline[{module}]"' in done.stderr.splitlines()[-1]
    assert missing in done.stderr.splitlines()[-1]
