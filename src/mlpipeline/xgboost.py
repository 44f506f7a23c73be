"""What mlpipeline knows about XGBoost: how its models are saved."""

from __future__ import annotations

from typing import Any

from mlpipeline.core.errors import MissingExtraError, UnloggableError
from mlpipeline.tracking.staging import Flavor, SaveRequest, first_rows

try:
    import xgboost
except ImportError as missing:
    raise MissingExtraError("xgboost", "xgboost") from missing


def _save(request: SaveRequest) -> str:
    """Save in XGBoost's own formats, which hold no code; a wrapper's class is restored on loading."""
    import mlflow.xgboost

    used = "ubj" if request.serialization == "auto" else request.serialization
    if used not in ("ubj", "json"):
        raise UnloggableError(
            f"serialization {request.serialization!r} is unknown for XGBoost models; "
            "accepted: auto, ubj, json."
        )
    mlflow.xgboost.save_model(request.model, model_format=used, **request.arguments())
    return used


def _example(model: Any, data: Any, rows: int) -> Any:
    return first_rows(model, _table(data, rows) if isinstance(data, xgboost.DMatrix) else data, rows)


def _table(data: Any, rows: int) -> Any:
    """Turn the first rows of a DMatrix back into a frame, or an array if it has no names."""
    import numpy as np
    import pandas as pd

    matrix = data.slice(list(range(min(rows, data.num_row())))).get_data().tocoo()
    table = np.full(matrix.shape, np.nan, dtype=np.float32)  # a DMatrix stores what is not missing
    table[matrix.row, matrix.col] = matrix.data
    return table if data.feature_names is None else pd.DataFrame(table, columns=data.feature_names)


def _predict(model: Any, example: Any) -> Any:
    if isinstance(model, xgboost.Booster):
        matrix = xgboost.DMatrix(example, enable_categorical=True)
        return model.predict(matrix, validate_features=False)
    return model.predict(example)


flavor = Flavor(
    name="xgboost",
    distributions=("mlflow", "xgboost", "scikit-learn", "numpy", "scipy", "pandas"),
    roots=frozenset({"xgboost", "sklearn"}),
    save=_save,
    predict=_predict,
    example=_example,
)
