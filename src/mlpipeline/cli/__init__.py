"""The command line: one file per command group.

Help loads all of these files, for their options. So what a command needs to run is imported when it runs, modules of
the standard library too where help has no use for them (`tests/cli/test_commands.py` has the list).
"""

from __future__ import annotations

import click

import mlpipeline
from mlpipeline.cli.console import Group
from mlpipeline.cli.delivery import status, sync
from mlpipeline.cli.doctor import doctor
from mlpipeline.cli.export import export
from mlpipeline.cli.pipeline import config, evaluate, train, tune
from mlpipeline.cli.registry import models, promote, register
from mlpipeline.cli.runs import runs
from mlpipeline.cli.storage import storage
from mlpipeline.cli.ui import ui


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mlpipeline.__version__, prog_name="mlpipeline")
def main() -> None:
    """Train, compare and promote models with MLflow, and see that nothing is lost on the way there."""


for command in (
    *(train, evaluate, tune, config),
    *(register, promote, models, runs),
    *(status, sync, doctor, storage, export, ui),
):
    main.add_command(command)
