"""`MLflowIntegratedHyperparameterTrainer`: a search for hyperparameters, and a training with the best.

::

    context.config ─► Settings ─► Space ─► Optuna's study ─► trials ─► refit ─► result
                                              │ TPE, grid, random │        │
       parent run ◄── best so far, plots ─────┘                   │        │
         ├─ child run ◄── params, fold by fold, mean ◄────────────┘        │
         └─ params, metrics, plots and model of the best ◄─────────────────┘

Every method is a sampler of Optuna's, so that pruning, storage, threads and Ctrl-C are the same for
all, and the trials are recorded by the callback that users import.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import sys
import time
import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.credentials import public_uri
from mlpipeline.core.errors import ConfigError, MLPipelineError, UsageError
from mlpipeline.core.interfaces import ExecutionContext, ExecutionResult
from mlpipeline.models import estimators, pipelines, scoring, spaces
from mlpipeline.models.checking import refuse_mistakes
from mlpipeline.models.data import Table
from mlpipeline.models.execution import executed, facts_of, model_facts_of, note, recording
from mlpipeline.models.settings import Settings, TuningSection
from mlpipeline.models.training import (
    FACTS as OF_TRAINING,
    MLflowIntegratedTrainer,
    left_behind,
    rows_of,
    tell_unregistered,
    train,
)
from mlpipeline.tracking.account import resolved_run_id
from mlpipeline.tracking.home import new_uid
from mlpipeline.tracking.opening import destination_of, resolved
from mlpipeline.tracking.trainings import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import optuna

    from mlpipeline.models.data import Tables
    from mlpipeline.models.settings import ModelSection
    from mlpipeline.models.spaces import Space
    from mlpipeline.tracking.run import Run

_PLACE = "training.hyperparameter_optimization"
_USUAL_TRIALS = 50

FACTS: dict[str, Any] = {
    **OF_TRAINING,
    "mlflow_parent_run_id": None,
    "mlflow_child_runs": [],
    **dict.fromkeys(("best_hyperparameters", "best_value", "best_trial", "metric")),
    **dict.fromkeys(("n_trials", "study_name", "is_refit")),
}
"""The metadata of every answer."""

_SEARCH_KEY = "mlpipeline:search"
"""Attribute of a stored study: what its values depend on, so that no others are compared with them."""
_RUN_KEY = "mlpipeline:run"
"""Attribute of a stored study: its run, until the best has been trained there."""
_INTERRUPTED_KEY = "interrupted"
"""Attribute of a trial that Ctrl-C ended: Optuna calls it failed, and it says nothing of its values."""


class MLflowIntegratedHyperparameterTrainer:
    """Searches for the hyperparameters of the model that a configuration describes, and trains with the best.

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default. What
            the context has under ``mlflow:`` wins.
        shows_progress: Show a progress bar on standard error; None shows it where that is a terminal.
        **overrides: `MLflowConfig` options that win over *config*.

    Attributes:
        config: The configuration.
        logger: Where it tells what it does.
    """

    def __init__(self, config: Any = None, *, shows_progress: bool | None = None, **overrides: Any) -> None:
        self.config = MLflowConfig.of(config, **overrides)
        self.logger = logging.getLogger("mlpipeline.tuning")
        self._shows_progress = shows_progress

    def setup(self, context: ExecutionContext) -> None:
        """Check what the context says; `execute` does so by itself.

        Raises:
            ConfigError: It cannot be right.
        """
        refuse_mistakes(self._settings(context)[1])

    def execute(self, context: ExecutionContext) -> ExecutionResult:
        """Search, and train with what was found.

        A trial cross-validates the model, preparation included, on the training rows; its run is a child
        of the search's. The best values are then trained on all training rows: that model is on the
        parent run, registered as the configuration says, and left in the artifacts folder. Waits until all
        is in MLflow, or MLflow is found to be unreachable; then ids are local ones.

        Args:
            context: As of `MLflowIntegratedTrainer.execute`; the search is described by
                ``config["training"]["hyperparameter_optimization"]``, without which it has the usual one.

        Returns:
            ``success``; ``metrics`` with the best value, under the metric's name, and those of the model trained
            with it, such as ``test_f1_score``; ``artifacts``; ``metadata`` as of the trainer, with
            ``mlflow_parent_run_id``, ``mlflow_child_runs`` (the trials' in the order of their numbers),
            ``best_hyperparameters``, ``best_value``, ``best_trial``, ``metric``, ``n_trials`` by state, ``study_name``
            and ``is_refit``; each is always there, and None where it is not known. What went wrong is in ``error_message`` and ``exception``; only Ctrl-C and SystemExit
            are raised, and what was found until then is in MLflow and in the study's storage.
        """
        return executed(self._tune, context, FACTS)

    def _settings(self, context: ExecutionContext) -> tuple[MLflowConfig, Settings]:
        settings = Settings.of(context.config, only=("mlflow", "data", "training"))
        return self.config.replace(**settings.mlflow), settings

    def _tune(self, context: ExecutionContext) -> ExecutionResult:
        config, settings = self._settings(context)
        section = settings.training.hyperparameter_optimization or TuningSection()
        if not section.enabled:
            return self._untuned(context, settings)
        refuse_mistakes(settings, context.artifacts_path)
        _check_installed(section)
        plan = _plan(section, settings.training.model, rows_of(settings, context), context.logger)
        search = _Search(plan, _study(plan, _name_of(plan, config)))
        tell_unregistered(config, context)
        if config.register_model and not section.refit:
            context.logger.warning("nothing will be registered: %s.refit is false", _PLACE)
        try:
            with recording(config, context, shared_uid=_kept_uid(search.study, plan, config)) as run:
                search.run_in(run, context.logger, shows_progress=self._is_progress_shown())
                metrics = {plan.metric: search.study.best_value}
                pipeline = None
                if section.refit:
                    pipeline = pipelines.build(plan.model_with(search.best_values()), plan.tables)
                    metrics |= train(run, pipeline, plan.tables)
        except Exception:
            note({**search.facts(), "is_refit": False})
            raise
        facts = {**facts_of(run), **model_facts_of(run), **search.facts(), "is_refit": section.refit}
        if pipeline is None:
            return ExecutionResult(True, metrics=metrics, metadata=facts)
        if search.study.user_attrs.get(_RUN_KEY):  # another model needs another run
            search.study.set_user_attr(_RUN_KEY, None)
        artifacts = left_behind(context, pipeline, plan.tables, {**facts, "metrics": metrics})
        return ExecutionResult(True, artifacts=artifacts, metrics=metrics, metadata=facts)

    def _untuned(self, context: ExecutionContext, settings: Settings) -> ExecutionResult:
        """Train without a search, where the configuration says ``enabled: false``."""
        result = MLflowIntegratedTrainer(self.config).execute(context)
        result.metadata |= {
            "mlflow_parent_run_id": result.metadata.get("mlflow_run_id"),
            "mlflow_child_runs": [],
            "best_hyperparameters": dict(settings.training.model.parameters),
        }
        return result

    def _is_progress_shown(self) -> bool:
        return sys.stderr.isatty() if self._shows_progress is None else self._shows_progress


# --- what is searched --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """A search, checked, before anything of it runs.

    Attributes:
        section: What the configuration says of the search.
        model: And of the model.
        model_name: The model's name.
        space: What to try.
        grid: Values of each parameter that are crossed; None where the method is none of a grid.
        tables: The rows.
        folds: Pairs of positions in the training rows: to train on, and to judge by.
        metric: What the trials are judged by.
        direction: Whether more of it is better.
    """

    section: TuningSection
    model: ModelSection
    model_name: str
    space: Space
    grid: Mapping[str, list[Any]] | None
    tables: Tables
    folds: list[tuple[Any, Any]]
    metric: str
    direction: Literal["maximize", "minimize"]

    def model_with(self, values: Mapping[str, Any]) -> ModelSection:
        """Return the model's section with these values over its own."""
        return self.model.model_copy(update={"parameters": {**self.model.parameters, **values}})

    def basis(self) -> dict[str, Any]:
        """Return what the values of trials depend on beside their params."""
        from mlpipeline.tracking.datasets import describe

        train = self.tables.train
        fixed = {
            name: value for name, value in self.model.parameters.items() if name not in self.space.ranges
        }
        return {
            "model": self.model_name,
            "parameters": {name: repr(value) for name, value in sorted(fixed.items())},
            "preprocessing": self.model.preprocessing,
            "metric": self.metric,
            "direction": self.direction,
            "cv_folds": self.section.cv_folds,
            "seed": self.section.seed,
            "train rows": f"{describe(train.X).digest[:16]}{describe(train.y).digest[:16]}",
        }


def _plan(section: TuningSection, model: ModelSection, tables: Tables, logger: logging.Logger) -> _Plan:
    kind = estimators.kind_of(model, tables.task_type)
    (metric,) = scoring.checked([section.metric or scoring.default_metrics(tables.task_type)[0]])
    space = spaces.space_of(section, model, kind)
    pipelines.build(model, tables)  # what it refuses now it would refuse in every trial
    for name in sorted(space.ranges.keys() & model.parameters.keys()):
        logger.info(
            "%s is searched, so that its value %r in training.model.parameters does not count",
            name,
            model.parameters[name],
        )
    return _Plan(
        section,
        model,
        kind.name,
        space,
        space.grid(section.grid_points) if section.method == "grid_search" else None,
        tables,
        _folds(tables, section),
        metric,
        section.direction or ("maximize" if scoring.is_greater_better(metric) else "minimize"),
    )


def _folds(tables: Tables, section: TuningSection) -> list[tuple[Any, Any]]:
    """Return the folds of a cross-validation, which are the same for every trial."""
    from sklearn.model_selection import KFold, StratifiedKFold

    train, count = tables.train, section.cv_folds
    is_classification = tables.task_type == "classification"
    rows = int(train.y.value_counts().max()) if is_classification else len(train.y)
    if rows < count:
        what = "and no class has more than" if is_classification else "and there are"
        raise ConfigError(
            f"{_PLACE}.cv_folds: {count} folds need as many train rows, {what} {rows}; write cv_folds: {max(2, rows)}, "
            "or give more rows"
        )
    splitter = (StratifiedKFold if is_classification else KFold)(
        n_splits=count, shuffle=True, random_state=section.seed
    )
    return list(splitter.split(train.X, train.y))


_NEEDS = {"cmaes": "cmaes", "gp": "torch"}
"""Packages that samplers import when they choose for the first time, in the middle of a search."""


def _check_installed(section: TuningSection) -> None:
    import mlpipeline.optuna  # noqa: F401 - it says which extra is missing

    needed = _NEEDS.get(section.sampler) if section.method == "optuna" else None
    if needed and importlib.util.find_spec(needed) is None:
        raise ConfigError(
            f"{_PLACE}.sampler: {section.sampler!r} needs the package {needed}, which is not installed; install it "
            f"with: pip install {needed}, or write sampler: tpe"
        )


# --- the study ---------------------------------------------------------------------------------------


def _name_of(plan: _Plan, config: MLflowConfig) -> str:
    final = resolved(config)
    experiment = final.experiment_name or final.experiment_id
    return plan.section.study_name or f"{experiment} {plan.model_name} {plan.metric}"[:500]


def _study(plan: _Plan, name: str) -> optuna.Study:
    """Return the study: a new one, or the stored one of that name, if it asked the same question."""
    import optuna

    section = plan.section
    try:
        study = optuna.create_study(
            storage=section.storage,
            study_name=name,
            direction=plan.direction,
            pruner=_pruner(section),
            load_if_exists=True,
        )
    except Exception as error:
        if section.storage is None:
            raise
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{_PLACE}.storage: {public_uri(section.storage)} cannot be opened ({type(error).__name__}: {reason}); "
            "give an URL of a database such as sqlite:///study.db"
        ) from error
    trials = study.get_trials(deepcopy=False)
    _check_same(study, plan, trials)
    study.sampler = _sampler(plan, len(trials))
    return study


