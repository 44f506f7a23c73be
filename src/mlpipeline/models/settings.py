"""What a pipeline's configuration may hold, section by section, and where in the file a mistake is.

::

    a component's dict, or a file's content (mlpipeline.models.pipeline_file) ─► Settings
      mlflow:      MLflowConfig, the options of every callback       (mlpipeline.core.config)
      data:        DataSection          where the rows are, what the target is, how they are split
      training:    TrainingSection      the model, and its hyperparameter_optimization:
      evaluation:  EvaluationSection    metrics, thresholds, the model to evaluate

A component is given a dict, which may hold sections of other components: only its own are looked
at. A file is this package's own: what it does not know is refused. Either way every mistake is
told at once, with its place, and with the nearest name that would have been right.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from mlpipeline.core.config import MLflowConfig
from mlpipeline.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from typing_extensions import Self

Location = tuple[str | int, ...]
"""Keys and indexes that lead to a value, from the top."""

TaskType = Literal["classification", "regression"]
Format = Literal["csv", "tsv", "parquet", "json", "jsonl", "feather", "excel"]


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused, values are not changed once they are set."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class SplitSection(Section):
    """Shares of the rows that are held back from training."""

    val: float = Field(default=0.15, ge=0, lt=1, description="Share for validation; 0: none.")
    test: float = Field(default=0.15, ge=0, lt=1, description="Share for the test; 0: none.")

    @model_validator(mode="after")
    def _leaves_rows(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val={self.val} and test={self.test} leave no rows to train on")
        return self


class DataSection(Section):
    """Where the rows come from; without it, the files ``train_preprocessed.parquet`` and its siblings."""

    path: str | None = Field(
        default=None, description="A CSV, Parquet, JSON, Feather or Excel file, or a URL of one."
    )
    dataset: str | None = Field(
        default=None, description="A data set that scikit-learn brings along, such as `breast_cancer`."
    )
    format: Format | None = Field(
        default=None,
        description="Of the file or URL. Not given: told by the ending, such as .csv or .parquet.",
    )
    target: str | None = Field(
        default=None, description="Column to predict. Not given: `training.target_column`."
    )
    features: list[str] | None = Field(
        default=None, min_length=1, description="Columns to predict from. Not given: all but the target."
    )
    split: SplitSection = Field(default=SplitSection(), description="Shares held back.")
    seed: int = Field(default=0, ge=0, description="Seed of the split.")
    stratify: bool | None = Field(
        default=None,
        description="Keep the classes' shares in every part. Not given: yes, for a classification.",
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give one of path (a file or URL) and dataset (one that scikit-learn brings)")
        if self.format is not None and self.path is None:
            raise ValueError(f"format={self.format!r} is of a path, and there is none; leave it out")
        return self


class ModelSection(Section):
    """The model to train."""

    framework: Literal["sklearn", "xgboost", "pytorch", "custom"] = Field(
        default="sklearn", description="Whose model it is. `custom`: a class of yours, by its dotted path."
    )
    model_type: str | None = Field(
        default=None,
        min_length=1,
        description="Such as `random_forest_classifier`, or a dotted path. Not given: the framework's usual one.",
    )
    task_type: TaskType | None = Field(
        default=None,
        description="What is predicted. Not given: what the model does, else what the target is.",
    )
    parameters: dict[str, Any] = Field(default={}, description="Arguments of the model.")
    preprocessing: Literal["auto", "none"] = Field(
        default="auto",
        description="`auto`: gaps filled, numbers scaled, categories one-hot, saved with the model.",
    )


class IntRange(Section):
    """A whole number to search for."""

    type: Literal["int"]
    low: int
    high: int
    step: int | None = Field(default=None, ge=1, description="Not given: 1; a grid tries fewer.")
    log: bool = False

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        _check_range(self)
        return self


class FloatRange(Section):
    """A number to search for."""

    type: Literal["float"]
    low: float
    high: float
    step: float | None = Field(default=None, gt=0)
    log: bool = False

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        _check_range(self)
        return self


class Choices(Section):
    """One of several values; null is one, too, and so is a list."""

    type: Literal["categorical"]
    choices: list[str | bool | int | float | list[str | bool | int | float | None] | None] = Field(
        min_length=1
    )

    @model_validator(mode="after")
    def _differ(self) -> Self:
        # 1, 1.0 and true are equal to Python, and three values to a model.
        seen: set[str] = set()
        for choice in self.choices:
            if repr(choice) in seen:
                raise ValueError(f"{choice!r} is among the choices twice; keep one")
            seen.add(repr(choice))
        return self


def _check_range(given: IntRange | FloatRange) -> None:
    if given.low > given.high:
        raise ValueError(f"low={given.low} is above high={given.high}; swap them")
    if given.log and given.low <= 0:
        raise ValueError(f"log needs low above 0, and it is {given.low}")
    if given.log and given.step is not None:
        raise ValueError("log and step exclude each other; leave one out")


Range = typing.Annotated[IntRange | FloatRange | Choices, Field(discriminator="type")]


class TuningSection(Section):
    """The search for hyperparameters."""

    enabled: bool = Field(default=True, description="False trains with the model's `parameters`.")
    method: Literal["optuna", "grid_search", "random_search"] = "optuna"
    n_trials: int | None = Field(
        default=None,
        ge=1,
        description="Trials in all; those of a resumed study count. Not given: 50, and of a grid every point.",
    )
    timeout: float | None = Field(default=None, gt=0, description="Seconds after which no trial starts.")
    metric: str | None = Field(
        default=None, description="A metric's name. Not given: accuracy, or rmse of a regression."
    )
    direction: Literal["maximize", "minimize"] | None = Field(
        default=None, description="Not given: the metric's own."
    )
    cv_folds: int = Field(default=5, ge=2, description="Folds of the cross-validation of a trial.")
    sampler: Literal["tpe", "random", "cmaes", "gp", "qmc"] = Field(
        default="tpe", description="How the method `optuna` chooses."
    )
    pruner: Literal["none", "median", "hyperband", "percentile"] = Field(
        default="median", description="When a trial is given up, fold by fold."
    )
    parameter_space: dict[str, Range] | None = Field(
        default=None, min_length=1, description="What to search. Not given: the model's usual space."
    )
    grid_points: int = Field(
        default=5, ge=2, description="Values of a range that a grid without a `step` tries."
    )
    n_jobs: int = Field(default=1, ge=-1, description="Trials at once, in threads; -1: one per core.")
    storage: str | None = Field(
        default=None,
        min_length=1,
        description="Of Optuna, such as sqlite:///study.db; a study that is there is resumed.",
    )
    study_name: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the study in the storage. Not given: of experiment, model and metric.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of sampler and folds.")
    refit: bool = Field(default=True, description="Train the best on all rows, and log that model.")

    @model_validator(mode="after")
    def _has_jobs(self) -> Self:
        if self.n_jobs == 0:
            raise ValueError("n_jobs=0 would run nothing; give a number of trials at once, or -1")
        return self


class TrainingSection(Section):
    """What to train."""

    model: ModelSection = ModelSection()
    target_column: str = Field(default="target", min_length=1, description="Column to predict.")
    hyperparameter_optimization: TuningSection | None = None


class Bounds(Section):
    """What a metric must not leave."""

    limit: float | None = Field(default=None, description="At least; of an error, at most.")
    min: float | None = None
    max: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, given: Any) -> Any:
        is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
        return {"limit": given} if is_number else given

    @model_validator(mode="after")
    def _is_bound(self) -> Self:
        if self.limit is None and self.min is None and self.max is None:
            raise ValueError("give a number, or min, max, or both")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [{"type": "number"}, handler.resolve_ref_schema(handler(core))]}


class EvaluationSection(Section):
    """What to evaluate, and what to be content with."""

    metrics: list[str] | None = Field(
        default=None, min_length=1, description="Scorers' names. Not given: the usual ones of the task."
    )
    model: str | None = Field(
        default=None,
        description="`models:/name@alias`, `models:/name/3`, or a run's id. Not given: what was trained before.",
    )
    trust: bool = Field(
        default=False, description="Load a model whoever logged it, also where that can run code."
    )
    on: Literal["test", "val", "train", "all"] | None = Field(
        default=None, description="Which rows. Not given: test; where there are none, val, then train."
    )
    thresholds: dict[str, Bounds] = Field(
        default={},
        description="What a metric must reach: a number (of an error: at most), or min and max.",
    )
    plots: bool = Field(default=True, description="Draw the plots of the task.")
    report: bool = Field(default=True, description="Write one HTML file with all of it.")
    permutation_importance: bool = Field(default=True, description="Tell how much each column matters.")
    seed: int = Field(default=0, ge=0, description="Seed of the permutations.")


SECTIONS: dict[str, type[Section]] = {
    "data": DataSection,
    "training": TrainingSection,
    "evaluation": EvaluationSection,
}


@dataclass(frozen=True)
class Settings:
    """A pipeline's configuration, checked.

    Attributes:
        mlflow: The ``mlflow:`` section, as given.
        data: The ``data:`` section; None where the files in the artifacts folder are meant.
        training: The ``training:`` section.
        evaluation: The ``evaluation:`` section.
    """

    mlflow: Mapping[str, Any] = field(default_factory=dict)
    data: DataSection | None = None
    training: TrainingSection = field(default_factory=TrainingSection)
    evaluation: EvaluationSection = field(default_factory=EvaluationSection)

    @classmethod
    def of(cls, content: Mapping[str, Any], *, only: Sequence[str] = ("mlflow", *SECTIONS)) -> Settings:
        """Return the settings in a component's configuration; sections beside *only* are others' business.

        Raises:
            ConfigError: Something in them cannot be right; every mistake is named.
        """
        mistakes = mistakes_in({name: content[name] for name in only if name in content})
        if mistakes:
            raise ConfigError(in_words(mistakes, {}))
        return cls(**parsed({name: content[name] for name in only if content.get(name) is not None}))

    def to_dict(self) -> dict[str, Any]:
        """Return the sections as plain data, defaults filled in."""
        return {
            "mlflow": dict(self.mlflow),
            "data": self.data.model_dump() if self.data else None,
            "training": self.training.model_dump(),
            "evaluation": self.evaluation.model_dump(),
        }


def parsed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return sections that hold no mistake as their classes."""
    return {
        name: SECTIONS[name].model_validate(value) if name in SECTIONS else value
        for name, value in content.items()
    }


