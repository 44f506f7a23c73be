"""Each framework's models survive staging: saved, loaded by plain MLflow, they predict the same."""

from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import lightning
import mlflow
import mlflow.pyfunc
import mlflow.pytorch
import mlflow.sklearn
import mlflow.xgboost
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
import torchmetrics
import xgboost
import yaml
from mlflow.models import Model
from mlflow.types.schema import TensorSpec
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.cluster import DBSCAN
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from torch import nn

import mlpipeline
from mlpipeline.core.errors import UnloggableError
from mlpipeline.tracking.flavors import flavor_of, pinned_requirements
from mlpipeline.tracking.staging import signature_for, stage_model

IRIS, SPECIES = load_iris(return_X_y=True, as_frame=True)
DIGITS, DIGIT = load_digits(return_X_y=True)
DIABETES, PROGRESSION = load_diabetes(return_X_y=True, as_frame=True)


class Clipping(TransformerMixin, BaseEstimator):
    """A transformer of the user's own."""

    def fit(self, X, y=None):
        """Learn the range."""
        self.low_, self.high_ = np.asarray(X).min(axis=0), np.asarray(X).max(axis=0)
        return self

    def transform(self, X):
        """Stay in the range."""
        return np.clip(np.asarray(X), self.low_, self.high_)


def halved(X):
    """Return half of the data: a function of the user's own."""
    return X / 2


