"""What can be run on this repository: `nox -l` lists it, `nox` runs tests, lint and types.

Sessions install with the tested set of versions (constraints.txt) and keep their environments, so
that a second run is quick. Only `tests`, `oldest`, `contract`, `faults` and `bench` install the frameworks.
"""

from __future__ import annotations

import pathlib

import nox
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parent

nox.needs_version = ">=2024.10"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = True

# A file stays with one worker, for its fixtures; conftest.py says which come first.
PARALLEL = ("-n", "3", "--dist", "loadfile", "--no-loadscope-reorder")
ENVIRON = {
    # MLflow knows the one, the packages beside it the other; both only in this spelling.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Containers like to say 1, and each of a test's many processes would compile this package again: a third of the
    # CPU time that an import of it takes. Installed packages come compiled.
    "PYTHONDONTWRITEBYTECODE": "",
}


def install(session: nox.Session, *packages: str) -> None:
    """Install packages in the versions of the tested set."""
    session.install("-c", "constraints.txt", *packages)


@nox.session
def demo(session: nox.Session) -> None:
    """Run every example as a user would, in the folder demo/, and end with one table over all frameworks."""
    install(session, ".[lightning,xgboost,optuna,sklearn,keras,torch,plots]", "palmerpenguins")
    folder = ROOT / "demo"
    folder.mkdir(exist_ok=True)
    examples = sorted({path.stem for path in (ROOT / "examples").glob("*.py")} - {"quickstart", "overview"})
    commands = [
        ["python", str(ROOT / "examples" / f"{name}.py")]
        for name in session.posargs or ["quickstart", *examples]
    ]
    if not session.posargs:
        pipeline = ["--config", str(ROOT / "examples" / "production.yaml"), "--artifacts-path", "build"]
        commands += [["mlpipeline", command, *pipeline] for command in ("tune", "evaluate")]
        commands.append(["python", str(ROOT / "examples" / "overview.py")])
    with session.chdir(folder):
        session.log(f"Everything goes to {folder}; the next run compares itself with this one")
        for command in commands:
            # The journal too, so that deleting the folder leaves nothing behind.
            session.run(*command, env={**ENVIRON, "MLPIPELINE_HOME": str(folder / "home")})


@nox.session
def notebooks(session: nox.Session) -> None:
    """Run every notebook, or those named after `--`, in the folder demo/notebooks/; `--inplace` keeps what they show."""
    install(session, ".[lightning,xgboost,optuna,sklearn,keras,torch,plots]", "nbclient", "ipykernel")
    folder = ROOT / "demo" / "notebooks"
    folder.mkdir(exist_ok=True, parents=True)
    options = [option for option in session.posargs if option.startswith("--")]
    named = {pathlib.Path(name).stem for name in session.posargs if name not in options}
    with session.chdir(folder):
        for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
            if not named or path.stem in named:
                session.run(
                    *("jupyter", "execute", str(path), *(options or [f"--output={folder / path.name}"])),
                    env={**ENVIRON, "MLPIPELINE_HOME": str(folder / "home")},
                )


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and the code blocks of README and docs, with every framework installed."""
    install(session, "-e", ".[all,dev]")
    # Three at a time on two cores: most of them wait for processes and servers.
    session.run("pytest", *PARALLEL, *session.posargs, env=ENVIRON)


@nox.session
def contract(session: nox.Session) -> None:
    """Try the rules of the contract on every integration, and print the table rule x integration."""
    install(session, "-e", ".[all,dev]")
    session.run("pytest", "tests/contract", *session.posargs, env=ENVIRON)


@nox.session
def faults(session: nox.Session) -> None:
    """Try trainings under every fault, and write docs/reliability.md; an hour, or what is named: `-- -k tracker`."""
    install(session, "-e", ".[all,dev]")
    # One after the other: what a fault costs in seconds is measured.
    wanted = ["-m", "faults or not faults", "--page", *session.posargs]
    session.run("pytest", "tests/faults", *wanted, env=ENVIRON)


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the tests with the oldest versions that pyproject.toml admits; what needs a newer one is left out."""
    session.install(*oldest_versions(), "-e", ".[all,dev]")
    # Not the pages: they show what the newest have.
    session.run("pytest", *PARALLEL, *(session.posargs or ["tests"]), env=ENVIRON)


