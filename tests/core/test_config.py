"""The configuration: what it accepts, what it refuses, and who decides."""

import copy
import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mlpipeline.core.config import MLflowConfig, options_table
from mlpipeline.core.credentials import credentials_for, public_uri
from mlpipeline.core.errors import ConfigError

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"

# A value other than the default for every option, and the same in an environment variable.
SAMPLES = {
    "tracking_uri": ("http://localhost:5000", "http://localhost:5000"),
    "registry_uri": ("sqlite:///models.db", "sqlite:///models.db"),
    "experiment_name": ("churn", "churn"),
    "experiment_id": ("7", "7"),
    "artifact_location": ("s3://bucket/churn", "s3://bucket/churn"),
    "enabled": (False, "no"),
    "run_name": ("first", "first"),
    "run_id": ("0123abcd", "0123abcd"),
    "description": ("A note.", "A note."),
    "tags": ({"team": "a", "stage": "b=c"}, "team=a, stage=b=c"),
    "log_params": (False, "0"),
    "log_metrics": (False, "false"),
    "log_artifacts": (False, "OFF"),
    "log_model": ("metadata", "metadata"),
    "log_input_example": (True, "1"),
    "log_model_signature": (False, "off"),
    "log_datasets": (False, "No"),
    "log_system_metrics": (True, "yes"),
    "log_every_n_steps": (50, "50"),
    "log_at_most_per_s": (2.5, "2.5"),
    "step_axis": ("both", "both"),
    "nonfinite": ("drop", "drop"),
    "include": (("val_*", "train_*"), "val_*, train_*"),
    "exclude": (("debug_*",), '["debug_*"]'),
    "redact": (("dsn", "*_host"), "dsn,*_host"),
    "register_model": (True, "on"),
    "model_name": ("churn classifier", "churn classifier"),
    "model_stage": ("Staging", "staging"),
    "model_alias": ("champion", "champion"),
    "model_description": ("Version 2.", "Version 2."),
    "serialization": ("skops", "skops"),
    "delivery": ("offline", "offline"),
    "journal_dir": ("/var/journals", "/var/journals"),
    "connect_timeout_s": (2.5, "2.5"),
    "exit_wait_s": (60.0, "60"),
}
# What an option needs beside it.
COMPANIONS = {
    "register_model": {"model_name": "m"},
    "model_alias": {"model_name": "m", "register_model": True},
    "model_stage": {"model_name": "m", "register_model": True},
}


def settings():
    """Every option with its own settings: its companions first."""
    return [
        pytest.param(name, COMPANIONS.get(name, {}), *sample, id=name) for name, sample in SAMPLES.items()
    ]


def run_python(code):
    """Return the words that *code* prints in a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


# --- The specification ---


def test_the_specification_constructs_its_configuration():
    """The specification's first snippet works as it stands there."""
    config = MLflowConfig(
        tracking_uri="http://localhost:5000",
        experiment_name="my-ml-experiment",
        log_params=True,
        log_metrics=True,
        log_artifacts=True,
        log_model=True,
        register_model=True,
        model_name="production-classifier",
        tags={"environment": "production", "version": "1.0"},
    )

    assert "production-classifier" == config.model_name
    assert {"environment": "production", "version": "1.0"} == config.tags


def test_the_defaults_are_the_specifications():
    """What the specification's table says."""
    config = MLflowConfig()
    expected = {
        "tracking_uri": None,
        "experiment_name": "ml-pipeline-experiment",
        "run_name": None,
        "log_params": True,
        "log_metrics": True,
        "log_artifacts": True,
        "log_model": True,
        "log_input_example": False,
        "log_model_signature": True,
        "register_model": False,
        "model_name": None,
        "model_stage": "None",
        "tags": {},
    }

    assert expected == {name: getattr(config, name) for name in expected}


def test_the_specifications_production_yaml_is_read(tmp_path):
    """The specification's longest YAML, with a section that belongs to others."""
    path = tmp_path / "production.yaml"
    path.write_text("""
mlflow:
  enabled: true
  experiment_name: "production-model-training"
  tracking_uri: "https://mlflow.company.com"
  registry_uri: "https://mlflow.company.com"

  # Model registry settings
  register_model: true
  model_name: "customer-churn-classifier"
  model_stage: "Staging"
  model_description: "Customer churn prediction model v2.0"

  # Logging settings
  log_model: true
  log_input_example: true
  log_model_signature: true
  log_artifacts: true

  # Tags
  tags:
    environment: "production"
    team: "data-science"
    version: "2.0"

training:
  model:
    framework: sklearn
""")

    config = MLflowConfig.from_yaml(path)

    assert "Staging" == config.model_stage
    assert {"environment": "production", "team": "data-science", "version": "2.0"} == config.tags
    assert config.log_input_example


# --- Options ---


@pytest.mark.parametrize(("name", "companions", "value", "text"), settings())
def test_every_option_can_be_given_as_keyword(name, companions, value, text):
    """What is given is there, and counts as given."""
    config = MLflowConfig(**companions, **{name: value})

    assert value == getattr(config, name)
    assert {name, *companions} == config.given