@pytest.mark.parametrize("kind", ["torch", "xgboost"])
def test_a_full_disk_is_the_disks_fault(tmp_path, kind):
    """RLIMIT_FSIZE stands for it: neither framework raises an OSError, and the user has made no mistake."""
    data = xgboost.DMatrix(DIGITS, DIGIT)
    model = nn.Linear(200, 200) if kind == "torch" else xgboost.train({}, data, 50)
    stage_model(model, tmp_path / "with room", signature=None)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            stage_model(model, tmp_path / "model", signature=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not (tmp_path / "model").exists()


# scikit-learn

SAFE = {
    "forest": lambda: (RandomForestClassifier(5, random_state=0).fit(DIGITS, DIGIT), DIGITS),
    "pipeline": lambda: (make_pipeline(StandardScaler(), LogisticRegression()).fit(IRIS, SPECIES), IRIS),
    "search": lambda: (
        GridSearchCV(LogisticRegression(max_iter=500), {"C": [0.1, 1]}, scoring="f1_macro", cv=3).fit(
            IRIS, SPECIES
        ),
        IRIS,
    ),
    "boosting": lambda: (GradientBoostingRegressor(n_estimators=3).fit(DIABETES, PROGRESSION), DIABETES),
    "histogram": lambda: (HistGradientBoostingClassifier(max_iter=3).fit(IRIS, SPECIES), IRIS),
    "neighbours": lambda: (KNeighborsClassifier(algorithm="kd_tree").fit(IRIS, SPECIES), IRIS),
    "xgboost inside": lambda: (
        make_pipeline(StandardScaler(), xgboost.XGBClassifier(n_estimators=3)).fit(IRIS, SPECIES),
        IRIS,
    ),
    "columns": lambda: (
        make_pipeline(
            make_column_transformer((OneHotEncoder(), ["sex"]), remainder="passthrough"), Ridge()
        ).fit(DIABETES, PROGRESSION),
        DIABETES,
    ),
}
OF_THE_USER = {
    "class": lambda: make_pipeline(Clipping(), LogisticRegression(max_iter=500)).fit(IRIS, SPECIES),
    "function": lambda: make_pipeline(FunctionTransformer(halved), Ridge()).fit(IRIS, SPECIES),
    "lambda": lambda: make_pipeline(FunctionTransformer(lambda X: X / 3), Ridge()).fit(IRIS, SPECIES),
    "distribution": lambda: RandomizedSearchCV(
        Ridge(), {"alpha": scipy.stats.uniform(0, 1)}, n_iter=2, random_state=0
    ).fit(IRIS, SPECIES),
}


@pytest.mark.parametrize("kind", SAFE)
def test_a_sklearn_model_is_saved_as_skops_and_predicts_the_same(kind, tmp_path):
    """Forests, searches and XGBoost too, which MLflow's own default refuses."""
    model, data = SAFE[kind]()
    staged = stage_model(model, tmp_path / "model", input_example=data)
    assert ("sklearn", "skops") == (staged.flavor, staged.serialization)
    _assert_predicts_like(model.predict(data), data, tmp_path / "model", mlflow.sklearn)


@pytest.mark.parametrize("kind", OF_THE_USER)
def test_a_sklearn_model_with_code_of_the_users_is_saved_as_cloudpickle(kind, tmp_path):
    """Skops cannot hold it, and the caller is told by the report."""
    model = OF_THE_USER[kind]()
    staged = stage_model(model, tmp_path / "model", input_example=IRIS)
    assert "cloudpickle" == staged.serialization
    assert not (tmp_path / "model" / "model.skops").exists()
    _assert_predicts_like(model.predict(IRIS), IRIS, tmp_path / "model", mlflow.sklearn)


def test_the_model_file_asks_for_no_more_trust_than_the_model_needs(tmp_path):
    """Whoever loads it trusts what MLmodel lists, so our whole list does not belong there."""
    stage_model(SAFE["forest"]()[0], tmp_path / "model")
    assert ["sklearn.tree._tree.Tree"] == _flavor_conf(tmp_path / "model", "sklearn")["skops_trusted_types"]


@pytest.mark.parametrize("kind", ["forest", "boosting", "forest in a pipeline"])
def test_a_forest_is_saved_with_every_tree_and_described_as_by_mlflow(kind, tmp_path):
    """MLflow checks a few trees only, which all are alike; the model is not touched."""
    inside = RandomForestClassifier(5, random_state=0)
    model = (
        make_pipeline(StandardScaler(), inside).fit(DIGITS, DIGIT) if "pipeline" in kind else SAFE[kind]()[0]
    )
    before = pickle.dumps(model)
    stage_model(model, tmp_path / "ours", signature=None)
    assert before == pickle.dumps(model)
    trusted = ["sklearn.tree._tree.Tree"]
    mlflow.sklearn.save_model(model, tmp_path / "mlflow", skops_trusted_types=trusted, pip_requirements=[])
    ours, theirs = (tmp_path / way / "model.skops" for way in ("ours", "mlflow"))
    assert len(zipfile.ZipFile(theirs).namelist()) == len(zipfile.ZipFile(ours).namelist())
    assert _flavor_conf(tmp_path / "mlflow", "sklearn") == _flavor_conf(tmp_path / "ours", "sklearn")
    assert ours.stat().st_size == Model.load(tmp_path / "ours").model_size_bytes


@pytest.mark.parametrize("note", [Clipping(), RandomForestClassifier], ids=["object", "class"])
def test_what_hangs_at_one_tree_of_a_forest_is_seen(note, tmp_path):
    """It is not among the few trees that MLflow is shown; a class is another thing than an instance of it."""
    model = RandomForestClassifier(5, random_state=0).fit(IRIS, SPECIES)
    model.estimators_[3].note = note
    assert "cloudpickle" == stage_model(model, tmp_path / "model").serialization


def test_asking_for_skops_names_the_types_that_prevent_it(tmp_path):
    """Only those: trees are trusted. Nothing is left behind."""
    model = make_pipeline(Clipping(), RandomForestClassifier(2)).fit(IRIS, SPECIES)
    with pytest.raises(UnloggableError, match=rf"{__name__}\.Clipping") as refusal:
        stage_model(model, tmp_path / "model", serialization="skops")
    assert "sklearn.tree" not in str(refusal.value)
    assert "cloudpickle" in str(refusal.value)
    assert [] == list(tmp_path.iterdir())


def test_asking_for_skops_says_why_a_lambda_prevents_it(tmp_path):
    """Skops has no name for it."""
    with pytest.raises(UnloggableError, match="cannot be saved as skops"):
        stage_model(OF_THE_USER["lambda"](), tmp_path / "model", serialization="skops")


@pytest.mark.parametrize("serialization", ["cloudpickle", "pickle"])
def test_a_sklearn_model_is_pickled_when_asked(serialization, tmp_path):
    """The report says what was used."""
    model, data = SAFE["pipeline"]()
    staged = stage_model(model, tmp_path / "model", serialization=serialization)
    assert serialization == staged.serialization
    _assert_predicts_like(model.predict(data), data, tmp_path / "model", mlflow.sklearn)


def test_no_function_that_runs_code_or_opens_files_is_trusted():
    """The list is for loading too: these hide in packages that look harmless."""
    trusted = flavor_of(Ridge()).trusted_types
    assert not {"numpy.load", "numpy.testing._private.utils.runstring", "builtins.eval"} & trusted
    assert not [name for name in trusted if name.startswith(("os.", "subprocess.", "pickle.", "joblib."))]


@pytest.mark.parametrize("container", [list, pd.Series])
def test_a_text_model_is_served_arrays_of_texts(container, tmp_path):
    """A string column would reach the vectorizer as a frame, and be read as its column name."""
    texts = np.array(["warm sun", "cold rain", "warm wind", "cold snow"], dtype=object)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0, 1, 0])
    stage_model(model, tmp_path / "model", input_example=container(texts))
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert [TensorSpec(np.dtype("object"), (-1,))] == served.metadata.signature.inputs.inputs
    assert [1, 0, 1, 0] == list(served.predict(texts))


