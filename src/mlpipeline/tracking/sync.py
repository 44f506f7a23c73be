"""``mlpipeline sync``: the courier in the foreground, for everything that a home holds.

Each run goes with the credentials of who recorded it, or stays. A courier that serves the home
already is asked to hurry and waited for; one whose password or token is older makes room.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from mlpipeline.core import credentials
from mlpipeline.core.credentials import public_uri
from mlpipeline.tracking import liveness
from mlpipeline.tracking.account import RunAccount, account_of
from mlpipeline.tracking.courier import Courier
from mlpipeline.tracking.delivery import RunDelivery
from mlpipeline.tracking.dispatch import Dispatch
from mlpipeline.tracking.verdicts import Unavailable

if TYPE_CHECKING:
    from mlpipeline.tracking.destination import Destination
    from mlpipeline.tracking.home import Home

_PATIENCE_S = 35.0
"""Somebody else's courier may be in the middle of a request, which takes 30 seconds at most."""


def send_all(home: Home, *, owns_process: bool = False, is_for_anybody: bool = False) -> None:
    """Send what a home holds, here and now.

    Args:
        home: The journal home.
        owns_process: This process is the courier's alone.
        is_for_anybody: Also send with this process's credentials what was recorded under another name.
    """
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        credentials.stripped(os.environ.get(name, ""))
    for identity, deliveries in _by_identity(home).items():
        destination = deliveries[0].destination()
        here = credentials.user_for(destination.tracking_uri, destination.registry_uri)
        if destination.user not in ("", here) and not is_for_anybody:
            if not liveness.is_held(home.post(identity).lock):
                _tell_wrong_user(deliveries, destination, here)
            continue
        dispatch = Dispatch(home, "process", destination)
        dispatch.make_room()
        courier = Courier(
            home,
            identity,
            secret=dispatch.secret(),
            owns_process=owns_process,
            mode="sync",
            is_for_anybody=is_for_anybody,
        )
        if not courier.run(until_idle=True):
            ends = {delivery.folder.uid: delivery.folder.ends() for delivery in deliveries}
            dispatch.wait(partial(_are_done, home, ends), patience_s=_PATIENCE_S, has_asked=True)


def _by_identity(home: Home) -> dict[str, list[RunDelivery]]:
    found: dict[str, list[RunDelivery]] = {}
    for folder in home.runs():
        delivery = RunDelivery(home, folder)
        try:
            is_readable = delivery.look()
        except Unavailable:
            continue  # `account_of` tells; what wrote the journal may have a newer state, too
        if is_readable:
            found.setdefault(delivery.destination().identity, []).append(delivery)
    return found


def _are_done(home: Home, ends: dict[str, dict[str, list[int]]]) -> bool:
    """Tell whether these runs are done; the runs under them that wait in their journals join them.

    Of a run that somebody writes to, what its journals had up to these ends is enough.
    """
    left = [
        account
        for account in (account_of(home, uid) for uid in ends if home.run(uid).path.exists())
        if not _is_done(home, account, ends[account.uid])
    ]
    ends |= {uid: {} for account in left for uid in account.waiting if uid not in ends}
    return not left


def _is_done(home: Home, account: RunAccount, ends: dict[str, list[int]]) -> bool:
    if not account.counts.pending:
        return account.is_live or account.is_ended
    state = home.state(account.uid)
    return account.is_live and state is not None and state.covers(ends) and not state.uploads


def _tell_wrong_user(deliveries: list[RunDelivery], destination: Destination, here: str) -> None:
    for delivery in deliveries:
        delivery.set_problem(
            f"recorded for {public_uri(destination.tracking_uri)} as {destination.user!r}, and here are the "
            f"credentials of {here or 'nobody'!r}: set the right ones (in MLFLOW_TRACKING_URI, or as "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD), or send all under this name: --any-user"
        )
