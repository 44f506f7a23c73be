"""Runs beside each other: as a DataFrame, as a table in a terminal, as a page with curves.

::

    runs ─ compared(aggregate, metrics, only_differences) ─► DataFrame ─┬─► as_table   rich
    histories of the metrics that are asked for ────────────────────────┴─► as_html    one file, SVG in it

A comparison asks for no more than it shows: ``last`` values come with the runs, and a history is fetched
only for another aggregate, and only of runs that have the metric.
"""

from __future__ import annotations

import difflib
import html
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from mlpipeline.core.errors import UsageError
from mlpipeline.tracking import charts, directions

if TYPE_CHECKING:
    import pandas as pd

    from mlpipeline.tracking.queries import History, MLflowRunInfo

Aggregate = Literal["best", "last", "min", "max"]
"""Which value of a metric's history stands for it."""

Metrics = str | Sequence[str] | Mapping[str, Literal["min", "max"] | None] | None
"""Metrics to compare, or by metric whether the smallest or the greatest value is the best, where None goes by
its name; None is all."""

FIRST = ("run_name", "status", "start_time", "duration_s")
"""The columns that every comparison begins with."""

_MOST_COLUMNS = 6
# Numbers as one writes them: 007 is a code, and 1_000 a number to Python only.
_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)")
_NUMBER = re.compile(
    r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf|nan", re.IGNORECASE
)


def compared(
    runs: Sequence[MLflowRunInfo],
    histories: Callable[[Sequence[str], str], Mapping[str, History]],
    *,
    only_differences: bool = False,
    aggregate: Aggregate = "last",
    metrics: Metrics = None,
) -> pd.DataFrame:
    """Return a table with a row per run.

    A param whose value reads as a number in every run that has it is a column of numbers (``int64``,
    ``Int64`` where a run lacks it, ``float64``); any other holds the text that was logged. A name
    that a param shares with a metric, or with one of the four first columns, gets ``params.`` or
    ``metrics.`` in front.

    Args:
        runs: In the order of the rows.
        histories: Gives the points of a metric by run.
        only_differences: Leave out the params and metrics that are the same in all runs.
        aggregate: Which value of a metric. ``best`` goes by the direction in *metrics*, else by the metric's
            name; without *metrics*, one whose name tells no direction has its last value.
        metrics: Which metrics; None is all.

    Returns:
        Indexed by ``run_id``; columns ``run_name``, ``status``, ``start_time`` (UTC), ``duration_s`` (NaN
        while it runs), then the params, then the metrics, each by name, or in the order of *metrics*. Its
        ``attrs["metrics"]`` are the names of the metrics.

    Raises:
        UsageError: No run has a metric that is asked for, its direction is not known, or there is no
            such aggregate.
    """
    import pandas as pd

    if aggregate not in get_args(Aggregate):
        raise UsageError(f"aggregate={aggregate!r}: give one of {', '.join(map(repr, get_args(Aggregate)))}")
    columns: dict[str, Any] = {
        "run_name": [run.run_name for run in runs],
        "status": [run.status for run in runs],
        "start_time": pd.to_datetime([run.start_time for run in runs], unit="ms", utc=True),
        "duration_s": [_duration_s(run) for run in runs],
    }
    params = sorted({name for run in runs for name in run.params})
    wanted = _wanted(runs, metrics, aggregate)
    clashing = set(params) & set(wanted)
    for name in params:
        label = _label("params.", name, clashing, columns)
        columns[label] = _param_column([run.params.get(name) for run in runs])
    labels: dict[str, str] = {}
    for name, choose in wanted.items():
        label = labels[name] = _label("metrics.", name, clashing, columns)
        columns[label] = _values(runs, name, choose, histories)
    frame = pd.DataFrame(columns, index=pd.Index([run.run_id for run in runs], name="run_id", dtype="str"))
    if only_differences:
        differing = [
            name
            for name in frame.columns[len(FIRST) :]
            if frame[name].nunique(dropna=False) > 1  # noqa: PD101 - unlike ==, it takes NaN for equal
        ]
        frame = frame[[*FIRST, *differing]]
    frame.attrs["metrics"] = [name for name, label in labels.items() if label in frame.columns]
    return frame


_Choice = Callable[[Sequence[float]], float] | None


def _wanted(runs: Sequence[MLflowRunInfo], metrics: Metrics, aggregate: Aggregate) -> dict[str, _Choice]:
    """Return the metrics to show, each with what chooses from its history; None takes the last value."""
    known = sorted({name for run in runs for name in run.metrics})
    asked = [metrics] if isinstance(metrics, str) else known if metrics is None else list(metrics)
    chosen: dict[str, _Choice] = {}
    for name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known) or known[:10]
            there = f"there are: {', '.join(near)}" if near else "they have none"
            raise UsageError(f"none of these runs has a metric {name!r}; {there}")
        how = aggregate if aggregate != "best" else _direction(name, metrics)
        chosen[name] = {"min": min, "max": max, "last": None}[how]
    return chosen


