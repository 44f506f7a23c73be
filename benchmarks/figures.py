"""What a benchmark measured: medians and quartiles, printed and kept for `report.py`.

The scripts beside this file have the names of packages, so their folder may only come last in the path of
imports::

    sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != HERE), str(HERE)]
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Stopwatch:
    """How long ago it was made, on the clock and on the processor."""

    def __init__(self) -> None:
        self._began = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return the seconds that passed, and those that this process's threads were computing."""
        (wall, cpu), (began_wall, began_cpu) = self._now(), self._began
        return wall - began_wall, cpu - began_cpu


class Figures:
    """The rows of one benchmark: a way of doing the work, a measure, and its values."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, way: str, measure: str, values: list[float], cpu: list[float] | None = None) -> None:
        """Add a row.

        Args:
            way: What was done: "ours, sqlite".
            measure: What was measured, with its unit: "ratio to none".
            values: One per round or pair.
            cpu: The same, measured on the processor's time; None where nothing but the clock counts.
        """
        low, middle, high = (
            statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3
        )
        row = {"way": way, "measure": measure, "median": middle, "quartiles": [low, high], "n": len(values)}
        if cpu is not None:
            row["cpu"] = statistics.median(cpu)
        self.rows.append(row)

    def show(self) -> None:
        """Print them."""
        for row in self.rows:
            low, high = row["quartiles"]
            cpu = f"; CPU {row['cpu']:.3f}" if "cpu" in row else ""
            print(
                f"{row['way']:34} {row['median']:10.3f} [{low:.3f}, {high:.3f}] {row['measure']}, n={row['n']}{cpu}"
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
