"""Searches and cross-validations: a child run per candidate or fold, recorded while they go on.

::

    worker: a fold ends ─► a line in its candidate's file ─ was it the last? ─► child run, with true times
                            in a folder that all processes see
    at the end: what no worker told of ─► child run

scikit-learn hands the scores of a fold to nobody before the whole search is over. They are read where
they are, in the call of ``_fit_and_score`` that is on the stack: when it tells its callback that the fold
is over (a search, from 1.9 on), or when it calls the scorer (a cross-validation). Nothing is replaced in
scikit-learn, and the search that is fitted is the user's class with the user's arguments.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn import model_selection
from sklearn.base import is_classifier
from sklearn.metrics import check_scoring
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline

from mlpipeline.core.config import MLflowConfig
from mlpipeline.sklearn.facts import about, checked, log_dataset, shown, shown_params
from mlpipeline.sklearn.progress import Hook, ProgressHook, hooked
from mlpipeline.tracking import trainings
from mlpipeline.tracking.home import new_uid
from mlpipeline.tracking.opening import open_child, open_run
from mlpipeline.tracking.recorded import unharmed
from mlpipeline.tracking.surroundings import call_of, is_within

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from mlpipeline.tracking.run import Run

_VALIDATION = "sklearn.model_selection._validation"

_MOST_CHILDREN = 1000
"""Candidates or folds beyond so many are in the table of the parent only."""


def is_in_validation() -> bool:
    """Whether a search, a cross-validation or a learning curve is what fits here."""
    functions = (
        "_fit_and_score",
        "_fit_and_predict",
        "_incremental_fit_estimator",
        "_permutation_test_score",
    )
    return any(is_within(function, _VALIDATION) for function in functions)


def is_search(estimator: Any) -> bool:
    """Whether an estimator is a search over candidates."""
    return isinstance(estimator, BaseSearchCV) or _is_optuna_search(estimator)


def _is_optuna_search(estimator: Any) -> bool:
    return type(estimator).__module__.startswith("optuna_integration") and hasattr(estimator, "callbacks")


@contextlib.contextmanager
def observed(estimator: Any, original: Any, run: Run) -> Iterator[None]:
    """Observe a clone's fit from inside, through the hooks that its class offers, and leave none behind.

    Args:
        estimator: The clone that is fitted in the block.
        original: The user's.
        run: Where to record.
    """
    if not run.is_enabled:
        yield
    elif _is_optuna_search(estimator):
        # A study is the user's, to be looked at or continued; a clone would keep its trials for itself.
        estimator.set_params(
            study=original.study, callbacks=[*(original.callbacks or ()), partial(_log_trial, run)]
        )
        try:
            yield
        finally:
            estimator.set_params(callbacks=original.callbacks)
    elif isinstance(estimator, BaseSearchCV):
        with _Board.shared(run) as board:
            with hooked([estimator], _FoldHook(board)):
                yield
            with unharmed("candidates of the search"):
                board.complete_candidates(estimator.cv_results_)
    else:
        parts = [estimator]
        if isinstance(estimator, Pipeline) and estimator.memory is None:  # its cache would keep the hook
            parts += [step for _, step in estimator.steps]
        with hooked(parts, ProgressHook(run)):
            yield


def log_search(run: Run, search: Any) -> None:
    """Record what a search found, when it is over."""
    import pandas as pd

    results = search.cv_results_
    run.log_text(pd.DataFrame(dict(results)).to_csv(index=False), "cv_results.csv")
    found = {"best_cv_score": "best_score_", "refit_time_s": "refit_time_"}
    values = {name: getattr(search, attribute, None) for name, attribute in found.items()}
    run.log_metrics({name: value for name, value in values.items() if value is not None}, 0)
    best = getattr(search, "best_params_", None) or {}
    run.log_params({f"best_{name}": shown(value) for name, value in best.items()})


def cross_validate(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    config: Any = None,
    scoring: Any = None,
    cv: Any = None,
    error_score: Any = np.nan,
    **options: Any,
) -> dict[str, Any]:
    """Do what scikit-learn's ``cross_validate`` does, and record it: a run, with a child run per fold.

    Args:
        estimator: The estimator.
        X: Data.
        y: Targets.
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default.
        scoring: As scikit-learn's.
        cv: As scikit-learn's.
        error_score: As scikit-learn's.
        **options: All others of scikit-learn's.

    Returns:
        What scikit-learn's returns, value by value.
    """
    config = MLflowConfig.of(config)
    ordinary = partial(
        model_selection.cross_validate, checked(estimator), X, y, error_score=error_score, **options
    )
    if is_in_validation() and trainings.enclosing() is None:
        return dict(ordinary(scoring=scoring, cv=cv))
    run = open_run(config)
    if not run.is_enabled:
        return dict(ordinary(scoring=scoring, cv=cv))
    try:
        with unharmed("the parameters"):
            run.set_tags(about(estimator))
            run.log_params({**shown_params(estimator), "cv": shown(cv), "scoring": shown(scoring)})
            log_dataset(run, X, y, "training")
        with _Board.shared(run) as board, trainings.inside(run):
            heard = {"scoring": scoring, "cv": cv}
            # What is wrong with them scikit-learn says itself.
            with contextlib.suppress(Exception):
                scorer = check_scoring(estimator, scoring, raise_exc=error_score == "raise")
                splits = _NumberedSplits(model_selection.check_cv(cv, y, classifier=is_classifier(estimator)))
                heard = {"scoring": _HeardScorer(scorer, board, splits.numbers), "cv": splits}
            results: dict[str, Any] = ordinary(**heard)
            with unharmed("folds of the cross-validation"):
                board.complete_folds(results)
        with unharmed("the scores"):
            folds = [_numbers(_fold_of(results, index)) for index in range(len(results["fit_time"]))]
            run.log_metrics(_summed(folds), 0)
    except BaseException as error:
        run.end(trainings.status_of(trainings.kind_of(error)))
        raise
    run.end()
    return results


# --- what folds tell, and to whom --------------------------------------------------------------------


class _Board:
    """Where the folds of one search or cross-validation are put together, whatever process ran them.

    Each fold is a line in the file of its candidate. Who adds the last one takes the file away, which
    only one can, and records the candidate.

    Args:
        run: The run of the whole; pickled, it is a handle on the same.
        folder: A folder that all processes see.
    """

    def __init__(self, run: Run, folder: str) -> None:
        self._run = run
        self._folder = folder

    @classmethod
    @contextlib.contextmanager
    def shared(cls, run: Run) -> Iterator[_Board]:
        """Make one; what is unfinished when the block raises is recorded as it stands."""
        with tempfile.TemporaryDirectory(prefix="mlpipeline-", ignore_cleanup_errors=True) as folder:
            board = cls(run, folder)
            try:
                yield board
            except BaseException as error:
                with unharmed("unfinished candidates"):
                    for path in sorted(Path(folder).glob("*.folds")):
                        board._record(path.stem, _read(path), trainings.status_of(trainings.kind_of(error)))
                raise

    def add(self, key: str, fold: Mapping[str, Any], count: int) -> None:
        """Add a fold to the candidate *key*, which has *count* of them."""
        if self._is_done(key):
            return
        path = Path(self._folder, f"{key}.folds")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0) as file:
            file.write(json.dumps(fold, default=str).encode() + b"\n")
        with contextlib.suppress(FileNotFoundError):  # another process took it
            if path.read_bytes().count(b"\n") >= count:
                taken = path.with_suffix(".done")
                path.rename(taken)
                self._record(key, _read(taken))

    def complete_candidates(self, results: Mapping[str, Any]) -> None:
        """Record the candidates that no fold told of: their class has no hooks, or their workers no folder."""
        batches = list(results.get("iter", [0] * len(results["params"])))[:_MOST_CHILDREN]
        for index, batch in enumerate(batches):
            key = f"{batch}-{index - batches.index(batch)}"
            if not self._is_done(key):
                self._record(key, list(_folds_of(results, index)))

    def complete_folds(self, results: Mapping[str, Any]) -> None:
        """Record the folds that the scorer did not hear of: their fit failed."""
        count = min(len(results["fit_time"]), _MOST_CHILDREN)
        missing = [index for index in range(count) if not self._is_done(str(index))]
        for index in missing:
            fold = _fold_of(results, index)
            is_failed = len(missing) < count or np.isnan(list(_numbers(fold).values())).any()
            self._record(str(index), [{**fold, "error": "no score" if is_failed else None}])

    def _is_done(self, key: str) -> bool:
        return Path(self._folder, f"{key}.done").exists()

    def _record(self, key: str, folds: list[dict[str, Any]], status: str | None = None) -> None:
        """Record one child run, from its beginning to its end."""
        is_candidate = "params" in folds[0]
        name = f"candidate {key.removeprefix('0-')}" if is_candidate else f"fold {key}"
        start_s = min(fold["start_s"] for fold in folds)
        end_s = max(fold["end_s"] for fold in folds)
        child = open_child(self._run, new_uid(), name=name, start_ms=int(start_s * 1000), is_over=True)
        child.log_params(folds[0].get("params", {}))
        rows = [_numbers(fold) for fold in folds]
        for fold, row in zip(folds, rows, strict=True):
            child.log_metrics(row, fold["fold"])
        if is_candidate and status is None:
            child.log_metrics(_summed(rows), 0)
        errors = [fold["error"] for fold in folds if fold.get("error")]
        if errors:
            child.set_tags({"mlpipeline.error": errors[0]})
        child.end(status or ("FAILED" if errors else "FINISHED"), end_ms=int(end_s * 1000))


def _read(path: Path) -> list[dict[str, Any]]:
    folds = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return sorted(folds, key=lambda fold: fold["fold"])


def _numbers(fold: Mapping[str, Any]) -> dict[str, float]:
    """Return a fold's scores and times under the names that ``cv_results_`` gives them."""
    found = {}
    for part in ("test", "train"):
        scores = fold.get(part)
        for name, value in scores.items() if isinstance(scores, dict) else [("score", scores)]:
            if value is not None:
                found[f"{part}_{name}"] = float(value)
    return {**found, "fit_time": float(fold["fit_time"]), "score_time": float(fold["score_time"])}


