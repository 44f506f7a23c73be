"""`MLflowTracker`: start runs, log to them, query them; the specification's API on the engine."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.credentials import with_credentials
from mlpipeline.core.errors import UsageError
from mlpipeline.tracking import closing, comparison, queries
from mlpipeline.tracking.account import DeliveryCounts, resolved_run_id
from mlpipeline.tracking.home import Home
from mlpipeline.tracking.local_runs import RunsAnywhere
from mlpipeline.tracking.opening import destination_of, open_run, resolved
from mlpipeline.tracking.trainings import kind_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    import pandas as pd
    from typing_extensions import Self

    from mlpipeline.tracking.comparison import Aggregate, Metrics
    from mlpipeline.tracking.queries import History, MLflowRunInfo
    from mlpipeline.tracking.run import Run


class MLflowTracker:
    """Starts runs and records to them without touching MLflow's fluent state.

    Each tracker has its own active run, whatever thread it is used from; what a thread nests under a run that another
    thread began is active in that thread alone. As a context manager it starts a run and ends it with the status the
    block deserves::

        with MLflowTracker(MLflowConfig(experiment_name="digits")) as tracker:
            tracker.log_params({"lr": 0.1})
            tracker.log_metrics({"loss": 0.5}, step=0)

    Args:
        config: An `MLflowConfig`, a mapping of its options, or a YAML file's path; None is the default.
        **overrides: Options that win over *config*.

    Attributes:
        config: The configuration.
    """

    def __init__(
        self,
        config: MLflowConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        self.config = MLflowConfig.of(config, **overrides)
        self._runs: list[Run] = []
        self._beginner = 0  # the thread that opened the first of them
        self._nested: dict[
            tuple[int, int], list[Run]
        ] = {}  # by process and thread, what others nested under it
        self._opened: list[Run] = []
        self._last: Run | None = None

    # --- runs ------------------------------------------------------------------------------------

    @property
    def active_run(self) -> Run | None:
        """The innermost run that was started and not ended."""
        return runs[-1] if (runs := self._here()) else None

    def _here(self) -> list[Run]:
        return self._nested.get((os.getpid(), threading.get_ident())) or self._runs

    @property
    def run_id(self) -> str | None:
        """Id of the active run; see `Run.run_id`."""
        return run.run_id if (run := self.active_run) else None

    def start_run(
        self,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        *,
        description: str | None = None,
        run_id: str | None = None,
    ) -> str | None:
        """Start a run and return its id.

        Waits for MLflow's answer as long as the courier makes progress; only when the destination is
        unreachable the id is a local one, which everything here resolves later.

        Args:
            run_name: Its name; None takes the configuration's, else MLflow chooses one.
            tags: Tags over those of the configuration.
            description: Its note.
            run_id: An existing run to continue.

        Returns:
            The id; None when tracking is disabled.

        Raises:
            UsageError: A run of this tracker is active already.
        """
        if (active := self.active_run) is not None:
            raise UsageError(
                f"run {active.uid} is still active; call end_run() first, "
                "or open a nested run with tracker.run()"
            )
        options: dict[str, Any] = {"run_name": run_name, "description": description}
        if run_id is not None:
            options["run_id"] = self._resolved(run_id)
        return self._open(tags, options).run_id

    def run(
        self,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        *,
        description: str | None = None,
    ) -> _Nested:
        """Return a context manager whose run is nested under the active one.

        ``with tracker.run("fold-1") as run:`` makes it the active run inside the block, and where another thread
        began the outer run, in this thread alone: folds may be trained at once.
        """
        return _Nested(self, run_name, tags, description)

    def _open(self, tags: Mapping[str, Any] | None, options: Mapping[str, Any]) -> Run:
        """Open a run with the given ones of *options*: nested under the active run, or at the top."""
        given = {name: value for name, value in options.items() if value is not None}
        parent = self.active_run
        config = self.config
        if parent is not None:
            # A child goes where its parent is, and is a run with a name of its own.
            config = parent.config.replace(run_id=None, run_name=None, description=None)
        run = open_run(config.replace(**given), parent=parent, tags=tags)
        thread = threading.get_ident()
        if not self._runs:
            self._beginner = thread
        if thread == self._beginner:
            self._runs.append(run)
        else:
            self._nested.setdefault((os.getpid(), thread), []).append(run)
        self._opened.append(run)
        return run

    def end_run(self, status: str = "FINISHED") -> None:
        """End the active run; see `Run.end`. Without one, nothing happens."""
        if runs := self._here():
            self._last = runs.pop()
            self._last.end(status)
            if not runs:
                self._nested.pop((os.getpid(), threading.get_ident()), None)

    def __enter__(self) -> Self:
        self._open(None, {})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        while self._runs:
            self.end_run(status_of(kind_of(error)))

    def _active(self, call: str) -> Run:
        if (active := self.active_run) is None:
            raise UsageError(f"{call}: no run is active; call start_run() first")
        return active

    # --- logging ---------------------------------------------------------------------------------

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record hyperparameters; see `Run.log_params`."""
        self._active("log_params").log_params(params)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics; see `Run.log_metrics`."""
        self._active("log_metrics").log_metrics(metrics, step)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; see `Run.set_tags`."""
        self._active("set_tags").set_tags(tags)

    def log_artifacts(
        self,
        artifacts: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        artifact_path: str | None = None,
    ) -> None:
        """Record files and folders; see `Run.log_artifacts`."""
        self._active("log_artifacts").log_artifacts(artifacts, artifact_path)

    def log_artifact(self, local_path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """Record a file or folder; see `Run.log_artifact`."""
        self._active("log_artifact").log_artifact(local_path, artifact_path)

    def log_text(self, text: str, artifact_file: str) -> None:
        """Record a text; see `Run.log_text`."""
        self._active("log_text").log_text(text, artifact_file)

    def log_dict(self, content: Mapping[str, Any] | Sequence[Any], artifact_file: str) -> None:
        """Record a structure as JSON or YAML; see `Run.log_dict`."""
        self._active("log_dict").log_dict(content, artifact_file)

    def log_table(self, data: Any, artifact_file: str) -> None:
        """Record a table; see `Run.log_table`."""
        self._active("log_table").log_table(data, artifact_file)

    def log_figure(self, figure: Any, artifact_file: str, *, step: int | None = None) -> None:
        """Record a figure; see `Run.log_figure`."""
        self._active("log_figure").log_figure(figure, artifact_file, step=step)

    def log_dataset(self, data: Any = None, **facts: Any) -> None:
        """Record a dataset; see `Run.log_dataset`."""
        self._active("log_dataset").log_dataset(data, **facts)

    def log_evaluation(self, metrics: Mapping[str, Any], model: str, **options: Any) -> None:
        """Record what a logged model scores; see `Run.log_evaluation`."""
        self._active("log_evaluation").log_evaluation(metrics, model, **options)

    def log_model(self, model: Any, name: str = "model", **options: Any) -> None:
        """Record a fitted model; see `Run.log_model`."""
        self._active("log_model").log_model(model, name, **options)

    def register_model(self, name: str) -> int | None:
        """Register the model logged last to the active run, and return its version.

        Waits for MLflow's answer as long as the courier makes progress.

        Returns:
            The version; None when it is not known yet.
        """
        run = self._active("register_model")
        run.register_model(name)
        return run.model_version

    # --- delivery --------------------------------------------------------------------------------

    def flush(self, *, insist_s: float | None = None) -> DeliveryCounts:
        """Wait until all that this tracker's runs recorded is delivered, or nothing moves any more.

        Args:
            insist_s: Wait at least so long per run whatever the courier says.

        Returns:
            What became of the records, all runs together.
        """
        return sum((run.wait(insist_s=insist_s) for run in self._opened), DeliveryCounts())

    # --- queries ---------------------------------------------------------------------------------

    def search_runs(
        self,
        filter_string: str = "",
        max_results: int = 100,
        order_by: Sequence[str] | None = None,
        experiment_names: Sequence[str] | None = None,
    ) -> list[MLflowRunInfo]:
        """Return the runs of the experiment that match, newest first.

        Waits first until what this process recorded for the same destination is delivered, by whatever
        tracker or callback.

        Args:
            filter_string: MLflow's filter, such as ``"metrics.accuracy > 0.9"``; empty matches all.
            max_results: At most so many.
            order_by: MLflow's order, such as ``["metrics.accuracy DESC"]``; None is newest first.
            experiment_names: Experiments to search; None is the configuration's.

        Raises:
            UsageError: MLflow refuses the filter.
        """
        found = self._queries()
        return found.search_runs(
            self._experiment_ids(found, experiment_names), filter_string, max_results, order_by
        )

    def compare_runs(
        self,
        run_ids: Sequence[str],
        *,
        only_differences: bool = False,
        aggregate: Aggregate = "last",
        metrics: Metrics = None,
        only_diff: bool = False,
    ) -> pd.DataFrame:
        """Return one row per run, indexed by run id; see `mlpipeline.tracking.comparison`.

        A run that is only here yet is read from its journal, and keeps its local id. Where all of them are
        such runs, nobody is asked, and nobody waited for.

        Args:
            run_ids: The runs, in the order of the rows; local ids too.
            only_differences: Leave out the columns that are the same for all.
            aggregate: Which value of a metric: its ``last``, or the ``best``, ``min`` or ``max`` of its history.
            metrics: Which metrics, or by metric the direction of better, ``"min"`` or ``"max"``; None is all.
            only_diff: The older name of *only_differences*.

        Raises:
            UsageError: There is no such run, or none of them has such a metric; or the best is asked for of
                one whose direction is not known.
        """
        runs = self._anywhere()
        return comparison.compared(
            runs.infos(run_ids),
            runs.histories,
            only_differences=only_differences or only_diff,
            aggregate=aggregate,
            metrics=metrics,
        )

    def metric_histories(
        self, run_ids: Sequence[str], metrics: str | Sequence[str], *, points: int | None = None
    ) -> dict[str, dict[str, History]]:
        """Return metrics of many runs as points (step, milliseconds since the epoch, value).

        Args:
            run_ids: The runs; local ids too.
            metrics: Their names as they were logged.
            points: At most so many of a run in MLflow, evenly chosen; None is all.

        Returns:
            By metric, then by run, under the ids that `compare_runs` has in its index; without the runs that
            have no such metric.

        Raises:
            UsageError: There is no such local run.
        """
        runs = self._anywhere()
        wanted = [metrics] if isinstance(metrics, str) else metrics
        return {key: runs.histories(run_ids, key, points=points) for key in wanted}

    def get_run_info(self, run_id: str | None = None) -> MLflowRunInfo:
        """Return what MLflow holds of a run; of one that is only here yet, what its journal holds.

        Args:
            run_id: The run, by a local id too; None is the active one, else the one that ended last.

        Raises:
            UsageError: There is no such run.
        """
        if run_id is None:
            run = self.active_run or self._last
            run_id = run.run_id if run is not None else None
            if run_id is None:
                raise UsageError("get_run_info needs a run id: this tracker has recorded no run")
        return self._anywhere().infos([run_id])[0]

    def _anywhere(self) -> RunsAnywhere:
        return RunsAnywhere(self._queries(), Home.at(self.config.journal_dir))

    def _queries(self) -> queries.Queries:
        """Return the queries, once what this process recorded for the same destination is there."""
        destination = destination_of(resolved(self.config))
        closing.wait_for(destination, self._opened)
        return queries.Queries(
            with_credentials(destination.tracking_uri), with_credentials(destination.registry_uri)
        )

    def _experiment_ids(self, found: queries.Queries, experiment_names: Sequence[str] | None) -> list[str]:
        if experiment_names is None:
            config = resolved(self.config)
            if config.experiment_id is not None:
                return [config.experiment_id]
            experiment_names = [config.experiment_name]
        return found.experiment_ids(experiment_names)

    def _resolved(self, run_id: str) -> str:
        return resolved_run_id(Home.at(self.config.journal_dir), run_id)


class _Nested:
    """A run of a tracker as a context manager."""

    def __init__(
        self,
        tracker: MLflowTracker,
        name: str | None,
        tags: Mapping[str, Any] | None,
        description: str | None,
    ) -> None:
        self._tracker = tracker
        self._tags = tags
        self._options = {"run_name": name, "description": description}

    def __enter__(self) -> Run:
        return self._tracker._open(self._tags, self._options)  # noqa: SLF001

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tracker.end_run(status_of(kind_of(error)))