@pytest.mark.parametrize(("name", "companions", "value", "text"), settings())
def test_every_option_has_an_environment_variable(name, companions, value, text):
    """MLPIPELINE_<OPTION> gives the same value as the keyword."""
    config = MLflowConfig(**companions).resolved(environ={f"MLPIPELINE_{name.upper()}": text})

    assert value == getattr(config, name)


def test_every_option_is_sampled_here():
    """The two tests above leave no option out, and none has its default."""
    defaults = MLflowConfig().to_dict(all=True)

    assert defaults.keys() == SAMPLES.keys()
    assert [] == [name for name, (value, _) in SAMPLES.items() if defaults[name] == value]


def test_the_signature_names_every_option_as_keyword():
    """help() shows the options, not **options."""
    parameters = inspect.signature(MLflowConfig).parameters

    assert list(SAMPLES) == list(parameters)
    assert {inspect.Parameter.KEYWORD_ONLY} == {parameter.kind for parameter in parameters.values()}
    assert "ml-pipeline-experiment" == parameters["experiment_name"].default


@pytest.mark.parametrize("name", ["step_axis", "nonfinite", "serialization", "delivery"])
def test_every_choice_of_the_annotation_is_accepted(name):
    """The type that a type checker sees and what is accepted are the same."""
    choices = get_args(get_type_hints(MLflowConfig)[name])

    assert 3 <= len(choices)
    assert choices == tuple(getattr(MLflowConfig(**{name: choice}), name) for choice in choices)


def test_an_unknown_option_is_refused_with_the_nearest_name():
    """A typo never passes in silence."""
    with pytest.raises(ConfigError, match=r"no option 'traking_uri'; did you mean 'tracking_uri'\?"):
        MLflowConfig(traking_uri="http://localhost:5000")


def test_an_unknown_option_like_no_other_is_refused_with_all_names():
    """Where nothing is near, the message lists what there is."""
    with pytest.raises(ConfigError, match=r"no option 'silent'; the options are tracking_uri, .*exit_wait_s"):
        MLflowConfig(silent=True)


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("registered_model_name", "model_name", "churn"),
        ("log_models", "log_model", "all"),
        ("log_model_signatures", "log_model_signature", False),
        ("log_input_examples", "log_input_example", True),
        ("extra_tags", "tags", {"a": 1}),
        ("log_every_n_step", "log_every_n_steps", 5),
        ("run_description", "description", "A note."),
    ],
)
def test_other_libraries_names_are_accepted(alias, name, value):
    """What MLflow and Lightning call an option works, and reads back under our name."""
    config = MLflowConfig(**{alias: value})

    assert value == getattr(config, name)
    assert name in config.given


def test_a_registered_model_name_registers_the_model():
    """As in MLflow's autolog, the name alone asks for the registration."""
    assert MLflowConfig(registered_model_name="churn").register_model


@pytest.mark.parametrize(
    "options", [{"registered_model_name": None}, {"registered_model_name": "m", "register_model": False}]
)
def test_a_registered_model_name_does_not_overrule(options):
    """None is no name, and register_model in words decides."""
    assert not MLflowConfig(**options).register_model


def test_an_option_given_twice_with_different_values_is_refused():
    """An alias beside the name cannot mean two things."""
    with pytest.raises(
        ConfigError, match="model_name is given twice, as 'a' and 'b': registered_model_name is another"
    ):
        MLflowConfig(model_name="a", registered_model_name="b")


def test_an_option_given_twice_with_the_same_value_is_accepted():
    """An alias beside the name may repeat it."""
    assert {"a": 1} == MLflowConfig(tags={"a": 1}, extra_tags={"a": 1}).tags


def test_none_means_not_given():
    """A value passed through from an argument parser leaves the option to others."""
    config = MLflowConfig(tracking_uri=None, tags=None, run_name=None, include=None, model_stage=None)

    assert frozenset() == config.given
    assert MLflowConfig() == config


