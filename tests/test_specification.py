"""The specification, held to its word: what it shows runs as it is written.

`specification.md` beside this file is the text, and is never edited. Its snippets are taken out of
it by their heading and run through `mlpipeline.models.mlflow_integration`, against SQLite and against
a server. A snippet that names no destination gets it from the environment; in the others only the
literal ``http://localhost:5000`` is replaced. What arrived is read back by plain MLflow.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlpipeline.cli import main
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


# --- The whole document -----------------------------------------------------------------------------

# What stands for something else in the text, or would take too long: fifty trials of a forest.
PLACEHOLDERS = {
    "'n_trials': 50": "'n_trials': 3",
    "n_trials: 100": "n_trials: 3",
    "cv_folds: 5": "cv_folds: 2",
    "https://mlflow.company.com": LOCALHOST,
}


def every_block(language):
    """Every code block of the document with its heading, in order."""
    found = []
    for part in re.split(r"^(?=#+ )", _without_comments(), flags=re.MULTILINE):
        heading = part.partition("\n")[0].lstrip("# ")
        found += [
            (heading, textwrap.dedent(code).replace("\0", "#"))
            for code in re.findall(rf"^ *```{language}\n(.*?)^ *```$", part, re.DOTALL | re.MULTILINE)
        ]
    return found


@pytest.fixture
def artifacts(tmp_path):
    """The rows that the stage before has prepared, in the folder that the snippets call /path/to/artifacts."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name, rows in (("train", 80), ("val", 30), ("test", 30)):
        target = draw.integers(0, 2, rows)
        frame = pd.DataFrame({"calls": draw.normal(size=rows) + 2 * target, "months": draw.normal(size=rows)})
        frame.assign(target=target).to_parquet(folder / f"{name}_preprocessed.parquet")
    return folder


def test_every_python_block_runs_as_one_session(destination, artifacts, monkeypatch, capsys):
    """As a reader would type them in, from the first to the last; what arrived is read by plain MLflow."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)  # the document sets them, last
    client = MlflowClient(destination, destination)
    Path("model.pkl").write_bytes(b"a pickled model")
    Path("plots").mkdir()
    Path("plots/loss.txt").write_text("a plot")
    session = {}
    blocks = every_block("python")
    assert 16 == len(blocks)
    for heading, text in blocks:
        code = text
        if heading == "Managing Model Stages":  # it speaks of versions 2 and 3
            for _ in range(2):
                run(dict(blocks)["Registering Models"].replace("/path/to/artifacts", str(artifacts)), session)
            import mlflow

            mlflow.set_tracking_uri(destination)  # MlflowClient() without arguments is what it shows
        if heading == "Common Issues":
            import mlflow

            mlflow.set_tracking_uri(destination)
        for placeholder, meant in PLACEHOLDERS.items():
            code = code.replace(placeholder, meant)
        code = code.replace("/path/to/artifacts", str(artifacts))
        if "run_id" in session:
            code = code.replace("run-id-here", session["run_id"]).replace('"run-id"', repr(session["run_id"]))
        if heading == "MLflowIntegratedHyperparameterTrainer":
            # Its config is made and not handed on; a reader hands it on.
            code = code.replace("result = ", "context.config = config\nresult = ")
        run(code, session, destination)
        if heading == "MLflowIntegratedTrainer":
            trained = session["result"]
            session["context"].config = {**session["config"], "mlflow": {"delivery": "thread"}}
            assert trained.success, trained.error_message
            assert {"val_accuracy_score", "test_accuracy_score"} <= set(trained.metrics)
            found = client.get_run(trained.metadata["mlflow_run_id"])
            assert ("FINISHED", "100") == (found.info.status, found.data.params["model__n_estimators"])
            assert "model-training-experiment" == client.get_experiment(found.info.experiment_id).name
            version = client.get_model_version("my-classifier", str(trained.metadata["mlflow_model_version"]))
            assert found.info.run_id == version.run_id
        elif heading == "MLflowIntegratedEvaluator":
            evaluated = session["result"]
            assert evaluated.success, evaluated.error_message
            assert {"accuracy"} <= set(evaluated.metrics)
            assert "FINISHED" == client.get_run(evaluated.metadata["mlflow_run_id"]).info.status
        elif heading == "MLflowIntegratedHyperparameterTrainer":
            tuned = session["result"]
            assert tuned.success, tuned.error_message
            assert {"n_estimators", "max_depth"} == set(tuned.metadata["best_hyperparameters"])
            children = tuned.metadata["mlflow_child_runs"]
            assert 3 == len(children)
            for child in children:
                tags = client.get_run(child).data.tags
                assert tuned.metadata["mlflow_parent_run_id"] == tags["mlflow.parentRunId"]
        elif heading == "Managing Model Stages":
            stages = {
                int(found.version): found.current_stage
                for found in client.search_model_versions("name='production-classifier'")
            }
            assert ("Production", "Archived") == (stages[3], stages[2])
    out = capsys.readouterr().out
    for told in ("MLflow run ID: ", "Parent run ID: ", "Registered model version: 1", "Status: FINISHED"):
        assert told in out


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize("number", range(3))
def test_every_yaml_block_is_a_pipeline(number, command, destination, artifacts):
    """Trained, and searched where it says how; the file's own registry and destination."""
    text = yaml_blocks()[number]
    if (command == "tune") != ("hyperparameter_optimization" in text):
        command = "train"
    for placeholder, meant in PLACEHOLDERS.items():
        text = text.replace(placeholder, meant)
    Path("production.yaml").write_text(text.replace(LOCALHOST, destination))
    done = CliRunner().invoke(
        main, [command, "--config", "production.yaml", "--artifacts-path", str(artifacts), "--json"]
    )
    told = json.loads(done.stdout)
    assert (0, True) == (done.exit_code, told["success"]), done.stderr
    found = MlflowClient(destination).get_run(told["metadata"]["mlflow_run_id"])
    assert "FINISHED" == found.info.status
    if "register_model: true" in text:
        version = MlflowClient(destination).get_model_version_by_alias("customer-churn-classifier", "staging")
        assert ("Staging", "Customer churn prediction model v2.0") == (
            version.current_stage,
            version.description,
        )


