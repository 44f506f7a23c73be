"""The rows of a training: read, checked, split, and told apart by a hash of their content.

::

    data: {path | dataset} ──► one table ─ features, target ─ split by seed ─┐
    train_preprocessed.parquet, val_…, test_… in the artifacts folder ───────┴► Tables(train, val, test)

A table that cannot be trained on is refused here, with the column or file that is to blame; a
framework's error for it would come later and name neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlpipeline.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import pandas as pd

    from mlpipeline.models.settings import DataSection, Format, TaskType

PARTS = ("train", "val", "test")
_PREPARED = "_preprocessed.parquet"

_MANY_CLASSES = 20
"""A numeric target with more values than this, and hardly a repetition, is a quantity and no class."""


@dataclass(frozen=True)
class Table:
    """Rows to learn from or to judge by.

    Attributes:
        X: The features.
        y: The target, of the same length.
    """

    X: pd.DataFrame
    y: pd.Series[Any]


@dataclass(frozen=True)
class Tables:
    """The rows of a training.

    Attributes:
        train: Rows to train on.
        val: Rows held back for early stopping and choices; None where there are none.
        test: Rows held back for the final judgement; None where there are none.
        target: Name of the target's column.
        task_type: What the target asks for.
        source: Where the rows come from: a path, a URL, or the name of a data set.
    """

    train: Table
    val: Table | None
    test: Table | None
    target: str
    task_type: TaskType
    source: str

    def parts(self) -> Iterator[tuple[str, Table]]:
        """Yield the name and the rows of every part there is."""
        for name in PARTS:
            table: Table | None = getattr(self, name)
            if table is not None:
                yield name, table

    def part(self, name: Literal["train", "val", "test"]) -> Table:
        """Return one part's rows.

        Raises:
            ConfigError: There are none.
        """
        table: Table | None = getattr(self, name)
        if table is None:
            there = ", ".join(part for part, _ in self.parts())
            raise ConfigError(f"there are no {name} rows in {self.source}, only: {there}")
        return table


def load(
    section: DataSection | None,
    artifacts_path: str | os.PathLike[str],
    target_column: str,
    task_type: TaskType | None = None,
) -> Tables:
    """Read the rows.

    Args:
        section: The configuration's ``data:``; None reads ``train_preprocessed.parquet`` and, where they
            are, ``val_preprocessed.parquet`` and ``test_preprocessed.parquet``.
        artifacts_path: The folder of those files, and what a relative path is looked up in second.
        target_column: The target, unless *section* names one.
        task_type: What the target is taken for; None looks at its values.

    Raises:
        ConfigError: There are no rows, no such column, or the target cannot be learned.
    """
    if section is None:
        folder = Path(artifacts_path)
        frames = {name: _file_of(folder, name) for name in PARTS}
        source, features = str(folder / "train_preprocessed.parquet"), None
    else:
        target_column, features = section.target or target_column, section.features
        source = section.path or f"scikit-learn's {section.dataset}"
        frames = {"train": _whole(section, artifacts_path, target_column), "val": None, "test": None}
    tables = {
        name: _table(frame, target_column, features, f"{source} ({name})" if section is None else source)
        for name, frame in frames.items()
        if frame is not None
    }
    train = tables["train"]
    kind = task_type or task_of(train.y)
    _check_target(train.y, kind, source)
    if section is not None:
        tables = _split(train, section, kind, source)
    for name, table in tables.items():
        if missing := [column for column in tables["train"].X if column not in table.X]:
            raise ConfigError(f"the {name} rows of {source} lack {missing}, which the train rows have")
    columns = list(tables["train"].X)
    tables = {name: Table(table.X[columns], table.y) for name, table in tables.items()}
    return Tables(
        tables["train"],
        tables.get("val"),
        tables.get("test"),
        target=target_column,
        task_type=kind,
        source=source,
    )


@dataclass(frozen=True)
class Part:
    """Rows to judge a model by.

    Attributes:
        name: Which: ``train``, ``val``, ``test``, or ``all``.
        table: The rows.
        target: Name of the target's column.
        source: Where they come from: a path, a URL, or the name of a data set.
    """

    name: str
    table: Table
    target: str
    source: str


def load_part(
    section: DataSection | None,
    artifacts_path: str | os.PathLike[str],
    target_column: str,
    *,
    on: str | None = None,
    task_type: TaskType | None = None,
) -> Part:
    """Read the rows that a model is judged by.

    Args:
        section: The configuration's ``data:``, split as `load` splits it; None reads
            ``<part>_preprocessed.parquet``.
        artifacts_path: The folder of those files, and what a relative path is looked up in second.
        target_column: The target, unless *section* names one.
        on: The part, or ``all`` rows there are; None takes ``test``, else ``val``, else ``train``.
        task_type: What the target was taken for in training; None looks at its values.

    Raises:
        ConfigError: There are no such rows, or no such column.
    """
    wanted = {None: PARTS[::-1], "all": PARTS}.get(on, (str(on),))
    if section is not None:
        target_column = section.target or target_column
        source = section.path or f"scikit-learn's {section.dataset}"
        whole = _table(
            _whole(section, artifacts_path, target_column), target_column, section.features, source
        )
        if on == "all":
            return Part("all", whole, target_column, source)
        tables = _split(whole, section, task_type or task_of(whole.y), source)
        names = list(tables)
    else:
        folder = Path(artifacts_path)
        paths = {name: folder / f"{name}{_PREPARED}" for name in PARTS}
        there = {name: path for name, path in paths.items() if path.exists()}
        if not there:
            raise ConfigError(
                f"there is no test{_PREPARED} in {folder}; write it there (a table with the features and the "
                "target), or say where the rows are: data: {path: rows.csv}"
            )
        source, names = str(folder), list(there)
        tables = {
            name: _table(_read(str(path), folder), target_column, None, str(path))
            for name, path in there.items()
            if name in wanted
        }
    if not (found := [name for name in wanted if name in tables]):
        raise ConfigError(f"there are no {on} rows in {source}, only: {', '.join(names)}")
    if on == "all":
        import pandas as pd

        X = pd.concat([table.X for table in tables.values()], ignore_index=True)
        y = pd.concat([table.y for table in tables.values()], ignore_index=True)
        return Part("all", Table(X, y), target_column, source)
    return Part(found[0], tables[found[0]], target_column, source)


def check_source(section: DataSection, artifacts_path: str | os.PathLike[str]) -> None:
    """Check that what a configuration names is there, and is a table; a URL is not asked for.

    Raises:
        ConfigError: It is not.
    """
    if section.dataset:
        _check_dataset(section.dataset)
    elif section.path:
        _reader_of(section.path, section.format)
        if "://" not in section.path:
            _found(section.path, artifacts_path)


# --- reading -----------------------------------------------------------------------------------------


def _whole(section: DataSection, artifacts_path: str | os.PathLike[str], target: str) -> pd.DataFrame:
    if section.dataset:
        return _dataset(section.dataset, target)
    return _read(str(section.path), artifacts_path, section.format)


def _file_of(folder: Path, name: str) -> pd.DataFrame | None:
    path = folder / f"{name}{_PREPARED}"
    if path.exists():
        return _read(str(path), folder)
    if name == "train":
        raise ConfigError(
            f"there is no {path.name} in {folder}; write it there (a table with the features and the target), "
            "or say where the rows are: data: {path: rows.csv}"
        )
    return None


_READERS = {
    ".csv": "read_csv",
    ".tsv": "read_table",
    ".parquet": "read_parquet",
    ".pq": "read_parquet",
    ".json": "read_json",
    ".jsonl": "read_json",
    ".feather": "read_feather",
    ".xls": "read_excel",
    ".xlsx": "read_excel",
}
_OF_FORMAT = {"tsv": "read_table", "excel": "read_excel"}
_COMPRESSED = (".gz", ".bz2", ".zip", ".xz", ".zst")


def _reader_of(path: str, kind: Format | None) -> tuple[str, dict[str, Any]]:
    """Return the name of pandas' function that reads a file, and its options.

    Raises:
        ConfigError: Neither format nor ending tell what it is.
    """
    suffixes = [
        suffix.lower() for suffix in Path(path.partition("?")[0]).suffixes if suffix not in _COMPRESSED
    ]
    suffix = f".{kind}" if kind else suffixes[-1] if suffixes else ""
    reader = _OF_FORMAT.get(str(kind)) or _READERS.get(suffix)
    if reader is None:
        raise ConfigError(
            f"{path} has no ending that tells what it is; accepted are {', '.join(_READERS)}. "
            "Or say it: data: {format: csv}"
        )
    return reader, {"lines": True} if suffix == ".jsonl" else {}


def _read(path: str, beside: str | os.PathLike[str], kind: Format | None = None) -> pd.DataFrame:
    import pandas as pd

    place = path if "://" in path else str(_found(path, beside))
    reader, options = _reader_of(path, kind)
    try:
        frame: pd.DataFrame = getattr(pd, reader)(place, **options)
    except pd.errors.EmptyDataError as error:
        raise ConfigError(f"{path} is empty") from error
    except ImportError as error:
        raise ConfigError(f"{path} needs a package that is not installed: {error}") from error
    except Exception as error:
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if frame.empty:
        raise ConfigError(f"{path} has no rows")
    frame.columns = frame.columns.map(str)
    return frame


def _found(path: str, beside: str | os.PathLike[str]) -> Path:
    here = Path(path).expanduser()
    if here.exists() or here.is_absolute():
        if not here.exists():
            raise ConfigError(f"there is no file {path}")
        return here
    there = Path(beside) / here
    if not there.exists():
        raise ConfigError(
            f"there is no file {path}, neither in {Path.cwd()} nor in {Path(beside).absolute()}"
        )
    return there


_DATASETS = ("breast_cancer", "diabetes", "digits", "iris", "wine")


def _check_dataset(name: str) -> None:
    if name not in _DATASETS:
        raise ConfigError(
            f"data.dataset: scikit-learn brings no {name!r}{nearest(name, _DATASETS)}; there are {', '.join(_DATASETS)}"
        )


def _dataset(name: str, target: str) -> pd.DataFrame:
    from sklearn import datasets

    _check_dataset(name)
    frame: pd.DataFrame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    return frame.rename(columns={"target": target})


# --- checking ----------------------------------------------------------------------------------------


def _table(frame: pd.DataFrame, target: str, features: list[str] | None, source: str) -> Table:
    columns = [str(column) for column in frame]
    if target not in columns:
        raise ConfigError(
            f"{source} has no column {target!r} for the target{nearest(target, columns)}; there are "
            f"{', '.join(columns[:20])}{' …' * (len(columns) > 20)}. Name it: training: {{target_column: …}}"
        )
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise ConfigError(f"{source} has several columns called {twice[0]!r}; rename them")
    for name in features or ():
        if name not in columns:
            raise ConfigError(f"{source} has no column {name!r}{nearest(name, columns)} for data.features")
        if name == target:
            raise ConfigError(f"data.features has {name!r}, which is the target; leave it out")
    chosen = features or [column for column in columns if column != target]
    if not chosen:
        raise ConfigError(f"{source} has only the target {target!r}, and nothing to predict it from")
    y = frame[target]
    if absent := int(y.isna().sum()):
        raise ConfigError(
            f"{source}: the target {target!r} is missing in {absent} of {len(y)} rows "
            f"(the first is row {int(y.isna().to_numpy().argmax())}); remove them"
        )
    X = frame[chosen]
    if dates := [
        str(column) for column, kind in X.dtypes.items() if str(kind).startswith(("datetime", "timedelta"))
    ]:
        raise ConfigError(
            f"{source}: {dates} hold dates; turn them into numbers (a year, days since a day), or name the "
            "columns to use in data.features"
        )
    return Table(X, y)


def task_of(y: pd.Series[Any]) -> TaskType:
    """Return what a target asks for, by its values."""
    from sklearn.utils.multiclass import type_of_target

    if y.dtype.kind not in "iuf":
        return "classification"
    if type_of_target(y.to_numpy()) == "continuous":
        return "regression"
    classes = y.nunique()
    return "regression" if classes > _MANY_CLASSES and classes > len(y) / 20 else "classification"


def _check_target(y: pd.Series[Any], task_type: TaskType, source: str) -> None:
    classes = y.nunique()
    if classes == 1:
        raise ConfigError(
            f"{source}: the target {y.name!r} is {_plain(y.iloc[0])!r} in every row; nothing can be learned"
        )
    if task_type == "regression" and y.dtype.kind not in "iufb":
        raise ConfigError(
            f"{source}: a regression needs numbers, and the target {y.name!r} holds {_plain(y.iloc[0])!r}; "
            "write task_type: classification"
        )
    if task_type == "classification" and y.dtype.kind == "f" and bool((y % 1 != 0).any()):
        raise ConfigError(
            f"{source}: a classification needs classes, and the target {y.name!r} holds numbers such as "
            f"{_plain(y[y % 1 != 0].iloc[0])!r}; write task_type: regression"
        )


def _plain(value: Any) -> Any:
    """Return a value of numpy's as Python's own, which is how a user wrote it."""
    return value.item() if hasattr(value, "item") else value


# --- splitting ---------------------------------------------------------------------------------------


def _split(table: Table, section: DataSection, task_type: TaskType, source: str) -> dict[str, Table]:
    from sklearn.model_selection import train_test_split

    rest, tables = table, dict[str, Table]()
    left = 1.0
    for name, share in (("test", section.split.test), ("val", section.split.val)):
        if not share:
            continue
        size = min(share / left, 1.0)
        keeps_shares = section.stratify
        if keeps_shares is None:
            keeps_shares = task_type == "classification" and _is_divisible(rest.y, size)
        try:
            kept, held, y_kept, y_held = train_test_split(
                rest.X,
                rest.y,
                test_size=size,
                random_state=section.seed,
                stratify=rest.y if keeps_shares else None,
            )
        except ValueError as error:
            hint = "; stratify: false splits without regard to classes" if section.stratify else ""
            reason = str(error).partition(" Classes with too few")[0]
            raise ConfigError(
                f"{source} cannot be split into {share:g} for {name}: {reason}{hint}"
            ) from error
        rest, tables[name] = Table(kept, y_kept), Table(held, y_held)
        left -= share
    return {"train": rest, **tables}


def _is_divisible(y: pd.Series[Any], share: float) -> bool:
    """Whether every class has a row for each side."""
    counts = y.value_counts()
    return bool(counts.min() >= 2 and min(share, 1 - share) * len(y) >= len(counts))
