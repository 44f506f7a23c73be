"""What identifies a fit: the estimator, what it was told, the data."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from mlpipeline.core.errors import UsageError
from mlpipeline.tracking import datasets

if TYPE_CHECKING:
    from mlpipeline.tracking.run import Run


def checked(estimator: Any) -> Any:
    """Return an estimator that can be cloned and fitted.

    Raises:
        UsageError: It is none.
    """
    if isinstance(estimator, type):
        name = estimator.__name__
        raise UsageError(f"estimator={name} is a class; write MLflowEstimator({name}()), with an instance")
    if not hasattr(estimator, "fit"):
        raise UsageError(
            f"estimator={estimator!r:.100} ({type(estimator).__name__}) has no fit; "
            "write MLflowEstimator(LogisticRegression(), config), with an estimator first"
        )
    return estimator


def about(estimator: Any) -> dict[str, str]:
    """Return the tags that autolog gives an estimator's run."""
    kind = type(estimator)
    return {"estimator_name": kind.__name__, "estimator_class": f"{kind.__module__}.{kind.__qualname__}"}


def shown_params(estimator: Any) -> dict[str, Any]:
    """Return deep params: plain values as they are, objects by their class, without what nobody set."""
    found = estimator.get_params(deep=True)
    owners = {"": estimator, **found}
    plain = {}
    for key, value in found.items():
        owner, _, name = key.rpartition("__")
        if value is not None or not _is_none_by_default(type(owners.get(owner)), name):
            plain[key] = shown(value)
    return plain


def _is_none_by_default(kind: type, name: str) -> bool:
    try:
        return signature(kind).parameters[name].default is None
    except (KeyError, TypeError, ValueError):  # a step of a pipeline; a class without a signature
        return False


def shown(value: Any) -> Any:
    """Return a plain value as it is, an object by its class, and what holds them with both."""
    if isinstance(value, dict):
        return {str(key): shown(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    is_plain = value is None or isinstance(value, (bool, int, float, str, np.generic, np.ndarray, type))
    return value if is_plain or callable(value) else type(value).__name__


def log_dataset(run: Run, X: Any, y: Any, context: str) -> None:
    """Record data, and a digest of all of its content, targets included."""
    if not run.config.log_datasets:
        return
    found = described(X, y)
    run.log_dataset(
        name=context, context=context, digest=found.digest, schema=found.schema, profile=found.profile
    )


def described(X: Any, y: Any = None) -> datasets.Description:
    """Return the schema and profile of data, and a digest of all of its content, targets included."""
    found = datasets.describe(X)
    digest = blake2b(found.digest.encode(), digest_size=16)
    if y is not None:
        digest.update(datasets.describe(y).digest.encode())
    return replace(found, digest=digest.hexdigest())