def _check_same(study: optuna.Study, plan: _Plan, trials: list[Any]) -> None:
    from optuna.distributions import check_distribution_compatibility

    hint = f"give another {_PLACE}.study_name, or the configuration that it was made with"
    if [plan.direction] != [direction.name.lower() for direction in study.directions]:
        found = ", ".join(direction.name.lower() for direction in study.directions)
        raise ConfigError(
            f"the stored study {study.study_name!r} is to {found}, and this one to {plan.direction}; {hint}"
        )
    basis, stored = plan.basis(), study.user_attrs.get(_SEARCH_KEY)
    if stored is None:
        study.set_user_attr(_SEARCH_KEY, basis)
    elif differ := [name for name, value in basis.items() if stored.get(name) != value]:
        told = ", ".join(
            f"{name} ({stored.get(name)!r} there, {basis[name]!r} here)" if name != "train rows" else name
            for name in differ
        )
        raise ConfigError(
            f"the values of the stored study {study.study_name!r} cannot be compared with those of this search, "
            f"which differs in {told}; {hint}"
        )
    for name, kind in plan.space.distributions().items():
        known = next((trial.distributions[name] for trial in trials if name in trial.distributions), kind)
        try:
            check_distribution_compatibility(known, kind)
        except ValueError as error:
            raise ConfigError(
                f"{spaces.PLACE}.{name}: the stored study {study.study_name!r} has it as {known}; {hint}"
            ) from error


