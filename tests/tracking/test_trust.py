"""Whose models are loaded: ours and those that are only data; of the others nothing runs unless it is trusted."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import cloudpickle
import mlflow
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
import skops.io
import xgboost
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import FunctionTransformer

from mlpipeline import MLflowConfig, ModelRegistry
from mlpipeline.core.errors import UsageError
from mlpipeline.core.interfaces import ComponentType, ExecutionContext
from mlpipeline.models.mlflow_integration import MLflowIntegratedEvaluator
from mlpipeline.tracking.opening import open_run

if TYPE_CHECKING:
    from pathlib import Path

X, Y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0.0, 1.0, 2.0, 3.0])


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return (eval, (f"open({self.marker!r}, 'w').close() or {{}}",))


def write(folder: Path, flavors: dict, **files: bytes) -> None:
    """Write a model as its author pleases."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors, "model_uuid": "0" * 32}))


def pickled(folder: Path, marker: str) -> None:
    about = {"pickled_model": "model.pkl", "serialization_format": "cloudpickle"}
    plain = {"loader_module": "mlflow.sklearn", "model_path": "model.pkl"}
    write(folder, {"sklearn": about, "python_function": plain}, model_dot_pkl=cloudpickle.dumps(Bomb(marker)))


def with_code(folder: Path, marker: str) -> None:
    code = f"open({marker!r}, 'w').close()\ndef _load_pyfunc(path):\n    return type('M', (), {{'predict': len}})()\n"
    write(
        folder,
        {"python_function": {"loader_module": "planted", "code": "code"}},
        code__planted_dot_py=code.encode(),
    )


def skops_with_code(folder: Path, marker: str) -> None:
    model = LinearRegression().fit(X, Y)
    mlflow.sklearn.save_model(model, folder, serialization_format="skops", pip_requirements=[])
    about = yaml.safe_load((folder / "MLmodel").read_text())
    (folder / "code").mkdir()
    (folder / "code" / "sitecustom.py").write_text("")
    (folder / "code" / "skops.py").write_text(f"open({marker!r}, 'w').close()")
    about["flavors"]["sklearn"]["code"] = "code"
    (folder / "MLmodel").write_text(yaml.safe_dump(about))


def second_file(folder: Path, marker: str) -> None:
    """What is loaded as a plain model reads the MLmodel file beside its data."""
    pickled(folder / "inner", marker)
    about = {"pickled_model": "model.skops", "serialization_format": "skops"}
    plain = {"loader_module": "mlflow.sklearn", "data": "inner"}
    skops.io.dump(FunctionTransformer(), folder / "model.skops")
    write(folder, {"sklearn": about, "python_function": plain})


def own_types(folder: Path, marker: str) -> None:
    skops_file = folder / "model.skops"
    folder.mkdir(exist_ok=True)
    skops.io.dump(FunctionTransformer(os.system), skops_file)
    about = {
        "pickled_model": "model.skops",
        "serialization_format": "skops",
        "skops_trusted_types": skops.io.get_untrusted_types(file=skops_file),
    }
    write(folder, {"sklearn": about})


def own_class(folder: Path, marker: str) -> None:
    xgboost.train({}, xgboost.DMatrix(X, Y), 1).save_model(folder / "model.ubj")
    about = {"data": "model.ubj", "model_class": "subprocess.Popen", "model_format": "ubj"}
    write(
        folder,
        {"xgboost": about, "python_function": {"loader_module": "mlflow.xgboost", "data": "model.ubj"}},
    )


CRAFTED = {
    crafted.__name__: crafted
    for crafted in (pickled, with_code, skops_with_code, second_file, own_types, own_class)
}


@pytest.fixture
def strangers(store_uri, tmp_path):
    """Log and register what somebody else made, by plain MLflow; return the path of the marker."""

    def strangers(make):
        folder, marker = tmp_path / "model", tmp_path / "marker"
        folder.mkdir()
        make(folder, str(marker))
        client = MlflowClient(store_uri, store_uri)
        model = client.create_logged_model("0", name="model")
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        mlflow.set_tracking_uri(store_uri)  # a database registry looks the model up there
        client.create_registered_model("theirs")
        client.create_model_version("theirs", source=model.artifact_location, model_id=model.model_id)
        return marker

    return strangers


