"""What a run sends beside its records: artifacts, models, versions and evaluations, one after the other.

::

    state.uploads ─ next ───► artifact ─────────────► the run's artifact store
                            ├ model ─ its verdict ──► LoggedModel, or dropped
                            ├ a child's model ──────► linked to this run, once the child's own is there
                            ├ version ──────────────► the registry
                            └ evaluation ───────────► metrics of a model, of any run, once that is there

The model of a trial waits for the verdict of the run that decides about it: whether the trial was the best
when it ended. One that fails or waits lets the others go first, but for those that must come after it: a
version after its model, a file after an older one at the same place. What is sent may be tried again: an
upload of the same file changes nothing, and models and versions are made by `creation`, which finds what is
there already.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mlpipeline.tracking.sink import KEEPER_OF_TAG, KEEPER_TAG, KEPT_MS_TAG, MlflowSink
from mlpipeline.tracking.verdicts import Refused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from mlpipeline.tracking.creation import Creation
    from mlpipeline.tracking.home import Home, RunFolder, RunState


class Uploading(Protocol):
    """The run that sends them, as far as `Uploads` knows it; a `RunDelivery`."""

    folder: RunFolder
    state: RunState
    creation: Creation
    is_gone: bool

    def keeping(self) -> AbstractContextManager[None]:
        """Change the state, and write it down."""

    def header(self) -> dict[str, Any] | None:
        """Return the header of the run's journals."""

    def coming_end(self) -> dict[str, Any] | None:
        """Return the end that is recorded or due; None while the run goes on."""

    def bury(self, kind: str, content: dict[str, Any], reason: str) -> None:
        """Put a record that was refused for good with its reason where it is found."""


class _Verdict(NamedTuple):
    """Whether a run's models are delivered, and the tags that say for which of its parents' sake."""

    is_kept: bool
    tags: Mapping[str, str] = MappingProxyType({})