# --- What is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_params": 1}, r"log_params=1: expected one of True, False"),
        ({"log_params": "true"}, r"log_params='true': expected one of True, False"),
        ({"log_params": None}, r"log_params=None: expected one of True, False"),
        (
            {"log_model": "metdata"},
            r"log_model='metdata': expected one of True, False, 'metadata', 'all'; did you mean 'metadata'",
        ),
        ({"nonfinite": "droop"}, r"one of 'tag', 'drop', 'keep', 'raise'; did you mean 'drop'"),
        ({"model_stage": "prod"}, r"one of 'None', 'Staging', 'Production', 'Archived'"),
        ({"experiment_id": 1}, r'experiment_id=1: expected a string: write "1"'),
        ({"run_name": "  "}, r"run_name='  ': expected a string that is not empty"),
        ({"run_name": b"x"}, r"a string"),
        ({"experiment_name": "x" * 501}, r"1 to 500 characters"),
        ({"log_every_n_steps": 0}, r"log_every_n_steps=0: expected a whole number of at least 1"),
        ({"log_every_n_steps": True}, r"whole number"),
        ({"log_every_n_steps": 2.0}, r"whole number"),
        ({"log_at_most_per_s": 0}, r"log_at_most_per_s=0: expected a finite number above 0"),
        ({"log_at_most_per_s": True}, r"above 0"),
        ({"connect_timeout_s": -1}, r"connect_timeout_s=-1: expected a finite number of seconds, 0 or more"),
        ({"connect_timeout_s": float("nan")}, r"finite"),
        ({"exit_wait_s": float("inf")}, r"finite"),
        ({"exit_wait_s": True}, r"finite"),
        ({"exit_wait_s": "5"}, r"finite"),
        ({"include": [1]}, r"a list of globs"),
        ({"exclude": {"a": 1}}, r"a list of globs"),
        ({"redact": [""]}, r"a list of globs"),
        ({"tags": ["a"]}, r"a dict with non-empty strings as keys"),
        ({"tags": {"": 1}}, r"non-empty strings"),
        ({"tags": {1: 1}}, r"non-empty strings"),
        ({"journal_dir": 3.5}, r"a string"),
        ({"model_name": "a/b"}, r"a name without '/' and ':'"),
        ({"model_name": "a:b"}, r"a name without '/' and ':'"),
        ({"model_name": 'it\'s "so"'}, r"one kind of quotes at most"),
        ({"model_name": ".."}, r"a name without"),
        ({"model_name": " "}, r"a name without"),
        ({"model_alias": "latest"}, r"not 'latest'"),
        ({"model_alias": "Latest"}, r"not 'latest'"),
        ({"model_alias": "v12"}, r"not 'latest' or 'v<number>'"),
        ({"model_alias": "a b"}, r"letters, digits"),
        ({"model_alias": "a" * 256}, r"at most 255"),
    ],
)
def test_a_wrong_value_is_refused(options, message):
    """The message says what was given, what is accepted and what to do."""
    with pytest.raises(ConfigError, match=message):
        MLflowConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"register_model": True}, "give model_name as well"),
        (
            {"register_model": True, "model_name": "m", "log_model": False},
            "log_model=False records none: set log_model=True",
        ),
        (
            {"register_model": True, "model_name": "m", "log_model": "metadata"},
            "log_model='metadata' records none",
        ),
        ({"model_alias": "champion"}, "model_alias='champion' is of no use without register_model=True"),
        ({"model_stage": "Production"}, "model_stage='Production' is of no use without register_model=True"),
    ],
)
def test_contradicting_options_are_refused(options, message):
    """Options that cannot both be meant raise where they are written."""
    with pytest.raises(ConfigError, match=message):
        MLflowConfig(**options)


def test_registration_is_switched_off_by_one_word():
    """register_model=False leaves the registry's other options where they are."""
    config = MLflowConfig(register_model=True, model_name="m", model_alias="champion")

    assert not config.replace(register_model=False).register_model
    assert "champion" == config.replace(register_model=False).model_alias


def test_numbers_of_numpy_are_accepted():
    """A step count computed with numpy is a plain int afterwards, seconds a plain float."""
    config = MLflowConfig(
        log_every_n_steps=np.int64(10), connect_timeout_s=np.float32(2.5), run_name=np.str_("a")
    )

    assert (10, 2.5, "a") == (config.log_every_n_steps, config.connect_timeout_s, config.run_name)
    assert [int, float, str] == [
        type(value) for value in (config.log_every_n_steps, config.connect_timeout_s, config.run_name)
    ]


def test_choices_are_accepted_in_any_letter_case():
    """A stage is read as people write it, and kept as MLflow writes it."""
    assert "Production" == MLflowConfig(registered_model_name="m", model_stage="PRODUCTION").model_stage


def test_a_path_is_accepted_as_journal_folder(tmp_path):
    """A path is kept as text."""
    assert str(tmp_path) == MLflowConfig(journal_dir=tmp_path).journal_dir


def test_a_single_pattern_is_a_list_of_one():
    """A string is one glob, never a list of letters."""
    assert ("val_*",) == MLflowConfig(include="val_*").include


def test_a_run_may_be_continued_under_a_name():
    """run_id and run_name do not contradict each other."""
    assert {"run_id", "run_name"} == MLflowConfig(run_id="abc", run_name="again").given


# --- URIs ---


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost:5000",
        "https://mlflow.company.com/team",
        "sqlite:///mlflow.db",
        "sqlite:////var/mlflow.db",
        "postgresql://host/db",
        "postgresql+psycopg2://host:5432/db",
        "mysql+pymysql://host/db",
        "mssql+pyodbc://host/db",
        "databricks",
        "databricks://profile",
        "databricks://scope:prefix",
    ],
)
@pytest.mark.parametrize("option", ["tracking_uri", "registry_uri"])
def test_every_store_of_mlflow_is_accepted(option, uri):
    """As given."""
    assert uri == getattr(MLflowConfig(**{option: uri}), option)


@pytest.mark.parametrize("uri", ["uc:http://localhost:8080", "databricks-uc", "databricks-uc://profile"])
def test_unity_catalog_is_a_registry_only(uri):
    """MLflow has no tracking store there, and says so only when a run starts."""
    assert uri == MLflowConfig(registry_uri=uri).registry_uri
    with pytest.raises(ConfigError, match="expected an MLflow store"):
        MLflowConfig(tracking_uri=uri)


