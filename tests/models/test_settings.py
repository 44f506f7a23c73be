"""A pipeline's configuration: what is accepted, and how every mistake is told with its place."""

from __future__ import annotations

import json

import pytest

from mlpipeline.core.errors import ConfigError
from mlpipeline.models import pipeline_file, settings
from mlpipeline.models.settings import Settings


def written(tmp_path, text):
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    return path


def mistakes_in(tmp_path, text, **environ):
    """The messages, without the path of the file."""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as told:
        pipeline_file.read(path, environ=environ).settings()
    return [line.removeprefix(f"{path}:") for line in str(told.value).splitlines()]


# --- a dict ----------------------------------------------------------------------------------------


def test_nothing_given_is_a_training_with_defaults():
    """The files in the artifacts folder, scikit-learn, a target called target."""
    found = Settings.of({})
    assert (None, "sklearn", "target", None) == (
        found.data,
        found.training.model.framework,
        found.training.target_column,
        found.evaluation.metrics,
    )


def test_sections_of_other_components_are_their_business():
    """A pipeline's configuration is handed to all of its components."""
    content = {
        "deployment": {"replicas": 3},
        "evaluation": {"metrics": 5},
        "training": {"target_column": "y"},
    }
    assert "y" == Settings.of(content, only=("mlflow", "training")).training.target_column


def test_every_mistake_in_a_dict_is_told_at_once():
    """With its place; there are no lines."""
    content = {
        "mlflow": {"experiment": "x", "log_model": "perhaps"},
        "training": {"model": {"framework": "sklern", "parameters": [1]}},
    }
    with pytest.raises(ConfigError) as told:
        Settings.of(content)
    assert [
        "mlflow.experiment: MLflowConfig has no option 'experiment'; did you mean 'experiment_id'?",
        "mlflow.log_model: log_model='perhaps': expected one of True, False, 'metadata', 'all'",
        (
            "training.model.framework: 'sklern' is not accepted; did you mean 'sklearn'?; accepted are sklearn, "
            "xgboost, pytorch, custom"
        ),
        "training.model.parameters: expected a mapping such as {max_depth: 3}, and it is [1]",
    ] == str(told.value).splitlines()


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"type": "int", "low": 5, "high": 2}, "low=5 is above high=2; swap them"),
        ({"type": "float", "low": 0.0, "high": 2, "log": True}, "log needs low above 0, and it is 0.0"),
        ({"type": "float", "low": 1, "high": 2, "log": True, "step": 0.5}, "log and step exclude each other"),
        ({"low": 5, "high": 2}, "needs a type: int, float or categorical"),
        ({"type": "integer", "low": 1, "high": 2}, "needs a type: int, float or categorical"),
        ({"type": "categorical", "choices": []}, "list should have at least 1 item"),
        ({"type": "int", "low": 1.5, "high": 2}, "low: expected a whole number, and it is 1.5"),
        ({"type": "int", "low": 1, "high": 2, "steps": 1}, "steps: no such option; did you mean 'step'?"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space, told):
    """Where it stands; a parameter called like a type has its own name in the message."""
    search = {"parameter_space": {"float": space}}
    with pytest.raises(ConfigError) as refusal:
        Settings.of({"training": {"hyperparameter_optimization": search}})
    start = "training.hyperparameter_optimization.parameter_space.float"
    assert str(refusal.value).startswith(start)
    assert told in str(refusal.value)


def test_choices_keep_their_types():
    """Null, true and 1 are three values."""
    space = {"a": {"type": "categorical", "choices": ["sqrt", None, True, 1, 0.5]}}
    found = Settings.of({"training": {"hyperparameter_optimization": {"parameter_space": space}}})
    choices = found.training.hyperparameter_optimization.parameter_space["a"].choices
    assert [str, type(None), bool, int, float] == [type(choice) for choice in choices]


def test_a_threshold_is_a_number_or_bounds():
    """And nothing else."""
    found = Settings.of({"evaluation": {"thresholds": {"f1": 0.8, "rmse": {"min": 1, "max": 4}}}}).evaluation
    assert (0.8, None, 1, 4) == (
        found.thresholds["f1"].limit,
        found.thresholds["f1"].max,
        found.thresholds["rmse"].min,
        found.thresholds["rmse"].max,
    )
    with pytest.raises(ConfigError, match=r"evaluation.thresholds.f1: expected a section with options"):
        Settings.of({"evaluation": {"thresholds": {"f1": "high"}}})


# --- a file ----------------------------------------------------------------------------------------


def test_every_mistake_in_a_file_has_its_line(tmp_path):
    """In the order of the file."""
    text = """\
mlflow:
  experiment_nam: x
training:
  model:
    parameters: 5
  hyperparameter_optimization:
    parameter_space:
      max_depth: {type: int, low: 3}
trainig: {}
"""
    assert [
        "2: mlflow.experiment_nam: MLflowConfig has no option 'experiment_nam'; did you mean 'experiment_name'?",
        "5: training.model.parameters: expected a mapping such as {max_depth: 3}, and it is 5",
        "8: training.hyperparameter_optimization.parameter_space.max_depth.high: is missing",
        (
            "9: trainig: no section of a pipeline; did you mean 'training'?; there are mlflow, data, training, "
            "evaluation"
        ),
    ] == mistakes_in(tmp_path, text)


