"""The sieve: which of a run's records does the server not take, though it takes others?

::

    records ─► all at once ── refused ─────────────► by halves, to those that are refused
                          └── fails, and again ───► something else of the run: does it take that?
                                                        └─ yes ─► by halves, to those that it fails with

One record that a server refuses must not cost those beside it, nor may one that it fails with (a 500 for this
value alone) hold up the run for ever. A server that fails with everything is not well, and waited for.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from mlpipeline.tracking.verdicts import Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlpipeline.tracking.home import RunState
    from mlpipeline.tracking.records import Point
    from mlpipeline.tracking.sink import MlflowSink

    _Items = Sequence[tuple["_T", Any]]
    _Send = Callable[[_Items["_T"]], None]

_POISONOUS_FAILURES = 3
"""So often a server fails with the same records, and is well otherwise, before they are suspected."""

_CHECKED_TAG = "mlpipeline.checked_ms"
"""When a server that failed with some records of a run was asked to take others."""

_T = TypeVar("_T")


class Sieve:
    """Sends records of one run and tells which of them the server does not take.

    Args:
        state: What is known of the run.

    Attributes:
        stored: A point that the server has; being sent it again tells whether it is well.
    """

    def __init__(self, state: RunState) -> None:
        self.stored: Point | None = None
        self._state = state
        self._failures = 0

    def send(self, sink: MlflowSink, items: _Items[_T], send: _Send[_T]) -> dict[_T, str]:
        """Send *items*; where MLflow refuses them, or the server fails with them every time, find out which.

        Args:
            sink: Where to.
            items: The records, each with a key of its own.
            send: Sends some of them.

        Returns:
            The reason per key of a refused item.

        Raises:
            Unavailable: The server takes nothing now; the same items are to be sent again.
        """
        try:
            refused = self._sent(sink, items, send)
        except Unavailable as error:
            self._failures += error.is_failure
            if not error.is_failure or self._failures < _POISONOUS_FAILURES:
                raise
            refused = self._bisected(sink, items, send, error)
        self._failures = 0
        return refused

    def _sent(
        self, sink: MlflowSink, items: _Items[_T], send: _Send[_T], *, is_run_there: bool = False
    ) -> dict[_T, str]:
        try:
            send(items)
        except Refused as refused:
            # Of a run that was deleted everything is refused: one by one that is two requests for each record.
            if len(items) == 1 or not (is_run_there or self._is_run_there(sink)):
                return {key: str(refused) for key, _ in items}
            first, last = _halves(items)[::-1]
            return {
                **self._sent(sink, first, send, is_run_there=True),
                **self._sent(sink, last, send, is_run_there=True),
            }
        return {}

    def _is_run_there(self, sink: MlflowSink) -> bool:
        try:
            return bool(sink.get_run(str(self._state.run_id)).info.lifecycle_stage == "active")
        except Refused:
            return False

    def _bisected(
        self, sink: MlflowSink, items: _Items[_T], send: _Send[_T], error: Unavailable
    ) -> dict[_T, str]:
        """Send by halves what a server fails with, as long as it takes other records of this run.

        Raises:
            Unavailable: It takes nothing else either: that is no poison, and nothing is a dead letter.
        """
        refused: dict[_T, str] = {}
        has_passed, tries = len(items) == 1, 0
        self._ask_for_another(sink)
        waiting = _halves(items)
        while waiting:
            piece = waiting.pop()
            try:
                found = self._sent(sink, piece, send, is_run_there=True)
                has_passed |= len(found) < len(piece)
            except Unavailable as again:
                if not again.is_failure:
                    raise
                self._ask_for_another(sink)
                error, tries = again, tries + 1 if len(piece) == 1 else 0
                if tries < _POISONOUS_FAILURES:
                    waiting += _halves(piece)
                    continue
                found = {piece[0][0]: f"the server fails with it every time: {again}"}
            tries = 0
            refused |= found
            if not has_passed and (len(refused) >= _POISONOUS_FAILURES or not waiting):
                raise error
        return refused

    def _ask_for_another(self, sink: MlflowSink) -> None:
        """Write something else to the run: a point that it has, or a tag that changes.

        Raises:
            Unavailable: That fails, too.
        """
        run_id = str(self._state.run_id)
        if self.stored is not None:
            sink.log_points(run_id, [self.stored])
        else:
            sink.set_tags(run_id, {_CHECKED_TAG: str(time.time_ns() // 1_000_000)})


def _halves(items: Sequence[_T]) -> list[Sequence[_T]]:
    half = len(items) // 2
    return [items[half:], items[:half]] if half else [items]