def evaluated(store_uri, model, **section):
    pd.DataFrame({"x": np.tile(X[:, 0], 10), "target": np.tile(Y, 10) + 0.5}).to_csv("rows.csv", index=False)
    config = {
        "mlflow": {"tracking_uri": store_uri, "enabled": False},
        "data": {"path": "rows.csv"},
        "evaluation": {"model": model, "on": "all", "plots": False, "report": False, **section},
    }
    kind, logger = ComponentType.MODEL_EVALUATION, logging.getLogger("pipeline")
    context = ExecutionContext("e", "evaluation", kind, config, "out", logger)
    return MLflowIntegratedEvaluator().execute(context)


@pytest.mark.parametrize("make", CRAFTED.values(), ids=CRAFTED)
def test_of_a_strangers_model_nothing_is_run(store_uri, strangers, make):
    """Neither by the registry nor by the evaluator, and both say how to insist."""
    marker = strangers(make)
    with pytest.raises(UsageError, match=r"trust=True"):
        ModelRegistry(tracking_uri=store_uri).load("theirs", 1)
    result = evaluated(store_uri, "models:/theirs/1")
    assert (False, False) == (result.success, marker.exists())
    assert "evaluation: {trust: true}" in str(result.error_message)


@pytest.mark.parametrize("make", [pickled, with_code], ids=["pickled", "with_code"])
def test_who_trusts_a_stranger_gets_what_they_made(store_uri, strangers, make, monkeypatch):
    """The same models are live: what they hold is run when it is asked for."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    marker = strangers(make)
    ModelRegistry(tracking_uri=store_uri).load("theirs", 1, trust=True)
    assert marker.exists()
    marker.unlink()
    sys.modules.pop("planted", None)
    evaluated(store_uri, "models:/theirs/1", trust=True)
    assert marker.exists()


def test_what_decides_about_a_promotion_is_not_loaded_either(store_uri, strangers):
    """A data set to score on loads both models."""
    marker = strangers(pickled)
    with pytest.raises(UsageError, match=r"trust=True"):
        ModelRegistry(tracking_uri=store_uri).promote("theirs", 1, "champion", if_better="r2", dataset=(X, Y))
    assert not marker.exists()


class Own(LinearRegression):
    """A class that only a pickle holds."""


@pytest.fixture
def ours(store_uri, deliver):
    """Log and register a model through a run."""

    def ours(model):
        config = MLflowConfig(
            tracking_uri=store_uri, register_model=True, model_name="ours", delivery="offline"
        )
        with open_run(config) as run:
            run.log_model(model)
        deliver()
        return run

    return ours


def test_what_a_run_here_logged_is_loaded_without_a_word(store_uri, ours):
    """Also as a pickle, by the run itself, the registry and the evaluator."""
    run = ours(Own().fit(X, Y))
    assert "Own" == type(run.load_model()).__name__
    assert "Own" == type(ModelRegistry(tracking_uri=store_uri).load("ours", 1)).__name__
    assert evaluated(store_uri, "models:/ours/1").success


def test_a_pickle_that_another_machine_logged_is_a_strangers(store_uri, ours, tmp_path):
    """The journal home knows; another one does not."""
    ours(Own().fit(X, Y))
    elsewhere = ModelRegistry(tracking_uri=store_uri, journal_dir=str(tmp_path / "other"))
    with pytest.raises(UsageError, match=r"its format, cloudpickle, can hold code"):
        elsewhere.load("ours", 1)
    assert "Own" == type(elsewhere.load("ours", 1, trust=True)).__name__


@pytest.mark.parametrize("kind", ["sklearn", "xgboost"])
def test_a_model_that_is_only_data_is_loaded_whoever_logged_it(store_uri, ours, tmp_path, kind):
    """Models as skops with the types that this package trusts, and XGBoost's own formats."""
    model = LinearRegression().fit(X, Y) if kind == "sklearn" else xgboost.XGBRegressor().fit(X, Y)
    ours(model)
    elsewhere = ModelRegistry(tracking_uri=store_uri, journal_dir=str(tmp_path / "other"))
    assert type(model) is type(elsewhere.load("ours", 1))
