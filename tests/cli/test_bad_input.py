"""The table of mistakes in docs/pipelines.md: each is made, and told in the words that stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

from mlpipeline.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text("utf-8")
ROWS = dict(
    re.findall(r"^\| (.+?) \| (.+) \|$", PAGE[PAGE.index("## When something is wrong") :], re.MULTILINE)[1:]
)


def without(column):
    return pd.DataFrame({"a": range(40), "b": [0.5] * 40, "target": [0, 1] * 20}).drop(columns=column or [])


def changed(**sections):
    """The right file with some sections changed."""
    return {
        "mlflow": {"delivery": "thread"},
        "data": {"path": "rows.csv"},
        "training": {"model": {"model_type": "decision_tree_classifier"}},
        **sections,
    }


MISTAKES = {
    "the target's column is missing": (2, changed(training={"target_column": "targt"}), None),
    "the file is empty": (2, changed(), ""),
    "the target has one class": (2, changed(), without("target").assign(target=1).to_csv(index=False)),
    "an unknown metric": (2, changed(evaluation={"metrics": ["acuracy"]}), None),
    "an unknown model": (2, changed(training={"model": {"model_type": "random_forst_classifier"}}), None),
    "an unknown parameter": (
        2,
        changed(
            training={"model": {"model_type": "decision_tree_classifier", "parameters": {"max_dept": 3}}}
        ),
        None,
    ),
    "the file of the rows is not there": (2, changed(data={"path": "row.csv"}), None),
    "the file is no YAML": (2, "training:\n  model:\n  - [\n", None),
    "`training.model.parameters` is no mapping": (
        2,
        "mlflow: {}\ndata: {path: rows.csv}\ntraining:\n  model:\n    framework: sklearn\n    parameters: 5\n",
        None,
    ),
    "a space with `low` above `high`": (
        2,
        changed(
            training={
                "hyperparameter_optimization": {
                    "parameter_space": {"max_depth": {"type": "int", "low": 9, "high": 3}}
                }
            }
        ),
        None,
    ),
    "`register_model` without a name": (2, changed(mlflow={"register_model": True}), None),
    "`model_name` without registration": (
        0,
        changed(mlflow={"model_name": "tumours", "delivery": "thread"}),
        None,
    ),
    "the registry cannot be reached": (
        4,
        changed(
            mlflow={
                "tracking_uri": "http://127.0.0.1:9",
                "register_model": True,
                "model_name": "tumours",
                "delivery": "thread",
            }
        ),
        None,
    ),
}


def test_every_mistake_of_the_page_is_made_here():
    """And none beside them."""
    assert list(ROWS) == list(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_the_words_of_the_page(mistake, copy_store):
    """With its exit code, and without a traceback."""
    copy_store(Path("mlflow.db"), str(Path.cwd() / "mlruns"))
    code, content, rows = MISTAKES[mistake]
    Path("pipeline.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    Path("rows.csv").write_text(without(None).to_csv(index=False) if rows is None else rows)
    done = CliRunner().invoke(main, ["train", "-c", "pipeline.yaml"])
    assert code == done.exit_code, done.output
    said = ROWS[mistake]
    quoted = re.fullmatch(r"`(.*)`", said)
    if quoted:
        assert quoted[1] in done.stderr
    else:
        assert f"exit code {code}" in said
    assert "Traceback" not in done.output
