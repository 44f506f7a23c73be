"""The command line: one file per command group."""

from __future__ import annotations

import click

import mlpipeline
from mlpipeline.cli.console import Group
from mlpipeline.cli.delivery import status, sync


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mlpipeline.__version__, prog_name="mlpipeline")
def main() -> None:
    """Record trainings in MLflow: what is on its way, and how to send it."""


main.add_command(sync)
main.add_command(status)