# --- mistakes ----------------------------------------------------------------------------------------


def mistakes_in(content: Mapping[str, Any]) -> list[tuple[Location, str]]:
    """Return every mistake in some sections, with its place."""
    found: list[tuple[Location, str]] = []
    for name, value in content.items():
        if value is None:
            continue
        if not isinstance(value, Mapping):
            if name in SECTIONS or name == "mlflow":
                found.append(((name,), f"expected a section with options, and it is {value!r:.60}"))
        elif name == "mlflow":
            found += _mlflow_mistakes(value)
        elif name in SECTIONS:
            try:
                SECTIONS[name].model_validate(value)
            except ValidationError as error:
                found += [_finding(SECTIONS[name], name, value, one) for one in error.errors()]
    return found


def nested_model(content: Mapping[str, Any]) -> ModelSection:
    """Return the section of a model that stands among the parameters of another.

    Raises:
        ConfigError: Something in it cannot be right.
    """
    try:
        return ModelSection.model_validate(content)
    except ValidationError as error:
        found = [_finding(ModelSection, "", content, one) for one in error.errors()]
        told = "; ".join(f"{'.'.join(map(str, place[1:]))}: {words}" for place, words in found)
        raise ConfigError(told) from error


def _mlflow_mistakes(section: Mapping[str, Any]) -> list[tuple[Location, str]]:
    from mlpipeline.core.config import option_mistake

    found: list[tuple[Location, str]] = [
        (("mlflow", key), mistake)
        for key, value in section.items()
        if (mistake := option_mistake(key, value))
    ]
    if not found:
        try:
            MLflowConfig.of(section)
        except ConfigError as error:  # two options that contradict each other
            found.append((("mlflow",), str(error)))
    return found