def _summed(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return mean and standard deviation, computed as scikit-learn does, to the last bit."""
    found = {}
    for name in rows[0]:
        values = np.array([[row.get(name, np.nan) for row in rows]], dtype=np.float64)
        mean = np.average(values, axis=1)
        found[f"mean_{name}"] = float(mean[0])
        found[f"std_{name}"] = float(np.sqrt(np.average((values - mean[:, np.newaxis]) ** 2, axis=1))[0])
    return found


def _fold_of(results: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return a fold from what ``cross_validate`` returns; when it was is not known, only for how long."""
    parts = {part: _part(results, f"{part}_", index) for part in ("test", "train")}
    times = {name: float(results[name][index]) for name in ("fit_time", "score_time")}
    now_s = time.time()
    return {"fold": index, "start_s": now_s - sum(times.values()), "end_s": now_s, **parts, **times}


def _folds_of(results: Mapping[str, Any], index: int) -> Iterator[dict[str, Any]]:
    """Yield a candidate's folds from ``cv_results_``; when they were is not known, only for how long."""
    times = {name: float(results[f"mean_{name}"][index]) for name in ("fit_time", "score_time")}
    params = {name: shown(value) for name, value in results["params"][index].items()}
    splits = sorted({int(key.split("_")[0][5:]) for key in results if key.startswith("split")})
    now_s, took_s = time.time(), sum(times.values())
    for split in splits:
        parts = {part: _part(results, f"split{split}_{part}_", index) for part in ("test", "train")}
        is_failed = any(np.isnan(value) for scores in parts.values() for value in scores.values())
        end_s = now_s - took_s * (len(splits) - 1 - split)
        when = {"start_s": end_s - took_s, "end_s": end_s}
        yield {
            "fold": split,
            "params": params,
            "error": "no score" if is_failed else None,
            **when,
            **parts,
            **times,
        }


def _part(results: Mapping[str, Any], prefix: str, index: int) -> dict[str, float]:
    return {
        key.removeprefix(prefix): float(value[index])
        for key, value in results.items()
        if key.startswith(prefix)
    }


class _FoldHook(Hook):
    """Tells the board of each fold of a search, in the process that ran it.

    Args:
        board: Who is told.
    """

    def __init__(self, board: _Board) -> None:
        self._board = board

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        """Read the fold where scikit-learn has it."""
        with unharmed("a fold of the search"):
            call: Any = call_of("_fit_and_score", _VALIDATION)
            # Around the search, there may be another one that it is a candidate of.
            if call is None or call.f_locals.get("callback_ctx") is not context:
                return
            at = call.f_locals
            (candidate, _), (split, count) = at["candidate_progress"], at["split_progress"]
            if candidate >= _MOST_CHILDREN:
                return
            now_s = time.time()
            took_s = now_s - at["start_time"]
            fit_s = at.get("fit_time", took_s)
            params = {name: shown(value) for name, value in at["parameters"].items()}
            if context.parent.task_name == "halving-iteration":
                params["iteration"] = context.parent.task_id
            cause = sys.exc_info()[1]
            fold = {
                "fold": split,
                "start_s": at["start_time"],
                "end_s": now_s,
                "fit_time": fit_s,
                "score_time": at.get("score_time", took_s - fit_s),
                "params": params,
                "test": _plain(at.get("test_scores")),
                "train": _plain(at.get("train_scores")),
                "error": _last_line(at["result"].get("fit_error")) or (repr(cause) if cause else None),
            }
            self._board.add(f"{context.parent.task_id}-{candidate}", fold, count)


class _HeardScorer:
    """A scorer that tells the board of each fold of a cross-validation; in all else the user's.

    Args:
        scorer: The user's.
        board: Who is told.
        numbers: Numbers of the folds, by `_digest`.
    """

    def __init__(self, scorer: Any, board: _Board, numbers: _Numbers) -> None:
        self._mlpipeline = (scorer, board, numbers)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            scores = self._mlpipeline[0](*args, **kwargs)
        except Exception as error:
            self._tell(float("nan"), repr(error))
            raise
        self._tell(scores)
        return scores

    def _tell(self, scores: Any, error: str | None = None) -> None:
        _, board, numbers = self._mlpipeline
        with unharmed("a fold of the cross-validation"):
            call = call_of("_fit_and_score", _VALIDATION)
            at = call.f_locals if call is not None else {}
            is_train = "test_scores" in at
            if not at or (error is None and is_train != at["return_train_score"]):
                return
            number = numbers.of_folds.get(_digest(at["train"], at["test"]))
            if number is not None:
                now_s = time.time()
                fold = {
                    "fold": number,
                    "start_s": at["start_time"],
                    "end_s": now_s,
                    "fit_time": at["fit_time"],
                    "score_time": at.get("score_time", now_s - at["start_time"] - at["fit_time"]),
                    "test": _plain(at["test_scores"] if is_train else scores),
                    "train": _plain(scores) if is_train else None,
                    "error": error,
                }
                board.add(str(number), fold, 1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mlpipeline[0], name)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # scikit-learn asks isinstance() whether there are several scores, and whose failure is whose.
        return type(self._mlpipeline[0])

    def __reduce__(self) -> Any:
        return _HeardScorer, self._mlpipeline


class _Numbers:
    """Which fold is which, as far as they have been made; the dict is replaced, never changed."""

    def __init__(self) -> None:
        self.of_folds: dict[str, int] = {}


class _NumberedSplits:
    """A splitter that counts its splits; in all else the user's, as lazy as it was.

    Args:
        splitter: The user's.
    """

    def __init__(self, splitter: Any) -> None:
        self._splitter = splitter
        self.numbers = _Numbers()

    def split(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the user's splits."""
        for number, (train, test) in enumerate(self._splitter.split(*args, **kwargs)):
            if number < _MOST_CHILDREN:
                # It may be on its way to a worker, in another thread, at this moment.
                self.numbers.of_folds = {**self.numbers.of_folds, _digest(train, test): number}
            yield train, test

    def __getattr__(self, name: str) -> Any:
        if name == "_splitter":
            raise AttributeError(name)
        return getattr(self._splitter, name)


def _digest(train: Any, test: Any) -> str:
    digest = blake2b(digest_size=16)
    for rows in (train, test):
        digest.update(np.asarray(rows).tobytes() + b"|")
    return digest.hexdigest()


def _plain(scores: Any) -> Any:
    """Return scores as JSON has them; a text is the traceback of a scorer that failed."""
    if isinstance(scores, dict):
        return {str(name): _plain(value) for name, value in scores.items()}
    if scores is None:
        return None
    return float("nan") if isinstance(scores, str) else float(scores)


def _last_line(traceback: str | None) -> str | None:
    return traceback.strip().splitlines()[-1] if traceback else None


def _log_trial(run: Run, _: Any, trial: Any) -> None:
    """Record a trial of an `OptunaSearchCV`, which Optuna tells of when it is over."""
    with unharmed(f"trial {trial.number}"):
        config = run.config.replace(run_id=None, run_name=f"trial {trial.number}", log_system_metrics=False)
        child = open_run(config, parent=run, start_ms=_ms(trial.datetime_start))
        child.log_params(trial.params)
        for step, value in trial.intermediate_values.items():
            child.log_metrics({"intermediate_value": value}, step)
        summary = {}
        for name, value in trial.user_attrs.items():
            if name.startswith("split"):
                split, _, score = name.removeprefix("split").partition("_")
                child.log_metrics({score: value}, int(split))
            elif name.startswith(("mean_", "std_")):
                summary[name] = value
        child.log_metrics(summary, 0)
        status = {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}.get(trial.state.name, "FAILED")
        child.end(status, end_ms=_ms(trial.datetime_complete))


def _ms(when: datetime | None) -> int | None:
    return int(when.timestamp() * 1000) if when is not None else None
