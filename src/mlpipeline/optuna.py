"""Optuna: ``study.optimize(objective, callbacks=[MLflowCallback()])`` records the study in MLflow.

::

    study ─────────────────────► parent run   best trial so far, its curve and models; at the end
      │                                       importances and plots
      ├─ trial 0, COMPLETE ────► child run    params, distributions, values, intermediate values: FINISHED
      │    └─ our callbacks in the objective ──► their runs     (@callback.track_in_mlflow)
      ├─ trial 1, PRUNED ──────► child run    KILLED
      └─ trial 2, FAIL ────────► child run    FAILED

Optuna calls a callback when a trial is over, in the thread that ran it, and tells nobody that a study
begins, ends or raises. So what is over is recorded with its own times, and a watch looks four times a
second whether Optuna still optimizes; if not, the study's run gets its plots and its end.

A run's name is derived from the study and the trial's number. Whoever records a trial, in whatever
process and however often, records the same run.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
import sys
import threading
import time
import traceback
import uuid
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import ConfigError, MissingExtraError, UsageError
from mlpipeline.tracking import trainings
from mlpipeline.tracking.account import LOCAL_PREFIX
from mlpipeline.tracking.opening import attached_run, destination_of, open_child, open_run, resolved
from mlpipeline.tracking.recorded import Recorded, harmless, unharmed
from mlpipeline.tracking.watch import attend, leave

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from types import FrameType, TracebackType

    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.tracking.run import Run

try:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.study import _optimize as _engine
    from optuna.trial import FrozenTrial, TrialState
except ImportError as error:
    raise MissingExtraError("optuna", error.name or "optuna") from error

RUN_ID_ATTRIBUTE_KEY = "mlflow_run_id"
"""System attribute of a trial with a live run: the run's local id, which every function here resolves."""

_TOKEN_KEY = "mlpipeline:study"  # noqa: S105 - a name, no secret
_IDLE_S = 1.0
"""So long after the last trial a study is over; a loop of short ``optimize`` calls is one to us."""

_KWARGS = ("experiment_id", "run_name", "nested", "tags")
_STATUSES = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


