"""`MLflowConfig`: what a training records, and where. One frozen value object, checked when it is made.

An option has the value of the first of these that names it::

    keywords  >  the user's mlflow.set_*()  >  MLPIPELINE_*  >  MLFLOW_*  >  YAML file  >  default
    __init__     ╰───────────────────── resolved() ──────────────────╯      from_yaml

What a value may be stands in `kinds`. From top to bottom: the options and their methods; the names,
variables and files that the methods read; the table for the documentation.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mlpipeline.core import kinds
from mlpipeline.core.errors import ConfigError, nearest
from mlpipeline.core.kinds import Kind, ReadOnly, shown

# --- The options -----------------------------------------------------------------------------------


def _option(
    default: Any, doc: str, *, kind: Kind | None = None, alias: str | None = None, env: str | None = None
) -> Any:
    """A field with all that is known about it.

    Args:
        default: The value of an option that nobody gave.
        doc: Its meaning, in Markdown.
        kind: What it accepts. None: what its annotation says.
        alias: Its name elsewhere, which is accepted, too.
        env: A variable that is read where ``MLPIPELINE_<OPTION>`` is not set.
    """
    metadata = {"kind": kind, "doc": doc, "alias": alias, "env": env}
    if isinstance(default, Mapping):
        return field(default_factory=ReadOnly, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class MLflowConfig:
    """What a training records, and where.

    Every option is a keyword with a default, checked here and now. The value is frozen, picklable and
    cheap to copy, holds nothing open, and never shows a credential. None means "not given": whatever
    ranks below (environment, YAML file, default) decides. Of the environment only MLflow's own
    ``MLFLOW_ALLOW_FILE_STORE`` is looked at here, and only when a URI names a file store.

    To change a copy, call `replace`; ``dataclasses.replace`` would count every option as given.

    Raises:
        ConfigError: An option is unknown (the message names the nearest), its value is not accepted, or
            two options contradict each other.
    """

    # Destination
    tracking_uri: str | None = _option(
        None, "Server or database. None: MLflow's default.", kind=kinds.TRACKING, env="MLFLOW_TRACKING_URI"
    )
    registry_uri: str | None = _option(
        None,
        "Registry of the models. None: the tracking URI.",
        kind=kinds.REGISTRY,
        env="MLFLOW_REGISTRY_URI",
    )
    experiment_name: str = _option(
        "ml-pipeline-experiment",
        "Experiment; made if missing.",
        kind=kinds.EXPERIMENT,
        env="MLFLOW_EXPERIMENT_NAME",
    )
    experiment_id: str | None = _option(
        None, "An existing experiment, in place of a name.", env="MLFLOW_EXPERIMENT_ID"
    )
    artifact_location: str | None = _option(
        None, "Files of an experiment that is made. None: MLflow decides."
    )
    # Run
    enabled: bool = _option(True, "False records nothing.")
    run_name: str | None = _option(None, "Name of the run. None: MLflow makes one up.")
    run_id: str | None = _option(None, "A run to continue. None: a new run.")
    description: str | None = _option(None, "The run's note.", alias="run_description")
    tags: Mapping[str, Any] = _option({}, "Tags of the run.", alias="extra_tags")
    # What is recorded
    log_params: bool = _option(True, "Record hyperparameters.")
    log_metrics: bool = _option(True, "Record metrics.")
    log_artifacts: bool = _option(True, "Record files and plots.")
    log_model: bool | Literal["metadata", "all"] = _option(
        True,
        "Record the trained model. `metadata`: facts about it, no files. `all`: every checkpoint too.",
        alias="log_models",
    )
    log_input_example: bool = _option(False, "Keep input rows with the model.", alias="log_input_examples")
    log_model_signature: bool = _option(
        True, "Record the model's input and output columns.", alias="log_model_signatures"
    )
    log_datasets: bool = _option(True, "Record name, digest and schema of the data.")
    log_system_metrics: bool = _option(False, "Record CPU, memory and GPU use.")
    log_every_n_steps: int | None = _option(
        None, "Steps from one record to the next. None follows the framework.", alias="log_every_n_step"
    )
    log_at_most_per_s: float | None = _option(
        None,
        "Records a second of the same metrics with a step; what is left out is counted. None: all.",
        kind=kinds.RATE,
    )
    step_axis: Literal["step", "epoch", "both"] = _option("step", "What a metric's step counts.")
    nonfinite: Literal["tag", "drop", "keep", "raise"] = _option(
        "tag",
        "NaN and infinite metrics. `tag`: recorded as MLflow stores them, first bad step tagged. `drop`: not "
        "recorded, first bad step tagged. `keep`: recorded, no tag. `raise`: UnloggableError at the log call.",
    )
    include: Sequence[str] = _option((), "Globs: only params and metrics of these names. Empty: all.")
    exclude: Sequence[str] = _option((), "Globs: no params and metrics of these names.")
    redact: bool | Sequence[str] = _option(
        True, "Mask secret-looking params and tags. A list of globs adds names. False: mask nothing."
    )
    # Model
    register_model: bool = _option(False, "Register the model; needs `model_name`.")
    model_name: str | None = _option(
        None, "Name of the registered model.", kind=kinds.MODEL, alias="registered_model_name"
    )
    model_stage: str = _option(
        "None", "Stage of its version: `None`, `Staging`, `Production` or `Archived`.", kind=kinds.STAGE
    )
    model_alias: str | None = _option(None, "Alias of its version.", kind=kinds.ALIAS)
    model_description: str | None = _option(None, "Description of its version.")
    serialization: Literal["auto", "skops", "cloudpickle", "pickle", "pt2"] = _option(
        "auto", "Format of model files. `auto`: the safest that holds the model."
    )
    # Delivery
    delivery: Literal["auto", "process", "thread", "offline"] = _option(
        "auto", "Who sends. `auto`: a process, or a thread where there is none. `offline`: `mlpipeline sync`."
    )
    journal_dir: str | None = _option(
        None,
        "Folder of the journals. None: the user's state directory.",
        kind=kinds.PATH,
        env="MLPIPELINE_HOME",
    )
    connect_timeout_s: float = _option(
        10.0, "Seconds without progress after which a start goes on with a local run id."
    )
    exit_wait_s: float | None = _option(
        None, "Seconds to insist on delivery at exit, or at a component's end. None: while it makes progress."
    )

    _given: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)
    _weak: frozenset[str] = field(default=frozenset(), init=False, repr=False, compare=False)  # of a file
    _settled: bool = field(default=False, init=False, repr=False, compare=False)

    if not TYPE_CHECKING:  # to a type checker the options are arguments; here their names get checked

        def __init__(self, **options: Any) -> None:
            self._set(_accepted(options))

    @classmethod
    def _made(cls, values: Mapping[str, Any], **standing: Any) -> MLflowConfig:
        """Make a configuration of checked values."""
        new = cls.__new__(cls)
        cls._set(new, values, **standing)
        return new

    def _set(self, values: Mapping[str, Any], weak: Iterable[str] = (), settled: bool = False) -> None:
        """Fill the new object, and refuse contradictions."""
        given = {name: value for name, value in values.items() if value is not None}
        self.__dict__.update(_DEFAULTS, **given)
        self.__dict__.update(_given=frozenset(given), _weak=frozenset(weak) & given.keys(), _settled=settled)
        if self.register_model and self.model_name is None:
            raise ConfigError("register_model=True needs a name to register under: give model_name as well")
        if self.register_model and self.log_model in {False, "metadata"}:
            raise ConfigError(
                f"register_model=True needs a model's files, and log_model={self.log_model!r} records none: "
                "set log_model=True, or register_model=False"
            )
        for name in ("model_alias", "model_stage"):
            # register_model=False, in words, switches registration off and leaves its options as they are.
            if given.get(name, "None") != "None" and "register_model" not in given:
                raise ConfigError(
                    f"{name}={given[name]!r} is of no use without register_model=True: set it as well"
                )

    @property
    def given(self) -> frozenset[str]:
        """Names of the options that somebody set: by keyword or file, and after `resolved` anywhere."""
        return self._given

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> MLflowConfig:
        """Return the options of a YAML file; they rank below the environment.

        Args:
            path: A file of at most 1 MiB, with the options under the key ``mlflow`` or, where there is no
                such key, at the top.

        Raises:
            ConfigError: The file cannot be read or is no mapping; or as in the constructor.
        """
        return cls.of(os.fspath(path))

    @classmethod
    def from_section(cls, options: Mapping[str, Any]) -> MLflowConfig:
        """Return the options that a file holds, already read; they rank below the environment.

        Raises:
            ConfigError: As in the constructor.
        """
        values = _accepted(options)
        return cls._made(values, weak=values)

    @classmethod
    def of(
        cls, config: MLflowConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None, **overrides: Any
    ) -> MLflowConfig:
        """Return a configuration made of whatever a caller may pass as one.

        Args:
            config: A configuration, a dict of options, the path of a YAML file, or None for the defaults.
            **overrides: Options that win over *config* and count as given by keyword.

        Raises:
            ConfigError: *config* is none of these; or as in the constructor.
        """
        if isinstance(config, MLflowConfig):
            return config.replace(**overrides) if overrides else config
        new, weak = _accepted(overrides), frozenset[str]()
        if isinstance(config, (str, os.PathLike)):
            values = _load(config)
            weak = frozenset(values.keys() - new.keys())
        elif config is None or isinstance(config, Mapping):
            values = _accepted(config or {})
        else:
            accepted = "an MLflowConfig, a dict of options or the path of a YAML file"  # type: ignore[unreachable]
            hint = (
                "MLflowConfig(), with parentheses" if config is MLflowConfig else "MLflowConfig(option=value)"
            )
            raise ConfigError(f"config={shown(config):.200}: expected {accepted}; write {hint}")
        return cls._made(_over(values, new), weak=weak)

    def replace(self, **options: Any) -> MLflowConfig:
        """Return a copy with *options* changed as by keyword; None takes an option back.

        Raises:
            ConfigError: As in the constructor.
        """
        new = _accepted(options)
        values = _over({name: getattr(self, name) for name in self._given}, new)
        return self._made(values, weak=self._weak - new.keys(), settled=self._settled)

    __replace__ = replace  # copy.replace(), from Python 3.13 on

    def resolved(
        self, *, user_calls: Mapping[str, Any] = kinds.NOTHING, environ: Mapping[str, str] | None = None
    ) -> MLflowConfig:
        """Return a configuration in which all that may decide has decided; resolving it again changes nothing.

        The experiment is one choice: the highest source that names ``experiment_name`` or
        ``experiment_id`` decides, by its name if it has both. So use ``experiment_id`` where it is not
        None, and ``experiment_name`` elsewhere. Tags are one value, too: sources are not mixed.

        Args:
            user_calls: What the user's own ``mlflow.set_tracking_uri``, ``set_registry_uri`` and
                ``set_experiment`` established: ``tracking_uri``, ``registry_uri``, ``experiment_id``. The
                experiment is left out where the run goes to another store than the one it is in.
            environ: The environment to read. None: that of this process.

        Raises:
            ConfigError: A variable has a value that its option does not accept (the message names it), or
                the options contradict each other.
        """
        if self._settled:
            return self
        environ = os.environ if environ is None else environ
        merged = self._merged(user_calls, environ)
        if "experiment_name" in merged:
            merged.pop("experiment_id", None)
        values = _checked(merged, environ)
        try:
            return self._made(values, settled=True)
        except ConfigError as error:
            found = ", ".join(value.source for value in merged.values() if isinstance(value, _Found))
            raise ConfigError(f"{error} (some options came from {found})") from None

    def sources(
        self, *, user_calls: Mapping[str, Any] = kinds.NOTHING, environ: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Return, per option that somebody set, who did: a variable, a call of MLflow's, ``"option"`` or ``"file"``.

        Args:
            user_calls: As in `resolved`.
            environ: As in `resolved`.
        """
        merged = self._merged(user_calls, os.environ if environ is None else environ)
        return {
            name: value.source if isinstance(value, _Found) else "file" if name in self._weak else "option"
            for name, value in merged.items()
        }

    def _merged(self, user_calls: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
        """Return what everybody says, the highest rank's word each; not checked yet where it is a `_Found`."""
        file = {name: getattr(self, name) for name in self._weak}
        keywords = {name: getattr(self, name) for name in self._given - self._weak}
        calls = {name: _Found(_CALLS[name], value) for name, value in user_calls.items() if value is not None}
        ours, theirs = _variables(environ)
        merged = _over(file, theirs, ours, calls, keywords)
        if "experiment_id" in calls and _place(merged) != _place({**theirs, **calls}):
            foreign = calls.pop("experiment_id").value
            if "experiment_id" in theirs and theirs["experiment_id"].value == foreign:
                del theirs["experiment_id"]  # set_experiment() writes MLFLOW_EXPERIMENT_ID
            merged = _over(file, theirs, ours, calls, keywords)
        return merged

    def to_dict(self, *, all: bool = False) -> dict[str, Any]:  # noqa: A002 - reads best at the call
        """Return the given options as plain dicts, lists and scalars, which the constructor takes back.

        The password of a database URI is among them, because the database needs it.

        Args:
            all: Whether to add the options that have their defaults.
        """
        plain: dict[type, Callable[[Any], Any]] = {ReadOnly: dict, tuple: list}
        values = {name: getattr(self, name) for name in _OPTIONS if all or name in self._given}
        return {name: plain.get(type(value), lambda same: same)(value) for name, value in values.items()}

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={shown(getattr(self, name))}" for name in _OPTIONS if name in self._given)
        return f"{type(self).__name__}({given})"


_OPTIONS = {option.name: option for option in fields(MLflowConfig) if option.metadata}
_ALIASES = {option.metadata["alias"]: name for name, option in _OPTIONS.items() if option.metadata["alias"]}
_DEFAULTS: dict[str, Any] = {
    **{name: option.default for name, option in _OPTIONS.items()},
    "tags": kinds.NOTHING,
}
_KINDS = {
    name: option.metadata["kind"] or kinds.kind_of(str(option.type)) for name, option in _OPTIONS.items()
}
_CALLS = {
    "tracking_uri": "mlflow.set_tracking_uri",
    "registry_uri": "mlflow.set_registry_uri",
    "experiment_id": "mlflow.set_experiment",
}

# --- Names, variables, files -----------------------------------------------------------------------


class _Found(NamedTuple):
    """A value from outside the configuration, not checked yet, and where it was found."""

    source: str
    value: Any
    is_text: bool = False  # of an environment variable


def _accepted(options: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a user's options under their own names, checked."""
    named: dict[str, Any] = {}
    for key, value in options.items():
        name = _ALIASES.get(key, key)
        if name not in _OPTIONS:
            near = nearest(key, [*_OPTIONS, *_ALIASES]) or f"; the options are {', '.join(_OPTIONS)}"
            raise ConfigError(f"MLflowConfig has no option {key!r}{near}")
        other = named.get(name)
        if other is not None and value is not None and other != value:
            twice = f"{shown(other, name)} and {shown(value, name)}"
            alias = _OPTIONS[name].metadata["alias"]
            raise ConfigError(f"{name} is given twice, as {twice}: {alias} is another name for it, keep one")
        named[name] = other if value is None else value
    if options.get("registered_model_name") is not None:
        named.setdefault("register_model", True)
    return _checked(named, os.environ)


def option_mistake(name: str, value: Any) -> str | None:
    """Return what is wrong with one option by itself, in words; None if nothing is."""
    try:
        _accepted({name: value})
    except ConfigError as error:
        return str(error)
    return None


def _checked(values: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Return *values* normalised; None stays where it means "not given"."""
    checked: dict[str, Any] = {}
    for name, found in values.items():
        kind, default = _KINDS[name], _DEFAULTS[name]
        if found is None and (default in (None, "None") or kind in {kinds.TAGS, kinds.PATTERNS}):
            checked[name] = None
            continue
        label, value = name, found
        if isinstance(found, _Found):
            label, value = (found.source if found.is_text else f"{name} (from {found.source})"), found.value
            with contextlib.suppress(ValueError):
                value = kind.read(value) if found.is_text else value
        try:
            checked[name] = kind.check(value)
            if kind in {kinds.TRACKING, kinds.REGISTRY}:
                kinds.refuse_file_store(checked[name], environ)
        except ValueError as refusal:
            raise ConfigError(f"{label}={shown(value):.200}: expected {refusal}") from None
    return checked


def _over(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """Merge, the last wins. Name and id of an experiment are one choice: a source replaces both or none."""
    merged: dict[str, Any] = {}
    for source in sources:
        if source.get("experiment_name") is not None or source.get("experiment_id") is not None:
            merged = {name: merged[name] for name in merged.keys() - {"experiment_name", "experiment_id"}}
        merged.update(source)
    return merged


def _variables(environ: Mapping[str, str]) -> tuple[dict[str, _Found], dict[str, _Found]]:
    """Return what our own variables say, and what MLflow's (and ``MLPIPELINE_HOME``) say."""
    ours: dict[str, _Found] = {}
    theirs: dict[str, _Found] = {}
    for name, option in _OPTIONS.items():
        for variable, found in ((f"MLPIPELINE_{name.upper()}", ours), (option.metadata["env"], theirs)):
            text = environ.get(variable, "").strip() if variable else ""
            if text:  # an empty variable counts as not set, as with MLflow
                found[name] = _Found(variable, text, is_text=True)
    return ours, theirs


def _place(values: Mapping[str, Any]) -> str:
    """Return the store that *values* name, in one spelling."""
    from pathlib import Path

    found = values.get("tracking_uri")
    uri: str = (found.value if isinstance(found, _Found) else found) or "sqlite:///mlflow.db"
    engine, slashes, path = uri.partition(":///")
    return f"{engine}:{Path(path).resolve()}" if slashes else re.sub(r"//[^/?#]*@", "//", uri).rstrip("/")


def _load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the checked options of a YAML file."""
    from pathlib import Path

    import yaml

    limit = 2**20
    try:
        with Path(path).open("rb") as file:
            text = file.read(limit + 1)
        if len(text) > limit:
            raise ConfigError("a configuration file has at most 1 MiB; is this the right file?")
        options = yaml.safe_load(text)
        if isinstance(options, Mapping):
            options = options.get("mlflow", options)
        if not isinstance(options, Mapping) and options is not None:
            raise ConfigError(
                f"expected options, at the top or under `mlflow:`, but it holds {options!r:.80}"
            )
        return _accepted(options or {})
    except OSError as error:
        hint = "a destination is tracking_uri=..." if "://" in str(path) else "give the path of a YAML file"
        raise ConfigError(f"config={shown(str(path))} cannot be read ({error.strerror}); {hint}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    except ValueError as error:  # of which ConfigError is one
        raise ConfigError(f"{path}: {error}") from None


# --- Documentation ---------------------------------------------------------------------------------


def options_table() -> str:
    """Return the options as a Markdown table: option, type, default, meaning, environment variable."""
    rows = ["| Option | Type | Default | Meaning | Environment variable |", "|---|---|---|---|---|"]
    for name, option in _OPTIONS.items():
        kind = re.sub(r"Literal\[(.*)\]", lambda found: found[1].replace(", ", " or "), str(option.type))
        default = '"None"' if name == "model_stage" else repr(_DEFAULTS[name]).replace("'", '"')
        alias, other = option.metadata["alias"], option.metadata["env"]
        meaning = option.metadata["doc"] + (f" Also written `{alias}`." if alias else "")
        variables = f"`MLPIPELINE_{name.upper()}`" + (f", `{other}`" if other else "")
        rows.append(f"| `{name}` | `{kind.replace(' | ', ' or ')}` | `{default}` | {meaning} | {variables} |")
    return "\n".join(rows) + "\n"


def _describe() -> None:
    """Show the options in help() and in a notebook's tooltip."""
    arguments = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=option.type
        )
        for name, option in _OPTIONS.items()
    ]
    meanings = "".join(f"\n    {name}: {option.metadata['doc']}" for name, option in _OPTIONS.items())
    MLflowConfig.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    MLflowConfig.__doc__ = str(inspect.getdoc(MLflowConfig)).replace("Raises:", f"Args:{meanings}\n\nRaises:")


_describe()
