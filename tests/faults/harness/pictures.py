"""What plain MLflow finds of a training, as a multiset of facts; two of them show what is lost or doubled."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_OF_THE_MOMENT = re.compile(r"seconds|_s$|time|duration|per_second|^system/|^best_run$", re.IGNORECASE)
"""Metrics and tags whose values are those of one moment: only that they are there is compared."""

_OF_THE_RUN = re.compile(
    r"^mlflow\.|^mlpipeline\.(uid|attempt|claim|dropped|keeper|keeper_of|kept_ms|overlap)"
)
"""Tags that each run has its own of."""


@dataclass(frozen=True)
class Picture:
    """What is in an experiment.

    Attributes:
        facts: Each record there is, as often as it is there.
        statuses: Per run name, the statuses of its runs.
        artifact_bytes: Bytes of all files.
    """

    facts: Counter
    statuses: dict[str, list[str]]

    def of(self, *kinds):
        """Its facts of some kinds."""
        return Counter({fact: count for fact, count in self.facts.items() if fact[0] in kinds})


def picture(uri, name):
    """Look at the experiment and the registered model of this name."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    facts, statuses = Counter(), {}
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return Picture(facts, statuses)
    runs = client.search_runs(
        [experiment.experiment_id], run_view_type=ViewType.ACTIVE_ONLY, max_results=5000
    )
    names = {run.info.run_id: run.info.run_name for run in runs}
    for run in runs:
        run_name = run.info.run_name
        statuses.setdefault(run_name, []).append(run.info.status)
        facts["run", run_name, names.get(run.data.tags.get("mlflow.parentRunId"))] += 1
        for key, value in run.data.params.items():
            facts["param", run_name, key, value.replace(name, "NAME")] += 1
        for key, value in run.data.tags.items():
            if not _OF_THE_RUN.search(key):
                facts[
                    "tag", run_name, key, None if _OF_THE_MOMENT.search(key) else value.replace(name, "NAME")
                ] += 1
        for key in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, key):
                value = None if _OF_THE_MOMENT.search(key) else point.value
                facts["metric", run_name, key, point.step, value] += 1
        for path, size in _files(client, run.info.run_id):
            facts["artifact", run_name, path, size if path.endswith(".txt") else size > 0] += 1
        for given in run.inputs.dataset_inputs if run.inputs else ():
            facts["dataset", run_name, given.dataset.name, given.dataset.digest] += 1
    for model in client.search_logged_models([experiment.experiment_id], max_results=100):
        is_ready = str(model.status).endswith("READY")
        files = sum(1 for _ in client.list_logged_model_artifacts(model.model_id)) if is_ready else 0
        facts["model", model.name, names.get(model.source_run_id), str(model.status), files > 0] += 1
    versions = client.search_model_versions(f"name = '{name}'")
    for version in versions:
        facts["version", names.get(version.run_id), version.current_stage] += 1
    if versions:
        # A search gives no aliases. Each points to the version of a run.
        runs_of = {str(version.version): names.get(version.run_id) for version in versions}
        aliases = client.get_registered_model(name).aliases
        facts.update(("alias", alias, runs_of[str(version)]) for alias, version in aliases.items())
    return Picture(facts, statuses)


def _files(client, run_id, folder=None):
    for found in client.list_artifacts(run_id, folder):
        if found.is_dir:
            yield from _files(client, run_id, found.path)
        else:
            yield found.path, found.file_size or 0


def letters(home):
    """The facts that stand in the dead letters of a home: not in MLflow, but listed with the reason."""
    from mlpipeline.tracking.account import accounts, dead_letters

    found = Counter()
    for account in accounts(home):
        for letter in dead_letters(home, account.uid):
            kind, content = letter["kind"], letter["content"]
            if kind == "metric":
                found["metric", content["key"], content["step"], content["value"]] += 1
            elif kind in {"param", "tag"}:
                found.update((kind, key, value) for key, value in content.items())
            else:
                found[kind,] += 1
    return found


def without_run(facts):
    """Facts as `letters` has them, which knows no run's name."""
    short = Counter()
    for fact, count in facts.items():
        kind = fact[0]
        short[(kind, *fact[2:]) if kind in {"metric", "param", "tag"} else (kind,)] += count
    return short
