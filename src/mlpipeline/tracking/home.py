"""The journal home: the folder that is the whole protocol between trainers and the courier.

::

    <home>/                      0700
      courier.lock               held by the courier that serves this home
      courier.json               its progress, for those who wait
      courier.successor          asks it to make room for one with newer credentials
      courier-<identity>.*       the same of a courier for a server that lets in known users only
      courier.log                their standard output and error
      key                        random, to tell secrets apart without writing them down
      hurry                      touched by whoever waits for delivery
      runs/<uid>/                one run, as its first trainer named it
        <writer>.lock            held by the writing process as long as it lives
        <writer>.000001.seg      its journal, in segments
        state.json               the courier's: ids MLflow gave, offsets acknowledged, what failed
        spool/                   models and artifacts on their way
      dead/<uid>.jsonl           dead letters: what MLflow refused for good, with the reason
      done/<uid>.json            a finished run's last state, kept 30 days so that its id resolves

Only the writers write journals, and the courier those of runs that were over when they were
recorded (see `children`); only the courier writes state. Everything is created 0600 or
0700 whatever the umask says, and a home that belongs to somebody else, or is a link, is refused.
Links inside of it are not followed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
import sys
import time
import uuid
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpipeline.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DONE_KEPT_DAYS = 30
_TEXTS_OF_STATE = ("run_id", "run_name", "experiment_id", "artifact_uri", "destination", "problem", "token")
_NAME_BYTES = 200  # of 255 that a file system takes: endings come behind

_checked: set[Path] = set()
"""Homes that this process has made or found to be its user's own."""


def default_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return ``MLPIPELINE_HOME``, else the folder where this system keeps a user's state.

    Where that is on a network file system it is a folder of this machine instead: locks, and what
    `kill -9` leaves of a write, can be relied on there only.
    """
    if given := environ.get("MLPIPELINE_HOME"):
        return Path(given).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "mlpipeline"
    if sys.platform == "win32":
        return Path(environ.get("LOCALAPPDATA") or Path.home()) / "mlpipeline"
    state = environ.get("XDG_STATE_HOME")
    folder = (Path(state) if state else Path.home() / ".local" / "state") / "mlpipeline"
    return Path(f"/var/tmp/mlpipeline-{os.geteuid()}") if is_remote(str(folder)) else folder  # noqa: S108 - survives a reboot; `Home.create` refuses a planted one


_REMOTE = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "beegfs",
    "gpfs",
    "ceph",
    "gluster",
    "afs",
    "fuse.sshfs",
    "9p",
    "pvfs",
)


@lru_cache(maxsize=8)
def is_remote(path: str, mounts: str = "/proc/self/mounts") -> bool:
    """Tell whether a path is on a file system that other machines share."""
    try:
        lines = Path(mounts).read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    points = [line.split()[1:3] for line in lines if line.count(" ") >= 2]
    above = [(len(point), kind) for point, kind in points if f"{path}/".startswith(f"{point.rstrip('/')}/")]
    return max(above, default=(0, ""))[1].startswith(_REMOTE)


def new_uid() -> str:
    """Return a name for a new run that no other host or process will choose."""
    return uuid.uuid4().hex


def make_folder(path: Path) -> None:
    """Make a private folder, or find it there; the umask, which may also take too much, has no say.

    Raises:
        OSError: It cannot be made, or something else is in its place, such as a link.
    """
    try:
        os.mkdir(path, mode=0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise OSError(errno.ENOTDIR, "no folder, and not followed if it is a link", str(path)) from None
    else:
        os.chmod(path, 0o700)


def make_private(path: Path) -> None:
    """Make a file, or a folder with all that is in it, its owner's alone; links are not followed.

    Raises:
        OSError: It cannot be done.
    """
    if path.is_symlink():
        return
    is_folder = path.is_dir()
    os.chmod(path, 0o700 if is_folder else 0o600)
    for entry in path.iterdir() if is_folder else ():
        make_private(entry)


def is_plain(name: object) -> bool:
    """Tell whether a run may be named so: it becomes the name of a folder, and whoever names it may lie."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and not name.startswith(".")
        and not set(name) & {"/", "\\"}
        and 0 < len(name.encode()) <= _NAME_BYTES
    )