@pytest.mark.parametrize("uri", ["file:///tmp/runs", "./mlruns", "/tmp/runs", "mlruns", "C:\\runs"])
def test_a_file_store_is_refused_with_mlflows_reason(uri, monkeypatch):
    """The reason, and the URI to write in its place."""
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)

    with pytest.raises(ConfigError, match=r"MLflow 3.17 refuses file stores: use sqlite:///mlflow.db"):
        MLflowConfig(tracking_uri=uri)


def test_a_file_store_is_accepted_where_mlflow_accepts_it(monkeypatch):
    """MLflow's own switch counts here, too."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")

    assert "./mlruns" == MLflowConfig(tracking_uri="./mlruns").tracking_uri


def test_the_switch_for_file_stores_is_read_from_the_environment_that_is_resolved():
    """What the caller passes as environment is all of it."""
    environ = {"MLFLOW_TRACKING_URI": "file:///runs", "MLFLOW_ALLOW_FILE_STORE": "true"}

    assert "file:///runs" == MLflowConfig().resolved(environ=environ).tracking_uri


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "htp://localhost:5000",
            "tracking_uri='htp://localhost:5000': expected an MLflow store: http, .*did you mean 'http'",
        ),
        ("postgres://host/db", "did you mean 'postgresql'"),
        ("localhost:5000", "write 'http://localhost:5000'"),
        ("http://", "expected http://host:port"),
        ("http://host:port", "expected http://host:port"),
        ("sqlite://mlflow.db", "three slashes, such as sqlite:///mlflow.db"),
        ("sqlite:///:memory:", "a database file"),
        (3, "a string"),
    ],
)
def test_a_wrong_uri_is_refused(uri, message):
    """With what to write."""
    with pytest.raises(ConfigError, match=message):
        MLflowConfig(tracking_uri=uri)


def test_the_scheme_of_an_installed_mlflow_plugin_is_accepted(tmp_path, monkeypatch):
    """A package that brings MLflow a tracking store brings its scheme along."""
    with pytest.raises(ConfigError, match="expected an MLflow store"):
        MLflowConfig(tracking_uri="azureml://workspace")
    package = tmp_path / "azureml_mlflow-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: azureml-mlflow\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[mlflow.tracking_store]\nazureml = azureml.mlflow:store\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert "azureml://workspace" == MLflowConfig(tracking_uri="azureml://workspace").tracking_uri


# --- Credentials ---


def test_credentials_are_taken_out_of_an_http_uri():
    """The configuration, its repr and its pickle have never seen them."""
    config = MLflowConfig(
        tracking_uri="https://ann:s%40cret@mlflow.one/team", registry_uri="http://bob:hush@models.one:80"
    )

    assert "https://mlflow.one/team" == config.tracking_uri
    assert "http://models.one:80" == config.registry_uri
    for seen in (repr(config), str(config.to_dict()), str(pickle.dumps(config))):
        assert [] == re.findall(r"ann|s%40cret|s@cret|bob|hush", seen)


def test_credentials_are_known_for_their_origin_only():
    """Any path of the same scheme, host and port; nothing else."""
    MLflowConfig(tracking_uri="https://ann:s%40cret@Mlflow.two/team")

    assert ("ann", "s@cret") == credentials_for("https://mlflow.two:443/api/2.0")
    for other in (
        "http://mlflow.two",
        "https://mlflow.two:8443",
        "https://evil.two",
        "sqlite:///x.db",
        "https://[bad",
    ):
        assert credentials_for(other) is None


def test_a_token_alone_counts_as_user_name():
    """It is taken out like a password."""
    config = MLflowConfig(registry_uri="uc:http://tok3n@catalog.three:8080")

    assert "uc:http://catalog.three:8080" == config.registry_uri
    assert ("tok3n", "") == credentials_for("http://catalog.three:8080")


def test_credentials_in_variables_and_user_calls_are_taken_out_as_well():
    """Wherever a URI comes from."""
    config = MLflowConfig().resolved(
        user_calls={"registry_uri": "http://dan:hush@four.one"},
        environ={"MLFLOW_TRACKING_URI": "http://cat:purr@four.two"},
    )

    assert ("http://four.two", "http://four.one") == (config.tracking_uri, config.registry_uri)
    assert ("cat", "purr") == credentials_for("http://four.two")


def test_a_database_keeps_its_password_and_never_shows_it():
    """The database needs it; nobody else does."""
    config = MLflowConfig(tracking_uri="postgresql://ann:s/cr@et@host:5432/db?sslpassword=hush")

    assert "postgresql://ann:s/cr@et@host:5432/db?sslpassword=hush" == config.tracking_uri
    assert "MLflowConfig(tracking_uri='postgresql://ann:***@host:5432/db?sslpassword=***')" == repr(config)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://localhost:5000/#/experiments/1", "http://localhost:5000/#/experiments/1"),
        ("https://ann:pw@host/x", "https://ann:***@host/x"),
        ("https://tok3n@host/x", "https://***@host/x"),
        ("postgresql://ann@host/db", "postgresql://ann@host/db"),
        ("postgresql://host/db?user=a&password=b&x=c", "postgresql://host/db?user=a&password=***&x=c"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Da%3BPWD%3Db", "mssql+pyodbc:///?odbc_connect=***"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)
def test_a_public_uri_masks_what_is_secret(uri, shown):
    """And leaves the rest readable."""
    assert shown == public_uri(uri)


@given(
    st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=4).filter(
        lambda text: "Z" not in text
    )
)
def test_no_password_shows_in_a_public_database_uri(password):
    """Whatever characters it has, also those that should have been percent-encoded."""
    assert "postgresql://Z:***@Z/Z" == public_uri(f"postgresql://Z:{password}@Z/Z")


def test_error_messages_show_no_credential():
    """A URI is masked where it is refused, too."""
    for uri in ("http://ann:p/w@host", "htp://ann:p/w@host", "postgres://ann:p/w@host/db"):
        with pytest.raises(ConfigError) as refused:
            MLflowConfig(tracking_uri=uri)
        assert "p/w" not in str(refused.value)


def test_repr_masks_tags_that_look_secret():
    """A tag's value is recorded as given, but a log line of the configuration does not show it."""
    config = MLflowConfig(
        tags={"api_key": "abc", "db.password": "def", "num_tokens": 5, "source": "http://a:pw@h"}
    )

    shown = "{'api_key': '***', 'db.password': '***', 'num_tokens': 5, 'source': 'http://a:***@h'}"
    assert f"MLflowConfig(tags={shown})" == repr(config)


