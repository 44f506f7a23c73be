"""For a user's unit tests: what a training would have recorded, in memory.

::

    from mlpipeline.testing import record

    def test_training_logs_its_loss():
        with record() as recorded:
            train()                       # uses a callback or a tracker
        assert recorded.metrics["loss"][-1] < 0.1
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mlpipeline.tracking import names, opening
from mlpipeline.tracking.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Recorded:
    """What was recorded while a `record` block ran, over all its runs.

    Attributes:
        metrics: Per metric, its values in order, under the names the code used.
        steps: Per metric, the step of each value.
        params: Hyperparameters as MLflow would store them; the first value of each.
        tags: Tags; the newest value of each.
        datasets: Datasets as they would be stored.
        artifacts: Names of the files that would be artifacts.
        models: Names of the logged models.
        statuses: How the runs ended, in order.
        dropped: 0: memory takes everything.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, list[float]] = {}
        self.steps: dict[str, list[int]] = {}
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.datasets: list[dict[str, Any]] = []
        self.artifacts: list[str] = []
        self.models: list[str] = []
        self.statuses: list[str] = []
        self.dropped = 0
        self._lock = threading.RLock()

    def open(self) -> bool:
        """Do nothing: memory is always ready."""
        return True

    def close(self) -> None:
        """Do nothing: what was recorded stays."""

    def drop(self) -> None:
        """Count a record that could not be kept."""
        self.dropped += 1

    def append(self, kind: Kind, content: Mapping[str, Any], *, is_synced: bool = False) -> bool:
        """Keep one record."""
        with self._lock:
            if kind is Kind.PARAMS:
                for key, value in content["params"].items():
                    self.params.setdefault(names.original_name(key), value)
            elif kind is Kind.TAGS:
                self.tags.update(content["tags"])
            elif kind is Kind.DATASET:
                self.datasets.append(dict(content))
            elif kind is Kind.ARTIFACT:
                folder = content["artifact_path"]
                is_folder = folder is not None and folder.split("/")[-1] == content["file"]
                self.artifacts.append(
                    folder if is_folder else "/".join(filter(None, (folder, content["file"])))
                )
            elif kind is Kind.MODEL:
                self.models.append(content["name"])
            elif kind is Kind.END:
                self.statuses.append(content["status"])
        return True

    def append_metrics(
        self, keys: tuple[str, ...], values: Sequence[float], step: int | None, timestamp_ms: int
    ) -> bool:
        """Keep one value per name."""
        with self._lock:
            for key, value in zip(keys, values, strict=True):
                name = names.original_name(key)
                steps = self.steps.setdefault(name, [])
                self.metrics.setdefault(name, []).append(value)
                steps.append(max(steps, default=-1) + 1 if step is None else step)
        return True


@contextmanager
def record() -> Iterator[Recorded]:
    """Record into memory whatever is opened inside the block; no file, no process, no network."""
    recorded = Recorded()
    with opening.recording_into(recorded):
        yield recorded