def _finding(section: type[Section], name: str, content: Any, error: Any) -> tuple[Location, str]:
    """Return the place and the words of one of pydantic's findings."""
    where = (name, *_keys_of(content, error))
    kind, given = error["type"], error.get("input")
    if kind == "extra_forbidden":
        known = _options_at(section, error["loc"][:-1])
        return where, f"no such option{nearest(where[-1], known)}; there are {', '.join(known)}"
    if kind == "literal_error":
        accepted = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return (
            where,
            f"{given!r} is not accepted{nearest(given, accepted)}; accepted are {', '.join(accepted)}",
        )
    if kind == "value_error":
        return where, str(error["ctx"]["error"])
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        return where, "needs a type: int, float or categorical"
    if kind == "missing":
        return where, "is missing"
    expected = _EXPECTED.get(kind.partition("_")[0]) or error["msg"][:1].lower() + error["msg"][1:]
    return where, f"{expected}, and it is {given!r:.60}"


_EXPECTED = {
    "dict": "expected a mapping such as {max_depth: 3}",
    "model": "expected a section with options",
    "list": "expected a list",
    "string": "expected a text",
    "int": "expected a whole number",
    "float": "expected a number",
    "bool": "expected true or false",
}


def _keys_of(content: Any, error: Any) -> Location:
    """Return a finding's place without what is no key of the user's: pydantic adds the tags of unions."""
    keys: list[str | int] = []
    for part in error["loc"]:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            if not (error["type"] == "missing" and part == error["loc"][-1]):
                continue
        keys.append(part)
    return tuple(keys)


