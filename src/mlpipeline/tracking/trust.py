"""Whose models are loaded without a word: ours, and those whose files are only data.

::

    MLmodel, files ─┬─ logged by a run of this journal home ──► loaded
                    ├─ a format that holds no code ───────────► loaded
                    └─ anything else ─────────────────────────► UsageError, unless trust=True

A pickle runs what is in it when it is loaded, and an MLmodel file may name modules to import and
types to trust: whoever may log to a server decides what a loader does. So its word is not taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import ConfigError, UsageError
from mlpipeline.tracking.destination import Destination
from mlpipeline.tracking.home import RunState

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.models import Model

    from mlpipeline.tracking.home import Home

_PATHS = ("data", "model_path", "pickled_model")
"""What in a flavor's configuration names files."""


def is_ours(home: Home, where: Destination, model_id: str | None) -> bool:
    """Tell whether a run of this home logged a model there; the home knows it as long as its done-records.

    Args:
        home: The journal home.
        where: Where the model is: another server may have given the same id.
        model_id: Its id, ``m-…``; None for a model without one.
    """
    if not model_id or not home.path.exists():
        return False
    try:
        home.check()  # what lies in the folder of somebody else tells nothing
    except (OSError, ConfigError):
        return False
    keys = {
        Destination(where.tracking_uri, registry_uri, user).key
        for registry_uri in (where.registry_uri, where.tracking_uri)
        for user in (where.user, "")
    }
    for path in (*home.path.glob("runs/*/state.json"), *home.path.glob("done/*.json")):
        state = RunState.load(path)
        if state is None or state.destination not in keys:
            continue
        if model_id in {model.get("model_id") for model in state.models.values()}:
            return True
    return False


def check(folder: Path, about: Model, what: str, how: str = "trust=True") -> None:
    """Refuse a model whose files could run code when they are loaded.

    Args:
        folder: Its files.
        about: Its MLmodel file.
        what: What to call it.
        how: What the user says to load it all the same.

    Raises:
        UsageError: It could.
    """
    if reason := _danger(folder, about.flavors):
        raise UsageError(
            f"{what} is not loaded: {reason}, and no run in this machine's journal home logged it. Loading it may run "
            f"any code that its author chose; if you trust them, say so with {how}"
        )


def _danger(folder: Path, flavors: dict[str, Any]) -> str | None:
    """Return why loading a model could run code; None where it cannot."""
    from mlpipeline.tracking.flavors import flavor_named

    names = sorted(flavors.keys() - {"python_function"})
    known = flavor_named(names[0]) if len(names) == 1 else None
    if known is None:
        return f"of its kind ({', '.join(names) or 'python_function'}) no format is known to hold only data"
    if (
        flavors.get("python_function", {}).get("loader_module", f"mlflow.{known.name}")
        != f"mlflow.{known.name}"
    ):
        return "it names a module of its own to load it"
    if any(about.get("code") for about in flavors.values()):
        return "it brings code along"
    # Some loaders read the MLmodel file beside the model's data.
    if any(path.name.lower() == "mlmodel" and path.parent != folder for path in folder.rglob("*")):
        return "there is a second MLmodel file in it"
    top = folder.resolve()
    given = [str(about[key]) for about in flavors.values() for key in _PATHS if about.get(key)]
    if not all((folder / path).resolve().is_relative_to(top) for path in given):
        return "it names files outside of its folder"
    if not known.is_data(flavors[known.name]):
        return f"its format, {_format_of(flavors[known.name])}, can hold code"
    return None


def _format_of(about: dict[str, Any]) -> str:
    named = (
        about.get("serialization_format") or about.get("model_class") or "as its MLmodel file describes it"
    )
    return f"{named} with types of its own choice" if named == "skops" else str(named)
