"""The default preparation of a table: it is fitted and saved with the model, which then takes raw rows.

::

    numbers            ─► gaps: the median ───────────────► scaled to mean 0, deviation 1
    texts, categories  ─► gaps: the most frequent value ──► one column per value, rare ones together
    true or false      ─► 0 or 1 ─► gaps: the most frequent value
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

MOST_CATEGORIES = 50
"""Columns that a text is turned into at most; what is rarer shares the last one."""


def default_preprocessing(X: pd.DataFrame) -> Any:
    """Return an unfitted transformer for the columns of *X*.

    Raises:
        ConfigError: A column is empty.
    """
    import numpy as np
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    if empty := [str(column) for column in X if X[column].isna().all()]:
        raise ConfigError(f"the columns {empty} hold nothing; leave them out of data.features")
    kinds = {column: X[column].dtype.kind for column in X}
    numbers = [column for column, kind in kinds.items() if kind in "iufc"]
    flags = [column for column, kind in kinds.items() if kind == "b"]
    texts = [column for column, kind in kinds.items() if kind not in "iufcb"]
    steps: list[Any] = []
    if numbers:
        steps.append(("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers))
    if texts:
        encoder = OneHotEncoder(
            handle_unknown="infrequent_if_exist", max_categories=MOST_CATEGORIES, sparse_output=False
        )
        steps.append(("texts", make_pipeline(SimpleImputer(strategy="most_frequent"), encoder), texts))
    if flags:
        # An imputer takes no flags, and a function of ours in the model would need this package to load it.
        numbered = OrdinalEncoder(
            categories=[[False, True]] * len(flags),
            handle_unknown="use_encoded_value",
            unknown_value=np.nan,
            encoded_missing_value=np.nan,
        )
        steps.append(("flags", make_pipeline(numbered, SimpleImputer(strategy="most_frequent")), flags))
    return ColumnTransformer(steps, verbose_feature_names_out=False)
