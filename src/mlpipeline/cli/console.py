"""What all commands share: exit codes, ``--json``, the destination's options, and how a mistake is told.

::

    command ──► value ──► tell(value, text=...)    --json: one JSON document on standard output
                                                   else:   the text, a table of rich's where it is one
    a mistake of the user's (MLPipelineError) ──► one line on standard error, exit code 2
    MLflow or its server fails                ──► one line on standard error, exit code 1
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import click

from mlpipeline.core.credentials import public_uri
from mlpipeline.core.errors import MLPipelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlpipeline.core.config import MLflowConfig
    from mlpipeline.tracking.destination import Destination

EXIT_FAILED = 1
"""What was asked for did not come about: a training failed, a threshold was missed, a server is away."""

EXIT_USAGE = 2
"""The command line or the configuration cannot be right; click's own code for it."""

EXIT_NO = 3
"""Everything worked, and the answer is no: not better, or refused by MLflow for good."""

EXIT_UNDELIVERED = 4
"""The work is done, but MLflow has not got it yet; ``mlpipeline sync`` sends it."""


class _Duration(click.ParamType):  # type: ignore[type-arg]  # a class without arguments up to click 8.4
    """A time span such as ``90d``, ``12h`` or ``4w``; the value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds that a text means; a number is taken as it is."""
        if isinstance(value, (int, float)):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no time span: write 30s, 15m, 12h, 90d or 4w", param, ctx)
        return float(found[1]) * _SECONDS[found[2]]


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}

DURATION = _Duration()

json_option = click.option("--json", "is_json", is_flag=True, help="Print one JSON document.")


def destination_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--tracking-uri`` and ``--registry-uri``; `destination_config` makes a configuration of them."""
    for option in (
        click.option("--registry-uri", default=None, help="Where the models are; default: with the runs."),
        click.option(
            "--tracking-uri", default=None, help="Where the runs are; default: as for a training here."
        ),
    ):
        command = option(command)
    return command


def destination_config(**options: Any) -> MLflowConfig:
    """Return the configuration of a command's options; what is None counts as not given."""
    from mlpipeline.core.config import MLflowConfig

    return MLflowConfig.of({name: value for name, value in options.items() if value is not None})


journal_option = click.option("--journal-dir", type=click.Path(), default=None, help="The journal home.")


def check_store(where: Destination) -> None:
    """Raise where a SQLite store is asked for that nobody has made yet: MLflow would make it."""
    if where.is_sqlite and not where.sqlite_file().exists():
        raise UsageError(
            f"there is no store at {where.tracking_uri} yet: the first training makes it; "
            "or name another with --tracking-uri"
        )


def reach(config: MLflowConfig) -> None:
    """Make ready to ask the MLflow of a configuration: knock there, and keep MLflow quiet in this process.

    Raises:
        UsageError: There is no store yet.
        Unavailable: Nobody answers. MLflow's own client would find that out in minutes.
    """
    from mlpipeline.tracking.opening import destination_of, resolved
    from mlpipeline.tracking.sink import quiet_mlflow

    where = destination_of(resolved(config))
    check_store(where)
    retries = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    quiet_mlflow()
    # Not none, as in a courier, which tries again by itself: a job should not fail for one lost packet.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = retries or "2"
    where.probe()


def tell(content: Any, *, is_json: bool, text: Callable[[], Any]) -> None:
    """Print a command's result.

    Args:
        content: What ``--json`` prints; what JSON does not know is printed as a string, NaN as null.
        is_json: Whether it was asked for.
        text: Makes what people read: a string, or anything that rich prints.
    """
    if is_json:
        click.echo(json.dumps(_finite(content), default=str))
        return
    shown = text()
    if isinstance(shown, str):
        say(shown)
        return
    from rich.console import Console

    # A pipe has no width: nothing is cut there.
    Console(width=None if sys.stdout.isatty() else 200).print(shown)


def say(text: str) -> None:
    """Print a line; what standard output cannot express is escaped, be it half a character of a damaged record."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def _finite(content: Any) -> Any:
    """Return content that any reader of JSON takes: NaN and infinity are none of its numbers."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> Any:
    """Return a table of rich's; cells are shown as they are, None as nothing."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(*columns, title=title, title_justify="left")
    for row in rows:
        made.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    return made


class Group(click.Group):
    """A group whose commands tell mistakes in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what users or servers did wrong becomes a message and an exit code."""
        try:
            return super().invoke(ctx)
        except MLPipelineError as error:
            raise _Mistake(str(error)) from error
        except Exception as error:
            # Asked about only where they are loaded: MLflow's import takes seconds.
            verdicts = sys.modules.get("mlpipeline.tracking.verdicts")
            if verdicts is not None and isinstance(error, (verdicts.Unavailable, verdicts.Refused)):
                raise click.ClickException(str(error)) from error
            mlflow = sys.modules.get("mlflow.exceptions")
            if mlflow is not None and isinstance(error, mlflow.MlflowException):
                raise click.ClickException(f"MLflow says: {public_uri(str(error))}") from error
            raise


class _Mistake(click.ClickException):
    """A mistake of the user's."""

    exit_code = EXIT_USAGE


def exit_codes() -> Mapping[int, str]:
    """Return the meaning of every exit code."""
    return {
        0: "done",
        EXIT_FAILED: "failed: the training, a threshold, the server; or records still wait",
        EXIT_USAGE: "the command line or the configuration cannot be right",
        EXIT_NO: "the answer is no: not better, or refused by MLflow for good",
        EXIT_UNDELIVERED: "trained, but not delivered yet: mlpipeline sync",
    }
