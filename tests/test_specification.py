"""The specification, held to its word: what it shows runs as it is written.

`specification.md` beside this file is the text, and is never edited. Its snippets are taken out of
it by their heading and run through `mlpipeline.models.mlflow_integration`, against SQLite and against
a server. A snippet that names no destination gets it from the environment; in the others only the
literal ``http://localhost:5000`` is replaced. What arrived is read back by plain MLflow.
"""

from __future__ import annotations

import ast
import dataclasses
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from mlpipeline.core.errors import UsageError
from mlpipeline.core.interfaces import ComponentType, ExecutionContext
from mlpipeline.models.mlflow_integration import MLflowConfig, MLflowRunInfo, MLflowTracker

SPECIFICATION = (Path(__file__).parent / "specification.md").read_text("utf-8")
LOCALHOST = "http://localhost:5000"


def snippets(heading, language="python"):
    """Return the code blocks between a heading and the next one."""
    section = re.search(
        rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ [A-Z]|\Z)", _without_comments(), re.DOTALL | re.MULTILINE
    )
    assert section, heading
    found = re.findall(rf"^```{language}\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE)
    return [code.replace("\0", "#") for code in found]


def _without_comments():
    """The text with the ``#`` of comments in code masked: those are no headings."""
    return re.sub(
        r"^```\w+\n.*?^```$",
        lambda block: block[0].replace("#", "\0"),
        SPECIFICATION,
        flags=re.DOTALL | re.MULTILINE,
    )


def run(code, namespace, uri=LOCALHOST):
    """Run a snippet as a user would who typed it in."""
    exec(compile(code.replace(LOCALHOST, uri), "specification.md", "exec"), namespace)
    return namespace


@pytest.fixture
def destination(either_store, monkeypatch):
    """A store in the environment, as the snippets leave it out; a courier in this process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", either_store)
    monkeypatch.setenv("MLPIPELINE_DELIVERY", "thread")
    return either_store


@pytest.fixture
def tracked(destination):
    """The namespace after the snippet of the MLflowTracker section; the files it names are there."""
    Path("model.pkl").write_bytes(b"a pickled model")
    Path("plots").mkdir()
    Path("plots/loss.txt").write_text("a plot")
    (code,) = snippets("MLflowTracker")
    namespace = run(code, {})
    namespace["tracker"].flush()
    return namespace


# --- MLflowConfig ----------------------------------------------------------------------------------


def test_the_configuration_snippet_runs_and_its_destination_is_used(destination, monkeypatch):
    """The URI that it names is where a run goes, whatever the environment says."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (code,) = snippets("MLflowConfig")
    config = run(code, {}, destination)["config"]
    tracker = MLflowTracker(config)
    run_id = tracker.start_run()
    tracker.end_run()
    tracker.flush()
    tags = MlflowClient(destination).get_run(run_id).data.tags
    assert {"environment": "production", "version": "1.0"}.items() <= tags.items()
    assert ("my-ml-experiment", "production-classifier") == (config.experiment_name, config.model_name)


def option_table():
    """Name, type and default of each row of the table of options."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]+) \|", SPECIFICATION, re.MULTILINE)
    return [(name, kind, ast.literal_eval(default)) for name, kind, default in rows]


SAMPLES = {"bool": [True, False], "str": ["Staging"], "dict": [{"team": "churn"}]}


def test_the_table_is_found_whole():
    """Thirteen rows, or the tests below would pass on nothing."""
    assert 13 == len(option_table())


@pytest.mark.parametrize(("name", "kind", "default"), option_table())
def test_an_option_has_the_default_and_the_type_of_the_table(name, kind, default):
    """Given and not given."""
    assert default == getattr(MLflowConfig(), name)
    beside = {
        "register_model": {"model_name": "m"},
        "model_stage": {"model_name": "m", "register_model": True},
    }
    for value in SAMPLES[kind]:
        given = LOCALHOST if name == "tracking_uri" else value
        assert given == getattr(MLflowConfig(**{name: given}, **beside.get(name, {})), name)


@pytest.mark.parametrize("stage", ["None", "Staging", "Production", "Archived"])
def test_every_stage_of_the_table_is_accepted(stage):
    """The four that it lists."""
    assert stage in re.search(r"Model stage \((.*)\)", SPECIFICATION)[1].split(", ")
    config = MLflowConfig(model_stage=stage, model_name="m", register_model=True)
    assert stage == config.model_stage


def yaml_blocks():
    """Every YAML block that configures a pipeline."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", SPECIFICATION, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if re.search("^mlflow:", block, re.MULTILINE)]


