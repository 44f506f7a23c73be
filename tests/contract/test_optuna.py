"""The contract, for Optuna."""

from __future__ import annotations

import itertools
from typing import ClassVar

import optuna
import optuna.visualization  # imports pyplot
import sklearn  # noqa: F401 - adds filters for warnings; Optuna's importances import it

from mlpipeline.optuna import MLflowCallback
from mlpipeline.testing import IntegrationContract, Trained, watched

optuna.logging.set_verbosity(optuna.logging.ERROR)
# The first plot loads plotly, which adds filters for its own warnings.
optuna.visualization.plot_optimization_history(optuna.create_study())


class TestOptuna(IntegrationContract):
    """Trials are the steps; the study's run has the best value so far, which the probe raises each time."""

    probe = "best_probe"
    lacks: ClassVar = {
        "scalars": "a study's run has the best value only; the values are in the trials' runs",
        "nonfinite": "Optuna takes no NaN for a value: the trial has failed",
        "cost": "a live trial is a run with a journal of its own; see benchmarks/optuna.py",
    }

    def callback(self, **options):
        return MLflowCallback(metric_name="probe", **options)

    def train(self, callback, *, steps, probe, continue_from=None):
        study = continue_from or optuna.create_study(
            direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0)
        )

        def objective(trial):
            trial.suggest_float("x", 0, 1)
            return probe(trial.number)

        callbacks = [callback] if callback else []
        with watched(callbacks=callbacks) as touched:
            tracked = callback.track_in_mlflow()(objective) if callback else objective
            try:
                study.optimize(tracked, steps, callbacks=callbacks)
            finally:
                # Who reads the run of a study that is over ends it there and then; else a second later.
                assert callback is None or callback.run is not None
        values = [trial.value for trial in study.trials]
        found = repr([(trial.params, trial.value) for trial in study.trials]).encode()
        return Trained({"best_probe": list(itertools.accumulate(values, max))}, found, touched, carry=study)