def test_a_transformer_has_the_signature_of_its_transform(tmp_path):
    """It has no predict, so MLflow gives it no pyfunc flavor either."""
    stage_model(StandardScaler().fit(IRIS), tmp_path / "model", input_example=IRIS)
    signature = mlflow.models.Model.load(str(tmp_path / "model")).signature
    assert (-1, 4) == signature.outputs.inputs[0].shape


def test_a_model_without_output_has_a_signature_of_its_input(tmp_path):
    """DBSCAN labels what it was fitted on and predicts nothing."""
    signature = signature_for(flavor_of(DBSCAN()), DBSCAN().fit(IRIS), IRIS)
    assert list(IRIS.columns) == signature.inputs.input_names()
    assert signature.outputs is None


def test_a_pipeline_pins_what_its_steps_come_from():
    """XGBoost inside a search inside a pipeline."""
    search = GridSearchCV(make_pipeline(Ridge()), {"ridge": [Ridge(), xgboost.XGBRegressor()]})
    pins = pinned_requirements(flavor_of(search), make_pipeline(StandardScaler(), search))
    assert f"xgboost=={version('xgboost')}" in pins
    assert f"scikit-learn=={version('scikit-learn')}" in pins


# XGBoost


def test_an_xgboost_classifier_keeps_its_class(tmp_path):
    """It is no sklearn model, although its class derives from sklearn's."""
    model = xgboost.XGBClassifier(n_estimators=3).fit(IRIS, SPECIES)
    staged = stage_model(model, tmp_path / "model", input_example=IRIS)
    assert ("xgboost", "ubj") == (staged.flavor, staged.serialization)
    assert isinstance(mlflow.xgboost.load_model(str(tmp_path / "model")), xgboost.XGBClassifier)
    _assert_predicts_like(model.predict(IRIS), IRIS, tmp_path / "model", mlflow.xgboost)


def test_a_booster_predicts_the_same(tmp_path):
    """Loaded by pyfunc from the frame, by XGBoost from a DMatrix."""
    matrix = xgboost.DMatrix(DIABETES, PROGRESSION)
    model = xgboost.train({"max_depth": 2}, matrix, num_boost_round=3)
    stage_model(model, tmp_path / "model", input_example=DIABETES)
    expected = model.predict(matrix)
    loaded = mlflow.xgboost.load_model(str(tmp_path / "model"))
    assert np.array_equal(expected, loaded.predict(matrix))
    assert np.array_equal(expected, mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(DIABETES))


def test_the_matrix_a_booster_was_trained_on_is_an_example():
    """xgb.train has no other data: names come back, and what is missing is NaN."""
    frame = DIABETES.head(20).astype("float32")
    frame.iloc[3, 0] = np.nan
    matrix = xgboost.DMatrix(frame, PROGRESSION.head(20))
    model = xgboost.train({}, matrix, num_boost_round=1)
    flavor = flavor_of(model)
    pd.testing.assert_frame_equal(frame.head(5), flavor.example(model, matrix, 5), check_index_type=False)
    assert list(frame.columns) == signature_for(flavor, model, matrix).inputs.input_names()


def test_an_xgboost_model_is_saved_as_json_when_asked_and_not_as_skops(tmp_path):
    """Its own formats hold no code."""
    model = xgboost.XGBRegressor(n_estimators=1).fit(IRIS, SPECIES)
    assert "json" == stage_model(model, tmp_path / "json", serialization="json").serialization
    with pytest.raises(UnloggableError, match="accepted: auto, ubj, json"):
        stage_model(model, tmp_path / "skops", serialization="skops")


