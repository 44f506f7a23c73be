"""Runs read back from a real SQLite store."""

from __future__ import annotations

import math
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

import mlpipeline
from mlpipeline.core.errors import UsageError
from mlpipeline.tracking import names
from mlpipeline.tracking.queries import MLflowRunInfo, Queries, quoted

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def client(store_uri: str) -> MlflowClient:
    """Plain MLflow, to write what is read back."""
    return MlflowClient(store_uri, store_uri)


@pytest.fixture
def queries(store_uri: str) -> Queries:
    """What is tested."""
    return Queries(store_uri)


@pytest.fixture
def experiment(client: MlflowClient, tmp_path: Path) -> str:
    """Id of an experiment of this test's own."""
    return client.create_experiment("exp", artifact_location=str(tmp_path / "artifacts"))


@pytest.fixture
def log(client: MlflowClient, experiment: str) -> Callable[..., str]:
    """Make one ended run and return its id."""

    def make(
        params: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
        *,
        start: int = 1_000,
        end: int | None = 3_500,
        name: str = "a run",
        in_experiment: str = experiment,
    ) -> str:
        run_id: str = client.create_run(in_experiment, start_time=start, run_name=name).info.run_id
        client.log_batch(
            run_id,
            metrics=[Metric(names.metric_key(k), v, 1, 0) for k, v in (metrics or {}).items()],
            params=[Param(names.metric_key(k), str(v)) for k, v in (params or {}).items()],
        )
        if end is not None:
            client.set_terminated(run_id, end_time=end)
        return run_id

    return make


# ── one run ──────────────────────────────────────────────────────────────────────────────────────


def test_a_run_comes_back_with_everything_it_holds(
    client: MlflowClient, queries: Queries, experiment: str, log: Callable[..., str], tmp_path: Path
) -> None:
    """Ids, times, params and metrics are there under the names that were given."""
    run_id = log({"lr": 0.1}, {"ndcg@3": 0.5}, name="first")
    client.set_tag(run_id, "mlflow.user", "carol")

    run = queries.get_run_info(run_id)

    assert run == MLflowRunInfo(
        run_id=run_id,
        experiment_id=experiment,
        run_name="first",
        status="FINISHED",
        start_time=1_000,
        end_time=3_500,
        artifact_uri=str(tmp_path / "artifacts" / run_id / "artifacts"),
        lifecycle_stage="active",
        user_id="carol",
        tags={"mlflow.runName": "first", "mlflow.user": "carol"},
        params={"lr": "0.1"},
        metrics={"ndcg@3": 0.5},
    )
    assert {"ndcg@3": 0.5} == run.to_dict()["metrics"]


def test_a_name_too_long_for_mlflow_comes_back_whole(
    client: MlflowClient, queries: Queries, log: Callable[..., str]
) -> None:
    """The run's own tag says what was cut."""
    long = "layer." * 60
    run_id = log(metrics={long: 1.0})
    for tag, name in names.name_tags([long]).items():
        client.set_tag(run_id, tag, name)

    assert {long: 1.0} == queries.get_run_info(run_id).metrics


def test_a_running_run_has_no_end(queries: Queries, log: Callable[..., str]) -> None:
    """Not zero, and not now."""
    run = queries.get_run_info(log(end=None))

    assert run.end_time is None
    assert "RUNNING" == run.status


@pytest.mark.parametrize("run_id", ["0" * 32, "no such run!", "", "x' or name != '"])
def test_an_unknown_run_is_the_users_mistake(queries: Queries, run_id: str) -> None:
    """The error names what was given and what to do."""
    with pytest.raises(UsageError) as caught:
        queries.get_run_info(run_id)

    assert repr(run_id) in str(caught.value)
    assert "search_runs()" in str(caught.value)


def test_an_error_does_not_tell_the_servers_password(tmp_path: Path) -> None:
    """Only the store is named."""
    with pytest.raises(UsageError) as caught:
        Queries("https://bob:hunter2@example.com").get_run_info("!")

    assert "example.com" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_server_that_does_not_answer_raises_mlflows_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world's fault is not dressed up as the user's, nor as an empty answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as held:  # bound and not listening: nobody else gets the port
        held.bind(("127.0.0.1", 0))
        queries = Queries(f"http://127.0.0.1:{held.getsockname()[1]}")

        for ask in (queries.get_run_info, lambda run_id: queries.search_runs([run_id])):
            with pytest.raises(MlflowException):
                ask("1" * 32)


