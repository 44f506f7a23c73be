"""The contract, for Optuna."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import optuna
import optuna.visualization  # imports pyplot
import sklearn  # noqa: F401 - adds filters for warnings; Optuna's importances import it

from mlpipeline.optuna import MLflowCallback
from mlpipeline.testing import IntegrationContract, Trained, watched
from mlpipeline.testing.contract import stored

optuna.logging.set_verbosity(optuna.logging.ERROR)
# The first plot loads plotly, which adds filters for its own warnings.
optuna.visualization.plot_optimization_history(optuna.create_study())


class TestOptuna(IntegrationContract):
    """Trials are the steps; the study's run has the best value so far, which the probe raises each time."""

    probe = "best_probe"
    # The trial, and as each is the best so far: its params in tags, its value on the curve.
    writes_per_step = 3
    calls_per_step = 1500

    def callback(self, **options):
        return MLflowCallback(metric_name="probe", **options)

    def objective(self, callback, objective):
        return objective

    def train(self, callback, *, steps, probe, continue_from=None):
        study = continue_from or optuna.create_study(
            direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0)
        )

        def objective(trial):
            trial.suggest_float("x", 0, 1)
            return probe(trial.number)

        callbacks = [callback] if callback else []
        with watched(callbacks=callbacks) as touched:
            try:
                study.optimize(self.objective(callback, objective), steps, callbacks=callbacks)
            finally:
                # Who reads the run of a study that is over ends it there and then; else a second later.
                assert callback is None or callback.run is not None
        values = [trial.value for trial in study.trials]
        found = repr([(trial.params, trial.value) for trial in study.trials]).encode()
        return Trained({"best_probe": list(itertools.accumulate(values, max))}, found, touched, carry=study)

    def assert_recorded(self, place, numbers):
        """A study's run has the best value only: what a trial reports is in its own."""
        uri, study = place.store(), optuna.create_study()
        callback = self.callback(**place.options(uri))

        def objective(trial):
            for step, number in enumerate(numbers):
                trial.report(number, step)
            trial.set_user_attr("reported", numbers[trial.number])
            return numbers[trial.number]

        study.optimize(self.objective(callback, objective), len(numbers), callbacks=[callback])
        assert callback.run is not None
        place.deliver()
        trials = {int(one.run.data.tags["number"]): one for one in place.arrived(uri, place.only(uri))}
        assert list(range(len(numbers))) == sorted(trials)
        reported = repr([(step, stored(number)) for step, number in enumerate(numbers)])
        for number, value in enumerate(numbers):
            found, is_nan = trials[number], math.isnan(value)  # with which Optuna lets a trial fail
            assert reported == repr(found.points["intermediate_probe"])
            assert ([] if is_nan else [(0, stored(value))]) == found.points.get("probe", [])
            assert str(value) == found.run.data.tags["reported"]


class TestDecorated(TestOptuna):
    """The same with the objective decorated."""

    name = "Optuna, decorated"
    lacks: ClassVar = {"cost": "a live trial is a run with a journal of its own; see benchmarks/optuna.py"}

    def objective(self, callback, objective):
        return callback.track_in_mlflow()(objective) if callback else objective
