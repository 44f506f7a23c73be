"""Staging: what reaches the spool, and what the training process must not notice of it."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import mlflow
import mlflow.pyfunc
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import mlpipeline
from mlpipeline.core.errors import UnloggableError, UsageError
from mlpipeline.sklearn import flavor as sklearn_flavor
from mlpipeline.tracking.flavors import Flavor, flavor_of, pinned_requirements, register_flavor
from mlpipeline.tracking.spool import copy_into_spool
from mlpipeline.tracking.staging import signature_for, stage_model

processes: list[object] = []
# An audit hook cannot be removed again, so there is one for all tests of this file.
sys.addaudithook(lambda event, args: processes.append(args) if event == "subprocess.Popen" else None)


@pytest.fixture(scope="module")
def iris():
    """Iris as a frame and its classes."""
    return load_iris(return_X_y=True, as_frame=True)


@pytest.fixture(scope="module")
def pipeline(iris):
    """A fitted scaler and logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(*iris)


@pytest.fixture
def told(caplog):
    """Return what our logger said, as text lines."""
    caplog.set_level(logging.WARNING, logger="mlpipeline")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "mlpipeline"]


class Doubling(TransformerMixin, BaseEstimator):
    """A transformer of the user's own."""

    def fit(self, X, y=None):
        """Learn nothing."""
        return self

    def transform(self, X):
        """Double the data."""
        return 2 * np.asarray(X)


# The process that stages


def test_importing_staging_loads_no_mlflow_numpy_or_pandas():
    """The recording side imports this module, so it must cost nothing."""
    code = "import sys, mlpipeline.tracking.staging; print({'mlflow', 'numpy', 'pandas'} & set(sys.modules))"
    assert "set()\n" == _fresh_process(code)


def test_staging_starts_no_process(pipeline, iris, tmp_path):
    """Neither MLflow's inference of requirements nor its pip check runs."""
    before = len(processes)
    stage_model(pipeline, tmp_path / "model", input_example=iris[0], log_input_example=True)
    assert before == len(processes)


def test_staging_does_not_read_the_file_lists_of_everything_installed(tmp_path):
    """MLflow reads all of them before it compares one pin with what is installed: 0.6 s of CPU."""
    code = """
import sys
from pathlib import Path
import mlflow.pyfunc, mlflow.sklearn, skops.io
from sklearn.preprocessing import StandardScaler
from mlpipeline.tracking.staging import stage_model
read = set()
sys.addaudithook(lambda event, args: read.add(args[0]) if event == "open" else None)
stage_model(StandardScaler().fit([[1.0], [2.0]]), Path(sys.argv[1]))
print(len([path for path in read if str(path).endswith("RECORD")]))
"""
    assert "0\n" == _fresh_process(code, str(tmp_path / "model"))


def test_staging_leaves_the_environment_alone(pipeline, iris, tmp_path):
    """No variable is set, changed or removed."""
    before = dict(os.environ)
    stage_model(pipeline, tmp_path / "model", input_example=iris[0])
    assert before == dict(os.environ)


def test_staging_starts_no_run_and_names_no_store(pipeline, iris, tmp_path, monkeypatch):
    """A default store would appear as mlflow.db or mlruns in the working directory."""
    monkeypatch.chdir(tmp_path)
    stage_model(pipeline, tmp_path / "model", input_example=iris[0])
    assert mlflow.active_run() is None
    assert ["model"] == _names_in(tmp_path)


def test_staging_prints_nothing(iris, tmp_path, capfd):
    """Not MLflow's advice on pickle, nor its hint on integer columns, nor a missing predict."""
    model = make_pipeline(Doubling(), FunctionTransformer(np.log1p)).fit(iris[0])
    frame = iris[0].assign(**{"sepal width (cm)": range(150)})
    assert "cloudpickle" == stage_model(model, tmp_path / "model", input_example=frame).serialization
    assert ("", "") == capfd.readouterr()


def test_staging_warns_of_nothing(pipeline, iris, tmp_path):
    """Warnings go off where Python's filters show them, so none may be issued at all."""
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        frame = iris[0].assign(**{"sepal width (cm)": range(150)})
        stage_model(pipeline, tmp_path / "model", input_example=frame, log_input_example=True)
    assert [] == issued