def test_an_xgboost_model_pins_xgboost():
    """And what its scikit-learn interface needs."""
    pins = pinned_requirements(flavor_of(xgboost.XGBRegressor()), xgboost.XGBRegressor())
    names = ["mlflow", "xgboost", "scikit-learn", "numpy", "scipy", "pandas"]
    assert [f"{name}=={version(name)}" for name in names] == pins


# PyTorch and Lightning


class Net(nn.Module):
    """A module of the user's own, with everything that evaluation mode changes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.body[1].eval()  # a frozen layer stays frozen

    def forward(self, x):
        return self.body(x)


class TwoInputs(nn.Module):
    """A module with two inputs and two outputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, left, right):
        return self.layer(left), self.layer(right)


class Noisy(nn.Module):
    """A module that is random in evaluation mode too."""

    def forward(self, x):
        return x + torch.rand_like(x)


class LitNet(lightning.LightningModule):
    """The same net, trained by Lightning."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


X = torch.tensor(IRIS.to_numpy(), dtype=torch.float32)
Y = torch.tensor(SPECIES.to_numpy())


@pytest.fixture(scope="module")
def trained():
    """A LightningModule that its Trainer still holds on to."""
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=50)
    model = LitNet()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    return model


@pytest.mark.parametrize("serialization", ["auto", "cloudpickle", "pickle"])
def test_a_module_comes_back_as_its_class(serialization, tmp_path):
    """And pyfunc feeds it arrays."""
    model = Net()
    staged = stage_model(model, tmp_path / "model", input_example=X, serialization=serialization)
    used = "pickle" if serialization == "pickle" else "cloudpickle"
    assert ("pytorch", used) == (staged.flavor, staged.serialization)
    loaded = mlflow.pytorch.load_model(str(tmp_path / "model"))
    assert isinstance(loaded, Net)
    _assert_evaluates_like(model, loaded, tmp_path / "model")


def test_a_lightning_module_comes_back_without_its_trainer(trained, tmp_path):
    """A Trainer would drag loaders, callbacks and optimizers along."""
    staged = stage_model(trained, tmp_path / "model", input_example=X)
    loaded = mlflow.pytorch.load_model(str(tmp_path / "model"))
    assert staged.size_bytes < 50_000
    assert isinstance(loaded, LitNet)
    assert loaded._trainer is None
    _assert_evaluates_like(trained, loaded, tmp_path / "model")


def test_a_module_set_up_by_fabric_comes_back_without_it(tmp_path):
    """Lightning leaves out its Trainer when pickling, but not Fabric."""
    model = LitNet()
    model._fabric = fabric = lightning.Fabric(accelerator="cpu")
    stage_model(model, tmp_path / "model")
    assert mlflow.pytorch.load_model(str(tmp_path / "model"))._fabric is None
    assert fabric is model._fabric


@pytest.mark.parametrize("serialization", ["auto", "pt2"])
def test_staging_leaves_a_module_as_it_was(serialization, trained, tmp_path):
    """Modes of every layer, parameters, hooks and trainer."""
    trained.train()
    trained.net.body[1].eval()
    handle = trained.register_forward_hook(lambda module, args, output: None)
    trainer, before = trained._trainer, _state(trained)
    stage_model(
        trained, tmp_path / "model", input_example=X, log_input_example=True, serialization=serialization
    )
    assert before == _state(trained)
    assert trainer is trained._trainer
    assert handle.id in trained._forward_hooks
    handle.remove()


def test_staging_leaves_the_random_numbers_to_come(tmp_path):
    """Or a training that stages its best model in between could not be repeated."""
    before = torch.get_rng_state()
    stage_model(Noisy(), tmp_path / "model", input_example=X)
    assert torch.equal(before, torch.get_rng_state())


def test_an_exported_module_predicts_the_same_at_any_batch_size(trained, tmp_path):
    """Dropout is off in the exported graph, whatever mode training left the module in."""
    trained.train()
    staged = stage_model(trained, tmp_path / "model", input_example=(X, Y), serialization="pt2")
    assert "pt2" == staged.serialization
    _assert_evaluates_like(trained, mlflow.pytorch.load_model(str(tmp_path / "model")), tmp_path / "model")


def test_an_exported_module_holds_no_data_unless_asked(tmp_path):
    """torch.export keeps the tensors that it traced with."""
    stage_model(Net(), tmp_path / "model", input_example=X + 100, serialization="pt2")
    program = torch.export.load(tmp_path / "model" / "data" / "model.pt2")
    assert 0 == program.example_inputs[0][0].abs().max()
    assert not list((tmp_path / "model").glob("*example*"))


@pytest.mark.parametrize("example", [None, X[:1], IRIS])
def test_exporting_without_a_usable_example_is_refused(example, tmp_path):
    """One row would freeze the batch size for ever."""
    with pytest.raises(UnloggableError, match="at least two rows"):
        stage_model(Net(), tmp_path / "model", input_example=example, serialization="pt2")
    assert [] == list(tmp_path.iterdir())


def test_a_batch_is_cut_to_what_forward_takes():
    """A loader gives inputs and targets; the model takes the inputs."""
    signature = signature_for(flavor_of(Net()), Net(), (X, Y))
    assert [TensorSpec(np.dtype("float32"), (-1, 4))] == signature.inputs.inputs
    assert [TensorSpec(np.dtype("float32"), (-1, 3))] == signature.outputs.inputs


@pytest.mark.parametrize("example", [(X, X), [X, X], {"left": X, "right": X}])
def test_several_inputs_get_the_names_of_forwards_parameters(example):
    """MLflow cannot express several unnamed tensors."""
    signature = signature_for(flavor_of(TwoInputs()), TwoInputs(), example)
    assert ["left", "right"] == signature.inputs.input_names()
    assert ["output_0", "output_1"] == signature.outputs.input_names()


def test_a_module_with_two_inputs_is_exported(tmp_path):
    """In the order of forward."""
    model = TwoInputs()
    stage_model(model, tmp_path / "model", input_example=(X, X + 1), serialization="pt2")
    loaded = mlflow.pytorch.load_model(str(tmp_path / "model"))
    assert torch.equal(model(X, X + 1)[1], loaded(X, X + 1)[1])


def test_a_lightning_module_pins_lightning_and_torch(trained):
    """Torch without the local part of its version, which no index has."""
    pins = pinned_requirements(flavor_of(trained), trained)
    assert f"torch=={version('torch').partition('+')[0]}" in pins
    assert f"lightning=={version('lightning')}" in pins


def test_a_layer_from_another_package_is_pinned():
    """However deep inside the module."""
    model = nn.Sequential(nn.Sequential(torchmetrics.MeanMetric()))
    assert f"torchmetrics=={version('torchmetrics')}" in pinned_requirements(flavor_of(model), model)


@pytest.mark.parametrize("model", ["torch.nn.Linear(1, 1)", "sklearn.dummy.DummyRegressor()"])
def test_staging_leaves_the_logging_of_the_process_alone(model, tmp_path):
    """Importing mlflow.pytorch sets the root logger to ERROR, which would hide all warnings."""
    code = f"""