@pytest.mark.process
def test_the_ci_block_trains_and_registers(destination, artifacts, monkeypatch):
    """Its two steps, in a shell; the scripts that it names are in examples/ci."""
    import yaml

    ((_, text),) = [block for block in every_block("yaml") if block[0] == "CI/CD Pipelines"]
    train, register = (step["run"] for step in yaml.safe_load(text))
    examples = Path(__file__).parents[1] / "examples" / "ci"
    for name in ("train_model.py", "register_model.py"):
        Path(name).write_text((examples / name).read_text())
    for path in artifacts.iterdir():
        path.rename(path.name)
    Path("production.yaml").write_text(yaml_blocks()[1].replace("n_estimators: 200", "n_estimators: 5"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    scripts = train.replace("${{ secrets.MLFLOW_URI }}", destination), register
    client = MlflowClient(destination)
    _shell(scripts[0], MLPIPELINE_REGISTRY_URI=destination)
    experiment = client.get_experiment_by_name("production-model-training")
    found = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])[0]  # of others, too
    _shell(
        scripts[1].replace("${{ env.RUN_ID }}", found.info.run_id),
        MLFLOW_TRACKING_URI=destination,
        MLPIPELINE_REGISTRY_URI=destination,
    )
    versions = client.search_model_versions("name='customer-churn-classifier'")
    made = [version for version in versions if found.info.run_id == version.run_id]
    assert 1 == len(made), "registered by the training; once more is the same version"


def _shell(script, **environ):
    python = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euc", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environ, "PATH": f"{python}:{os.environ['PATH']}"},
    )
    assert 0 == done.returncode, done.stderr


def test_the_packages_of_the_dependencies_block_are_what_this_one_brings():
    """With its extras; nothing in the block is unknown to it."""
    from importlib.metadata import requires

    ((_, text),) = every_block("bash")
    named = text.split()[2:]
    ours = {re.match(r"[\w-]+", requirement)[0] for requirement in requires("mlpipeline")}
    assert {"mlflow", "scikit-learn", "xgboost", "torch"} == set(named)
    assert set(named) <= ours


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
