"""How a run's files are written: a place in the spool, and the forms that MLflow's pages know.

::

    text, dict, table, figure ── write_* ──► place in the spool ── record ──► journal
    the user's file or folder ── copied ───►
"""

from __future__ import annotations

import io
import json
import logging
import time
import uuid
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import UnloggableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger("mlpipeline")

_THUMBNAIL = (256, 256)


def artifact_parts(artifact_file: str) -> tuple[str | None, str]:
    """Split an artifact's name into its folder, None for the top, and its file.

    Raises:
        UnloggableError: It is absolute, empty, or leaves the run's artifacts.
    """
    path = PurePosixPath(artifact_file)
    if path.is_absolute() or not path.name or ".." in path.parts or "\\" in artifact_file:
        raise UnloggableError(
            f"cannot log an artifact as {artifact_file!r}: give a name below the run's artifacts, such as "
            "'plots/confusion.png'"
        )
    folder = path.parent.as_posix()
    return (None if folder == "." else folder), path.name


def write_structure(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a structure as JSON, or as YAML when the name ends so."""
    if path.suffix in {".yaml", ".yml"}:
        import yaml

        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    else:
        path.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")


def write_table(path: Path, data: Any) -> None:
    """Write a DataFrame, or a mapping of columns, as the JSON that MLflow's pages show as a table."""
    if hasattr(data, "to_json"):
        data.to_json(path, orient="split", index=False)
        return
    columns = {key: list(value) for key, value in dict(data).items()}
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    path.write_text(json.dumps({"columns": list(columns), "data": rows}, default=str), encoding="utf-8")


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib or plotly figure in the format that the name's ending says."""
    if hasattr(figure, "savefig"):
        figure.savefig(path)
    elif path.suffix == ".html":
        figure.write_html(str(path), include_plotlyjs="cdn", auto_open=False)
    else:
        figure.write_image(str(path))


def image_series_stem(artifact_file: str, step: int) -> str:
    """Return the name, without ending, under which MLflow's pages find an image of a series along steps.

    As ``mlflow.log_image`` names them (mlflow/tracking/client.py).
    """
    key = PurePosixPath(artifact_file).with_suffix("").as_posix().replace("/", "~")
    return f"images/{key}+step+{step}+timestamp+{time.time_ns() // 1_000_000}+{uuid.uuid4()}"


def write_thumbnail(path: Path, image: bytes) -> None:
    """Write an image as MLflow's pages list it: 256 pixels at most, or whole without Pillow."""
    try:
        from PIL import Image
    except ImportError:  # plotly draws without it
        path.write_bytes(image)
        return
    with Image.open(io.BytesIO(image)) as small:
        small.thumbnail(_THUMBNAIL)
        small.save(path)
