"""``mlpipeline doctor``: what stands between a training and MLflow, and what to do about it.

Exit codes: 0 all is well, or only warnings; 1 a check failed.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from mlpipeline.cli.console import EXIT_FAILED, destination_config, destination_options, json_option, tell

if TYPE_CHECKING:
    from mlpipeline.tracking.doctor import Finding

_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


@click.command()
@destination_options
@click.option("--experiment", "experiment_name", default=None, help="The experiment that runs go to.")
@click.option("--journal-dir", type=click.Path(), default=None, help="The journal home.")
@json_option
def doctor(is_json: bool, **options: Any) -> None:
    """Check connection, credentials, versions, registry, artifacts, clock and journal.

    Each failure comes with its fix. Writes nothing but a throw-away run in the experiment
    mlpipeline-doctor, which it deletes. Exit codes: 0 all is well, or only warnings; 1 a check failed.
    """
    from mlpipeline.tracking.doctor import examine
    from mlpipeline.tracking.sink import quiet_mlflow

    environ = dict(os.environ)
    quiet_mlflow()
    found = []
    for finding in examine(destination_config(**options), environ=environ):
        found.append(finding)
        if not is_json:  # as it is found: the later checks take seconds
            tell(None, is_json=False, text=partial(_shown, finding))
    if is_json:
        click.echo(json.dumps([asdict(finding) for finding in found]))
    if any(finding.state == "failed" for finding in found):
        sys.exit(EXIT_FAILED)


def _shown(finding: Finding) -> Any:
    from rich.text import Text

    text = Text()
    text.append(f"{finding.state:8}", _STYLES[finding.state]).append(f"{finding.name:15}{finding.detail}")
    if finding.fix:
        text.append(f"\n{'':8}fix: {finding.fix}", "bold")
    return text if sys.stdout.isatty() else text.plain
