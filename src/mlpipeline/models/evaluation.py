"""`MLflowIntegratedEvaluator`: how good a model is on rows held back, and whether that is good enough.

::

    lookup.found ─► Subject ─┐
    data.load_part ─► rows ──┴─► scores ─► Run: metrics, linked to the logged model and the data set
                                  ├─► plots (SVG), report.html ─► Run, and <artifacts_path>/evaluation/
                                  └─► thresholds ─► success
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.credentials import public_uri
from mlpipeline.core.errors import ConfigError, UsageError, nearest
from mlpipeline.core.interfaces import ExecutionContext, ExecutionResult
from mlpipeline.models import data, estimators, lookup, scoring
from mlpipeline.models.checking import refuse_mistakes
from mlpipeline.models.execution import RUN_FACTS, executed, facts_of, recording
from mlpipeline.models.report import Verdict, html_report
from mlpipeline.models.settings import Settings, TrainingSection
from mlpipeline.tracking import charts
from mlpipeline.tracking.account import LOCAL_PREFIX
from mlpipeline.tracking.recorded import unharmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pandas as pd

    from mlpipeline.models.data import Part
    from mlpipeline.models.lookup import Subject
    from mlpipeline.models.settings import Bounds, EvaluationSection, TaskType
    from mlpipeline.tracking.run import Run

FOLDER = "evaluation"
"""Of the files, in the artifacts folder and among the run's artifacts."""

REPORT = "report.html"

FACTS: dict[str, Any] = {
    **RUN_FACTS,
    **dict.fromkeys(("evaluated_model_uri", "evaluated_run_id", "evaluated_on", "evaluated_rows")),
    "thresholds": {},
}
"""The metadata of every answer."""

_IMPORTANCE_ROWS = 1000
_IMPORTANCE_REPEATS = 5
_IMPORTANCE_S = 20.0
"""After so long no further repetition of the permutations begins; every column has had as many."""


class MLflowIntegratedEvaluator:
    """Evaluates a model, and records the evaluation in MLflow.

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default. What
            the context has under ``mlflow:`` wins.
        **overrides: `MLflowConfig` options that win over *config*.

    Attributes:
        config: The configuration.
        logger: Where it tells what it does.
    """

    def __init__(self, config: Any = None, **overrides: Any) -> None:
        self.config = MLflowConfig.of(config, **overrides)
        self.logger = logging.getLogger("mlpipeline.evaluation")

    def setup(self, context: ExecutionContext) -> None:
        """Check what the context says; `execute` does so by itself.

        Raises:
            ConfigError: It cannot be right.
        """
        refuse_mistakes(_alone(self._settings(context)[1]))

    def execute(self, context: ExecutionContext) -> ExecutionResult:
        """Evaluate.

        The model is ``config["evaluation"]["model"]``; else what the stage before names in the context's metadata
        (``mlflow_model_uri`` or ``mlflow_run_id``); else what a training left in ``artifacts_path``. Waits until
        all is in MLflow, or MLflow is found to be unreachable; then the id is a local one, which every command
        here resolves later.

        Args:
            context: ``config["evaluation"]`` says what to compute, ``config["data"]`` on what; without ``data`` on
                ``test_preprocessed.parquet`` in ``artifacts_path``. Without ``evaluation``: the usual metrics.

        Returns:
            ``success``, False also where a threshold is missed: then ``error_message`` names it and
            ``exception`` is None; ``metrics``, under the names as they were written; ``artifacts``, the paths of report
            and plots; ``metadata`` with ``mlflow_run_id``, ``mlflow_experiment_id``, ``mlflow_tracking_uri``,
            ``mlflow_is_delivered``, ``evaluated_model_uri`` and ``evaluated_run_id`` (None where MLflow has no such
            model), ``evaluated_on``, ``evaluated_rows``, and ``thresholds``: value, bound and whether it holds, by
            metric; each is always there, and None where it is not known. What went wrong is in ``error_message`` and ``exception``; only Ctrl-C and SystemExit are raised.
        """
        return executed(self._evaluate, context, FACTS)

    def _settings(self, context: ExecutionContext) -> tuple[MLflowConfig, Settings]:
        settings = Settings.of(context.config, only=("mlflow", "data", "training", "evaluation"))
        return self.config.replace(**settings.mlflow), settings

    def _evaluate(self, context: ExecutionContext) -> ExecutionResult:
        config, settings = self._settings(context)
        refuse_mistakes(_alone(settings), context.artifacts_path)
        wanted, trust = settings.evaluation.model, settings.evaluation.trust
        with lookup.found(wanted, context, config, trust=trust) as subject:
            work = _work_of(subject, settings, context)
            return self._evaluated(config, settings.evaluation, work, context)

    def _evaluated(
        self, config: MLflowConfig, section: EvaluationSection, work: _Work, context: ExecutionContext
    ) -> ExecutionResult:
        subject = work.subject
        part = work.part
        context.logger.info(
            "evaluating %s on the %d %s rows of %s", subject.title, len(work.X), part.name, part.source
        )
        notes = list(work.notes(section.on))
        for note in notes:
            context.logger.warning("%s", note)
        tags = {
            "mlpipeline.task_type": work.task_type,
            "mlpipeline.evaluated_on": part.name,
            "mlpipeline.evaluated_model": subject.uri or subject.title,
        }
        if subject.run_id:
            tags["mlpipeline.evaluated_run"] = subject.run_id
        with recording(config, context, tags=tags) as run:
            digest = _log_rows(run, part, subject)
            metrics = _metrics(work, section, context.logger)
            verdicts = [_verdict(name, metrics[name], bounds) for name, bounds in section.thresholds.items()]
            missed = [verdict for verdict in verdicts if not verdict.holds]
            _log_metrics(run, metrics, subject, (part.name, digest))
            if verdicts:
                run.set_tags({"mlpipeline.thresholds": "failed" if missed else "passed"})
            drawn = dict(_drawn(work, section, next(iter(metrics), None))) if section.plots else {}
            files = {f"{name}.svg": svg for name, svg in drawn.items()}
            if section.report:
                with unharmed("the report"):
                    files[REPORT] = _report(run, work, metrics, verdicts, drawn, digest, notes)
            artifacts = _keep(files, run, context.artifacts_path)
        facts = {
            **facts_of(run),
            "evaluated_model_uri": subject.uri,
            "evaluated_run_id": subject.run_id,
            "evaluated_on": part.name,
            "evaluated_rows": len(work.X),
            "thresholds": {
                verdict.name: {key: value for key, value in asdict(verdict).items() if key != "name"}
                for verdict in verdicts
            },
        }
        result = ExecutionResult(not missed, artifacts=artifacts, metrics=metrics, metadata=facts)
        if missed:
            result.error_message = "; ".join(
                f"{verdict.name} is {verdict.value:.6g}, and must be {verdict.bound}" for verdict in missed
            )
            context.logger.error("%s failed: %s", context.stage_name, result.error_message)
        return result


