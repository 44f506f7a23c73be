"""Points of metrics as rows of MLflow's own tables, where the store is a SQLite file on this machine.

``MlflowClient.log_batch`` makes an ORM object of each point: 96-160 ms per 1000 points, nearly all of it
in SQLAlchemy's unit of work, where SQLite itself needs 8. A courier beside a training pays that with
the training's own processor. The same rows are inserted here in one statement, compiled once from MLflow's table
definitions and handed to the driver as it is, in MLflow's own session, under MLflow's rules::

    metrics          a point that is there already stays as it is: the primary key is all that it says
    latest_metrics   the greatest (step, timestamp, value) of each key

Only where we know what a point is made of: the schema's revision is one that this was compared with
(`tests/tracking/test_rows.py` holds both ways against each other), and the store is MLflow's plain
one. Everything else, and everything that MLflow would refuse, goes to ``log_batch``, whose words count.
"""

from __future__ import annotations

import math
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlpipeline.tracking.records import Point

KNOWN_REVISIONS = frozenset({"dc11669786a5"})
"""Of MLflow's schema; that of 3.17 is here. With another one, points take the ordinary way."""

_AGE = ("step", "timestamp", "value")
"""What makes one point of a key newer than another, in this order."""

_COLUMNS = ("key", "run_uuid", "is_nan", *_AGE)
_AGE_AT = slice(-len(_AGE), None)

_GREATEST = 1.7976931348623157e308
_MOST_MS_OR_STEPS = 2**63 - 1


class PointRows:
    """Inserts points into the tables of one store; made by `of`.

    Args:
        store: MLflow's SQLAlchemy store of a SQLite file.
    """

    def __init__(self, store: Any) -> None:
        from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlRun
        from sqlalchemy import select, tuple_
        from sqlalchemy.dialects.sqlite import insert

        self._session: Any = store.ManagedSessionMaker
        self._valid_keys: set[str] = set()
        # The tables, not the classes: those would make objects again.
        metrics, latest = SqlMetric.__table__, SqlLatestMetric.__table__
        # SQLAlchemy would look at each value of each row: a third of all that a point costs.
        insertion = insert(metrics).on_conflict_do_nothing().compile(dialect=store.engine.dialect)
        self._insert = str(insertion)
        self._in_order = itemgetter(*map(_COLUMNS.index, insertion.positiontup or ()))
        newer = insert(latest)
        self._raise_latest = newer.on_conflict_do_update(
            index_elements=["key", "run_uuid"],
            set_={name: newer.excluded[name] for name in ("value", "timestamp", "step", "is_nan")},
            where=tuple_(*(newer.excluded[name] for name in _AGE))
            > tuple_(*(latest.c[name] for name in _AGE)),
        )
        runs: Any = SqlRun.__table__
        self._stage_of: Any = lambda run_id: select(runs.c.lifecycle_stage).where(runs.c.run_uuid == run_id)

    @classmethod
    def of(cls, client: Any) -> PointRows | None:
        """Return the rows behind a client; None where its store is none that we know to the last column."""
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
        from sqlalchemy import text

        store = client._tracking_client.store  # noqa: SLF001 - MLflow has no public way to it
        if type(store) is not SqlAlchemyStore or store.db_type != "sqlite":
            return None
        with store.ManagedSessionMaker() as session:
            revision = session.execute(text("SELECT version_num FROM alembic_version")).scalar()
        return cls(store) if revision in KNOWN_REVISIONS else None

    def insert(self, run_id: str, points: Sequence[Point]) -> bool:
        """Store points; again changes nothing.

        Returns:
            Whether they are stored. If not, nothing is, and MLflow's own call will say why.

        Raises:
            MlflowException: The database does not take them now.
        """
        if not all(map(self._is_valid, points)):
            return False
        rows = [_row(run_id, point) for point in points]
        latest: dict[str, tuple[Any, ...]] = {}
        for row in rows:
            before = latest.get(row[0])
            if before is None or row[_AGE_AT] > before[_AGE_AT]:
                latest[row[0]] = row
        with self._session(read_only=False) as session:
            if session.execute(self._stage_of(run_id)).scalar() != "active":
                return False
            session.connection().exec_driver_sql(self._insert, list(map(self._in_order, rows)))
            newest = [dict(zip(_COLUMNS, row, strict=True)) for row in latest.values()]
            session.execute(self._raise_latest, newest)
        return True

    def _is_valid(self, point: Point) -> bool:
        if point.key not in self._valid_keys:
            from mlflow.exceptions import MlflowException
            from mlflow.utils.validation import _validate_metric

            try:
                _validate_metric(point.key, 0.0, 0, 0)  # type: ignore[no-untyped-call]  # MLflow's own
            except MlflowException:
                return False
            self._valid_keys.add(point.key)
        return 0 <= point.timestamp_ms <= _MOST_MS_OR_STEPS and abs(point.step) <= _MOST_MS_OR_STEPS


def _row(run_id: str, point: Point) -> tuple[Any, ...]:
    key, value, timestamp_ms, step = point
    if is_nan := math.isnan(value):
        value = 0.0
    elif math.isinf(value):
        value = math.copysign(_GREATEST, value)
    return key, run_id, is_nan, step, timestamp_ms, value