def test_queries_travel_to_other_processes(store_uri: str, log: Callable[..., str]) -> None:
    """They hold nothing that is open."""
    run_id = log()

    assert run_id == pickle.loads(pickle.dumps(Queries(store_uri))).get_run_info(run_id).run_id


# ── search ───────────────────────────────────────────────────────────────────────────────────────


def test_a_search_gives_the_newest_first(queries: Queries, experiment: str, log: Callable[..., str]) -> None:
    """Whatever the order in which they were written."""
    for start in (2_000, 3_000, 1_000):
        log(start=start)

    assert [3_000, 2_000, 1_000] == [run.start_time for run in queries.search_runs([experiment])]


def test_a_search_follows_the_order_asked_for(
    queries: Queries, experiment: str, log: Callable[..., str]
) -> None:
    """Also by a name that MLflow would refuse."""
    for value in (0.2, 0.1, 0.3):
        log(metrics={"ndcg@3": value})

    found = queries.search_runs([experiment], order_by=["metrics.`ndcg@3` ASC"])

    assert [0.1, 0.2, 0.3] == [run.metrics["ndcg@3"] for run in found]


@pytest.mark.parametrize(
    ("filter_string", "count"),
    [
        ("metrics.`ndcg@3` > 0.5", 1),
        ('metrics."ndcg@3" > 0.5', 1),
        ("metrics.`val loss` < 1", 2),
        ("metrics.ndcg__at__3 > 0.5", 1),
        ("params.depth = '3' and metrics.`ndcg@3` < 1", 1),
        ("tags.note = 'metrics.`ndcg@3`'", 1),
        (f"metrics.{quoted('ndcg@3')} > 0.5", 1),
        (f"metrics.{quoted('val loss')} > 5", 0),
    ],
)
def test_a_filter_uses_the_names_that_were_logged(
    client: MlflowClient,
    queries: Queries,
    experiment: str,
    log: Callable[..., str],
    filter_string: str,
    count: int,
) -> None:
    """Odd names in backticks or quotes are found; quoted values are not touched."""
    log({"depth": 3}, {"ndcg@3": 0.9, "val loss": 0.1})
    client.set_tag(log({"depth": 4}, {"ndcg@3": 0.1, "val loss": 0.2}), "note", "metrics.`ndcg@3`")

    assert count == len(queries.search_runs([experiment], filter_string))


@pytest.mark.parametrize(
    ("filter_string", "order_by"),
    [
        ("metrics.a > 1 or metrics.b > 1", None),
        ("params.depth > 3", None),
        ("nonsense", None),
        ("", ["metrics.a upwards"]),
    ],
)
def test_a_filter_that_mlflow_refuses_is_the_users_mistake(
    queries: Queries, experiment: str, filter_string: str, order_by: list[str] | None
) -> None:
    """The error holds the filter, MLflow's reason and the rules."""
    with pytest.raises(UsageError) as caught:
        queries.search_runs([experiment], filter_string, order_by=order_by)

    assert isinstance(caught.value.__cause__, MlflowException)
    assert caught.value.__cause__.message in str(caught.value)
    assert repr(filter_string) in str(caught.value)
    assert "joined with 'and' only" in str(caught.value)


def test_an_unknown_experiment_has_no_runs(queries: Queries, log: Callable[..., str]) -> None:
    """Neither has no experiment at all."""
    log()

    assert [] == queries.search_runs(["123456"])
    assert [] == queries.search_runs([])


def test_experiments_given_wrongly_are_the_users_mistake(queries: Queries) -> None:
    """A lone string would be searched letter by letter; a name is no id."""
    with pytest.raises(UsageError, match="give a list of ids"):
        queries.search_runs("12")
    with pytest.raises(UsageError, match="given by id"):
        queries.search_runs(["my experiment"])
    with pytest.raises(UsageError, match="1 or more"):
        queries.search_runs(["1"], max_results=0)


def test_a_deleted_run_is_not_found(
    client: MlflowClient, queries: Queries, experiment: str, log: Callable[..., str]
) -> None:
    """A search shows what MLflow's pages show."""
    client.delete_run(log())

    assert [] == queries.search_runs([experiment])