# --- A value ---


def test_repr_shows_given_options_only():
    """As one would write it."""
    assert "MLflowConfig(run_name='first', log_model='all')" == repr(
        MLflowConfig(log_model="all", run_name="first")
    )
    assert "MLflowConfig()" == repr(MLflowConfig())


def test_a_configuration_cannot_be_changed():
    """Nor can what it contains, nor does it follow what it was made of."""
    tags, include = {"a": 1}, ["x"]
    config = MLflowConfig(tags=tags, include=include)
    tags["a"], include[0] = 2, "y"

    assert ({"a": 1}, ("x",)) == (config.tags, config.include)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run_name = "other"
    with pytest.raises(TypeError):
        config.tags["a"] = 3


@pytest.mark.parametrize(
    "travel",
    [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_knows_what_was_given(travel):
    """To folds, ranks and workers a configuration arrives whole."""
    config = MLflowConfig(tags={"a": [1]}, include=["x"], registered_model_name="m")
    arrived = travel(config)

    assert config == arrived
    assert {"tags", "include", "model_name", "register_model"} == arrived.given
    assert {"a": [1]} == arrived.tags == dict(arrived.tags)
    with pytest.raises(TypeError):
        arrived.tags["a"] = 3


def test_a_resolved_copy_stays_resolved():
    """A worker with another environment records to the same place."""
    config = MLflowConfig().resolved(environ={"MLFLOW_TRACKING_URI": "http://one"})
    arrived = pickle.loads(pickle.dumps(config))

    assert config == arrived.resolved(
        environ={"MLFLOW_TRACKING_URI": "http://two", "MLPIPELINE_RUN_NAME": "x"}
    )


def test_equality_is_about_values_alone():
    """Given or not does not matter, only what it says."""
    assert MLflowConfig() == MLflowConfig(log_params=True)
    assert MLflowConfig() != MLflowConfig(log_params=False)


def test_to_dict_gives_back_what_was_given():
    """Plain types, from which the same configuration can be made."""
    config = MLflowConfig(tags={"a": 1}, include=["x"], redact=["y"], registered_model_name="m")
    expected = {
        "tags": {"a": 1},
        "include": ["x"],
        "redact": ["y"],
        "register_model": True,
        "model_name": "m",
    }

    assert expected == config.to_dict()
    assert [dict, list] == [type(config.to_dict()["tags"]), type(config.to_dict()["include"])]
    assert config == MLflowConfig(**config.to_dict()) == MLflowConfig(**config.to_dict(all=True))


# --- replace and of ---


def test_replace_changes_a_copy():
    """The original stays; the rest stays given."""
    config = MLflowConfig(run_name="first", log_params=False)
    other = config.replace(run_name="second")

    assert ("first", "second") == (config.run_name, other.run_name)
    assert {"run_name", "log_params"} == other.given


def test_replace_with_none_takes_an_option_back():
    """The option has its default and counts as not given."""
    config = MLflowConfig(run_name="first", log_params=False).replace(run_name=None)

    assert config.run_name is None
    assert {"log_params"} == config.given


def test_replace_keeps_a_resolved_configuration_resolved():
    """A child run's configuration does not ask the environment again."""
    config = MLflowConfig().resolved(environ={}).replace(run_name="child")

    assert config == config.resolved(environ={"MLPIPELINE_EXPERIMENT_NAME": "elsewhere"})


def test_replace_takes_one_experiment_for_the_other():
    """A new id drops the old name."""
    config = MLflowConfig(experiment_name="churn").resolved(environ={}).replace(experiment_id="7")

    assert {"experiment_id"} == config.given


def test_copy_replace_is_the_same_replace():
    """Python 3.13's copy.replace() calls this method."""
    assert {"run_name"} == MLflowConfig().__replace__(run_name="x").given


def test_of_nothing_is_the_defaults():
    """With the overrides given."""
    assert MLflowConfig() == MLflowConfig.of()
    assert {"run_name"} == MLflowConfig.of(None, run_name="x").given


def test_of_a_configuration_is_itself():
    """Unless something overrides."""
    config = MLflowConfig(run_name="x")

    assert config is MLflowConfig.of(config)
    assert "y" == MLflowConfig.of(config, run_name="y").run_name


def test_of_a_dict_is_its_keywords():
    """Aliases included, and what misses in the dict may come as an override."""
    config = MLflowConfig.of({"register_model": True, "extra_tags": {"a": 1}}, model_name="m", tags={"b": 2})

    assert ("m", {"b": 2}) == (config.model_name, config.tags)
    assert {"register_model", "model_name", "tags"} == config.given


def test_of_a_path_reads_the_file(tmp_path):
    """A string or a path, and an override wins over the file."""
    path = tmp_path / "train.yaml"
    path.write_text("run_name: from-file\nlog_params: off\n")

    for given_path in (path, str(path)):
        config = MLflowConfig.of(given_path, run_name="mine")
        assert ("mine", False) == (config.run_name, config.log_params)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MLflowConfig, r"write MLflowConfig\(\), with parentheses"),
        (42, r"config=42: expected an MLflowConfig, a dict of options or the path of a YAML file"),
        (["a"], r"expected an MLflowConfig"),
        ({1: 2}, r"no option 1"),
        (
            "http://ann:pw@localhost:5000",
            r"config='http://ann:\*\*\*@localhost:5000' cannot be read .*a destination is tracking_uri=",
        ),
        (
            "missing.yaml",
            r"config='missing.yaml' cannot be read \(No such file or directory\); give the path",
        ),
    ],
)
def test_of_anything_else_is_refused(config, message):
    """With what to write."""
    with pytest.raises(ConfigError, match=message):
        MLflowConfig.of(config)