def test_other_threads_still_hear_mlflow_while_one_stages(iris, tmp_path):
    """Silence is for the staging thread only, and ends with the call."""
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("mlflow.sklearn")

    class Speaking(Doubling):
        def predict(self, X):
            other = threading.Thread(target=logger.warning, args=["from another thread"])
            other.start()
            other.join()
            logger.warning("from the staging thread")
            return np.zeros(len(X))

    logger.addHandler(handler)
    try:
        stage_model(Speaking(), tmp_path / "model", input_example=iris[0])
        logger.warning("afterwards")
    finally:
        logger.removeHandler(handler)
    assert ["from another thread", "afterwards"] == heard


# The folder


def test_the_report_counts_what_is_in_the_folder(pipeline, tmp_path):
    """Size and number of files are those of an upload."""
    staged = stage_model(pipeline, tmp_path / "model")
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert ("sklearn", "skops") == (staged.flavor, staged.serialization)
    assert (len(files), sum(map(os.path.getsize, files))) == (staged.file_count, staged.size_bytes)


def test_the_folder_is_private(pipeline, tmp_path):
    """A model may hold personal data, so nobody else may list its folder, whatever the umask."""
    before = os.umask(0)
    try:
        stage_model(pipeline, tmp_path / "model")
    finally:
        os.umask(before)
    assert 0o700 == stat.S_IMODE((tmp_path / "model").stat().st_mode)


def test_a_folder_with_something_in_it_is_refused(pipeline, tmp_path):
    """Two models in one folder would be one broken model."""
    (tmp_path / "theirs").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        stage_model(pipeline, tmp_path)
    assert ["theirs"] == _names_in(tmp_path)


def test_nothing_is_left_of_a_model_that_cannot_be_written(tmp_path):
    """Half a model in the spool would be uploaded."""
    model = Doubling()
    model.lock = threading.Lock()
    with pytest.raises(UnloggableError, match="Doubling could not be written"):
        stage_model(model, tmp_path / "model")
    assert [] == _names_in(tmp_path)


def test_metadata_and_code_travel_with_the_model(pipeline, tmp_path):
    """Both are what MLflow's own save_model takes."""
    (tmp_path / "mine.py").write_text("x = 1")
    stage_model(pipeline, tmp_path / "model", metadata={"team": "blue"}, code_paths=[tmp_path / "mine.py"])
    assert {"team": "blue"} == _mlmodel(tmp_path / "model")["metadata"]
    assert "x = 1" == (tmp_path / "model" / "code" / "mine.py").read_text()


# Input examples


def test_no_data_is_kept_unless_asked_for(pipeline, iris, tmp_path):
    """An example given for the signature is not consent to publish it."""
    stage_model(pipeline, tmp_path / "model", input_example=iris[0])
    assert not list((tmp_path / "model").glob("*example*"))


def test_a_logged_example_is_five_rows_of_the_data(pipeline, iris, tmp_path):
    """It comes back through MLflow as it went in."""
    stage_model(pipeline, tmp_path / "model", input_example=iris[0], log_input_example=True)
    example = mlflow.models.Model.load(str(tmp_path / "model")).load_input_example(str(tmp_path / "model"))
    pd.testing.assert_frame_equal(iris[0].head(), example)


def test_an_example_that_mlflow_cannot_store_does_not_cost_the_model(pipeline, iris, tmp_path, told):
    """Complex numbers have no JSON; the model is worth more than its example."""
    frame = iris[0].assign(wave=1j)
    stage_model(pipeline, tmp_path / "model", input_example=frame, log_input_example=True, signature=None)
    assert not list((tmp_path / "model").glob("*example*"))
    assert (tmp_path / "model" / "model.skops").exists()
    assert "No input example for Pipeline" in told()[0]


# Requirements


def test_requirements_are_pinned_to_what_is_installed(pipeline, tmp_path):
    """Exactly the flavor's distributions, and the same in both files."""
    stage_model(pipeline, tmp_path / "model")
    names = ["mlflow", "scikit-learn", "numpy", "scipy", "pandas", "cloudpickle", "skops"]
    pins = [f"{name}=={version(name)}" for name in names]
    conda = yaml.safe_load((tmp_path / "model" / "conda.yaml").read_text())
    assert pins == (tmp_path / "model" / "requirements.txt").read_text().splitlines()
    assert {"pip": pins} == conda["dependencies"][-1]


def test_requirements_of_the_user_are_written_as_they_are(pipeline, tmp_path):
    """MLflow adds nothing but itself where it is missing."""
    lines = [f"mlflow=={version('mlflow')}", "scikit-learn>=1"]
    stage_model(pipeline, tmp_path / "model", requirements=lines)
    assert lines == (tmp_path / "model" / "requirements.txt").read_text().splitlines()