def test_a_search_goes_beyond_mlflows_page(
    queries: Queries, experiment: str, store_uri: str, log: Callable[..., str]
) -> None:
    """2300 runs come in three pages, each once, and a limit between two pages holds."""
    import sqlite3

    template = log()
    with sqlite3.connect(store_uri.removeprefix("sqlite:///")) as store:  # 2300 create_run take a minute
        columns = [row[1] for row in store.execute("pragma table_info(runs)") if row[1] != "run_uuid"]
        for i in range(2299):
            store.execute(
                f"insert into runs (run_uuid, {', '.join(columns)}) "
                f"select ?, {', '.join(columns)} from runs where run_uuid = ?",
                (f"{i:032}", template),
            )

    everything = queries.search_runs([experiment], max_results=5000)
    some = queries.search_runs([experiment], max_results=1500)

    assert 2300 == len({run.run_id for run in everything})
    assert 2300 == len(everything)
    assert 1500 == len(some)


@pytest.mark.parametrize("name", ["a'b", 'a"b', "a`b", "x' or name != '"])
def test_a_name_that_could_change_a_filter_is_refused(name: str) -> None:
    """Quotes and backticks do not get into a filter."""
    with pytest.raises(UsageError, match="cannot stand in a filter"):
        quoted(name)


# ── comparison ───────────────────────────────────────────────────────────────────────────────────


def test_compared_runs_are_rows_in_the_order_given(queries: Queries, log: Callable[..., str]) -> None:
    """One row per run with name, status, start and duration first."""
    first = log({"depth": 3}, {"acc": 0.9}, start=1_000, end=3_500, name="one")
    second = log({"depth": 4}, {"acc": 0.8}, start=1_000, end=None, name="two")

    frame = queries.compare_runs([second, first, second])

    assert [second, first] == list(frame.index)
    assert ["run_name", "status", "start_time", "duration_s", "depth", "acc"] == list(frame.columns)
    assert ["two", "one"] == list(frame["run_name"])
    assert ["RUNNING", "FINISHED"] == list(frame["status"])
    assert "1970-01-01T00:00:01+00:00" == frame["start_time"].iloc[0].isoformat()
    assert math.isnan(frame["duration_s"].iloc[0])
    assert 2.5 == frame["duration_s"].iloc[1]
    assert [0.8, 0.9] == list(frame["acc"])


def test_params_that_are_numbers_everywhere_become_numbers(queries: Queries, log: Callable[..., str]) -> None:
    """Text stays text: words, zero-padded codes, numbers in some runs only."""
    ids = [
        log({"depth": 3, "lr": "1e-3", "name": "adam", "code": "007", "mixed": "1", "seed": 2**60}),
        log({"depth": 4, "lr": "1", "name": "sgd", "code": "008", "mixed": "auto"}),
    ]

    frame = queries.compare_runs(ids)

    assert "int64" == frame["depth"].dtype
    assert [3, 4] == list(frame["depth"])
    assert [0.001, 1.0] == list(frame["lr"])
    assert "Int64" == frame["seed"].dtype
    assert 2**60 == frame["seed"].iloc[0]
    assert ["adam", "sgd"] == list(frame["name"])
    assert ["007", "008"] == list(frame["code"])
    assert ["1", "auto"] == list(frame["mixed"])


def test_a_number_beyond_64_bits_is_kept(queries: Queries, log: Callable[..., str]) -> None:
    """A large seed neither overflows nor loses digits, also where another run has none."""
    with_seed, without = log({"seed": 2**70}), log()

    assert str(2**70) == queries.compare_runs([with_seed, without])["seed"].iloc[0]
    assert 2**70 == queries.compare_runs([with_seed])["seed"].iloc[0]


def test_what_a_run_lacks_is_missing_in_its_row(queries: Queries, log: Callable[..., str]) -> None:
    """Not zero, and not an empty text."""
    frame = queries.compare_runs([log({"a": "x"}, {"m": 1.0}), log()])

    assert [False, True] == list(frame["a"].isna())
    assert [False, True] == list(frame["m"].isna())


