"""A pipeline's YAML file: read safely, with the line of everything in it.

::

    text ─ nodes with lines ─ ${NAME} filled in ─► content ─ changes by hand ─► Source ─► Settings
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import ConfigError, nearest
from mlpipeline.models.settings import (
    SECTIONS,
    Location,
    Settings,
    in_words,
    mistakes_in,
    parsed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Source:
    """A configuration file: its content, and the line of everything in it.

    Attributes:
        content: The sections.
        lines: The line of each key's value, counted from 1.
        name: What the file is called in messages.
    """

    content: dict[str, Any]
    lines: Mapping[Location, int]
    name: str

    def settings(self, folder: str | os.PathLike[str] | None = None) -> Settings:
        """Return the checked settings.

        Args:
            folder: The artifacts folder: then what the values name is looked for, too. That takes longer, because it
                asks scikit-learn.

        Raises:
            ConfigError: With a line for every mistake in the file.
        """
        mistakes = mistakes_in(self.content)
        known = ("mlflow", *SECTIONS)
        mistakes += [
            ((name,), f"no section of a pipeline{nearest(name, known)}; there are {', '.join(known)}")
            for name in self.content
            if name not in known
        ]
        wrong = {place[0] for place, _ in mistakes}
        given = {
            name: value for name, value in self.content.items() if value is not None and name not in wrong
        }
        settings = Settings(**parsed(given))
        if folder is not None:
            from mlpipeline.models.checking import mistakes_of

            mistakes += mistakes_of(settings, folder)
        if mistakes:
            raise ConfigError(in_words(mistakes, self.lines, self.name))
        return settings


def read(
    path: str | os.PathLike[str],
    changes: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Source:
    """Read a YAML file, safely.

    ``${NAME}`` stands for an environment variable, ``${NAME:-text}`` for it or, where it is not set, the text.
    A value that is nothing else and not in quotes gets the type of what it stands for.

    Args:
        path: The file, of at most 1 MiB.
        changes: Values over those of the file, by dotted name, such as
            ``{"training.model.parameters.max_depth": 3}``.
        environ: The environment. None: that of this process.

    Raises:
        ConfigError: It cannot be read, is no YAML, names a variable that is not set, or gives a key twice.
    """
    import yaml

    name = os.fspath(path)
    limit = 2**20
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    if len(data) > limit:
        raise ConfigError(f"{name}: a configuration file has at most 1 MiB; is this the right file?")
    lines: dict[Location, int] = {}
    try:
        loader = yaml.SafeLoader(data)
        try:
            node = loader.get_single_node()
            mistakes: list[tuple[Location, str]] = []
            if node is not None:
                _visit(node, (), loader, lines, mistakes, os.environ if environ is None else environ)
            content = loader.construct_document(node) if node is not None and not mistakes else {}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{where}: this is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{name}: this is not YAML: {error}") from error
    if mistakes:
        raise ConfigError(in_words(mistakes, lines, name))
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: expected sections such as training:, but it holds {content!r:.80}")
    for dotted, value in (changes or {}).items():
        _change(content, dotted, value)
    return Source(content, lines, name)


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _visit(
    node: Any,
    place: Location,
    loader: Any,
    lines: dict[Location, int],
    mistakes: list[tuple[Location, str]],
    environ: Mapping[str, str],
) -> None:
    """Note the lines of a node and of all below it, and fill in the environment's variables."""
    import yaml

    lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                mistakes.append((place, "has a key that is no text"))
                continue
            below = (*place, str(key.value))
            _visit(value, below, loader, lines, mistakes, environ)
            lines[below] = key.start_mark.line + 1
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                mistakes.append((below, "is given twice; keep one"))
            seen.add(key.value)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _visit(value, (*place, index), loader, lines, mistakes, environ)
    elif "${" in node.value:

        def fill(match: re.Match[str]) -> str:
            found = environ.get(match[1]) or match[2]
            if found is None:
                mistakes.append(
                    (
                        place,
                        f"the environment variable {match[1]} is not set; set it, or write ${{{match[1]}:-default}}",
                    )
                )
            return found or ""

        node.value = _VARIABLE.sub(fill, node.value)
        if node.style is None:  # unquoted: ${TRIALS} is a number where it stands for one
            node.tag = loader.resolve(yaml.ScalarNode, node.value, (True, False))


def _change(content: dict[str, Any], dotted: str, value: Any) -> None:
    *above, last = dotted.split(".")
    place = content
    for index, key in enumerate(above):
        below = place.get(key)
        if below is None:
            below = place[key] = {}
        elif isinstance(below, dict):
            below = place[key] = dict(below)  # an anchor's mapping stands in several places
        else:
            raise ConfigError(f"--set {dotted}: {'.'.join(above[: index + 1])} is {below!r:.60}, no section")
        place = below
    place[last] = value
