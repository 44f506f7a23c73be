"""An integration meets what it does not know, such as in a framework's next version: the training goes on."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# By the file that trains: the modules of which everything is let fail, one at a time.
MODULES = {
    "test_keras": ("keras",),
    "test_lightning": ("lightning", "torch_modules"),
    "test_optuna": ("optuna",),
    "test_sklearn": ("sklearn.estimator", "sklearn.progress", "sklearn.facts", "sklearn.evaluation"),
    "test_torch": ("torch", "torch_modules"),
    "test_xgboost": ("xgboost",),
}
# What the user or the framework calls itself, beside public methods and hooks.
CALLED = {
    *("MLflowEstimator._fit", "MLflowEstimator._routed", "recorded_fit"),
    *("MLflowLoop._check_inside", "MLflowLoop._reset", "_rank", "Example._take"),
}


def integrations(name):
    """The contract's classes of a file of this folder."""
    spec = importlib.util.spec_from_file_location(f"unforeseen_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [kind for name, kind in vars(module).items() if name.startswith("Test")]


def inner_functions(name):
    """The functions of a module of ours that only it calls: with each, where it is and what it is called."""
    module = importlib.import_module(f"mlpipeline.{name}")
    for key, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield module, key, key
        elif inspect.isclass(value):
            for method, function in list(vars(value).items()):
                is_hook = any(method in vars(kind) for kind in value.__mro__[1:])
                is_guarded = hasattr(function, "__wrapped__")
                is_public = not (key.startswith("_") or method.startswith("_"))
                if inspect.isfunction(function) and not (is_hook or is_guarded or is_public):
                    yield value, method, f"{key}.{method}"


@pytest.mark.parametrize("name", MODULES)
def test_the_training_goes_on(name, tmp_path, monkeypatch):
    """It comes to the model that it comes to without us, whatever function of ours fails."""
    monkeypatch.chdir(tmp_path)
    options = {"tracking_uri": "sqlite:///none.db", "journal_dir": "journal", "delivery": "offline"}
    tried, failed = set(), set()

    def fail(*_, **__):
        failed.add(what)
        raise AttributeError("unknown in this version")

    for subject in integrations(name):
        plain = subject().run_training(None)
        for place, attribute, what in [one for part in MODULES[name] for one in inner_functions(part)]:
            if what in CALLED or attribute.startswith("__"):
                continue
            tried.add(what)
            callback = subject().callback(**options, log_model=False)
            with monkeypatch.context() as patch:
                patch.setattr(place, attribute, fail)
                try:
                    trained = subject().run_training(callback)
                except AssertionError:  # the test's own, of Optuna
                    assert callback.run is None, what
                else:
                    assert plain.model == trained.model, what
    assert len(tried) > 5
    assert len(failed) > 4, f"of {sorted(tried)} only {sorted(failed)} were called"