def test_a_name_of_both_a_param_and_a_metric_is_told_apart(queries: Queries, log: Callable[..., str]) -> None:
    """Both get their kind in front; so does one that is called like a fixed column."""
    frame = queries.compare_runs([log({"x": 1, "status": "mine", "metrics.x": 5}, {"x": 2.0, "y": 3.0})])

    assert [
        *("run_name", "status", "start_time", "duration_s"),
        *("metrics.x", "params.status", "params.x", "metrics.metrics.x", "y"),
    ] == list(frame.columns)
    assert [1, 2.0, 5] == [frame[name].iloc[0] for name in ("params.x", "metrics.metrics.x", "metrics.x")]


def test_only_what_differs_can_be_shown(queries: Queries, log: Callable[..., str]) -> None:
    """What is the same in all runs goes, missing and NaN included; the first four columns stay."""
    same = {"seed": 1, "depth": 3}
    frame = queries.compare_runs(
        [log({**same, "lr": 0.1}, {"m": math.nan, "n": 1.0}), log({**same, "lr": 0.2}, {"m": math.nan})],
        only_diff=True,
    )

    assert ["run_name", "status", "start_time", "duration_s", "lr", "n"] == list(frame.columns)


def test_runs_of_several_experiments_and_deleted_ones_compare(
    client: MlflowClient, queries: Queries, log: Callable[..., str], tmp_path: Path
) -> None:
    """Where a run lies does not matter once its id is known."""
    other = client.create_experiment("other", artifact_location=str(tmp_path / "other"))
    ids = [
        log(name="a"),
        log(name="b", in_experiment=other),
        log(name="c"),
        log(name="d", in_experiment=other),
    ]
    client.delete_run(ids[2])
    client.delete_run(ids[3])

    assert ["a", "b", "c", "d"] == list(queries.compare_runs(ids)["run_name"])


def test_more_runs_than_one_filter_takes_compare(queries: Queries, log: Callable[..., str]) -> None:
    """Every one of them is there, in order."""
    ids = [log({"i": i}) for i in range(103)]

    assert list(range(103)) == list(queries.compare_runs(ids)["i"])


def test_an_unknown_run_in_a_comparison_is_named(queries: Queries, log: Callable[..., str]) -> None:
    """Whether it comes first, last, or is no id at all."""
    known = log()
    for unknown in ("f" * 32, "x' or name != '"):
        for ids in ([known, unknown], [unknown, known]):
            with pytest.raises(UsageError) as caught:
                queries.compare_runs(ids)
            assert repr(unknown) in str(caught.value)


def test_nothing_to_compare_is_an_empty_table(queries: Queries) -> None:
    """With the columns that every comparison has."""
    frame = queries.compare_runs([])

    assert 0 == len(frame)
    assert ["run_name", "status", "start_time", "duration_s"] == list(frame.columns)


# ── history ──────────────────────────────────────────────────────────────────────────────────────


def test_a_history_is_in_the_order_of_steps(
    client: MlflowClient, queries: Queries, log: Callable[..., str]
) -> None:
    """MLflow orders by time; a resumed or replayed training needs the step."""
    run_id = log()
    points = [(0.3, 10, 3), (0.1, 20, 1), (0.2, 30, 2), (0.15, 25, 1)]
    client.log_batch(run_id, [Metric(names.metric_key("ndcg@3"), *point) for point in points])

    assert [(1, 20, 0.1), (1, 25, 0.15), (2, 30, 0.2), (3, 10, 0.3)] == queries.metric_history(
        run_id, "ndcg@3"
    )


def test_a_metric_that_a_run_does_not_have_has_no_points(queries: Queries, log: Callable[..., str]) -> None:
    """An unknown metric is empty, an unknown run is a mistake."""
    assert [] == queries.metric_history(log(), "nope")
    with pytest.raises(UsageError, match="unknown"):
        queries.metric_history("0" * 32, "nope")


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("module", ["names", "surroundings", "queries"])
def test_importing_the_module_imports_no_mlflow(module: str) -> None:
    """The trainer pays for none of the large packages."""
    program = (
        f"import sys, mlpipeline.tracking.{module}; print(sorted("
        "{'mlflow', 'numpy', 'pandas', 'torch', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(Path(mlpipeline.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )

    assert "[]" == done.stdout.strip()