def opened(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a file that is one: no link, which could lead anywhere, and nothing to wait at.

    Raises:
        OSError: It is something else, or cannot be opened.
    """
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no file", str(path))
    return descriptor


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, made if need be: all of it or nothing.

    Raises:
        OSError: The disk refuses, or a link stands in the way.
    """
    _check_no_link(path.parent)
    descriptor = opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    try:
        size, data = os.fstat(descriptor).st_size, line.encode() + b"\n"
        if size:
            os.lseek(descriptor, size - 1, os.SEEK_SET)
            if os.read(descriptor, 1) != b"\n":
                data = b"\n" + data  # half a line stands there, from when the power went
        if os.write(descriptor, data) != len(data):
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def _check_no_link(folder: Path) -> None:
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "a link, which is not followed", str(folder))


def replace_file(path: Path, content: Mapping[str, Any], *, is_synced: bool = False) -> None:
    """Write a JSON file so that a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, separators=(",", ":"), default=str)
            if is_synced:
                file.flush()
                os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_file(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file; None where it is absent or damaged."""
    try:
        with open(opened(path), "rb") as file:
            content = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _claim(folder: Path) -> None:
    """Let nobody else into a folder of ours; a link to it is the user's own, or refused."""
    link, about = os.lstat(folder), os.stat(folder)
    for owner in (link.st_uid, about.st_uid):
        if owner != os.geteuid():
            raise ConfigError(
                f"the journal folder {str(folder)!r} belongs to another user (uid {owner}); "
                "choose one of your own with journal_dir= or MLPIPELINE_HOME"
            )
    if not stat.S_ISDIR(about.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if stat.S_IMODE(about.st_mode) & 0o777 != 0o700:
        os.chmod(folder, 0o700)


@dataclass
class RunState:
    """What the courier knows of one run; the only thing it keeps besides the journals.

    Attributes:
        run_id: MLflow's id; None until the run was found or made.
        run_name: The name MLflow gave or kept.
        experiment_id: MLflow's id of its experiment.
        artifact_uri: Where the run's artifacts are.
        destination: Key of the destination it goes to.
        token: Of a run that several homes may make: what tells this home's from theirs; see `election`.
        doubts: Creates that lost their answers, and when: twins may turn up; see `creation`.
        attempt: The newest attempt whose start was delivered.
        offsets: Per writer, the segment and the offset up to which its journal is acknowledged:
            delivered, or taken over into `uploads` and `end`.
        uploads: Artifacts, models and versions still to be sent, oldest first.
        models: Per model uid, the ids and the version that MLflow gave.
        kept: Of a run with children that hold models: the child whose models it took last, and when.
        tag_times_ms: Per tag, when its delivered value was recorded: an older one never replaces it.
        params: Per param, a hash of the delivered value, to tell drift from a repetition.
        last_steps: Per metric, the highest step delivered.
        is_ahead: Newest points may be stored ahead of their turn, of journals that are not acknowledged so far.
        floor: What `last_steps` was when the newest attempt began: a resumed training repeats the
            steps up to it, and the values recorded first stand.
        overlap: Points of a resumed training that were not stored again.
        end: The status to end the run with, once every journal of it is acknowledged.
        is_ended: The end was delivered, or the run is gone and there is nothing to end.
        last_ms: When the newest record delivered was recorded; the end of a run that was killed.
        delivered: Records delivered; a point of a metric counts as one.
        refused: Records in the dead letters.
        dropped: Records that the writers could not even write down.
        damaged: Damaged places found in the journals.
        problem: What stands in the way now, in words; None when nothing does.
        updated_ms: When this state was written.
    """

    run_id: str | None = None
    run_name: str | None = None
    experiment_id: str | None = None
    artifact_uri: str | None = None
    destination: str | None = None
    token: str | None = None
    doubts: dict[str, int] = field(default_factory=dict)
    attempt: int = 0
    offsets: dict[str, list[int]] = field(default_factory=dict)
    uploads: list[dict[str, Any]] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: dict[str, Any] | None = None
    tag_times_ms: dict[str, int] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    last_steps: dict[str, int] = field(default_factory=dict)
    is_ahead: bool = False
    floor: dict[str, int] = field(default_factory=dict)
    overlap: int = 0
    end: dict[str, Any] | None = None
    is_ended: bool = False
    last_ms: int = 0
    delivered: int = 0
    refused: int = 0
    dropped: int = 0
    damaged: int = 0
    problem: str | None = None
    updated_ms: int = 0

    @classmethod
    def load(cls, path: Path) -> RunState | None:
        """Return the state in *path*; None where there is none that can be read."""
        content = None if path.parent.is_symlink() else read_file(path)
        if content is None:
            return None
        types = {name: type(value) for name, value in vars(cls()).items()}
        types |= {"kept": dict, "end": dict} | dict.fromkeys(_TEXTS_OF_STATE, str)
        known = {name: value for name, value in content.items() if name in types and value is not None}
        is_one = all(isinstance(value, types[name]) for name, value in known.items())
        places = known.get("offsets", {}).values() if is_one else ()
        return cls(**known) if is_one and all(map(_is_place, places)) else None

    def covers(self, ends: Mapping[str, Sequence[int]]) -> bool:
        """Tell whether the journals are acknowledged up to these ends, see `RunFolder.ends`."""
        return all(list(self.offsets.get(writer, (0, 0))) >= list(end) for writer, end in ends.items())

    def save(self, path: Path) -> None:
        """Replace the state in *path*.

        Raises:
            OSError: The disk refuses, or its folder is a link.
        """
        _check_no_link(path.parent)
        replace_file(path, asdict(self))


def _is_place(value: Any) -> bool:
    """Tell whether a value is a segment and an offset."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, int) for part in value)


@dataclass(frozen=True)
class RunFolder:
    """One run's folder in the home."""

    path: Path

    @property
    def uid(self) -> str:
        """Our name for the run."""
        return self.path.name

    @property
    def state_file(self) -> Path:
        """The courier's state of this run."""
        return self.path / "state.json"

    @property
    def spool(self) -> Path:
        """Where files wait for their upload."""
        return self.path / "spool"

    def create(self) -> None:
        """Make the folder; the spool comes with the first file.

        Raises:
            FileNotFoundError: The home is not there.
            OSError: The home cannot be written, or there is no folder in this one's place.
        """
        make_folder(self.path)

    def remove_if_empty(self) -> None:
        """Take the folder away where the disk took nothing of the run; whoever comes makes it again."""
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def writers(self) -> dict[str, list[int]]:
        """Return, per writer, the numbers of its segments, ascending."""
        found: dict[str, list[int]] = {}
        if self.path.is_symlink():
            return {}
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    writer, _, rest = entry.name.partition(".")
                    number, _, ending = rest.partition(".")
                    is_segment = ending == "seg" and _is_number(number) and is_plain(writer)
                    if is_segment and entry.is_file(follow_symlinks=False):
                        found.setdefault(writer, []).append(int(number))
        except OSError:
            return {}
        return {writer: sorted(numbers) for writer, numbers in sorted(found.items())}

    def ends(self) -> dict[str, list[int]]:
        """Return where each writer's journal ends now: the position that is acknowledged once all of it is sent."""
        found = {}
        for writer, numbers in self.writers().items():
            with contextlib.suppress(OSError):  # sent, and deleted, a moment ago
                found[writer] = [numbers[-1], self.segment(writer, numbers[-1]).stat().st_size]
        return found

    def segment(self, writer: str, number: int) -> Path:
        """Return the path of a writer's segment."""
        return self.path / f"{writer}.{number:06d}.seg"

    def lock(self, writer: str) -> Path:
        """Return the path of a writer's lock file."""
        return self.path / f"{writer}.lock"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


@dataclass(frozen=True)
class Post:
    """Where a courier says that it is there, and hears that it is to go.

    Attributes:
        folder: The journal home.
        name: What its files begin with.
    """

    folder: Path
    name: str

    @property
    def lock(self) -> Path:
        """Held as long as the courier lives."""
        return self.folder / f"{self.name}.lock"

    @property
    def report(self) -> Path:
        """What it says of its progress."""
        return self.folder / f"{self.name}.json"

    @property
    def successor(self) -> Path:
        """Made by whoever starts a courier with newer credentials: the one that serves makes room."""
        return self.folder / f"{self.name}.successor"


def _named(uid: str) -> str:
    if not is_plain(uid):
        raise UsageError(
            f"{uid!r} is no name of a run; accepted are up to {_NAME_BYTES} bytes of printable characters, "
            "without / and \\ and without a dot in front"
        )
    return uid


@dataclass(frozen=True)
class Home:
    """A journal home.

    Attributes:
        path: Its folder, absolute.
    """

    path: Path

    @classmethod
    def at(cls, journal_dir: str | os.PathLike[str] | None = None) -> Home:
        """Return the home in *journal_dir*; None asks for `default_home`."""
        return cls(Path(journal_dir).expanduser().absolute() if journal_dir else default_home())

    def create(self) -> None:
        """Make the folders of the home, or check those that are there.

        Raises:
            OSError: The folder cannot be made or is not writable.
            ConfigError: A folder belongs to another user, or is a link planted by one.
        """
        os.makedirs(self.path.parent, exist_ok=True)
        # Each is looked at before anything is made in it.
        for folder in (self.path, self.path / "runs", self.path / "dead", self.path / "done"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, mode=0o700)
            if os.name == "posix":
                _claim(folder)
        _checked.add(self.path)

    def check(self) -> None:
        """Do what `create` does, once per process."""
        if self.path not in _checked:
            self.create()

    def run(self, uid: str) -> RunFolder:
        """Return the folder of a run, whether or not it exists.

        Raises:
            UsageError: No run can be named so; see `is_plain`.
        """
        return RunFolder(self.path / "runs" / _named(uid))

    def runs(self) -> Iterator[RunFolder]:
        """Yield the folders of all runs that are not done."""
        try:
            names = sorted(os.listdir(self.path / "runs"))
        except OSError:
            return
        for name in names:
            if is_plain(name):
                yield RunFolder(self.path / "runs" / name)

    def state(self, uid: str) -> RunState | None:
        """Return what the courier last said of a run, live or done."""
        return RunState.load(self.run(uid).state_file) or self.done_state(uid)

    def done_state(self, uid: str) -> RunState | None:
        """Return the last state of a run that is done; None if it is not."""
        return RunState.load(self.done_file(uid))

    def done_file(self, uid: str) -> Path:
        """Return where a finished run's last state is kept."""
        return self.path / "done" / f"{_named(uid)}.json"

    def forget_done(self) -> None:
        """Delete the records of runs that were done more than `DONE_KEPT_DAYS` ago, and dead letters."""
        oldest_s = time.time() - DONE_KEPT_DAYS * 86_400
        for folder in (self.path / "done", self.path / "dead"):
            for name in [] if folder.is_symlink() else os.listdir(folder):
                with contextlib.suppress(OSError):
                    if (folder / name).stat().st_mtime < oldest_s:
                        (folder / name).unlink()

    def spooled_bytes(self) -> int:
        """Return how much waits in the spools of all runs."""
        total = 0
        for run in self.runs():
            if run.path.is_symlink() or run.spool.is_symlink():
                continue
            for folder, _, names in os.walk(run.spool):
                for name in names:
                    with contextlib.suppress(OSError):
                        total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def dead_file(self, uid: str) -> Path:
        """Return where a run's dead letters are kept."""
        return self.path / "dead" / f"{_named(uid)}.jsonl"

    def post(self, identity: str = "") -> Post:
        """Return the files of the courier that serves an identity, see `Destination.identity`."""
        return Post(self.path, f"courier-{identity}" if identity else "courier")

    def fingerprint(self, secret: str) -> str:
        """Return what tells one secret from another, and nobody what it is."""
        path = self.path / "key"
        if not path.exists():
            made = self.path / f".key.{os.getpid()}"
            made.touch(mode=0o600)
            made.write_bytes(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(made, path)
            made.unlink()
        return blake2b(secret.encode(), key=path.read_bytes(), digest_size=8).hexdigest()

    @property
    def hurry_file(self) -> Path:
        """The file that whoever waits for delivery touches: a fresh one asks the courier to hurry."""
        return self.path / "hurry"

    @property
    def courier_log(self) -> Path:
        """The log of the courier."""
        return self.path / "courier.log"