def _alone(settings: Settings) -> Settings:
    """Return settings without the training's: the model is there already."""
    return replace(settings, training=TrainingSection())


# --- what is evaluated on what -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """A model and rows that fit it.

    Attributes:
        subject: The model, and what is known of it.
        part: The rows as they were read.
        X: The columns that the model needs.
        task_type: What the model does.
    """

    subject: Subject
    part: Part
    X: pd.DataFrame
    task_type: TaskType

    @property
    def model(self) -> Any:
        return self.subject.model

    @property
    def y(self) -> Any:
        return self.part.table.y

    def taken(self, X: pd.DataFrame) -> Any:
        """Return rows as the model takes them: one that was trained without names warns of them."""
        is_nameless = self.subject.columns is None and hasattr(self.model, "n_features_in_")
        return X.to_numpy() if is_nameless else X

    def notes(self, on: str | None) -> Iterator[str]:
        """Yield what a reader of the figures must know."""
        if on is None and self.part.name != "test":
            yield (
                f"There are no test rows in {self.part.source}: this was evaluated on the {self.part.name} rows."
                + " The model has seen them, and does better on them than it will."
                * (self.part.name == "train")
            )
        classes = getattr(self.model, "classes_", None)
        if classes is not None and self.task_type == "classification":
            unseen = sorted(set(map(str, np.unique(self.y))) - set(map(str, classes)))
            if unseen:
                shown = ", ".join(unseen[:5]) + " …" * (len(unseen) > 5)
                yield f"The rows have classes that the model was not trained on: {shown}. It is never right about them."


def _work_of(subject: Subject, settings: Settings, context: ExecutionContext) -> _Work:
    training, facts = settings.training, subject.facts
    target = training.target_column
    if "target_column" not in training.model_fields_set:
        target = facts.get("target") or target
    # What the target was taken for decides how the rows were split.
    task_type = facts.get("task_type") or training.model.task_type or estimators.task_of(subject.model)
    part = data.load_part(
        settings.data, context.artifacts_path, target, on=settings.evaluation.on, task_type=task_type
    )
    X = part.table.X
    if subject.columns is not None:
        if lacking := [name for name in subject.columns if name not in X]:
            near = nearest(lacking[0], list(X))
            raise ConfigError(
                f"the {part.name} rows of {part.source} lack {', '.join(map(repr, lacking))}, which "
                f"{subject.title} was trained on{near}; there are {', '.join(map(str, X))}"
            )
        X = X[subject.columns]
    elif (expected := getattr(subject.model, "n_features_in_", None)) not in (None, X.shape[1]):
        raise ConfigError(
            f"{subject.title} was trained on {expected} columns, and the {part.name} rows of {part.source} have "
            f"{X.shape[1]}; choose them with data: {{features: […]}}"
        )
    return _Work(subject, part, X, task_type or data.task_of(part.table.y))


def _log_rows(run: Run, part: Part, subject: Subject) -> str:
    """Record on what; return the digest of the rows' content."""
    from mlpipeline.sklearn.facts import described

    found = described(part.table.X, part.table.y)
    run.log_params(
        {
            "evaluated_model": subject.title,
            "evaluated_on": part.name,
            "rows": len(part.table.X),
            "data_source": part.source,
            "target": part.target,
        }
    )
    # Under the name that a training gives the same rows, so that MLflow takes them for the same data set.
    run.log_dataset(
        name=part.name, context=part.name, digest=found.digest, schema=found.schema, profile=found.profile
    )
    return found.digest


