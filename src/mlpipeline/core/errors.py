"""What `mlpipeline` raises, and only where the user made the mistake.

::

    MLPipelineError
    ├── ConfigError (ValueError)        an option is unknown, of the wrong type, or contradicts another
    ├── UsageError (RuntimeError)       a call that cannot be right: an ended run, one callback in two threads
    ├── MissingExtraError (ImportError) a framework's package is not installed; names the extra to install
    └── UnloggableError (ValueError)    a value that no run can hold: a metric that is not a number, a path that is not there

The world's faults (network, server, disk, MLflow) are not here: they never reach a training. They
are kept, counted, told once per cause through ``logging.getLogger("mlpipeline")`` and listed by
``mlpipeline status``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class MLPipelineError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigError(MLPipelineError, ValueError):
    """An option is unknown, has the wrong type or value, or contradicts another option."""


class UsageError(MLPipelineError, RuntimeError):
    """A call that cannot be right where it stands, such as logging to a run that has ended."""


class UnloggableError(MLPipelineError, ValueError):
    """A value that no run can hold, such as a metric that is not a number."""


class MissingExtraError(MLPipelineError, ImportError):
    """A framework's package is not installed.

    Args:
        extra: Name of the extra that installs it, such as ``"lightning"``.
        missing: The import that failed.
    """

    def __init__(self, extra: str, missing: str) -> None:
        super().__init__(
            f"mlpipeline.{extra} needs the package {missing!r}, which is not installed. "
            f'Install it with: pip install "mlpipeline[{extra}]"'
        )
        self.extra = extra


def nearest(word: object, known: Iterable[object]) -> str:
    """Return what a message says of the known word that is nearest to an unknown one; empty if none is near."""
    import difflib

    by_lower = {str(name).lower(): str(name) for name in known}
    near = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