class MLflowCallback(Recorded):
    """Records an Optuna study as a run, and each of its trials as a child of it.

    Takes the arguments of ``optuna_integration.MLflowCallback`` and writes its tags and metrics. Safe
    with ``n_jobs``, with several processes on one study, and when a stored study is resumed.

    Args:
        config: An `MLflowConfig`, a mapping of its options, a YAML file's path or a tracking URI; None is
            the default.
        metric_name: Name of the objective's value; one per objective, or one for all, which are then
            numbered: ``value_0``, ``value_1``.
        create_experiment: The experiment is named after the study, unless *config* or *mlflow_kwargs*
            names one. False takes the one set by ``mlflow.set_experiment`` or the environment.
        mlflow_kwargs: Of the trials' runs: ``experiment_id``, ``run_name`` (default: the trial's number)
            and ``tags``. ``nested`` is accepted: trials always are.
        tag_study_user_attrs: The study's user attributes become tags of its trials' runs.
        tag_trial_user_attrs: A trial's user attributes become tags of its run.
        run: A run that stands for the study, which this callback then never ends.
        parent: A run, or its id, under which the study's run is nested.
        params: Params of the study's run.
        **overrides: `MLflowConfig` options that win over *config*.

    Raises:
        ConfigError: An argument is not accepted.
        UsageError: The class was given to Optuna instead of an instance.
    """

    def __init__(
        self,
        config: Any = None,
        metric_name: str | Sequence[str] = "value",
        create_experiment: bool = True,
        mlflow_kwargs: Mapping[str, Any] | None = None,
        tag_study_user_attrs: bool = False,
        tag_trial_user_attrs: bool = True,
        *,
        run: Run | None = None,
        parent: Run | str | None = None,
        params: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> None:
        if isinstance(config, optuna.Study):
            raise UsageError("callbacks=[MLflowCallback] gives the class; write callbacks=[MLflowCallback()]")
        given: Any = metric_name
        if not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
            raise ConfigError(f"metric_name={metric_name!r}: expected a string, or one string per objective")
        kwargs = dict(mlflow_kwargs or {})
        if unknown := sorted(kwargs.keys() - set(_KWARGS)):
            raise ConfigError(f"mlflow_kwargs has {unknown}: accepted are {', '.join(_KWARGS)}")
        if isinstance(config, str) and re.match(r"[A-Za-z][\w+.-]+:|databricks", config):
            config, overrides = None, {"tracking_uri": config, **overrides}
        if kwargs.get("experiment_id") is not None:
            overrides["experiment_id"] = kwargs["experiment_id"]
        super().__init__(config, run=run, parent=parent, params=params, **overrides)
        self._names = metric_name
        self._is_named_after_study = create_experiment and not (
            {"experiment_name", "experiment_id"} & self.config.given
        )
        self._trial_options: dict[str, Any] = {
            "trial_name": kwargs.get("run_name"),
            "trial_tags": kwargs.get("tags") or {},
            "tags_study": tag_study_user_attrs,
            "tags_trial": tag_trial_user_attrs,
        }
        self._forget()

    def _forget(self) -> None:
        self._studies: weakref.WeakKeyDictionary[optuna.Study, _Study] = weakref.WeakKeyDictionary()
        self._last: _Study | None = None

    @property
    def run(self) -> Run | None:
        """The run of the study that was optimized last; None before the first trial.

        Read after ``optimize``, it is ended then and there, with the study's plots.
        """
        with unharmed("the end of the study"):
            if self._last is not None and self._last.is_over(is_asked=True):
                self._last.close()
        return self._run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with unharmed("the end of the study"):
            if self._last is not None:
                self._last.close(trainings.kind_of(error), is_final=True)

    @harmless
    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Record a trial that is over; Optuna calls this."""
        record = self._study(study)
        if not trial.state.is_finished():
            raise UsageError(f"trial {trial.number} is {trial.state.name}: call study.tell first")
        with unharmed(f"trial {trial.number}", self._failures):
            record.record(trial)

    def track_in_mlflow(self, function: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """Decorate an objective: ``@callback.track_in_mlflow()``.

        Its trials' runs are there while they run, and what our other callbacks record inside the objective
        becomes children of them. An exception that ends the study is seen. The objective may be a method
        and take other arguments beside the trial.
        """
        if not isinstance(self, MLflowCallback):
            raise UsageError(
                "@MLflowCallback.track_in_mlflow is of the class; write @callback.track_in_mlflow()"
            )
        if function is None:
            return self.track_in_mlflow

        @functools.wraps(function)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            given = (*args, *kwargs.values())
            trial = next((one for one in given if isinstance(one, optuna.Trial)), None)
            if trial is None:  # a FixedTrial, which belongs to no study
                return function(*args, **kwargs)
            begun = self._begin(trial)
            record, inside = begun or (None, nullcontext())
            try:
                with inside:
                    return function(*args, **kwargs)
            except BaseException as raised:
                if record is not None:
                    with unharmed(f"how trial {trial.number} ended", self._failures):
                        record.raised(trial, raised)
                raise

        return tracked

    @harmless
    def _begin(self, trial: optuna.Trial) -> tuple[_Study, Any] | None:
        record = self._study(trial.study)
        inside: Any = nullcontext()
        with unharmed(f"the start of trial {trial.number}", self._failures):
            inside = trainings.inside(record.begin(trial), _status_of)
        return record, inside

    def run_for(self, trial: optuna.Trial | FrozenTrial) -> Run:
        """Return the run of a trial: to log into, or as ``parent=`` of another callback.

        A live trial's run is opened by this; the callback ends it. Of a trial that is over, records are
        added to its run as it is.

        Raises:
            UsageError: The trial is not known here.
        """
        if isinstance(trial, optuna.Trial):
            return self._study(trial.study).begin(trial)
        run = self._last.known(trial.number) if self._last is not None else None
        if run is None:
            raise UsageError(
                f"trial {trial.number} was not recorded by this callback; give run_for a trial of its study"
            )
        return run

    def _study(self, study: optuna.Study) -> _Study:
        found = self._studies.get(study)
        if found is None or found.pid != os.getpid():
            options = _Options(
                config=self._config_for(study),
                names=self._metric_names(len(study.directions)),
                params=self._params,
                run=self._given_run,
                parent=self._parent,
                **self._trial_options,
            )
            found = self._studies[study] = _Study.of(options, study)
        self._last = found
        self._run = found.enter(study)
        return found

    def _metric_names(self, count: int) -> list[str]:
        names = self._names
        if isinstance(names, str):
            return [names] if count == 1 else [f"{names}_{index}" for index in range(count)]
        if len(names) != count:
            raise ConfigError(
                f"metric_name={list(names)!r} names {len(names)} objectives, and the study has {count}: give "
                'one name for each, or a single string such as "value", which is numbered'
            )
        return list(names)

    def _config_for(self, study: optuna.Study) -> MLflowConfig:
        # A run that is nested goes where the one above it is, or MLflow's pages would not show it there.
        is_on_top = self._parent is None and trainings.enclosing() is None
        name = {"experiment_name": study.study_name[:500]} if self._is_named_after_study and is_on_top else {}
        return self.config.replace(run_name=self.config.run_name or study.study_name, **name)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_studies"], state["_last"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


@dataclass(frozen=True)
class _Options:
    """What a callback was told, for one study."""

    config: MLflowConfig
    names: list[str]
    params: Mapping[str, Any]
    run: Run | None
    parent: Run | str | None
    trial_name: str | None
    trial_tags: Mapping[str, Any]
    tags_study: bool
    tags_trial: bool


@dataclass(eq=False)
class _Trial:
    """A trial whose run is open."""

    run: Run
    id: int
    thread: int
    raised: type[BaseException] | None = None


class _Study:
    """One study as this process records it.

    Args:
        options: How.
        study: The study.
        uid: Our name of its run.

    Attributes:
        pid: The process that this belongs to.
    """

    def __init__(self, options: _Options, study: optuna.Study, uid: str) -> None:
        self.pid = os.getpid()
        self._options = options
        self._uid = uid
        self._run: Run | None = None
        self._directions = [direction.name for direction in study.directions]
        self._study: optuna.Study | None = None
        self._objects: weakref.WeakSet[optuna.Study] = weakref.WeakSet()
        self._trials: dict[int, _Trial] = {}
        self._lock = threading.RLock()
        self._closing = threading.Lock()
        self._moves = 0
        self._moved_s = 0.0
        self._highest = -1
        self._raised: type[BaseException] | None = None
        self._seen_error: BaseException | None = None
        self._best: FrozenTrial | None = None
        self._best_run: Run | None = None
        self._told_best: tuple[int, float | None] = (-1, None)
        self._ranked_s = 0.0

    @classmethod
    def of(cls, options: _Options, study: optuna.Study) -> _Study:
        """Return this process's record of a study, one for all callbacks that record it alike."""
        final = resolved(options.config)
        place = (destination_of(final).tracking_uri, final.experiment_id or final.experiment_name)
        uid = _hash(_token(study), study.study_name, *place, options.run.uid if options.run else "")
        with _registry:
            found = _by_uid.get(uid)
            if found is None or found._options != options:  # noqa: SLF001 - of this class
                found = _by_uid[uid] = cls(options, study, uid)
            return found

    def enter(self, study: optuna.Study) -> Run:
        """Take note that something happens; return the study's run, which is open from here on."""
        options = self._options
        with self._lock:
            self._moves += 1
            self._moved_s = time.monotonic()
            if self._study is not study:
                self._study = study
                self._objects.add(study)
            if self._run is None:
                self._run = options.run or open_run(
                    options.config, parent=options.parent, shared_uid=self._uid
                )
                self._seen_error = getattr(sys, "last_value", None)
                with unharmed("the study"):
                    self._describe(self._run, study)
            elif self._run.is_ended and options.run is None:
                self._run.resume()
            if self._run.is_enabled:
                attend(self)
            return self._run

    def _describe(self, run: Run, study: optuna.Study) -> None:
        self._best = self._best_trial(study)
        facts = {
            "study_name": study.study_name,
            "directions": ", ".join(self._directions),
            "sampler": type(study.sampler).__name__,
            "pruner": type(study.pruner).__name__,
        }
        run.log_params({**facts, **self._options.params})

    # --- trials -----------------------------------------------------------------------------------

    def begin(self, trial: optuna.Trial) -> Run:
        """Return the run of a live trial, opened unless it is open."""
        thread = threading.get_ident()
        for number, other in list(self._trials.items()):
            if number != trial.number and other.thread == thread:
                self._settle(number)  # its thread went on without calling us
        with self._lock:
            if not self._trials:
                self._raised = None  # the user went on after it
            if (known := self._trials.get(trial.number)) is not None:
                return known.run
            run = self._open_run(trial.number, trial.datetime_start, {}, holds_models=True)
            self._trials[trial.number] = _Trial(run, trial._trial_id, thread)  # noqa: SLF001 - trials are stored under it
        if run.is_enabled:
            with unharmed("the run's id in the trial"):
                local_id = f"{LOCAL_PREFIX}{run.uid}"
                trial.storage.set_trial_system_attr(trial._trial_id, RUN_ID_ATTRIBUTE_KEY, local_id)  # noqa: SLF001
        return run

    def raised(self, trial: optuna.Trial, error: BaseException) -> None:
        """Take note of an exception that leaves an objective; it ends the study unless Optuna catches it."""
        if (known := self._trials.get(trial.number)) is not None:
            known.raised = trainings.kind_of(error)
        frame: FrameType | None = sys._getframe()  # noqa: SLF001
        while frame is not None and frame.f_code is not _RUN_TRIAL:
            frame = frame.f_back
        caught = (optuna.TrialPruned, *(frame.f_locals.get("catch", ()) if frame is not None else ()))
        if frame is not None and not isinstance(error, caught):
            self._raised = trainings.kind_of(error)

    def known(self, number: int) -> Run | None:
        """Return the run of a trial that is going on or over; None where this home has none."""
        if (live := self._trials.get(number)) is not None:
            return live.run
        config = self._parent.config.replace(run_id=None)
        return attached_run(config, self._uid_of(number), parent=self._parent)

    def record(self, trial: FrozenTrial, known: _Trial | None = None) -> None:
        """Record a trial that is over, and end its run."""
        known = known or self._trials.pop(trial.number, None)
        tags, end_ms, is_best = self._tags_of(trial), _ms(trial.datetime_complete), False
        status = _STATUSES[trial.state]
        if known is None:
            run = self._open_run(trial.number, trial.datetime_start, tags, is_over=True)
        else:
            run = known.run
            run.set_tags(tags)
            if known.raised is not None and trial.state is TrialState.FAIL:
                run.set_tag("exception", known.raised.__name__)
                status = _status_of(known.raised)
        try:
            run.log_params(trial.params)
            if trial.values is not None:
                values = dict(zip(self._options.names, trial.values, strict=True))
                run.log_metrics(values, 0, timestamp_ms=end_ms)
            _log_intermediate_values(run, f"intermediate_{self._options.names[0]}", trial)
            is_best = self._rank(trial, run, end_ms)
        finally:
            run.end(status, end_ms=end_ms, keeps_models=is_best)

    def _settle(self, number: int) -> None:
        """Record a trial of which no callback heard, if it is over."""
        known, study = self._trials.pop(number, None), self._study
        if known is None or study is None:
            return
        trial = _stored(study, known.id)
        if trial.state.is_finished():
            self.record(trial, known)
        elif known.raised is not None:  # Optuna lets go of a trial after SystemExit
            known.run.end(_status_of(known.raised))
        else:
            self._trials[number] = known

    def _open_run(
        self,
        number: int,
        start: datetime | None,
        tags: Mapping[str, Any],
        *,
        holds_models: bool = False,
        is_over: bool = False,
    ) -> Run:
        return open_child(
            self._parent,
            self._uid_of(number),
            name=self._options.trial_name or str(number),
            start_ms=_ms(start),
            tags={"number": number, **self._options.trial_tags, **tags},
            holds_models=holds_models,
            is_over=is_over,
        )

    @property
    def _parent(self) -> Run:
        assert self._run is not None, "enter() opens it"
        return self._run

    def _uid_of(self, number: int) -> str:
        return _hash(self._uid, number)

    def _tags_of(self, trial: FrozenTrial) -> dict[str, Any]:
        options, directions = self._options, self._directions
        return {
            "number": trial.number,
            "datetime_start": trial.datetime_start,
            "datetime_complete": trial.datetime_complete,
            "state": trial.state.name,
            "direction": directions if len(directions) > 1 else directions[0],
            **{f"{name}_distribution": kind for name, kind in trial.distributions.items()},
            **(trial.user_attrs if options.tags_trial else {}),
            **(self._study.user_attrs if options.tags_study and self._study is not None else {}),
        }

    # --- the best ---------------------------------------------------------------------------------

    def _best_trial(self, study: optuna.Study) -> FrozenTrial | None:
        if len(self._directions) > 1:
            return None
        try:
            return study.best_trial
        except ValueError:  # none is complete, or none feasible
            return None

    def _rank(self, trial: FrozenTrial, run: Run, end_ms: int) -> bool:
        """Tell whether a trial is the best so far, and record on the study's run which one is."""
        if len(self._directions) > 1:
            # Asked only where it matters: finding the front takes longer than recording a trial.
            front = self._study.best_trials if self._study is not None and run.has_models else ()
            return trial.number in {best.number for best in front}
        with self._lock:
            self._highest = max(self._highest, trial.number)
            now_s = time.monotonic()
            if self._study is not None and (self._may_be_best(trial) or now_s - self._ranked_s > _IDLE_S):
                # Other processes find better ones, too, and constraints may rule this one out.
                self._best, self._ranked_s = self._best_trial(self._study), now_s
            best = self._best
            if best is None:
                return False
            is_best = best.number == trial.number
            if is_best:
                self._best_run = run
                tags = {f"best_params.{name}": value for name, value in best.params.items()}
                self._parent.set_tags(
                    {"best_trial": best.number, "best_run": f"{LOCAL_PREFIX}{run.uid}", **tags}
                )
            if trial.state is TrialState.COMPLETE:
                # Trials may end out of order; a run's value is the one at its highest step.
                self._log_best(best, self._highest, end_ms)
        return is_best

    def _log_best(self, best: FrozenTrial, step: int, at_ms: int | None = None) -> None:
        if (step, best.value) != self._told_best:
            self._told_best = step, best.value
            self._parent.log_metrics({f"best_{self._options.names[0]}": best.value}, step, timestamp_ms=at_ms)

    def _may_be_best(self, trial: FrozenTrial) -> bool:
        if trial.state is not TrialState.COMPLETE or trial.value is None:
            return False
        best = self._best
        if best is None or best.value is None or best.number == trial.number:
            return True
        return trial.value > best.value if self._directions[0] == "MAXIMIZE" else trial.value < best.value

    # --- the end ----------------------------------------------------------------------------------

    def is_over(self, *, is_asked: bool = False) -> bool:
        """Tell whether no trial of this process runs any more.

        Args:
            is_asked: Somebody wants to know; otherwise the next ``optimize`` gets a moment to begin.
        """
        now_s = time.monotonic()
        if self._study is None or (not is_asked and now_s - self._moved_s < _IDLE_S):
            return False
        if self._goes_on():
            return False
        with self._closing:
            for number in list(self._trials):
                with unharmed(f"trial {number}"):
                    self._settle(number)
            self._moved_s = now_s  # the storage is not asked at every look
            return not self._trials

    def _goes_on(self) -> bool:
        return any(study in self._objects for study in _optimized())

    def close(self, kind: type[BaseException] | None = None, *, is_final: bool = False) -> None:
        """Record what can be said of the study as a whole, and end its run, unless it goes on meanwhile.

        Args:
            kind: Class of the exception that ended it, where it is known.
            is_final: Also end what is still going on.
        """
        with self._closing:
            moves, study = self._moves, self._study
            if study is None or self._run is None:
                return
            # It was over when somebody looked, who may have waited since for another one to close it.
            if not is_final and self._goes_on():
                return
            found = self._what_ended(study)
            kind = kind or found
            for number in list(self._trials):
                with unharmed(f"trial {number}"):
                    self._settle(number)
                if is_final and (left := self._trials.pop(number, None)) is not None:
                    left.run.end("KILLED")
            if not self._run.is_ended:
                with unharmed("what the study found"):
                    self._sum_up(self._run, study)
                self._run.sync()
            with self._lock:
                if moves == self._moves or is_final:
                    self._study = self._raised = None
                    leave(self)
                    if self._options.run is None:
                        self._run.end(trainings.status_of(kind))

    def _what_ended(self, study: optuna.Study) -> type[BaseException] | None:
        """Return the exception that ended the study, as far as it can be known.

        Without the decorator that is one that nobody caught. Of its trial no callback heard.
        """
        error = sys.exc_info()[1] or getattr(sys, "last_value", None)
        if self._raised is not None or error is None or error is self._seen_error:
            return self._raised
        self._seen_error = error
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not any(one.f_code is _OPTIMIZE and one.f_locals.get("study") in self._objects for one in frames):
            return None
        for trial in [one.f_locals.get("trial") for one in frames if one.f_code is _RUN_TRIAL]:
            if isinstance(trial, optuna.Trial) and trial.number not in self._trials:
                with unharmed(f"trial {trial.number}"):
                    self.record(_stored(study, trial._trial_id))  # noqa: SLF001
        return trainings.kind_of(error)

    def _sum_up(self, run: Run, study: optuna.Study) -> None:
        trials = study.get_trials(deepcopy=False)
        # One that is still to come has a step of its own.
        last = max((trial.number for trial in trials if trial.state.is_finished()), default=0)
        counts = Counter(trial.state for trial in trials)
        run.log_metrics({f"trials_{state.name.lower()}": counts[state] for state in _STATUSES}, last)
        if not counts[TrialState.COMPLETE]:
            return
        if len(self._directions) > 1:
            best = study.best_trials
            run.log_metrics({"pareto_trials": len(best)}, last)
            run.log_dict([_facts(trial) for trial in best], "pareto_trials.json")
        elif (top := self._settled_best(study, last)) is not None:
            run.log_dict(_facts(top), "best_trial.json")
            found = self._best_run
            if found is not None and found.has_models and found.uid == self._uid_of(top.number):
                self._best_run = None
                run.take_models(found)
                if run.config.register_model and run.config.model_name:
                    run.register_model(run.config.model_name)
        # Of equal trials nothing can be said, except by a warning.
        differ = len({tuple(trial.values) for trial in trials if trial.state is TrialState.COMPLETE}) > 1
        if differ:
            _log_importances(run, study)
        _log_plots(run, study, trials, with_importances=differ)

    def _settled_best(self, study: optuna.Study, last: int) -> FrozenTrial | None:
        """Return the best trial, which the curve has at its end: at step *last*, unless it has gone on meanwhile."""
        with self._lock:
            top = self._best_trial(study)
            # Another process found it, or told a worse one at a higher step than any trial's of ours.
            is_last = self._highest <= last
            if top is not None and is_last and (self._told_best[1] != top.value or self._highest < last):
                self._log_best(top, last)
            return top


_registry = threading.Lock()
_by_uid: weakref.WeakValueDictionary[str, _Study] = weakref.WeakValueDictionary()


def _after_fork_in_child() -> None:
    # They are the parent's.
    global _registry  # noqa: PLW0603
    _registry = threading.Lock()
    _by_uid.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

# --- what only Optuna knows -------------------------------------------------------------------------

_OPTIMIZE = _engine._optimize.__code__  # noqa: SLF001 - nobody else knows whether Optuna optimizes
_RUN_TRIAL = _engine._run_trial.__code__  # noqa: SLF001


def _optimized() -> list[Any]:
    """Return the studies that some thread of this process optimizes at this moment."""
    found = []
    for top in sys._current_frames().values():  # noqa: SLF001
        frame: FrameType | None = top
        while frame is not None:
            if frame.f_code is _OPTIMIZE:
                found.append(frame.f_locals.get("study"))
            frame = frame.f_back
    return found


def _status_of(kind: type[BaseException]) -> str:
    return "KILLED" if issubclass(kind, optuna.TrialPruned) else trainings.status_of(kind)


def _hash(*parts: object) -> str:
    return blake2b("\0".join(map(str, parts)).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def _token(study: optuna.Study) -> str:
    """Return what tells a study from every other, the same in all processes and after a copy."""
    storage, study_id = study._storage, study._study_id  # noqa: SLF001 - system attributes have no other door
    if known := storage.get_study_system_attrs(study_id).get(_TOKEN_KEY):
        return str(known)
    # Derived, not drawn: two processes that come at the same time come to the same. Kept, because a
    # database may round the time.
    first = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, 0))
    token = _hash(study.study_name, first.datetime_start or uuid.uuid4())
    with unharmed("the study's token in its storage"):
        storage.set_study_system_attr(study_id, _TOKEN_KEY, token)
    return token