@pytest.mark.parametrize(
    ("block", "experiment"),
    list(
        zip(
            yaml_blocks(),
            ("basic-ml-experiment", "production-model-training", "hyperparameter-optimization"),
            strict=True,
        )
    ),
)
def test_every_yaml_block_loads(block, experiment, tmp_path):
    """Its `mlflow:` section is read, and every option in it counts; the other sections belong to others."""
    import yaml

    path = tmp_path / "pipeline.yaml"
    path.write_text(block)
    config = MLflowConfig.from_yaml(path)
    assert experiment == config.experiment_name
    assert yaml.safe_load(block)["mlflow"] == config.to_dict()


# --- MLflowTracker ---------------------------------------------------------------------------------


def test_the_tracker_snippet_records_all_it_says(tracked, destination):
    """Params, metrics, tags, files, name, experiment and status, as plain MLflow reads them."""
    client = MlflowClient(destination)
    found = client.get_run(tracked["run_id"])
    assert ("experiment_1", "FINISHED") == (found.info.run_name, found.info.status)
    assert "my-experiment" == client.get_experiment(found.info.experiment_id).name
    assert "random_forest" == found.data.tags["model_type"]
    assert {"n_estimators": "100", "max_depth": "10", "random_state": "42"} == found.data.params
    assert {"accuracy": 0.95, "f1_score": 0.93} == found.data.metrics
    assert {"model.pkl", "plots"} == {item.path for item in client.list_artifacts(found.info.run_id)}
    assert ["plots/loss.txt"] == [item.path for item in client.list_artifacts(found.info.run_id, "plots")]


# --- Run Comparison and Analysis -------------------------------------------------------------------


def test_the_comparison_snippet_finds_and_compares(tracked, capsys):
    """With the `config` of the snippet before, as the specification's reader would have it."""
    (code,) = snippets("Comparing Runs")
    namespace = run(code, tracked)
    assert tracked["run_id"] in [found.run_id for found in namespace["runs"]]
    row = namespace["comparison_df"].loc[tracked["run_id"]]
    assert ("experiment_1", "FINISHED", 100, 0.95) == (
        row["run_name"],
        row["status"],
        row["n_estimators"],
        row["accuracy"],
    )
    assert "experiment_1" in capsys.readouterr().out


def test_the_query_snippet_tells_what_a_run_holds(tracked, capsys):
    """Its placeholder for a run id is replaced; left as it is, the message says what is there."""
    (code,) = snippets("Querying Experiments")
    with pytest.raises(UsageError, match=r"run 'run-id-here' is unknown at .*; search_runs\(\) lists"):
        run(code, dict(tracked))
    capsys.readouterr()
    run(code.replace("run-id-here", tracked["run_id"]), tracked)
    expected = [
        "Run: experiment_1",
        "Status: FINISHED",
        "Metrics: {'accuracy': 0.95, 'f1_score': 0.93}",
        "Parameters: {'max_depth': '10', 'n_estimators': '100', 'random_state': '42'}",
    ]
    assert expected == capsys.readouterr().out.splitlines()


def test_a_runs_info_is_a_value_of_plain_types(tracked, destination):
    """Its fields, and the same as a dict that is the caller's own."""
    info = tracked["tracker"].get_run_info(tracked["run_id"])
    fields = (
        *("run_id", "experiment_id", "run_name", "status", "start_time", "end_time", "artifact_uri"),
        *("lifecycle_stage", "user_id", "tags", "params", "metrics"),
    )
    assert MLflowRunInfo is type(info)
    assert fields == tuple(field.name for field in dataclasses.fields(info)) == tuple(info.to_dict())
    found = MlflowClient(destination).get_run(tracked["run_id"])
    assert (found.info.experiment_id, found.info.start_time, found.info.end_time, "active") == (
        info.experiment_id,
        info.start_time,
        info.end_time,
        info.lifecycle_stage,
    )
    info.to_dict()["metrics"].clear()
    assert {"accuracy": 0.95, "f1_score": 0.93} == info.metrics


# --- The interfaces --------------------------------------------------------------------------------


def test_the_context_of_the_trainer_snippet_is_made():
    """The statement as it stands there; whatever has a logger may be its trainer."""
    (code,) = snippets("MLflowIntegratedTrainer")
    statements = {
        node.targets[0].id: ast.get_source_segment(code, node)
        for node in ast.parse(code).body
        if isinstance(node, ast.Assign)
    }
    (imports,) = re.findall(r"^from mlpipeline.core.interfaces import .*$", code, re.MULTILINE)
    namespace = {"trainer": SimpleNamespace(logger=logging.getLogger("trainer"))}
    for statement in (imports, statements["config"], statements["context"]):
        run(statement, namespace)
    context = namespace["context"]
    assert ExecutionContext is type(context)
    assert ("exp_001", "training", ComponentType.MODEL_TRAINING) == (
        context.experiment_id,
        context.stage_name,
        context.component_type,
    )
    assert "target" == context.config["training"]["target_column"]
    assert ("/path/to/artifacts", "trainer") == (context.artifacts_path, context.logger.name)