def _options_at(kind: Any, place: Sequence[Any]) -> list[str]:
    """Return the options of what stands at a place below a section."""
    for part in place:
        kinds = _classes(kind)
        sections = [one for one in kinds if issubclass(one, Section)]
        tagged = [one for one in sections if part in _tags_of(one)]
        if tagged:
            kind = tagged[0]
        elif sections:
            kind = sections[0].model_fields[part].annotation
        elif dict in kinds:
            kind = next(one for one in (kind, *typing.get_args(kind)) if typing.get_origin(one) is dict)
            kind = typing.get_args(kind)[1]
    return [name for one in _classes(kind) if issubclass(one, Section) for name in one.model_fields]


def _classes(kind: Any) -> list[type]:
    """Return the classes of an annotation: itself, or those of a union."""
    if isinstance(kind, type) and typing.get_origin(kind) is None:
        return [kind]
    origin = typing.get_origin(kind)
    if origin in (dict, list):
        return [origin]
    return [found for one in typing.get_args(kind) for found in _classes(one)]


def _tags_of(section: type[Section]) -> tuple[Any, ...]:
    tag = section.model_fields.get("type")
    return typing.get_args(tag.annotation) if tag else ()


def in_words(
    mistakes: Sequence[tuple[Location, str]], lines: Mapping[Location, int], name: str | None = None
) -> str:
    """Return all mistakes, a line each, in the order of the file."""

    def line_of(place: Location) -> int:
        while place and place not in lines:
            place = place[:-1]
        return lines.get(place, 0)

    lines_told = []
    for place, words in sorted(mistakes, key=lambda one: line_of(one[0])):
        where = ".".join(map(str, place))
        at = f"{name}:{line_of(place)}: " if name and line_of(place) else f"{name}: " if name else ""
        lines_told.append(f"{at}{where}: {words}")
    return "\n".join(lines_told)


# --- for editors -------------------------------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a pipeline's file, with which editors complete and check it."""
    hints = typing.get_type_hints(MLflowConfig)
    options: dict[str, Any] = {}
    for name, default in MLflowConfig().to_dict(all=True).items():
        kind = Any if hints[name] == Mapping[str, Any] else hints[name]
        options[name] = (kind, Field(default=default, description=_meaning(name)))
    mlflow = create_model("MlflowSection", __config__=ConfigDict(extra="forbid"), **options)
    sections: dict[str, Any] = {
        "mlflow": (mlflow, Field(default=None, description="What is recorded, and where.")),
        **{
            name: (kind, Field(default=None, description=(kind.__doc__ or "").splitlines()[0]))
            for name, kind in SECTIONS.items()
        },
    }
    whole = create_model("Pipeline", __config__=ConfigDict(extra="forbid"), **sections)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole.model_json_schema()}


def _meaning(name: str) -> str:
    from dataclasses import fields

    (found,) = (option for option in fields(MLflowConfig) if option.name == name)
    return str(found.metadata["doc"])