def test_a_local_version_is_not_pinned():
    """No package index has 2.13.0+cpu."""
    flavor = Flavor("x", distributions=("torch",), save=str, predict=str)
    assert [f"torch=={version('torch').partition('+')[0]}"] == pinned_requirements(flavor, object())


def test_a_distribution_that_is_not_installed_is_left_out():
    """Only what could have been used can be pinned."""
    flavor = Flavor("x", distributions=("no-such-distribution",), save=str, predict=str)
    assert [] == pinned_requirements(flavor, object())


def test_a_class_inside_the_model_adds_its_distribution():
    """The import name yaml belongs to the distribution PyYAML."""
    flavor = Flavor("x", distributions=(), save=str, predict=str, parts=lambda model: [yaml.Loader])
    assert [f"PyYAML=={version('PyYAML')}"] == pinned_requirements(flavor, object())


def test_code_that_is_not_installed_adds_no_requirement(pipeline):
    """A class of this file comes from no distribution; its sklearn base is pinned already."""
    mine = make_pipeline(Doubling(), pipeline)
    assert pinned_requirements(sklearn_flavor, pipeline) == pinned_requirements(sklearn_flavor, mine)


# Signatures


def test_integer_columns_keep_their_type(pipeline):
    """MLflow's hint is avoided by showing it floats, which must not reach the signature."""
    frame = pd.DataFrame({"a": np.arange(3), "b": np.arange(3, dtype="int16"), 7: pd.array([1, 2, None])})
    frame["c"] = frame["a"].astype("category")
    signature = signature_for(_echo(), None, frame)
    assert ["long", "integer", "long", "long"] == [column.type.name for column in signature.inputs]
    assert ["a", "b", 7, "c"] == signature.inputs.input_names()


def test_a_column_that_misses_a_value_anywhere_is_optional():
    """Row 9 999 is far beyond the slice that MLflow looks at."""
    frame = pd.DataFrame({"full": np.ones(10_000), "gap": np.ones(10_000)})
    frame.loc[9_999, "gap"] = np.nan
    signature = signature_for(_echo(), None, frame)
    assert ["full"] == signature.inputs.required_input_names()


@pytest.mark.parametrize(("shape", "rows"), [((5_000, 10), 100), ((500, 1_000), 10), ((3, 20_000), 1)])
def test_a_signature_looks_at_a_bounded_slice(shape, rows):
    """At most 100 rows and 10 000 cells, but always one row."""
    seen = []
    flavor = Flavor("x", (), save=str, predict=lambda model, data: seen.append(data.shape))
    signature_for(flavor, None, np.ones(shape))
    assert [(rows, shape[1])] == seen


