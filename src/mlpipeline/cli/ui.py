"""``mlpipeline ui``: MLflow's pages for the store that trainings here record to.

Exit codes: 0 the address was told; 2 there is no store yet. Where a server is started, they are MLflow's.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from mlpipeline.cli.console import check_store, destination_config, destination_options, json_option
from mlpipeline.core.credentials import public_uri, with_credentials

if TYPE_CHECKING:
    from mlpipeline.tracking.destination import Destination

# Waits for a server to come up, then opens the page. It outlives the command, which becomes the server.
_OPEN = """
import socket, sys, time, webbrowser
url, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
for _ in range(600):
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        time.sleep(0.1)
    else:
        webbrowser.open(url)
        break
"""


@click.command()
@destination_options
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve at.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="The port.")
@click.option("--open", "opens", is_flag=True, help="Open the pages in a browser.")
@json_option
def ui(host: str, port: int, opens: bool, is_json: bool, **options: Any) -> None:
    """Show MLflow's pages for the store that trainings here record to.

    A file or a database: becomes "mlflow server" on it, with one worker, until Ctrl-C. A server: tells
    its address.
    """
    from mlpipeline.tracking.opening import destination_of, resolved

    where = destination_of(resolved(destination_config(**options)))
    if where.is_http:
        url = public_uri(where.tracking_uri)
        click.echo(json.dumps({"url": url}) if is_json else url)
        if opens:
            import webbrowser

            webbrowser.open(url)
        return
    check_store(where)
    url = f"http://{host}:{port}"
    arguments, environ = command(where, host, port)
    if is_json:
        click.echo(json.dumps({"url": url, "command": arguments}))
    else:
        click.echo(f"{url} shows {public_uri(where.tracking_uri)}; Ctrl-C ends it")
    if opens:
        import subprocess

        subprocess.Popen([sys.executable, "-c", _OPEN, url, host, str(port)], start_new_session=True)
    sys.stdout.flush()
    os.execvpe(arguments[0], arguments, environ)  # noqa: S606 - a list of arguments, no shell


def command(where: Destination, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that serves a database, and its environment.

    The database's URI travels in the environment, because it may hold a password and every user sees
    the arguments of a process.
    """
    from pathlib import Path

    environ = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": with_credentials(where.tracking_uri),
        "MLFLOW_REGISTRY_STORE_URI": with_credentials(where.registry_uri),
    }
    # A server that is told to ask another one would.
    environ.pop("MLFLOW_TRACKING_URI", None)
    environ.pop("MLFLOW_REGISTRY_URI", None)
    arguments = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--host", host, "--port", str(port)),
        # Where a training that starts here would keep the files of a new experiment.
        *("--default-artifact-root", (Path.cwd() / "mlruns").as_uri()),
    ]
    return arguments, environ