def _stored(study: optuna.Study, trial_id: int) -> FrozenTrial:
    return study._storage.get_trial(trial_id)  # noqa: SLF001 - study.trials would read all of them


def _ms(at: datetime | None) -> int:
    return int(at.timestamp() * 1000) if at is not None else time.time_ns() // 1_000_000


def _facts(trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "values": trial.values,
        "params": trial.params,
        "user_attrs": trial.user_attrs,
    }


def _log_intermediate_values(run: Run, name: str, trial: FrozenTrial) -> None:
    """Record what the trial reported; Optuna keeps no times, so they are spread over the trial's."""
    reported = sorted(trial.intermediate_values.items())
    start_ms, end_ms = _ms(trial.datetime_start), _ms(trial.datetime_complete)
    for index, (step, value) in enumerate(reported, start=1):
        at_ms = start_ms + (end_ms - start_ms) * index // len(reported)
        run.log_metrics({name: value}, step, timestamp_ms=at_ms)


def _log_importances(run: Run, study: optuna.Study) -> None:
    # PED-ANOVA takes milliseconds where Optuna's older default takes 14 s for 1000 trials, and it
    # draws no random numbers. With several objectives older releases need to be told which.
    with suppress(ValueError, RuntimeError):
        run.log_dict(get_param_importances(study, evaluator=_evaluator()), "param_importances.json")


