"""Thinning: at most so many records a second of the same metrics, and an account of the others.

::

    log_metrics ──► takes? ── yes ──► journal
                      └──── no ───► counted; the last one is kept, and recorded when the run ends
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    _Record: TypeAlias = tuple[tuple[str, ...], Sequence[float], int, int]
    """Names, values, step, and when in ms since 1970."""


class Sampling:
    """What is recorded of metrics that come faster than anybody looks at them.

    Args:
        per_s: Records a second, of the same names each.

    Attributes:
        taken: How many records with a step were let through.
        left_out: How many were not.
    """

    def __init__(self, per_s: float) -> None:
        self.taken = self.left_out = 0
        self._per_s = per_s
        self._every_ns = int(1e9 / per_s)
        self._next_ns: dict[tuple[str, ...], int] = {}
        self._waiting: dict[tuple[str, ...], _Record] = {}

    def takes(
        self, names: tuple[str, ...], values: Sequence[float], step: int | None, timestamp_ms: int | None
    ) -> bool:
        """Tell whether a record is to be kept: one without a step always, or counting would skip it.

        One that is not waits until the next one of these names comes.
        """
        if step is None:
            return True
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_ns.get(names, 0):
            self._next_ns[names] = now_ns + self._every_ns
            self._waiting.pop(names, None)
            self.taken += 1
            return True
        at_ms = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
        self._waiting[names] = (names, values, step, at_ms)
        self.left_out += 1
        return False

    def last(self) -> list[_Record]:
        """Return the last record of each kind that waits; it counts as let through."""
        waiting, self._waiting = list(self._waiting.values()), {}
        self.left_out -= len(waiting)
        self.taken += len(waiting)
        return waiting

    def __str__(self) -> str:
        return f"{self.taken} of {self.taken + self.left_out} records, at most {self._per_s:g} a second of the same metrics"