# --- YAML ---


@pytest.mark.parametrize(
    "text", ["mlflow:\n  run_name: first\ntraining: {}\n", "run_name: first\n"], ids=["section", "top"]
)
def test_a_yaml_file_has_its_options_in_a_section_or_at_the_top(tmp_path, text):
    """Both read the same, and count as given."""
    path = tmp_path / "train.yaml"
    path.write_text(text)
    config = MLflowConfig.from_yaml(path)

    assert "first" == config.run_name
    assert {"run_name"} == config.given


@pytest.mark.parametrize("text", ["", "mlflow:\n"])
def test_an_empty_yaml_file_is_the_defaults(tmp_path, text):
    """Nothing given, nothing refused."""
    path = tmp_path / "train.yaml"
    path.write_text(text)

    assert MLflowConfig() == MLflowConfig.from_yaml(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"- a\n- b\n",
            r"train.yaml: expected options, at the top or under `mlflow:`, but it holds \['a', 'b'\]",
        ),
        (b"mlflow: 3\n", r"but it holds 3"),
        (b"mlflow: [\n", r"train.yaml is not YAML"),
        (b"[" * 10_000, r"train.yaml is not YAML"),
        (b"mlflow:\n  traking_uri: x\n", r"train.yaml: MLflowConfig has no option 'traking_uri'"),
        (b"log_params: 1\n", r"train.yaml: log_params=1: expected one of True, False"),
        (
            b"run_name: !!python/object/apply:os.getcwd []\n",
            r"train.yaml is not YAML: could not determine a constructor",
        ),
        (b"\xff\xfe\x00\x00", r"train.yaml"),
        (b"# x\n" * 2**18 + b"#", r"at most 1 MiB"),
    ],
)
def test_a_wrong_yaml_file_is_refused(tmp_path, content, message):
    """The message names the file, and no code in it runs."""
    path = tmp_path / "train.yaml"
    path.write_bytes(content)

    with pytest.raises(ConfigError, match=message):
        MLflowConfig.from_yaml(path)


# --- Who decides ---


@pytest.fixture
def file_config(tmp_path):
    """A configuration whose URIs come from a YAML file."""
    path = tmp_path / "train.yaml"
    path.write_text("tracking_uri: http://file\nregistry_uri: http://file\n")
    return MLflowConfig.from_yaml(path)


def test_the_first_source_that_names_an_option_decides(file_config):
    """From the default up to the keyword, each source beats the one before."""
    mlflow = {"MLFLOW_TRACKING_URI": "http://mlflow-variable"}
    ours = {**mlflow, "MLPIPELINE_TRACKING_URI": "http://our-variable"}
    calls = {"tracking_uri": "http://call"}
    keyword = file_config.replace(tracking_uri="http://keyword")

    def decided(config, **sources):
        return config.resolved(**sources).tracking_uri

    assert decided(MLflowConfig(), environ={}) is None
    assert "http://file" == decided(file_config, environ={})
    assert "http://mlflow-variable" == decided(file_config, environ=mlflow)
    assert "http://our-variable" == decided(file_config, environ=ours)
    assert "http://call" == decided(file_config, environ=ours, user_calls=calls)
    assert "http://keyword" == decided(keyword, environ=ours, user_calls=calls)


