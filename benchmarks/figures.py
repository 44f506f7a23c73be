"""What a benchmark measured: medians and quartiles, printed and kept for `report.py`.

The scripts beside this file have the names of packages, so their folder may only come last in the path of
imports::

    sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]
"""

from __future__ import annotations

import json
import platform
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Figures:
    """The rows of one benchmark: a way of doing the work, a measure, and its values."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, way: str, measure: str, values: list[float]) -> None:
        """Add a row.

        Args:
            way: What was done: "ours, sqlite".
            measure: What was measured, with its unit: "ratio to none".
            values: One per round or pair.
        """
        low, middle, high = (
            statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3
        )
        row = {"way": way, "measure": measure, "median": middle, "quartiles": [low, high], "n": len(values)}
        self.rows.append(row)

    def show(self) -> None:
        """Print them."""
        for row in self.rows:
            low, high = row["quartiles"]
            print(
                f"{row['way']:34} {row['median']:10.3f} [{low:.3f}, {high:.3f}] {row['measure']}, n={row['n']}"
            )

    def write(self, path: Path | None, benchmark: str) -> None:
        """Keep them in a file, with where they were measured; None keeps nothing."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            about = {
                "benchmark": benchmark,
                "machine": platform.machine(),
                "python": platform.python_version(),
            }
            path.write_text(json.dumps({**about, "rows": self.rows}, indent=2) + "\n")