import logging, sys, sklearn.dummy, torch
from pathlib import Path
from mlpipeline.tracking.staging import stage_model
stage_model({model}, Path(sys.argv[1]))
print(logging.root.level, logging.root.handlers)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(mlpipeline.__file__).parents[1])},
    )
    assert ("30 []\n", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize("framework", ["sklearn", "xgboost", "torch"])
def test_a_missing_framework_names_its_extra(framework):
    """Without site-packages, nothing is installed."""
    code = f"import mlpipeline.{framework}"
    source = Path(mlpipeline.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(source)},
    )
    assert f"MissingExtraError: mlpipeline.{framework} needs" in done.stderr
    assert f'pip install "mlpipeline[{framework}]"' in done.stderr


def _assert_predicts_like(expected, data, folder, module):
    signature = mlflow.models.Model.load(str(folder)).signature
    assert np.array_equal(expected, module.load_model(str(folder)).predict(data))
    # pyfunc copies a frame by columns, and sums in another order differ in the last bit.
    served = mlflow.pyfunc.load_model(str(folder)).predict(data)
    np.testing.assert_allclose(expected, served, rtol=1e-12)
    assert signature is None or len(signature.inputs) in (1, data.shape[1])


def _assert_evaluates_like(model, loaded, folder):
    model.eval()
    with torch.no_grad():
        expected = model(X).numpy()
        assert np.array_equal(expected, loaded(X).numpy())
    served = mlflow.pyfunc.load_model(str(folder))
    assert np.array_equal(expected, served.predict(X.numpy()))
    assert [(-1, 4)] == [spec.shape for spec in served.metadata.signature.inputs]


def _state(model):
    tensors = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    return [part.training for part in model.modules()], tensors, list(model.__dict__)


def _flavor_conf(folder, name):
    return yaml.safe_load((folder / "MLmodel").read_text())["flavors"][name]