def _evaluator() -> PedAnovaImportanceEvaluator:
    # Optuna 4 calls it experimental, by a warning at each, under which its own __init__ lies.
    made = PedAnovaImportanceEvaluator.__new__(PedAnovaImportanceEvaluator)
    inspect.unwrap(PedAnovaImportanceEvaluator.__init__)(made)
    return made


def _log_plots(run: Run, study: optuna.Study, trials: list[FrozenTrial], *, with_importances: bool) -> None:
    # Only plotly's: those for matplotlib change its style for the whole process.
    if not run.config.log_artifacts or importlib.util.find_spec("plotly") is None:
        return
    from optuna import visualization as draw

    evaluator = _evaluator()
    plots: dict[str, Callable[[], Any]] = {}
    if len(study.directions) == 1:
        plots["optimization_history"] = lambda: draw.plot_optimization_history(study)
        if any(trial.params for trial in trials):
            plots["slice"] = lambda: draw.plot_slice(study)
            plots["parallel_coordinate"] = lambda: draw.plot_parallel_coordinate(study)
            if with_importances:
                plots["param_importances"] = lambda: draw.plot_param_importances(study, evaluator=evaluator)
        if any(trial.intermediate_values for trial in trials):
            plots["intermediate_values"] = lambda: draw.plot_intermediate_values(study)
    elif len(study.directions) <= 3:
        plots["pareto_front"] = lambda: draw.plot_pareto_front(study)
    for name, plot in plots.items():
        with unharmed(f"the plot {name}"):
            run.log_figure(plot(), f"plots/{name}.html")