@pytest.mark.parametrize("way", [MLflowConfig.from_yaml, str], ids=["configuration", "path"])
def test_an_override_of_a_file_outranks_the_environment(tmp_path, way):
    """What stands beside it in the file still does not."""
    path = tmp_path / "train.yaml"
    path.write_text("tracking_uri: http://file\nregistry_uri: http://file\n")
    environ = {"MLFLOW_TRACKING_URI": "http://variable", "MLFLOW_REGISTRY_URI": "http://variable"}
    config = MLflowConfig.of(way(path), tracking_uri="http://keyword").resolved(environ=environ)

    assert ("http://keyword", "http://variable") == (config.tracking_uri, config.registry_uri)


def test_resolving_twice_is_resolving_once(file_config):
    """What has decided is decided, whatever the environment says later."""
    config = file_config.replace(run_name="first").resolved(environ={"MLPIPELINE_LOG_PARAMS": "no"})

    assert {"run_name", "log_params", "tracking_uri", "registry_uri"} == config.given
    assert config is config.resolved(
        environ={"MLPIPELINE_ENABLED": "no", "MLFLOW_TRACKING_URI": "http://late"},
        user_calls={"experiment_id": "9"},
    )


def test_a_users_call_that_established_nothing_leaves_the_decision_to_others():
    """None is not an answer."""
    calls = {"tracking_uri": None, "registry_uri": None, "experiment_id": None}

    assert MLflowConfig() == MLflowConfig().resolved(user_calls=calls, environ={})


@pytest.mark.parametrize(
    ("keywords", "calls", "environ", "expected"),
    [
        ({}, {}, {}, ("ml-pipeline-experiment", None)),
        ({}, {}, {"MLFLOW_EXPERIMENT_ID": "1"}, ("ml-pipeline-experiment", "1")),
        ({}, {}, {"MLFLOW_EXPERIMENT_ID": "1", "MLFLOW_EXPERIMENT_NAME": "env"}, ("env", None)),
        (
            {},
            {},
            {"MLFLOW_EXPERIMENT_NAME": "env", "MLPIPELINE_EXPERIMENT_ID": "2"},
            ("ml-pipeline-experiment", "2"),
        ),
        ({}, {"experiment_id": "3"}, {"MLPIPELINE_EXPERIMENT_NAME": "env"}, ("ml-pipeline-experiment", "3")),
        ({"experiment_name": "mine"}, {"experiment_id": "3"}, {"MLFLOW_EXPERIMENT_ID": "1"}, ("mine", None)),
        (
            {"experiment_id": "4"},
            {"experiment_id": "3"},
            {"MLPIPELINE_EXPERIMENT_NAME": "env"},
            ("ml-pipeline-experiment", "4"),
        ),
        ({"experiment_id": "4", "experiment_name": "mine"}, {}, {}, ("mine", None)),
    ],
)
def test_the_experiment_is_one_choice(keywords, calls, environ, expected):
    """Name and id never come from two sources; within one, the name wins."""
    config = MLflowConfig(**keywords).resolved(user_calls=calls, environ=environ)

    assert expected == (config.experiment_name, config.experiment_id)


def test_an_experiment_of_the_file_gives_way_as_a_whole(tmp_path):
    """A file's name does not survive an id from the environment."""
    path = tmp_path / "train.yaml"
    path.write_text("experiment_name: from-file\n")
    config = MLflowConfig.from_yaml(path).resolved(environ={"MLFLOW_EXPERIMENT_ID": "1"})

    assert ("ml-pipeline-experiment", "1") == (config.experiment_name, config.experiment_id)


def test_an_experiment_of_another_store_is_left_out():
    """An id that set_experiment found in one store means something else in the next; so does its echo."""
    calls = {"tracking_uri": "http://theirs", "experiment_id": "3"}
    environ = {"MLFLOW_TRACKING_URI": "http://theirs", "MLFLOW_EXPERIMENT_ID": "3"}
    config = MLflowConfig(tracking_uri="http://ours").resolved(user_calls=calls, environ=environ)

    assert config.experiment_id is None
    assert "http://ours" == config.tracking_uri


@pytest.mark.parametrize(
    ("uri", "calls"),
    [
        ("http://ann:pw@same/", {"tracking_uri": "http://same", "experiment_id": "3"}),
        ("sqlite:///mlflow.db", {"experiment_id": "3"}),
        ("sqlite:///{cwd}/mlflow.db", {"experiment_id": "3"}),
    ],
)
def test_an_experiment_of_the_same_store_is_kept(uri, calls):
    """However that store is spelled; MLflow's default is mlflow.db in the working directory."""
    config = MLflowConfig(tracking_uri=uri.format(cwd=Path.cwd()))
    assert "3" == config.resolved(user_calls=calls, environ={}).experiment_id


