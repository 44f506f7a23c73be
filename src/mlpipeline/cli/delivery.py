"""``mlpipeline sync`` and ``mlpipeline status``: what the journals hold, and sending it.

Exit codes: 0 everything is delivered; 1 something could not be sent or read, and is kept; 3 MLflow refused
records for good (``mlpipeline status`` lists them).
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import click

from mlpipeline.cli.console import say

if TYPE_CHECKING:
    from mlpipeline.tracking.account import DeliveryCounts, RunAccount
    from mlpipeline.tracking.home import Home

EXIT_PENDING = 1
EXIT_REFUSED = 3

_journal_dir = click.option(
    "--journal-dir",
    type=click.Path(),
    default=None,
    help="The journal home; by default MLPIPELINE_HOME or the user's state folder.",
)
_json = click.option("--json", "is_json", is_flag=True, help="Print one JSON object.")


@click.command()
@_journal_dir
@_json
@click.option(
    "--any-user", is_flag=True, help="Also send, with your credentials, what was recorded under another name."
)
def sync(journal_dir: str | None, is_json: bool, any_user: bool) -> None:
    """Send everything that waits in the journals, now."""
    import logging

    from mlpipeline.tracking.account import DeliveryCounts, accounts, counts_of
    from mlpipeline.tracking.home import Home
    from mlpipeline.tracking.sink import quiet_mlflow
    from mlpipeline.tracking.sync import send_all

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="mlpipeline: %(message)s")
    home = Home.at(journal_dir)
    found = accounts(home)
    before = {account.uid: account.counts for account in found}
    # Still in another run's journal: they come to light on the way.
    waiting = {uid for account in found for uid in account.waiting}
    before |= {uid: counts_of(home, uid) for uid in waiting - before.keys()}
    if not before:
        _print_sync(DeliveryCounts(), [], is_json=is_json)
        return
    quiet_mlflow()
    home.create()
    send_all(home, owns_process=True, is_for_anybody=any_user)
    after = {uid: counts_of(home, uid) for uid in before}
    sent = DeliveryCounts(
        sum(after[uid].delivered - before[uid].delivered for uid in before),
        sum(counts.pending for counts in after.values()),
        sum(counts.refused for counts in after.values()),
        sum(counts.dropped for counts in after.values()),
        sum(counts.damaged for counts in after.values()),
    )
    left = accounts(home)
    _print_sync(sent, left, is_json=is_json)
    # Who lives and has no trouble has recorded it since.
    well = {account.uid for account in left if account.is_live and not account.problem}
    if any(after[uid].pending for uid in after.keys() - well) or not all(one.is_readable for one in left):
        sys.exit(EXIT_PENDING)
    if sent.refused:
        sys.exit(EXIT_REFUSED)


def _print_sync(sent: DeliveryCounts, left: list[RunAccount], *, is_json: bool) -> None:
    problems = sorted({account.problem for account in left if account.problem})
    if is_json:
        click.echo(json.dumps({**vars(sent), "problems": problems}))
        return
    say(f"{sent.delivered} records delivered, {sent.pending} pending, {sent.refused} refused{_damage(sent)}")
    for problem in problems:
        say(f"  {problem}")


@click.command()
@_journal_dir
@_json
@click.option("--forget-refused", is_flag=True, help="Delete the refused records, after showing them.")
def status(journal_dir: str | None, is_json: bool, forget_refused: bool) -> None:
    """Show what waits, what was refused, and whether a courier is at work."""
    from mlpipeline.tracking.account import accounts
    from mlpipeline.tracking.home import Home

    home = Home.at(journal_dir)
    found = accounts(home)
    _show(home, found, is_json=is_json)
    if forget_refused:
        for account in found:
            home.dead_file(account.uid).unlink(missing_ok=True)


def _show(home: Home, found: list[RunAccount], *, is_json: bool) -> None:
    from mlpipeline.tracking.account import courier_reports, dead_letters

    couriers = courier_reports(home)
    if is_json:
        content = {
            "home": str(home.path),
            "couriers": couriers,
            "runs": [{**account.to_dict(), "refused": dead_letters(home, account.uid)} for account in found],
        }
        click.echo(json.dumps(content))
        return
    say(f"journal home: {home.path}")
    at_work = ", ".join(f"process {courier.get('pid')}" for courier in couriers)
    say(f"courier: {at_work or 'none'}")
    if not found:
        say("nothing waits")
    for account in found:
        counts = account.counts
        state = "recording" if account.is_live else "recorded"
        say(
            f"{account.run_id or account.uid}  {state}  {counts.delivered} delivered, {counts.pending} pending, "
            f"{counts.refused} refused, {counts.dropped} dropped{_damage(counts)}"
            f"  -> {account.tracking_uri or 'done'}{_lag(home, account)}"
        )
        if account.problem:
            say(f"  {account.problem}")
        for letter in dead_letters(home, account.uid)[:10]:
            say(f"  refused {letter['kind']} {json.dumps(letter['content'])[:120]}: {letter['reason']}")


def _damage(counts: DeliveryCounts) -> str:
    return f", {counts.damaged} damaged" if counts.damaged else ""


def _lag(home: Home, account: RunAccount) -> str:
    """Tell how long the oldest record of a run waits, once it is long enough to be asked about."""
    from mlpipeline.tracking.account import oldest_pending_ms

    oldest_ms = oldest_pending_ms(home, account.uid)
    age_s = 0.0 if oldest_ms is None else time.time() - oldest_ms / 1000
    for name, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if age_s >= 2 * size:
            return f", the oldest waits for {age_s / size:.0f} {name}"
    return ""
