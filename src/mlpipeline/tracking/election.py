"""One run where several homes make it at once, neither knowing of the other: the run that all of them take.

::

    look ─ is there a winner? ─► take it
      └─ nobody? make a candidate: its turn is 0, "choosing"
             └► look ─► write its turn: one more than any ─► look ─► the lowest turn wins
                                                                     who lost deletes its own, takes that

Two hosts train one study: both look for its run, find none, make one, and MLflow has nothing unique
that they could fight for. This is Lamport's bakery ("A New Solution of Dijkstra's Concurrent
Programming Problem", CACM 17(8), 1974, doi:10.1145/361082.361093), which asks for no more than a
register per participant that it alone writes and all read: the tag of its own candidate. Whoever
looked and saw itself alone had its turn before any other candidate was there, and so has the lower
one; where two see each other, both see the same turns. A candidate without a turn is waited for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow.entities import Run as MlflowRun

    from mlpipeline.tracking.sink import MlflowSink

CLAIM_TAG = "mlpipeline.claim"
"""``"<turn> <token>"`` on a candidate; the token says whose it is."""

CHOOSING_AT_MOST_S = 20.0
"""So long a candidate may be without a turn, which takes two requests; then its maker was killed."""


@dataclass(frozen=True)
class _Candidate:
    run: MlflowRun
    turn: int
    token: str

    @classmethod
    def of(cls, run: MlflowRun) -> _Candidate:
        # What carries no claim was there before anybody stood for election.
        turn, _, token = run.data.tags.get(CLAIM_TAG, "1").partition(" ")
        return cls(run, int(turn) if turn.isdecimal() else 1, token)

    @property
    def rank(self) -> tuple[int, str]:
        return self.turn, str(self.run.info.run_id)


class Election:
    """Finds the run that everybody takes, for one home.

    Args:
        token: What tells this home's candidates from all others, also after a crash.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._seen_s: dict[str, float] = {}

    def winner(
        self,
        sink: MlflowSink,
        *,
        find: Callable[[], Iterable[MlflowRun]],
        make: Callable[[str], object],
        remove: Callable[[MlflowRun, MlflowRun], None],
    ) -> MlflowRun | None:
        """Return the run to take; None while somebody else chooses.

        Args:
            sink: Where.
            find: Returns the runs that stand: all of this uid that are not deleted.
            make: Makes one, with this value of `CLAIM_TAG`.
            remove: Deletes the first, as the second is taken.

        Raises:
            Unavailable: Not now; the next call goes on from there.
        """

        def look() -> list[_Candidate]:
            return [_Candidate.of(run) for run in find()]

        standing = look()
        if not standing:
            make(f"0 {self._token}")
            standing = look()
        if due := {each.token: each for each in _choosing(standing) if self._is_due(each)}:
            turn = 1 + max(each.turn for each in standing)
            for candidate in due.values():
                sink.set_tags(candidate.run.info.run_id, {CLAIM_TAG: f"{turn} {candidate.token}"})
            standing = look()
        if _choosing(standing) or not standing:
            return None
        winner = min((each for each in standing if each.turn), key=lambda each: each.rank).run
        for candidate in standing:
            if candidate.token == self._token and candidate.run.info.run_id != winner.info.run_id:
                remove(candidate.run, winner)
        return winner

    def _is_due(self, choosing: _Candidate) -> bool:
        """Tell whether a candidate gets its turn from here: our own, and one that nobody cares for."""
        first_s = self._seen_s.setdefault(str(choosing.run.info.run_id), time.monotonic())
        return choosing.token == self._token or time.monotonic() - first_s > CHOOSING_AT_MOST_S


def token_of(run: MlflowRun) -> str:
    """Return whose candidate a run is or was; "" where it was none."""
    return _Candidate.of(run).token


def _choosing(standing: list[_Candidate]) -> list[_Candidate]:
    """Return those without a turn; a second one of somebody who has a turn came of a lost answer, and never gets one."""
    numbered = {each.token for each in standing if each.turn}
    return [each for each in standing if not each.turn and each.token not in numbered]
