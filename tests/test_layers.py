"""Importing the recording side costs a training nothing but the standard library."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "keras",
    "lightning",
    "mlflow",
    "numpy",
    "optuna",
    "pandas",
    "pytorch_lightning",
    "sklearn",
    "torch",
    "xgboost",
}


def modules_after(statement: str) -> set[str]:
    """Return what a fresh interpreter has loaded after one statement."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(answer.stdout))


@pytest.mark.process
@pytest.mark.parametrize("module", ["mlpipeline", "mlpipeline.core", "mlpipeline.tracking"])
def test_importing_the_recording_side_loads_nothing_heavy(module):
    """Neither MLflow nor a framework nor an array library is imported before it is used."""
    loaded = modules_after(f"import {module}")

    assert module in loaded
    assert set() == loaded & HEAVY


@pytest.mark.process
def test_the_check_sees_what_is_loaded():
    """The test above would see a module that is imported deep inside another."""
    assert {"numpy", "pandas"} <= modules_after("import pandas")
