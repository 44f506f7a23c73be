"""A dataset's digest is that of its whole content, in whatever it is held."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from mlpipeline.tracking.datasets import describe

ROWS = 50_000


def numbers():
    return np.arange(ROWS * 2, dtype=float).reshape(ROWS, 2)


HOLDERS = {
    "array": lambda table: table,
    "objects": lambda table: table.astype(object),
    "frame": lambda table: pd.DataFrame(table, columns=["a", "b"]),
    "series": lambda table: pd.Series(table[:, 1]),
    "sparse": scipy.sparse.csc_matrix,
    "lists": lambda table: table.tolist(),
    "texts": lambda table: [str(row) for row in table],
    "ragged": lambda table: [row[: 1 + index % 2] for index, row in enumerate(table.tolist())],
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_one_changed_value_anywhere_changes_the_digest(kind):
    """And nothing else does: MLflow's own digest looks at a sample of the rows."""
    table = numbers()
    before = describe(HOLDERS[kind](table))
    assert before == describe(HOLDERS[kind](table.copy()))
    assert ROWS == before.profile["num_rows"]
    table[20_001, 1] += 0.5
    assert before.digest != describe(HOLDERS[kind](table)).digest


def test_the_digest_of_objects_is_that_of_another_process():
    """Equal texts at other addresses are the same data."""
    texts = np.array(["a" * 100, "b"], dtype=object)
    others = np.array(["".join(["a"] * 100), "b"], dtype=object)
    assert describe(texts) == describe(others)
