"""What can be found wrong in a configuration before anything is read or trained, each with its place in the file.

::

    Settings ─► mistakes_of ─┬─ training.model          no such model, no such parameter, of models in it, too
                             ├─ …parameter_space        no such parameter, nothing usual, too great a grid
                             ├─ metrics, thresholds     no such metric
                             └─ data                    no such data set, file or format

`mlpipeline.models.settings` knows the options; this knows what their values name.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, get_args

from mlpipeline.core.errors import ConfigError, MissingExtraError
from mlpipeline.models import data, estimators, scoring, spaces
from mlpipeline.models.settings import Location, TaskType, in_words, nested_model

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from mlpipeline.models.estimators import Kind
    from mlpipeline.models.settings import ModelSection, Settings, TuningSection

    Found = Iterator[tuple[Location, ConfigError]]

_MODEL: Location = ("training", "model")
_SEARCH: Location = ("training", "hyperparameter_optimization")


def mistakes_of(
    settings: Settings, folder: str | os.PathLike[str] | None = None
) -> list[tuple[Location, str]]:
    """Return every name in a configuration that stands for nothing, with its place.

    Args:
        settings: The configuration.
        folder: The artifacts folder, where a relative path is looked up second; None looks for no file.
    """
    return [_placed(place, error) for place, error in _found(settings, folder)]


def refuse_mistakes(settings: Settings, folder: str | os.PathLike[str] | None = None) -> None:
    """Raise where `mistakes_of` finds any.

    Raises:
        ConfigError: It names all of them.
    """
    if found := list(_found(settings, folder)):
        message = in_words([_placed(place, error) for place, error in found], {})
        raise ConfigError(message) from found[0][1].__cause__


def _found(settings: Settings, folder: str | os.PathLike[str] | None) -> Found:
    training, section = settings.training, settings.data
    search = training.hyperparameter_optimization
    if training.model.model_fields_set or search is not None:
        yield from _of_model(training.model, _MODEL)
    if search is not None and search.enabled:
        yield from _of_space(search, training.model)
        if search.metric is not None:
            yield from _of_metric(search.metric, (*_SEARCH, "metric"))
    for index, name in enumerate(settings.evaluation.metrics or ()):
        yield from _of_metric(name, ("evaluation", "metrics", index))
    for name in settings.evaluation.thresholds:
        yield from _of_metric(name, ("evaluation", "thresholds", name))
    if section is not None and folder is not None:
        place = ("data", "dataset" if section.dataset else "path")
        yield from _raised(place, partial(data.check_source, section, folder))


def _of_model(model: ModelSection, place: Location) -> Found:
    """Yield what is wrong with the names of a model, of its parameters, and of the models among them."""
    kinds: list[Kind] = []
    try:
        kinds = _kinds(model, ".".join(map(str, place)))
    except MissingExtraError:
        pass  # it may be installed where the stage runs, which will say so
    except ConfigError as error:
        yield (*place, "model_type"), error
    yield from _of_names(kinds, model.parameters, (*place, "parameters"))
    for below, content in estimators.nested(model.parameters, (*place, "parameters")):
        try:
            section = nested_model(content)
        except ConfigError as error:
            yield below, error
        else:
            yield from _of_model(section, below)


def _kinds(model: ModelSection, where: str = "training.model") -> list[Kind]:
    """Return what the model may come to be: where only the target will tell the task, one for either."""
    found = [estimators.kind_of(model, task, where) for task in get_args(TaskType)]
    return found if found[0] != found[1] else found[:1]


def _of_names(kinds: list[Kind], names: Iterable[str], place: Location) -> Found:
    """Yield the names that are parameters of none of these."""
    where = ".".join(map(str, place))
    for name in names:
        below = (*place, name)
        wrong = [
            found
            for kind in kinds
            for found in _raised(below, partial(estimators.check_parameters, kind, [name], where))
        ]
        if kinds and len(wrong) == len(kinds):
            yield wrong[0]


def _of_space(search: TuningSection, model: ModelSection) -> Found:
    place = (*_SEARCH, "parameter_space")
    try:
        kinds = _kinds(model)
    except (ConfigError, MissingExtraError):
        return  # told where the model is
    wrong = list(_of_names(kinds, search.parameter_space or (), place))
    yield from wrong
    if len(kinds) == 1 and not wrong:
        yield from _raised(place, partial(_space, search, model, kinds[0]))


def _space(search: TuningSection, model: ModelSection, kind: Kind) -> None:
    space = spaces.space_of(search, model, kind)
    if search.method == "grid_search":
        space.grid(search.grid_points)


def _of_metric(name: str, place: Location) -> Found:
    return _raised(place, partial(scoring.checked, [name]))


def _raised(place: Location, check: Callable[[], object]) -> Found:
    try:
        check()
    except MissingExtraError:
        pass
    except ConfigError as error:
        yield place, error


def _placed(place: Location, error: ConfigError) -> tuple[Location, str]:
    """Return a mistake with its place, which its words name, too, or a place above."""
    where, _, words = str(error).partition(": ")
    names = [".".join(map(str, place[:length])) for length in range(1, len(place) + 1)]
    return place, words if where in names else str(error)