def _sampler(plan: _Plan, stored: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    section = plan.section
    # Drawn from the same seed, a resumed study would try again what it has tried.
    seed = section.seed + stored
    with warnings.catch_warnings():  # that a sampler is new is no news to a user who has named it
        warnings.simplefilter("ignore", category=UserWarning)
        if plan.grid is not None:
            # Its order is the seed's; it knows by itself what has been tried.
            return samplers.GridSampler(plan.grid, seed=section.seed)
        if section.method == "random_search":
            return samplers.RandomSampler(seed=seed)
        made: dict[str, Callable[[], samplers.BaseSampler]] = {
            "tpe": lambda: samplers.TPESampler(seed=seed),
            "random": lambda: samplers.RandomSampler(seed=seed),
            "cmaes": lambda: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
            "gp": lambda: samplers.GPSampler(seed=seed),
            "qmc": lambda: samplers.QMCSampler(
                seed=section.seed,
                scramble=True,
                warn_independent_sampling=False,
                independent_sampler=samplers.RandomSampler(seed=seed),
            ),
        }
        return made[section.sampler]()


def _pruner(section: TuningSection) -> optuna.pruners.BasePruner:
    from optuna import pruners

    made: dict[str, Callable[[], pruners.BasePruner]] = {
        "none": pruners.NopPruner,
        "median": pruners.MedianPruner,
        "percentile": lambda: pruners.PercentilePruner(25.0),
        "hyperband": lambda: pruners.HyperbandPruner(max_resource=section.cv_folds),
    }
    return made[section.pruner]()


def _kept_uid(study: optuna.Study, plan: _Plan, config: MLflowConfig) -> str | None:
    """Return our name of a stored study's run; None where the search gets a new one, as without a storage.

    A search that is stopped and goes on is one run. One that goes on after its best was trained is
    another: params never change in MLflow, and the best's would.
    """
    final = resolved(config)
    if plan.section.storage is None or not final.enabled or final.run_id is not None:
        return None
    place = [destination_of(final).tracking_uri, final.experiment_id or final.experiment_name]
    kept = study.user_attrs.get(_RUN_KEY)
    if kept is None or kept["place"] != place:
        kept = {"uid": new_uid(), "place": place}
        study.set_user_attr(_RUN_KEY, kept)
    return str(kept["uid"])


# --- the search --------------------------------------------------------------------------------------


class _Search:
    """A study that is optimized, with its runs.

    Args:
        plan: What to search.
        study: The study.

    Attributes:
        study: The study.
    """

    def __init__(self, plan: _Plan, study: optuna.Study) -> None:
        self.study = study
        self._plan = plan
        self._run: Run | None = None
        self._trial_runs: dict[int, Run] = {}
        self._first_failure: tuple[dict[str, Any], Exception] | None = None

    def run_in(self, run: Run, logger: logging.Logger, *, shows_progress: bool) -> None:
        """Do the trials that are still to be done; each becomes a child of *run*.

        Raises:
            ConfigError: No trial succeeded, because of a value that the model does not take.
            RuntimeError: No trial succeeded, for another reason.
        """
        from mlpipeline.optuna import MLflowCallback

        self._run = run
        plan, study = self._plan, self.study
        section = plan.section
        with_metric = {"metric": plan.metric, "direction": plan.direction, "cv_folds": section.cv_folds}
        run.log_params({"tuning": {"method": section.method, **with_metric, "seed": section.seed}})
        run.log_dict(
            {name: kind.model_dump() for name, kind in plan.space.ranges.items()}, "parameter_space.json"
        )
        done = self._done()
        remaining = self._remaining(done)
        logger.info(
            "searching %s by %s: %d trials%s",
            ", ".join(plan.space.ranges),
            plan.metric,
            remaining,
            f" after {len(done)} in the storage" if done else "",
        )
        callback = MLflowCallback(run=run, metric_name=plan.metric)

        def value(trial: optuna.Trial) -> float:
            return self._value(trial, callback.run_for(trial))

        if remaining:
            with callback, _same_handlers():
                study.optimize(
                    callback.track_in_mlflow(value),
                    n_trials=remaining,
                    timeout=section.timeout,
                    n_jobs=section.n_jobs,
                    catch=(Exception,),
                    callbacks=[callback, self._stop_when_done],
                    show_progress_bar=shows_progress,
                )
        counts = self._counts()
        if not counts["complete"]:
            raise self._nothing_found(counts)
        logger.info("the best is trial %d: %s = %g", study.best_trial.number, plan.metric, study.best_value)

    def _value(self, trial: optuna.Trial, run: Run) -> float:
        """Cross-validate the model with a trial's values."""
        import optuna

        self._trial_runs[trial.number] = run
        values = self._plan.space.suggested(trial)
        try:
            return self._cross_validated(trial, values, run)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            self._first_failure = self._first_failure or (values, error)
            trial.set_user_attr("error", f"{type(error).__name__}: {error}"[:1000])
            if isinstance(error, UsageError) and not self._counts()["complete"]:
                trial.study.stop()  # the metric cannot be computed, by no trial
            raise
        except BaseException as error:
            if kind_of(error) is not KeyboardInterrupt:
                raise
            trial.set_user_attr(_INTERRUPTED_KEY, True)
            if self._plan.grid is not None:
                # Optuna's grid takes the point for tried.
                trial.storage.set_trial_system_attr(trial._trial_id, "grid_id", None)  # noqa: SLF001 - nowhere else
            if isinstance(error, KeyboardInterrupt):
                raise
            raise KeyboardInterrupt from error  # after a SystemExit Optuna leaves the trial as it runs

    def _cross_validated(self, trial: optuna.Trial, values: Mapping[str, Any], run: Run) -> float:
        import numpy as np
        import optuna

        plan = self._plan
        section, metric = plan.model_with(values), plan.metric
        found: list[float] = []
        for number, (train_rows, held_back) in enumerate(plan.folds):
            tables = replace(plan.tables, train=_rows(plan.tables.train, train_rows))
            held = _rows(plan.tables.train, held_back)
            began_s = time.perf_counter()
            pipeline = pipelines.build(section, tables)
            pipelines.fit(pipeline, tables.train, tables.val)
            fitted_s = time.perf_counter()
            found.append(scoring.scores(pipeline, held.X, held.y, [metric])[metric])
            times = {"fit_time_s": fitted_s - began_s, "score_time_s": time.perf_counter() - fitted_s}
            run.log_metrics({f"fold_{metric}": found[-1], **times}, number)
            trial.report(float(np.mean(found)), number)
            is_last = number + 1 == len(plan.folds)
            if not is_last and trial.should_prune():
                raise optuna.TrialPruned(f"after fold {number + 1} of {len(plan.folds)}")
        run.log_metrics({f"std_{metric}": float(np.std(found))}, 0)
        return float(np.mean(found))

    # --- what was found -------------------------------------------------------------------------------

    def best_values(self) -> dict[str, Any]:
        """Return the values of the best trial, as the model takes them."""
        return self._plan.space.values(self.study.best_params)

    def facts(self) -> dict[str, Any]:
        """Return what a result tells of the search; waits until the trials' runs are in MLflow."""
        counts, run = self._counts(), self._run
        best = self.study.best_trial if counts["complete"] else None
        return {
            "mlflow_parent_run_id": run.run_id if run is not None else None,
            "mlflow_child_runs": self._child_runs(run) if run is not None and run.is_enabled else [],
            "best_hyperparameters": self.best_values() if best is not None else None,
            "best_value": best.value if best is not None else None,
            "best_trial": best.number if best is not None else None,
            "metric": self._plan.metric,
            "n_trials": counts,
            "study_name": self.study.study_name,
        }

    def _child_runs(self, run: Run) -> list[str]:
        """Return the ids of the trials' runs, those of earlier processes included, by number."""
        from mlpipeline.optuna import RUN_ID_ATTRIBUTE_KEY

        for _, child in sorted(self._trial_runs.items()):
            child.wait()
            if not child.is_delivered():
                break  # nor are those behind it
        found: list[str] = []
        for trial in self.study.get_trials(deepcopy=False):
            run_id = trial.system_attrs.get(RUN_ID_ATTRIBUTE_KEY)
            if trial.number in self._trial_runs:
                run_id = self._trial_runs[trial.number].run_id
            elif run_id is not None and run.home is not None:
                with suppress(UsageError):  # it is not in MLflow, or was recorded on another machine
                    run_id = resolved_run_id(run.home, run_id)
            if run_id is not None:
                found.append(run_id)
        return found

    def _done(self) -> list[Any]:
        trials = self.study.get_trials(deepcopy=False)
        return [
            trial
            for trial in trials
            if trial.state.is_finished() and not trial.user_attrs.get(_INTERRUPTED_KEY)
        ]

    def _remaining(self, done: list[Any]) -> int:
        wanted, grid = self._plan.section.n_trials, self._plan.grid
        if grid is None:
            return max(0, (wanted or _USUAL_TRIALS) - len(done))
        tried = {
            tuple(trial.params[name] for name in grid) for trial in done if grid.keys() <= trial.params.keys()
        }
        on_grid = [
            point
            for point in tried
            if all(value in values for value, values in zip(point, grid.values(), strict=True))
        ]
        size = math.prod(map(len, grid.values()))
        return max(0, min(wanted or size, size) - len(on_grid))

    def _stop_when_done(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        # Other processes may do trials of a stored study, too.
        if self._plan.section.storage is not None and not self._remaining(self._done()):
            study.stop()

    def _counts(self) -> dict[str, int]:
        counts = Counter(trial.state.name.lower() for trial in self.study.get_trials(deepcopy=False))
        return {name: counts[name] for name in ("complete", "pruned", "fail")}

    def _nothing_found(self, counts: Mapping[str, int]) -> Exception:
        section = self._plan.section
        told = f"no trial succeeded: {counts['fail']} failed, {counts['pruned']} were pruned"
        if self._first_failure is None:
            hint = (
                "write pruner: none"
                if counts["pruned"]
                else f"raise timeout={section.timeout:g}"
                if section.timeout
                else "see the tag 'error' of their runs"
            )
            return ConfigError(f"{_PLACE}: {told}; {hint}")
        values, error = self._first_failure
        message = f"{told}. The first failed with {values}: {type(error).__name__}: {error}"
        is_users = isinstance(error, (MLPipelineError, ValueError, TypeError))
        made = ConfigError(f"{_PLACE}: {message}") if is_users else RuntimeError(message)
        made.__cause__ = error
        return made


def _rows(table: Table, positions: Any) -> Table:
    return Table(table.X.iloc[positions], table.y.iloc[positions])


@contextmanager
def _same_handlers() -> Iterator[None]:
    """Leave Optuna's log handlers as they were: its progress bar puts its own there, and then the default one."""
    log = logging.getLogger("optuna")
    before = list(log.handlers)
    try:
        yield
    finally:
        for handler in [handler for handler in log.handlers if handler not in before]:
            log.removeHandler(handler)
