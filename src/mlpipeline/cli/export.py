"""``mlpipeline export``: figures for a monitoring system, as a file or served.

Exit codes: 0 done, also when it is stopped while it serves; 1 MLflow could not be asked (which is
exported, too), or the port or the file cannot be had.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from mlpipeline.cli.console import DURATION, EXIT_FAILED, destination_config, destination_options, json_option

if TYPE_CHECKING:
    from mlpipeline.tracking.export import Exporter


@click.command()
@destination_options
@click.option("--journal-dir", type=click.Path(), default=None, help="The journal home.")
@click.option(
    "--output",
    type=click.Path(allow_dash=True),
    default=None,
    help="Write a file, for node_exporter's textfile collector (name it *.prom); - is standard output.",
)
@click.option(
    "--serve", type=click.IntRange(0, 65535), default=None, metavar="PORT", help="Serve /metrics there."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve at.")
@click.option("--every", type=DURATION, default="30s", show_default=True, help="How often MLflow is asked.")
@json_option
def export(
    output: str | None, serve: int | None, host: str, every: float, is_json: bool, **options: Any
) -> None:
    """Export figures in the OpenMetrics format.

    The newest metrics of every model version that an alias points to, runs by status, and what is on
    its way to MLflow, was refused or lost. Without --output and --serve: to standard output.
    """
    from pathlib import Path

    from mlpipeline.tracking import export as exporting
    from mlpipeline.tracking.home import Home
    from mlpipeline.tracking.opening import destination_of, resolved
    from mlpipeline.tracking.sink import quiet_mlflow

    if serve is not None and output is not None:
        raise click.UsageError("--serve and --output: give one of them")
    config = resolved(destination_config(**options))
    where, home = destination_of(config), Home.at(config.journal_dir)
    quiet_mlflow()
    if serve is not None:
        exporter = exporting.Exporter(where, home, max_age_s=3 * every + 10)
        _serve(exporter, host, serve, every, is_json=is_json)
        return
    exporter = exporting.Exporter(where, home)
    problem = exporter.refresh()
    if output not in {None, "-"}:
        try:
            exporting.write(Path(str(output)), exporting.exposition(exporter))
        except OSError as error:
            raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error
    elif not is_json:
        click.echo(exporting.exposition(exporter), nl=False)
    if is_json:
        click.echo(json.dumps(exporter.to_dict()))
    if problem is not None:
        click.echo(f"mlpipeline: {problem}", err=True)
        sys.exit(EXIT_FAILED)


def _serve(exporter: Exporter, host: str, port: int, every_s: float, *, is_json: bool) -> None:
    import signal

    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(exporter)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise click.ClickException(f"cannot serve at {host}:{port}: {error.strerror}") from error
    url = f"http://{host}:{server.server_port}/metrics"
    click.echo(json.dumps({"url": url}) if is_json else f"serving {url}; Ctrl-C ends it")
    # SIGTERM is how a service is stopped; and a shell may have told its background to ignore Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    told: str | None = None
    try:
        while True:
            problem = exporter.refresh()
            if problem is not None and problem != told:
                click.echo(f"mlpipeline: {problem}", err=True)
            told = problem
            time.sleep(every_s)
    except KeyboardInterrupt:
        server.shutdown()
        thread.join()
        server.server_close()