def test_a_time_zone_is_a_datetime():
    """Pandas deprecates what MLflow asks of such a column."""
    frame = pd.DataFrame({"when": pd.to_datetime(["2026-01-01"]).tz_localize("UTC")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "datetime" == signature_for(_echo(), None, frame).inputs.inputs[0].type.name


def test_a_column_without_type_costs_the_signature_and_is_named(told):
    """MLflow would turn the whole input into Any, and not say which column did it."""
    frame = pd.DataFrame({"fine": [1.0], "late": [pd.Timedelta(1)]})
    assert signature_for(_echo(), None, frame) is None
    assert 1 == len(told())
    assert "'late' (timedelta64" in told()[0]
    assert "fine" not in told()[0]


def test_a_model_that_fails_on_the_example_costs_the_signature_only(pipeline, tmp_path, told):
    """The cause is named, once."""
    stage_model(pipeline, tmp_path / "model", input_example=np.ones((3, 99)))
    assert "signature" not in _mlmodel(tmp_path / "model")
    assert 1 == len(told())
    assert "No signature for Pipeline: ValueError: X has 99 features" in told()[0]


def test_a_given_signature_is_stored_and_none_stores_none(pipeline, iris, tmp_path):
    """Neither runs the model."""
    mine = mlflow.models.infer_signature(np.ones((1, 4)))
    stage_model(pipeline, tmp_path / "mine", signature=mine, input_example=iris[0])
    stage_model(pipeline, tmp_path / "none", signature=None, input_example=iris[0], log_input_example=True)
    assert mine == mlflow.models.Model.load(str(tmp_path / "mine")).signature
    assert "signature" not in _mlmodel(tmp_path / "none")


def test_without_data_the_model_is_asked_for_its_signature(pipeline, tmp_path, told):
    """Where it knows none there is none, silently; where asking fails, the model is staged all the same."""
    mine = mlflow.models.infer_signature(np.ones((1, 4)))
    assert signature_for(sklearn_flavor, pipeline, None) is None
    assert [] == told()
    assert mine == signature_for(replace(sklearn_flavor, signature=lambda model: mine), pipeline, None)
    assert signature_for(replace(sklearn_flavor, signature=lambda model: 1 / 0), pipeline, None) is None
    assert ["No signature for Pipeline: ZeroDivisionError: division by zero"] == told()


# Flavors


def test_a_model_without_flavor_is_refused_by_name(tmp_path):
    """The message says what was given, what is accepted and what to do."""
    with pytest.raises(UnloggableError) as refusal:
        stage_model(threading.Thread(), tmp_path / "model")
    assert "threading.Thread" in str(refusal.value)
    assert "sklearn" in str(refusal.value)
    assert "register_flavor" in str(refusal.value)


def test_a_class_of_the_users_has_the_flavor_of_its_base():
    """The first base with a flavor counts."""
    assert sklearn_flavor is flavor_of(Doubling())


def test_another_package_registers_its_own_flavor():
    """Anything whose class lies in that package is then staged by it."""
    flavor = Flavor("fractions", (), save=str, predict=str)
    kind = type("Model", (), {"__module__": "package_of_somebody.models"})
    register_flavor("package_of_somebody", flavor)
    assert flavor is flavor_of(kind())


def test_a_users_package_called_like_one_of_ours_is_no_framework():
    """``models`` is a popular name; mlpipeline.models is not even imported for it."""
    code = """
import sys
from mlpipeline.tracking.flavors import flavor_of
try:
    flavor_of(type("Model", (), {"__module__": "models.mine"})())
except ValueError:
    print("mlpipeline.models" in sys.modules)
"""
    assert "False\n" == _fresh_process(code)


def test_a_flavor_is_registered_for_a_package_not_a_module():
    """A dotted name would never be found."""
    with pytest.raises(UsageError, match=r"'package\.module'"):
        register_flavor("package.module", sklearn_flavor)


# Files of others


def test_a_copied_file_does_not_follow_the_original(tmp_path):
    """A framework that overwrites its checkpoint in place must not change what is to be uploaded."""
    (tmp_path / "last.ckpt").write_bytes(b"first")
    assert 5 == copy_into_spool(tmp_path / "last.ckpt", tmp_path / "copy")
    with (tmp_path / "last.ckpt").open("r+b") as file:
        file.write(b"other")
    assert b"first" == (tmp_path / "copy").read_bytes()


def test_a_copied_folder_is_whole_and_private(tmp_path):
    """Subfolders, links within it, and modes."""
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "best.ckpt").write_bytes(b"12345")
    (source / "last.ckpt").symlink_to("sub/best.ckpt")
    assert 10 == copy_into_spool(source, tmp_path / "copy")
    assert b"12345" == (tmp_path / "copy" / "last.ckpt").read_bytes()
    assert not (tmp_path / "copy" / "last.ckpt").is_symlink()
    assert 0o700 == stat.S_IMODE((tmp_path / "copy" / "sub").stat().st_mode)
    assert 0o600 == stat.S_IMODE((tmp_path / "copy" / "sub" / "best.ckpt").stat().st_mode)


@pytest.mark.parametrize("link", ["../secret", "nowhere", "."])
def test_a_link_out_of_the_folder_is_refused(tmp_path, link):
    """Out of it, to nothing, or around in a circle: none is what the user meant to log."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "link").symlink_to(link)
    with pytest.raises(UnloggableError, match="is a link to"):
        copy_into_spool(tmp_path / "source", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_pipe_is_refused_rather_than_read(tmp_path):
    """Reading one would wait for ever."""
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "pipe")
    with pytest.raises(UnloggableError, match="neither a file nor a folder"):
        copy_into_spool(tmp_path / "source", tmp_path / "copy")


def test_a_path_that_is_not_there_is_refused(tmp_path):
    """The user's mistake, told where it was made."""
    with pytest.raises(UnloggableError, match="does not exist"):
        copy_into_spool(tmp_path / "absent", tmp_path / "copy")


def _echo():
    return Flavor("echo", (), save=str, predict=lambda model, data: None)


def _fresh_process(code, *args):
    source = {**os.environ, "PYTHONPATH": str(Path(mlpipeline.__file__).parents[1])}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=source).stdout


def _names_in(folder):
    return [path.name for path in folder.iterdir()]


def _mlmodel(folder):
    return yaml.safe_load((folder / "MLmodel").read_text())