def _direction(name: str, metrics: Metrics) -> str:
    given = metrics[name] if isinstance(metrics, Mapping) else None
    if given is not None:
        if given not in {"min", "max"}:
            raise UsageError(f"metrics={{{name!r}: {given!r}}}: say 'min' or 'max'")
        return given
    is_greater = directions.is_greater_better(name)
    if is_greater is not None:
        return "max" if is_greater else "min"
    if metrics is None:
        return "last"
    raise UsageError(
        f"nothing in the name {name!r} tells whether more is better: say metrics={{{name!r}: 'max'}}, or 'min'"
    )


def _values(
    runs: Sequence[MLflowRunInfo],
    name: str,
    choose: _Choice,
    histories: Callable[[Sequence[str], str], Mapping[str, History]],
) -> list[float]:
    if choose is None:
        return [run.metrics.get(name, math.nan) for run in runs]
    found = histories([run.run_id for run in runs if name in run.metrics], name)
    numbers = [[value for *_, value in found.get(run.run_id, ()) if not math.isnan(value)] for run in runs]
    return [choose(values) if values else math.nan for values in numbers]


def _duration_s(run: MLflowRunInfo) -> float:
    if run.start_time is None or run.end_time is None:
        return math.nan
    return (run.end_time - run.start_time) / 1000


def _label(prefix: str, name: str, clashing: set[str], taken: dict[str, Any]) -> str:
    label = prefix + name if name in clashing else name
    while label in taken:  # a param called like one of the first columns, or itself "metrics.x"
        label = prefix + label
    return label


def _param_column(texts: list[str | None]) -> Any:
    import pandas as pd

    if all(text is None or _INTEGER.fullmatch(text) for text in texts):
        integers = [None if text is None else int(text) for text in texts]
        if None not in integers:
            return integers
        try:
            return pd.array(integers, dtype="Int64")
        except OverflowError:  # a seed beyond 64 bits
            return texts
    if all(text is None or _NUMBER.fullmatch(text) for text in texts):
        return [math.nan if text is None else float(text) for text in texts]
    return texts


# --- showing it --------------------------------------------------------------------------------------


def as_table(frame: pd.DataFrame) -> Any:
    """Return a comparison as a ``rich.table.Table``: a column per run, or for many runs a row per run.

    Args:
        frame: What `compared` gave.
    """
    from rich.markup import escape
    from rich.table import Table

    rows = [[_shown(value) for value in row] for row in frame.itertuples(index=True, name=None)]
    names = ["run_id", *map(str, frame.columns)]
    if len(frame) <= _MOST_COLUMNS:
        rows = [[name, *cells] for name, cells in zip(names, zip(*rows, strict=True), strict=False)]
        names, rows = (rows or [names])[0], rows[1:]
    made = Table(*map(escape, names))
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def as_html(
    frame: pd.DataFrame, histories: Mapping[str, Mapping[str, History]] | None = None, *, title: str = "Runs"
) -> str:
    """Return a comparison as one HTML page that needs nothing beside it.

    Args:
        frame: What `compared` gave.
        histories: Curves to draw: by metric, by run id, the points; see `Queries.metric_histories`.
        title: What stands above.
    """
    labels = {run_id: str(name) or run_id for run_id, name in frame["run_name"].items()}
    if len(set(labels.values())) < len(labels):
        labels = {run_id: f"{name} ({run_id[:8]})" for run_id, name in labels.items()}
    drawn = [
        charts.lines(
            metric,
            {
                labels.get(run_id, run_id): ([step for step, *_ in found], [value for *_, value in found])
                for run_id, found in by_run.items()
            },
            x="step",
        )
        for metric, by_run in (histories or {}).items()
        if any(by_run.values())
    ]
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in ("run_id", *frame.columns))
    body = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(_shown(value))}</td>" for value in row) + "</tr>"
        for row in frame.itertuples(index=True, name=None)
    )
    shown = html.escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<title>{shown}</title>
<style>
body {{ font-family: sans-serif; margin: 2em; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 90%; }}
th, td {{ border-bottom: 1px solid #ddd; padding: 0.3em 0.8em; text-align: left; white-space: nowrap; }}
svg {{ margin: 1em 1em 0 0; }}
</style>
</head>
<body>
<h1>{shown}</h1>
<div><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
{"".join(drawn)}
</body>
</html>
"""


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    if value is None or str(value) in {"<NA>", "NaT", "nan"}:
        return ""
    if hasattr(value, "strftime"):
        return str(value.strftime("%Y-%m-%d %H:%M:%S"))
    return str(value)