def oldest_versions() -> list[str]:
    """Return the dependencies, and those of the frameworks' extras, each in the oldest version that is accepted."""
    project = nox.project.load_toml(ROOT / "pyproject.toml")["project"]
    extras = {
        name: given
        for name, given in project["optional-dependencies"].items()
        if name not in {"all", "dev", "docs", "testing"}
    }
    found = [Requirement(one) for given in (project["dependencies"], *extras.values()) for one in given]
    oldest = {one.name: rule.version for one in found for rule in one.specifier if rule.operator == ">="}
    # Of torch the one CPU build that is to be had, see constraints.txt.
    return [f"{name}=={version}" for name, version in (oldest | {"torch": "2.13.0"}).items()]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and who imports whom."""
    install(session, "ruff", "import-linter")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    # Read from the source, so neither the package nor what it imports has to be installed.
    session.run("lint-imports", env={"PYTHONPATH": str(ROOT / "src")})


@nox.session
def types(session: nox.Session) -> None:
    """Check types against MLflow's and Optuna's own; the large frameworks are left out (see pyproject)."""
    install(session, "-e", ".[optuna,testing]", "mypy", "types-PyYAML")
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the HTML documentation into docs/_build; a warning is an error."""
    install(session, "sphinx", "myst-parser", "furo")
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build", *session.posargs)


# The whole of benchmarks/report.py: what it calls a benchmark, the script, and its options.
BENCHMARKS = {
    "hot_path": ("hot_path",),
    "start": ("start",),
    "model_logging": ("model_logging",),
    "lightning": ("lightning", "--rounds", "240"),
    "lightning-long": ("lightning", "--block", "600", "--rounds", "20", "--only", "sqlite", "server"),
    "lightning-peers": (
        *("lightning", "--rounds", "80"),
        *("--only", "sqlite", "csv", "tensorboard", "wandb", "dvclive", "mlflowlogger", "autolog"),
    ),
    "xgboost": ("xgboost", "--pairs", "40"),
    "optuna": ("optuna", "--jobs", "1", "--only", "ours", "old", "--settle"),
    "optuna-jobs": ("optuna", "--jobs", "4", "--only", "ours", "--sleep", "0.2", "--rounds", "8", "--settle"),
    "sklearn": ("sklearn", "--only", "forest"),
    "sklearn-grid": ("sklearn", "--only", "grid", "--rounds", "20", "--ways", "plain", "again", "ours"),
    "delivery": ("delivery",),
    "queries": ("queries",),
}


@nox.session
def bench(session: nox.Session) -> None:
    """Measure every claim of docs/performance.md, or those named after `--`, and write its table; an hour, idle."""
    install(session, "-e", ".[all,dev]")
    install(session, "tensorboard", "wandb", "dvclive")  # measured beside ours
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"figures", "report"}
    wanted = [pathlib.Path(name).stem for name in session.posargs] or list(BENCHMARKS)
    if unknown := [name for name in wanted if name not in {*scripts, *BENCHMARKS}]:
        session.error(f"no such benchmark: {', '.join(unknown)}; there are: {', '.join(sorted(scripts))}")
    results = ROOT / "benchmarks" / "results"
    for name in wanted:
        script, *options = BENCHMARKS.get(name, (name,))
        kept = ("--json", str(results / f"{name}.json")) if name in BENCHMARKS else ()
        session.run("python", str(ROOT / "benchmarks" / f"{script}.py"), *options, *kept, env=ENVIRON)
    session.run("python", str(ROOT / "benchmarks" / "report.py"), "--page", env=ENVIRON)