def test_a_key_given_twice_is_a_mistake(tmp_path):
    """YAML would keep the last."""
    text = "training:\n  target_column: a\n  target_column: b\n"
    assert ["3: training.target_column: is given twice; keep one"] == mistakes_in(tmp_path, text)


def test_a_key_that_is_no_text_is_a_mistake(tmp_path):
    """A list may be a key in YAML, but not here."""
    assert ["1: training: has a key that is no text"] == mistakes_in(tmp_path, "training:\n  [a, b]: 1\n")


def test_options_that_contradict_each_other_are_told_at_their_section(tmp_path):
    """Neither of the two is wrong by itself."""
    text = "training: {}\nmlflow:\n  register_model: true\n"
    (told,) = mistakes_in(tmp_path, text)
    assert told.startswith("2: mlflow: register_model=True needs a name to register under")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1,\n", "this is not YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "this is not YAML"),
        ("- a\n", "expected sections such as training:"),
    ],
)
def test_what_is_no_configuration_is_told(tmp_path, text, told):
    """With the line where the reader gave up, if there is one; nothing in a file is executed."""
    with pytest.raises(ConfigError, match=told):
        pipeline_file.read(written(tmp_path, text))


def test_an_absent_file_is_told(tmp_path):
    """By its name."""
    with pytest.raises(ConfigError, match=r"absent.yaml cannot be read \(No such file or directory\)"):
        pipeline_file.read(tmp_path / "absent.yaml")


def test_variables_are_filled_in_with_their_types(tmp_path):
    """Quoted is text; a default counts where the variable is not set or empty."""
    text = """\
training:
  target_column: "${TARGET}"
  model:
    parameters:
      a: "${N}"
      b: ${N}
      c: x${N}
      d: "${X:-y}"
      e: ${X:-0.5}
      f: ${EMPTY:-true}
"""
    path = written(tmp_path, text)
    found = pipeline_file.read(path, environ={"TARGET": "label", "N": "50", "EMPTY": ""}).settings().training
    assert "label" == found.target_column
    expected = {"a": "50", "b": 50, "c": "x50", "d": "y", "e": 0.5, "f": True}
    assert expected == found.model.parameters


def test_a_variable_that_is_not_set_is_a_mistake_with_its_line(tmp_path):
    """And its value is never taken for YAML structure."""
    assert [
        (
            "2: training.target_column: the environment variable TARGET is not set; set it, or write "
            "${TARGET:-default}"
        )
    ] == mistakes_in(tmp_path, "training:\n  target_column: ${TARGET}\n")
    path = written(tmp_path, "training:\n  target_column: ${TARGET}\n")
    found = pipeline_file.read(path, environ={"TARGET": "{a: 1}"}).settings()
    assert "{a: 1}" == found.training.target_column


def test_changes_win_over_the_file(tmp_path):
    """Sections that are not there are made; what is no section cannot be gone into."""
    path = written(tmp_path, "training:\n  model: {parameters: {max_depth: 3, n_estimators: 5}}\n")
    changes = {"training.model.parameters.max_depth": 7, "evaluation.on": "val"}
    found = pipeline_file.read(path, changes).settings()
    assert {"max_depth": 7, "n_estimators": 5} == found.training.model.parameters
    assert "val" == found.evaluation.on
    with pytest.raises(ConfigError, match=r"training.model.parameters.max_depth is 3, no section"):
        pipeline_file.read(path, {"training.model.parameters.max_depth.a": 7})


# --- the schema -------------------------------------------------------------------------------------


def test_the_schema_knows_what_the_settings_know():
    """Every section and option; nothing else is allowed."""
    schema = settings.json_schema()
    assert {"mlflow", "data", "training", "evaluation"} == set(schema["properties"])
    assert False is schema["additionalProperties"]
    parts = schema["$defs"]
    assert set(settings.TuningSection.model_fields) == set(parts["TuningSection"]["properties"])
    assert {"experiment_name", "register_model", "delivery"} <= set(parts["MlflowSection"]["properties"])
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize(
    ("content", "is_valid"),
    [
        ({"training": {"model": {"model_type": "svc"}}, "mlflow": {"experiment_name": "x"}}, True),
        ({"evaluation": {"thresholds": {"f1": 0.5, "rmse": {"max": 3}}}}, True),
        ({"mlflow": {"tags": {"team": "x"}, "log_model": "all", "exclude": ["val_*"]}}, True),
        ({"training": {"modle": {}}}, False),
        ({"mlflow": {"log_model": "some"}}, False),
    ],
)
def test_the_schema_says_what_the_settings_say(content, is_valid):
    """As an editor would check it."""
    from jsonschema import Draft202012Validator

    errors = list(Draft202012Validator(settings.json_schema()).iter_errors(content))
    assert is_valid == (not errors), errors
    if is_valid:
        Settings.of(content)
    else:
        with pytest.raises(ConfigError):
            Settings.of(content)