class Uploads:
    """Sends what is in the state's `uploads`.

    Args:
        home: The journal home.
        run: The run that they belong to.
    """

    def __init__(self, home: Home, run: Uploading) -> None:
        self._home = home
        self._run = run
        self._failures: dict[int, int] = {}  # by id(): they live in the state until they are sent

    def send_next(self, sink: MlflowSink) -> bool:
        """Send an artifact, model, version or evaluation that waits: of those that failed least, the oldest.

        Returns:
            Whether there was one.

        Raises:
            Unavailable: The destination cannot take it now; the others are tried before it is again.
        """
        if self._run.state.run_id is None:
            return False
        order = self._sendable()
        if self._failures:
            order = iter(sorted(order, key=lambda item: self._failures.get(id(item), 0)))
        return any(self._send(sink, item) for item in order)

    def _send(self, sink: MlflowSink, item: dict[str, Any]) -> bool:
        """Send one, or bury it; False where it waits for another run."""
        run, state = self._run, self._run.state
        try:
            if run.is_gone:
                raise Refused("its run is gone")
            if item["kind"] == "ARTIFACT":
                folder = _among_artifacts(item.get("artifact_path"))
                sink.upload(str(state.run_id), self._spooled(item["spool"]), folder)
            elif item["kind"] == "MODEL" and "keeper" in item:
                if not self._take_model(sink, item):
                    return False  # the child uploads it
            elif item["kind"] == "MODEL":
                if (verdict := self._verdict()) is None:
                    return False
                self._upload_model(sink, item, verdict)
            elif item["kind"] == "EVALUATION":
                if (model_id := self._evaluated(item)) is None:
                    return False  # the run that logged it uploads it
                sink.log_evaluation(str(state.run_id), model_id, item)
            else:
                self._register(sink, item)
        except Unavailable:
            self._failures[id(item)] = self._failures.get(id(item), 0) + 1
            raise
        except Refused as refused:
            run.bury(item["kind"].lower(), item, str(refused))
        else:
            state.delivered += 1
        with run.keeping():
            state.uploads.remove(item)
        self._failures.pop(id(item), None)
        with contextlib.suppress(Refused):
            if item.get("spool") and not run.folder.spool.is_symlink():
                remove(run.folder.spool / _spool_parts(item["spool"])[0])
        return True

    def _sendable(self) -> Iterator[dict[str, Any]]:
        """Yield what need not follow an older one, oldest first."""
        places, models, names, has_kept = _Places(), set(), set(), False
        for item in list(self._run.state.uploads):
            kind = item["kind"]
            if kind == "ARTIFACT":
                is_free = places.take(item)  # of two at one place the newer stands
            elif kind == "MODEL":
                is_free = "keeper" not in item or not has_kept
                has_kept |= "keeper" in item
                models.add(item.get("uid"))
            elif kind == "VERSION":
                # The newest version has the aliases.
                is_free = item.get("model_uid") not in models and item.get("name") not in names
                names.add(item.get("name"))
            else:
                is_free = not models or item.get("of") != self._run.folder.uid
            if is_free:
                yield item

    def holds_models(self) -> bool:
        """Tell whether nothing is left to send but models that wait for their verdict, and what follows them."""
        has_model = False
        for item in self._sendable():
            if item["kind"] != "MODEL" or "keeper" in item:
                return False
            has_model = True
        return has_model and self._verdict() is None

    def _verdict(self) -> _Verdict | None:
        """Tell whether this run's models stay; None as long as the run that decides goes on."""
        keeper = (self._run.header() or {}).get("keeper")
        if keeper is None:
            return _Verdict(is_kept=True)
        if keeper["uid"] == self._run.folder.uid:
            end = self._run.coming_end()
        elif (decider := self._home.state(keeper["uid"])) is not None:
            end = decider.end or ({} if decider.is_ended else None)
        else:
            end = None
        if end is None:
            return None
        above = self._home.state(keeper["of"])
        taken = above.kept if above is not None else None
        has_lost = taken is not None and taken["uid"] != keeper["uid"] and taken["ms"] >= end.get("ms", 0)
        tags = {KEEPER_TAG: keeper["uid"], KEEPER_OF_TAG: keeper["of"], KEPT_MS_TAG: str(end.get("ms", 0))}
        return _Verdict(is_kept=bool(end.get("keeps_models")) and not has_lost, tags=tags)

    def _take_model(self, sink: MlflowSink, item: dict[str, Any]) -> bool:
        """Make a child's model this run's, too; False while it is still on its way."""
        run, state = self._run, self._run.state
        with run.keeping():
            state.kept = {"uid": item["keeper"], "ms": item["ms"]}
        owner = self._home.state(item["of"])
        known = owner.models.get(item["uid"], {}) if owner is not None else {}
        if not known.get("is_ready"):
            if owner is None or _holds_model(owner) or not owner.is_ended:
                return False
            raise Refused("its model could not be logged")
        sink.take_model(known["model_id"], str(state.run_id))
        with run.keeping():
            state.models[item["uid"]] = {key: known[key] for key in ("name", "model_id", "is_ready")}
        sink.drop_models(str(state.experiment_id), run.folder.uid, item["keeper"], item["ms"])
        return True

    def _upload_model(self, sink: MlflowSink, item: dict[str, Any], verdict: _Verdict) -> None:
        run, state = self._run, self._run.state
        if not verdict.is_kept:
            state.models.setdefault(item["uid"], {"name": item["name"]})["is_dropped"] = True
            return
        model_id = run.creation.model(sink, {**item, "tags": {**item.get("tags", {}), **verdict.tags}})
        folder = self._spooled(item["spool"]) if item.get("spool") else None
        sink.fill_model(model_id, str(state.run_id), folder, int(item.get("step", 0)))
        with run.keeping():
            state.models[item["uid"]]["is_ready"] = True

    def _evaluated(self, item: dict[str, Any]) -> str | None:
        """Return the id of the model that an evaluation is about; None while it is still on its way."""
        if item.get("model_id"):
            return str(item["model_id"])
        run, uid = self._run, item["of"]
        owner = run.state if uid == run.folder.uid else self._home.state(uid)
        if owner is None:
            if self._home.run(uid).path.exists():
                return None
            raise Refused(f"the run {uid}, whose model it is about, was recorded elsewhere")
        if owner.destination not in (None, run.state.destination):
            raise Refused(f"the run {uid}, whose model it is about, goes to another destination")
        ready = [model["model_id"] for model in owner.models.values() if model.get("is_ready")]
        if ready:
            return str(ready[-1])
        is_over = owner.is_ended if owner is not run.state else run.coming_end() is not None
        if _holds_model(owner) or not is_over:
            return None
        raise Refused(f"the run {uid}, whose model it is about, has logged none")

    def _register(self, sink: MlflowSink, item: dict[str, Any]) -> None:
        if not self._run.state.models.get(item["model_uid"], {}).get("is_dropped"):
            self._run.creation.version(sink, item)

    def _spooled(self, name: str) -> Path:
        """Return where a file or folder waits, of which nothing leads out of the spool.

        Raises:
            Refused: It is gone, or is or holds a link, or what is neither a file nor a folder.
            Unavailable: The disk does not tell.
        """
        spool = self._run.folder.spool
        folder, file = _spool_parts(name)
        path = spool / folder / file
        try:
            for above in (spool, spool / folder):
                if not stat.S_ISDIR(os.lstat(above).st_mode):
                    raise Refused(f"{above} is no folder of the spool")
            for found in (str(path), *_inside(path)):
                if not stat.S_ISREG(mode := os.lstat(found).st_mode) and not stat.S_ISDIR(mode):
                    raise Refused(f"{found} is a link or no file at all, and is not followed")
        except FileNotFoundError as error:
            raise Refused(f"{error.filename} is gone from the spool") from None
        except OSError as error:
            raise Unavailable(f"cannot read the spool: {error}") from error
        return path


class _Places:
    """Where older files and folders go among a run's artifacts."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._above: set[str] = set()

    def take(self, item: Mapping[str, Any]) -> bool:
        """Tell whether no older one lies at the place of this one, in it or around it, and note it."""
        folder, name = item.get("artifact_path") or "", str(item.get("file", ""))
        # A folder goes with its own name at the end of the path.
        place = folder if folder.rpartition("/")[2] == name else f"{folder}/{name}".lstrip("/")
        above = [place[:end] for end, letter in enumerate(place) if letter == "/"]
        is_free = place not in self._above and self._taken.isdisjoint((place, *above))
        self._taken.add(place)
        self._above.update(above)
        return is_free


def _holds_model(state: RunState) -> bool:
    return any(item["kind"] == "MODEL" for item in state.uploads)


def _spool_parts(name: str) -> tuple[str, str]:
    # A journal is data: what it names must lie inside the spool.
    folder, _, file = name.partition("/")
    if {folder, file} & {"", ".", ".."} or set(name) & {"\\", "\0"} or "/" in file or not _is_unicode(name):
        raise Refused(f"{name!r} is no file or folder of the spool")
    return folder, file


def _among_artifacts(path: str | None) -> str | None:
    if path is not None and (path[:1] == "/" or ".." in path.split("/") or set(path) & {"\\", "\0"}):
        raise Refused(f"{path!r} is no folder among the run's artifacts")
    return path


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _inside(path: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(path):
        yield from (os.path.join(folder, name) for name in (*folders, *files))


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
