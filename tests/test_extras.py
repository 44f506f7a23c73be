"""A framework that is not installed: an error at import that says what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlpipeline

SOURCE = Path(mlpipeline.__file__).parents[1]


def run_bare(code: str) -> subprocess.CompletedProcess[str]:
    """Run code where nothing but this package is installed."""
    code = f"import sys; sys.path.append({str(SOURCE)!r}); {code}"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("keras", "keras"),
        ("lightning", "lightning"),
        ("optuna", "optuna"),
        ("sklearn", "sklearn"),
        ("torch", "torch"),
        ("xgboost", "xgboost"),
    ],
)
def test_a_missing_framework_names_its_extra(module: str, missing: str) -> None:
    """An interpreter without site-packages stands for a fresh environment."""
    done = run_bare(f"import mlpipeline.{module}")
    assert 1 == done.returncode
    assert f'pip install "mlpipeline[{module}]"' in done.stderr.splitlines()[-1]
    assert missing in done.stderr.splitlines()[-1]


def test_the_contract_needs_pytest_and_the_rest_of_testing_does_not() -> None:
    """Who only wants to see what a training records may test with anything."""
    assert 0 == run_bare("from mlpipeline.testing import FaultyProxy, record, watched").returncode
    done = run_bare("from mlpipeline.testing import IntegrationContract")
    assert 'pip install "mlpipeline[testing]"' in done.stderr.splitlines()[-1]


def test_keras_without_its_backend_says_how_to_choose_one() -> None:
    """Keras itself is there, so its extra would install nothing."""
    done = subprocess.run(
        [sys.executable, "-c", "import mlpipeline.keras"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(SOURCE)},
    )
    assert "ImportError: Keras is installed, but its backend is not" in done.stderr
    assert "KERAS_BACKEND" in done.stderr.splitlines()[-1]