# --- figures -----------------------------------------------------------------------------------------


def _metrics(work: _Work, section: EvaluationSection, logger: logging.Logger) -> dict[str, float]:
    """Return the wanted metrics and those that have bounds; of the usual ones, those that are defined."""
    X = work.taken(work.X)
    with _same_random_numbers(work.model):
        named = list(dict.fromkeys([*(section.metrics or ()), *section.thresholds]))
        if section.metrics:
            return scoring.scores(work.model, X, work.y, named)
        found: dict[str, float] = {}
        usual = scoring.default_metrics(work.task_type)
        try:
            found = scoring.scores(work.model, X, work.y, usual)
        except UsageError:
            for name in usual:
                try:
                    found |= scoring.scores(work.model, X, work.y, [name])
                except UsageError as error:
                    logger.warning("left out: %s", error)
        return found | scoring.scores(work.model, X, work.y, [name for name in named if name not in found])


def _log_metrics(run: Run, metrics: Mapping[str, float], subject: Subject, dataset: tuple[str, str]) -> None:
    """Record metrics, at the logged model, too, where this destination has it or will have it."""
    model = subject.uri
    if model is None and str(subject.run_id).startswith(LOCAL_PREFIX) and run.config.log_model is not False:
        model = subject.run_id
    is_here = run.is_enabled and subject.tracking_uri == public_uri(run.destination.tracking_uri)
    if model is None or not is_here or not model.startswith(("models:/m-", LOCAL_PREFIX)):
        run.log_metrics(metrics, 0)
    else:
        run.log_evaluation(metrics, model, dataset=dataset if run.config.log_datasets else None)


def _verdict(name: str, value: float, bounds: Bounds) -> Verdict:
    least, most = bounds.min, bounds.max
    if bounds.limit is not None and scoring.is_greater_better(name):
        least = bounds.limit if least is None else max(least, bounds.limit)
    elif bounds.limit is not None:
        most = bounds.limit if most is None else min(most, bounds.limit)
    words = [
        f"{word} {bound:g}" for word, bound in (("at least", least), ("at most", most)) if bound is not None
    ]
    holds = (least is None or value >= least) and (most is None or value <= most)
    return Verdict(name, value, " and ".join(words), holds)


# --- plots -------------------------------------------------------------------------------------------


def _drawn(work: _Work, section: EvaluationSection, metric: str | None) -> Iterator[tuple[str, str]]:
    """Yield the plots of the task as SVG, by name; one that cannot be drawn costs a log line."""
    with _same_random_numbers(work.model):
        plots: dict[str, Callable[[], str]] = {}
        with unharmed("the plots"):
            plots = _plots_of(work)
        if section.permutation_importance and metric is not None:
            plots["permutation_importance"] = partial(_importance, work, metric, section.seed)
        for name, draw in plots.items():
            with unharmed(f"the plot {name}"):
                yield name, draw()