def test_mlpipeline_home_is_weaker_than_the_journal_folders_own_variable():
    """But it counts where that is not set."""
    environ = {"MLPIPELINE_HOME": "/home/journals"}

    assert "/home/journals" == MLflowConfig().resolved(environ=environ).journal_dir
    environ["MLPIPELINE_JOURNAL_DIR"] = "/own"
    assert "/own" == MLflowConfig().resolved(environ=environ).journal_dir


def test_an_empty_variable_counts_as_not_set():
    """As with MLflow: `export MLFLOW_TRACKING_URI=` takes it back."""
    environ = {"MLFLOW_TRACKING_URI": "", "MLPIPELINE_LOG_PARAMS": " "}

    assert MLflowConfig() == MLflowConfig().resolved(environ=environ)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("MLPIPELINE_LOG_PARAMS", "maybe", r"MLPIPELINE_LOG_PARAMS='maybe': expected one of True, False"),
        (
            "MLPIPELINE_LOG_EVERY_N_STEPS",
            "5.5",
            r"MLPIPELINE_LOG_EVERY_N_STEPS='5.5': expected a whole number",
        ),
        ("MLPIPELINE_EXIT_WAIT_S", "soon", r"MLPIPELINE_EXIT_WAIT_S='soon': expected a finite number"),
        ("MLPIPELINE_TAGS", "team", r"MLPIPELINE_TAGS='team': expected a dict .*key=value,key=value"),
        ("MLPIPELINE_TAGS", '{"team": ', r"MLPIPELINE_TAGS=.*JSON"),
        ("MLPIPELINE_INCLUDE", "[1]", r"MLPIPELINE_INCLUDE=.*a list of globs"),
        ("MLFLOW_TRACKING_URI", "htp://x", r"MLFLOW_TRACKING_URI='htp://x': .*did you mean 'http'"),
        ("MLFLOW_TRACKING_URI", "./mlruns", r"MLFLOW_TRACKING_URI='./mlruns': .*refuses file stores"),
        (
            "MLPIPELINE_REGISTER_MODEL",
            "1",
            r"give model_name as well \(some options came from MLPIPELINE_REGISTER_MODEL\)",
        ),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(variable, text, message):
    """The user learns where the value comes from."""
    with pytest.raises(ConfigError, match=message):
        MLflowConfig().resolved(environ={variable: text})


def test_a_variable_that_decides_nothing_is_not_judged():
    """A wrong value that a keyword outranks does no harm."""
    config = MLflowConfig(tracking_uri="http://ours").resolved(environ={"MLFLOW_TRACKING_URI": "./mlruns"})

    assert "http://ours" == config.tracking_uri


def test_a_wrong_call_is_refused_by_its_name():
    """The user learns which of their calls it was."""
    with pytest.raises(ConfigError, match=r"tracking_uri \(from mlflow.set_tracking_uri\)='./mlruns'"):
        MLflowConfig().resolved(user_calls={"tracking_uri": "./mlruns"}, environ={})


def test_tags_and_lists_are_read_as_json_as_well():
    """For values with commas, and for globs that begin with a bracket."""
    environ = {"MLPIPELINE_TAGS": '{"a": "x,y", "b": 2}', "MLPIPELINE_INCLUDE": "[ab]*,c"}
    config = MLflowConfig().resolved(environ=environ)

    assert ({"a": "x,y", "b": 2}, ("[ab]*", "c")) == (config.tags, config.include)


def test_the_environment_is_read_by_resolved_alone(monkeypatch):
    """Not by the constructor; and without an argument it is the process's own."""
    monkeypatch.setenv("MLPIPELINE_RUN_NAME", "from-environment")
    config = MLflowConfig()

    assert config.run_name is None
    assert "from-environment" == config.resolved().run_name


# --- Documentation and import ---


def test_the_documents_table_is_the_generated_one():
    """docs/configuration.md says what the class says."""
    text = DOCUMENT.read_text(encoding="utf-8")
    table = re.search(r"<!-- options: begin -->\n\n(.*?)\n<!-- options: end -->", text, re.DOTALL)[1]

    assert options_table() == table


def test_the_table_has_a_row_for_every_option():
    """With five cells each."""
    header, rule, *rows = options_table().splitlines()

    assert ["Option", "Type", "Default", "Meaning", "Environment variable"] == header.strip("| ").split(" | ")
    assert [f"`{name}`" for name in SAMPLES] == [row.split(" | ")[0].strip("| ") for row in rows]
    assert {6} == {line.count("|") for line in [header, rule, *rows]}


def test_help_tells_what_every_option_means():
    """The docstring lists them, before the errors."""
    arguments = inspect.getdoc(MLflowConfig).partition("Args:")[2].partition("Raises:")[0]

    assert list(SAMPLES) == re.findall(r"^    (\w+): ", arguments, re.MULTILINE)


def test_importing_loads_no_third_party_package():
    """Nor does making and resolving a configuration."""
    code = (
        "import sys; from mlpipeline.core.config import MLflowConfig; "
        "MLflowConfig(tracking_uri='http://a:b@host').resolved(environ={}); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )

    assert set() == {"mlflow", "yaml", "pydantic", "numpy", "pandas", "typing_extensions"} & set(
        run_python(code)
    )
