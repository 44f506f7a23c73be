"""The component interfaces, used as the specification's examples use them."""

import logging
import pickle
import subprocess
import sys
import time
from pathlib import Path

from mlpipeline.core.interfaces import Component, ComponentType, ExecutionContext, ExecutionResult


class RowCounter:
    """A component that counts the rows of a text file."""

    def __init__(self):
        self.logger = logging.getLogger("row-counter")

    def setup(self, context):
        self.path = Path(context.config["data"]["path"])

    def execute(self, context):
        start = time.perf_counter()
        self.setup(context)
        try:
            with self.path.open() as rows:
                count = sum(1 for _ in rows)
        except OSError as error:
            return ExecutionResult(False, error_message=str(error), exception=error)
        return ExecutionResult(True, metrics={"rows": count}, execution_time=time.perf_counter() - start)


def context_for(path):
    """Return the context for counting the rows of *path*."""
    return ExecutionContext(
        experiment_id="exp_001",
        stage_name="ingestion",
        component_type=ComponentType.DATA_INGESTION,
        config={"data": {"path": str(path)}},
        artifacts_path=path.parent,
        logger=logging.getLogger("pipeline"),
    )


def test_the_specification_constructs_its_context():
    """The specification's snippet works as it stands there."""
    trainer = RowCounter()
    config = {"mlflow": {"enabled": True}, "training": {"target_column": "target"}}

    context = ExecutionContext(
        experiment_id="exp_001",
        stage_name="training",
        component_type=ComponentType.MODEL_TRAINING,
        config=config,
        artifacts_path="/path/to/artifacts",
        logger=trainer.logger,
    )

    assert ("exp_001", "training") == (context.experiment_id, context.stage_name)
    assert config is context.config
    assert {} == context.metadata


def test_a_component_is_executed_with_a_context_and_answers_a_result(tmp_path):
    """Context in, result out."""
    path = tmp_path / "rows.txt"
    path.write_text("a\nb\nc\n")

    result = RowCounter().execute(context_for(path))

    assert result.success
    assert {"rows": 3} == result.metrics
    assert 0 < result.execution_time < 60


def test_a_failed_result_carries_the_reason(tmp_path):
    """What went wrong is there in words and as the exception."""
    result = RowCounter().execute(context_for(tmp_path / "missing.txt"))

    assert not result.success
    assert "missing.txt" in result.error_message
    assert isinstance(result.exception, FileNotFoundError)


def test_anything_with_logger_setup_and_execute_is_a_component():
    """The protocol asks for no base class."""
    assert isinstance(RowCounter(), Component)
    assert not isinstance(object(), Component)


def test_a_component_type_is_its_value():
    """A type read from a file, compared or printed is a plain word."""
    assert "model_training" == ComponentType.MODEL_TRAINING
    assert ComponentType.MODEL_TRAINING is ComponentType("model_training")
    assert "stage model_training" == f"stage {ComponentType.MODEL_TRAINING}"
    assert "model_training" == str(ComponentType.MODEL_TRAINING)


def test_there_is_a_type_for_every_kind_of_component():
    """The ten types of the specification, and each value is the name in lower case."""
    names = {
        *("DATA_INGESTION", "DATA_VALIDATION", "DATA_PREPROCESSING", "FEATURE_ENGINEERING", "MODEL_TRAINING"),
        *(
            "MODEL_EVALUATION",
            "HYPERPARAMETER_TUNING",
            "MODEL_REGISTRATION",
            "MODEL_DEPLOYMENT",
            "MONITORING",
        ),
    }

    assert {name: name.lower() for name in names} == {kind.name: kind.value for kind in ComponentType}


def test_results_share_no_containers():
    """Each result has lists and dicts of its own."""
    first, second = ExecutionResult(True), ExecutionResult(True)
    first.metrics["loss"] = 0.5
    first.artifacts.append("model.pkl")

    assert ({}, []) == (second.metrics, second.artifacts)


def test_contexts_and_results_travel_to_other_processes(tmp_path):
    """Both pickle, a logger by its name."""
    context = context_for(tmp_path / "rows.txt")
    result = ExecutionResult(False, metrics={"loss": 0.5}, exception=ValueError("no"))

    assert context == pickle.loads(pickle.dumps(context))
    assert {"loss": 0.5} == pickle.loads(pickle.dumps(result)).metrics


def test_importing_the_interfaces_loads_the_standard_library_only():
    """No framework, no MLflow, not even logging's users."""
    code = "import sys, mlpipeline.core.interfaces; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert set() == {"mlflow", "yaml", "pydantic", "numpy", "pandas"} & set(done.stdout.split())
