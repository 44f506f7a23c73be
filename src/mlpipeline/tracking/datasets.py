"""What identifies a dataset: a hash of its whole content, not of a sample.

MLflow's own digest looks at a sample of the rows, so a changed value can keep its digest
(mlflow/data/digest_utils.py). Here every byte counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any


@dataclass(frozen=True)
class Description:
    """A dataset's identity and shape.

    Attributes:
        digest: 32 hex characters.
        schema: MLflow's JSON schema; None where there are no named columns.
        profile: Facts: number of rows, of elements, shape.
    """

    digest: str
    schema: dict[str, Any] | None = None
    profile: dict[str, Any] = field(default_factory=dict)


def describe(data: Any) -> Description:
    """Return the identity and shape of a DataFrame, Series, array, sparse matrix, tensor, list, or of None.

    What is none of these is described by its class and length only.
    """
    if hasattr(data, "to_frame") and hasattr(data, "dtype"):
        data = data.to_frame()
    if hasattr(data, "dtypes") and hasattr(data, "columns"):
        return _frame(data)
    if hasattr(data, "detach") and hasattr(data, "cpu"):
        data = data.detach().cpu().numpy()
    if hasattr(data, "tocsr"):
        rows = data.tocsr()
        return _described(data, rows.data, rows.indices, rows.indptr)
    if isinstance(data, (list, tuple)):
        data = _array(data)
    if hasattr(data, "tobytes") and hasattr(data, "shape"):
        return _described(data, data)
    rows = len(data) if hasattr(data, "__len__") else None
    text = f"{type(data).__module__}.{type(data).__qualname__}:{rows}"
    return Description(
        blake2b(text.encode(), digest_size=16).hexdigest(), None, {} if rows is None else {"num_rows": rows}
    )


def _described(data: Any, *arrays: Any) -> Description:
    digest = blake2b(f"{data.dtype}{data.shape}".encode(), digest_size=16)
    for array in arrays:
        if array.dtype.kind == "O":
            # Its bytes are addresses, other ones in every process.
            for item in array.flat:
                digest.update(repr(item).encode("utf-8", "backslashreplace") + b"\0")
        else:
            digest.update(array.tobytes())
    rows = data.shape[0] if data.shape else 1
    return Description(digest.hexdigest(), None, {"num_rows": int(rows), "shape": list(data.shape)})


def _array(items: list[Any] | tuple[Any, ...]) -> Any:
    import numpy as np

    try:
        array = np.asarray(items)
    except ValueError:  # rows of different lengths
        array = None
    if array is not None and array.dtype.kind in "biufc":
        return array
    # As a text array, each item would take the room of the longest.
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _frame(data: Any) -> Description:
    import pandas as pd

    digest = blake2b(digest_size=16)
    types = {str(column): str(kind) for column, kind in data.dtypes.items()}
    digest.update(repr(types).encode())
    try:
        hashed = pd.util.hash_pandas_object(data, index=False)
    except TypeError:
        # A cell that cannot be hashed, such as a list: its text stands for it.
        hashed = pd.util.hash_pandas_object(data.astype(str), index=False)
    digest.update(hashed.to_numpy().tobytes())
    columns = [{"name": name, "type": _mlflow_type(kind)} for name, kind in types.items()]
    profile = {"num_rows": len(data), "num_elements": int(data.size)}
    return Description(digest.hexdigest(), {"mlflow_colspec": columns}, profile)


def _mlflow_type(kind: str) -> str:
    for start, name in (
        ("bool", "boolean"),
        ("int8", "integer"),
        ("int16", "integer"),
        ("int32", "integer"),
        ("int", "long"),
        ("uint", "long"),
        ("float32", "float"),
        ("float", "double"),
        ("datetime", "datetime"),
    ):
        if kind.startswith(start):
            return name
    return "string"
