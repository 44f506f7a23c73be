"""What the pages say beside their examples, held against the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from mlpipeline import ModelRegistry
from mlpipeline.core.config import MLflowConfig
from mlpipeline.tracking import courier, dispatch, histories, home, queries, tracker as trackers, worker
from mlpipeline.tracking.run import Run

ROOT = Path(__file__).parents[1]


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text("utf-8")


def rows(text):
    """The first column of every table, without backticks and arguments."""
    return re.findall(r"^\| `(\w+)", text, re.MULTILINE)


def test_every_other_name_of_an_option_is_in_the_table():
    """With the option that it means; no more and no fewer."""
    options = [field for field in dataclasses.fields(MLflowConfig) if field.metadata]
    aliases = {field.metadata["alias"]: field.name for field in options if field.metadata["alias"]}
    found = re.findall(r"^\| `([a-z_]+)` \| `([a-z_]+)`", page("peers"), re.MULTILINE)
    assert aliases == dict(found)


def test_the_versions_that_the_readme_names_are_those_of_the_package():
    """The oldest of each, which `nox -s oldest` takes."""
    names = ("MLflow", "Lightning", "XGBoost", "Optuna", "scikit-learn", "Keras", "PyTorch")
    found = dict(re.findall(r"([A-Za-z-]+) (\d[\d.]*\d)(?=,| and )", (ROOT / "README.md").read_text("utf-8")))
    required = dict(re.findall(r'"([a-z-]+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text("utf-8")))
    assert {name: required[{"PyTorch": "torch"}.get(name, name.lower())] for name in names} == {
        name: found.get(name) for name in names
    }


def test_every_name_ascribed_to_autolog_is_one_of_its_arguments():
    """Of the module that is named, or of any of those for our frameworks."""
    import mlflow.pytorch
    import mlflow.sklearn
    import mlflow.xgboost

    arguments = {
        module.__name__: set(inspect.signature(module.autolog).parameters)
        for module in (mlflow.pytorch, mlflow.sklearn, mlflow.xgboost)
    }
    arguments["mlflow.*"] = set().union(*arguments.values())
    ascribed = re.findall(r"^\| `(\w+)` \| .* \| `(mlflow\..*)\.autolog` \|$", page("peers"), re.MULTILINE)
    assert 6 == len(ascribed)
    assert [] == [(name, where) for name, where in ascribed if name not in arguments[where]]


def test_every_variable_of_mlflows_is_in_the_table():
    """With ours, which is stronger."""
    options = [field for field in dataclasses.fields(MLflowConfig) if field.metadata]
    theirs = {
        field.metadata["env"]: f"MLPIPELINE_{field.name.upper()}"
        for field in options
        if str(field.metadata["env"]).startswith("MLFLOW_")
    }
    assert theirs == dict(
        re.findall(r"^\| `(MLFLOW_\w+)` \| `(MLPIPELINE_\w+)`", page("peers"), re.MULTILINE)
    )


@pytest.mark.parametrize("owner", [Run, trackers.MLflowTracker])
def test_the_calls_of_the_trackers_page_exist(owner):
    """And every call that records is in its table."""
    text = page("tracker")
    table = text[text.index("| Call |") : text.index("The same calls are on")]
    listed = set(re.findall(r"`(\w+)\(", table))
    assert all(callable(getattr(owner, name)) for name in listed)
    recording = {name for name in vars(owner) if name.startswith(("log_", "set_", "register_"))}
    assert {"log_param", "log_metric", "set_tag"} >= recording - listed, "the singular ones go without saying"


def test_the_calls_of_the_registrys_page_are_those_of_the_registry():
    """In its table, or in an example."""
    text = page("registry")
    named = set(re.findall(r"(?:`|registry\.|, `)(\w+)\(", text))
    assert {name for name in vars(ModelRegistry) if not name.startswith("_")} <= named
    table = text[text.index("| Call |") : text.index("MLflow has deprecated stages")]
    assert all(callable(getattr(ModelRegistry, name)) for name in re.findall(r"`(\w+)\(", table))


def test_the_figures_of_the_comparisons_page_are_those_of_the_code():
    """Limits that a change of a constant would make false."""
    text = " ".join(page("comparison").split())
    assert (100, 2500, 100) == (histories.RUNS_PER_REQUEST, histories.POINTS_PER_RUN, queries.MOST_NARROWED)
    assert "a hundred by one request" in text
    assert "more than 2500 points" in text
    assert "up to 100 runs by one metric" in text


def test_every_attribute_of_a_recording_is_on_its_page():
    """The table of docs/testing.md."""
    from mlpipeline.testing import Recorded

    attributes = {name for name in vars(Recorded()) if not name.startswith("_")}
    named = {
        name
        for line in re.findall(r"^\| (`.*?) \|", page("testing"), re.MULTILINE)
        for name in re.findall(r"\w+", line)
    }
    assert attributes - {"dropped"} == named


def test_the_times_of_the_delivery_page_are_those_of_the_code():
    """Numbers that a change of a constant would make false."""
    text = " ".join(page("delivery").split())
    assert f"leaves {courier.LINGER_S:g} seconds after" in text
    assert f"{dispatch.EXIT_PATIENCE_S:g} seconds after progress stops" in text
    assert f"its record in `done/` {home.DONE_KEPT_DAYS} days later" in text
    assert "a twentieth of one core" in text
    assert 1 / 20 == worker.CPU_SHARE


def test_every_page_is_in_the_index_and_in_the_readme():
    """A page that nobody finds is none."""
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    listed = page("index").rpartition("```{toctree}")[2]
    assert pages == set(re.findall(r"^(\w+)$", listed, re.MULTILINE))
    assert pages == set(re.findall(r"\(docs/(\w+)\.md\)", (ROOT / "README.md").read_text("utf-8")))


@pytest.mark.parametrize("name", ["keras", "lightning", "optuna", "sklearn", "torch", "xgboost"])
def test_a_frameworks_page_has_the_same_five_headings(name):
    """Who knows one finds his way in all."""
    headings = re.findall(r"^## (.*)$", page(name), re.MULTILINE)
    assert ["One line", "What is recorded", "The model", "When things go wrong", "Limits"] == headings


# What the peers do, or are asked for: the list that the integrations were made by.
ASKED_FOR = {
    "XGBoost": (
        *("Metrics of every round", "list of callbacks stays", "effective values", 'only "None"'),
        *("Best iteration and score", "direction of each metric", "Feature importance"),
        *("Model with signature", "Signature of a `QuantileDMatrix`", "`xgb.cv`", "Distributed training"),
        *("`ndcg@3`", "scikit-learn interface"),
    ),
    "Optuna": (
        *("`study.optimize(callbacks=[…])`", "decorator", "parallel", "A run for the study"),
        *("state of a trial", "Intermediate values", "several objectives", "Best params, value and model"),
        *("no run twice", "as a curve", "Several processes"),
    ),
    "scikit-learn": (
        *("A wrapper", "Params of a pipeline", "each candidate", "while the search goes on"),
        *("Folds of a cross-validation", "Metrics and plots of the training", "Metrics afterwards"),
        *("The dataset", "each step of a pipeline"),
    ),
    "Keras": ("A callback", "Axes of batches and epochs", "Checkpoints", "Signature on any backend"),
}


@pytest.mark.parametrize("framework", ASKED_FOR)
def test_the_page_of_the_peers_has_a_row_for_each_thing_asked_for(framework):
    """In this order, with yes, or with what is missing."""
    table = page("peers").partition(f"\n| {framework} | Here |")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in table.splitlines()[2:]]
    places = [[asked in row[0] for row in cells].index(True) for asked in ASKED_FOR[framework]]
    assert sorted(set(places)) == places
    assert {3} == {len(row) for row in cells}
    answers = [re.match(r"yes\b|part: .|no: .", row[1]) for row in cells]
    assert all(answers), cells


def test_the_pages_name_no_machine():
    """No path of whoever wrote them."""
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.findall(r"(?<!/var)/(?:root|tmp|work|opt|home)/", path.read_text("utf-8")), path.name
