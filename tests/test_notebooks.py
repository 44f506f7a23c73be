"""The notebooks: what they show is what their cells gave, in order, and the cells still run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from jupyter_client.manager import KernelManager

import mlpipeline

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))


def code_cells(path):
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def may_raise(cell):
    """Whether it says that it raises on purpose, as Jupyter's own tools read it."""
    return "raises-exception" in cell["metadata"].get("tags", ())


def test_every_framework_has_a_notebook():
    """And no other is there."""
    names = ["keras", "lightning", "optuna", "sklearn", "torch", "xgboost"]
    assert names == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_one_run_from_its_first_cell_to_its_last(path):
    """Without an error but those on purpose, and without a path of whoever ran it."""
    cells = code_cells(path)
    assert list(range(1, len(cells) + 1)) == [cell["execution_count"] for cell in cells]
    for cell in cells:
        errors = [output["ename"] for output in cell["outputs"] if output["output_type"] == "error"]
        assert may_raise(cell) == bool(errors), errors
        assert not [
            folder for folder in ("/root/", "/home/", "/tmp/") if folder in json.dumps(cell["outputs"])
        ]


@pytest.mark.process
@pytest.mark.slow
def test_the_cells_of_a_notebook_run(copy_store):
    """One of them, in a kernel of its own, in an empty folder; `nox -s notebooks` runs all."""
    copy_store(Path("mlflow.db"), str(Path.cwd() / "mlruns"))
    [path] = [path for path in NOTEBOOKS if path.stem == "xgboost"]
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, "PYTHONPATH": str(Path(mlpipeline.__file__).parents[1])})
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        for cell in code_cells(path):
            code = "".join(cell["source"])
            reply = client.execute_interactive(code, timeout=60, output_hook=lambda message: None)["content"]
            raised = "\n".join(reply.get("traceback", ()))
            assert may_raise(cell) == (reply["status"] == "error"), f"{code}\n{raised}"
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