def _plots_of(work: _Work) -> dict[str, Callable[[], str]]:
    from mlpipeline.sklearn import plots

    y = np.asarray(work.y)
    said = scoring.answers(work.model, work.taken(work.X), y, work.task_type)
    if work.task_type == "regression":
        return {"residuals": partial(plots.residuals, y, said.predicted)}
    found: dict[str, Callable[[], str]] = {
        "confusion_matrix": partial(plots.confusion_matrix, y, said.predicted, said.classes)
    }
    is_mixed = len(np.unique(y)) > 1
    if said.certain is not None and is_mixed:
        found["roc_curve"] = partial(plots.roc_curve, y, said.certain, said.classes)
        found["precision_recall_curve"] = partial(plots.precision_recall_curve, y, said.certain, said.classes)
    if said.probable is not None and is_mixed:
        probable = said.probable[:, 1] if len(said.classes) == 2 else said.probable
        found["calibration_curve"] = partial(plots.calibration_curve, y, probable, said.classes)
    return found


def _importance(work: _Work, metric: str, seed: int) -> str:
    """Draw how much worse a metric gets when a column's values change places."""
    rows = len(work.X)
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, _IMPORTANCE_ROWS)).astype(int))
    X, y = work.X.iloc[chosen], np.asarray(work.y)[chosen]

    def score(rows: pd.DataFrame) -> float:
        return scoring.scores(work.model, work.taken(rows), y, [metric])[metric]

    sign = 1 if scoring.is_greater_better(metric) else -1
    draw = np.random.default_rng(seed)
    before, began_s = score(X), time.perf_counter()
    losses = dict.fromkeys(X, 0.0)
    repeats = 0
    while repeats < _IMPORTANCE_REPEATS and (not repeats or time.perf_counter() - began_s < _IMPORTANCE_S):
        repeats += 1
        for column in losses:
            shuffled = X.copy()
            shuffled[column] = X[column].iloc[draw.permutation(len(X))].set_axis(X.index)
            losses[column] += sign * (before - score(shuffled))
    return charts.bars(
        f"Permutation importance: loss of {metric}",
        {str(column): loss / repeats for column, loss in losses.items()},
    )


def _same_random_numbers(model: Any) -> Any:
    from mlpipeline.sklearn.evaluation import same_random_numbers

    return same_random_numbers(model) if hasattr(model, "get_params") else nullcontext()


# --- files -------------------------------------------------------------------------------------------


def _report(
    run: Run,
    work: _Work,
    metrics: Mapping[str, float],
    verdicts: Sequence[Verdict],
    plots: Mapping[str, str],
    digest: str,
    notes: Sequence[str],
) -> str:
    subject, part = work.subject, work.part
    about_data: dict[str, object] = {
        "source": part.source,
        "rows": f"{len(work.X):,} ({part.name})",
        "columns": work.X.shape[1],
        "target": part.target,
        "digest": digest,
    }
    if work.task_type == "classification":
        shares = part.table.y.value_counts(normalize=True)
        shown = ", ".join(f"{label} {share:.1%}" for label, share in shares.head(8).items())
        about_data["classes"] = shown + " …" * (len(shares) > 8)
    facts: dict[str, dict[str, object]] = {
        "Model": {
            "evaluated": subject.title,
            "model": subject.uri if subject.uri != subject.title else None,
            "trained in run": subject.run_id,
            "kind": subject.kind,
            "task": work.task_type,
        },
        "Data": about_data,
        "Evaluation": {
            "run": run.run_id,
            "experiment": (run.config.experiment_id or run.config.experiment_name)
            if run.is_enabled
            else None,
            "tracking": public_uri(run.destination.tracking_uri) if run.is_enabled else "disabled",
        },
    }
    version = importlib.metadata.version("mlpipeline")
    when = time.strftime("%Y-%m-%d %H:%M %Z")
    return html_report(
        f"Evaluation of {subject.kind}",
        subtitle=f"{subject.title} on {len(work.X):,} {part.name} rows of {part.source}",
        metrics=metrics,
        verdicts=verdicts,
        facts=facts,
        plots=plots,
        notes=notes,
        made_by=f"{when} · mlpipeline {version}",
    )


def _keep(files: Mapping[str, str], run: Run, folder: str | os.PathLike[str]) -> list[str]:
    """Write files into the artifacts folder, and record them; return the paths of those that were written."""
    place = Path(folder) / FOLDER
    kept: list[str] = []
    for name, content in files.items():
        with unharmed(f"the file {name}"):
            run.log_text(content, f"{FOLDER}/{name}")
            place.mkdir(parents=True, exist_ok=True)
            beside = place / f".{name}.{os.getpid()}"
            beside.write_text(content, "utf-8")
            beside.replace(place / name)
            kept.append(str(place / name))
    return kept
