"""Put what the benchmarks measured beside what is claimed: a table, a picture, and docs/performance.md.

    python benchmarks/report.py            # prints the table of results/*.json
    python benchmarks/report.py --page     # writes it into docs/performance.md, and the picture beside it

A claim names a benchmark, a way and a measure; what was not measured again keeps what the page had, and
what never was says so. The figures of peers that stand in words were measured apart, in November 2026, on
two shared cores of this kind.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
BEGIN, END = "<!-- nox -s bench: begin -->", "<!-- nox -s bench: end -->"


@dataclass(frozen=True)
class Claim:
    """One row.

    Attributes:
        text: What is claimed.
        benchmark: Whose figures.
        way: Which of its ways.
        measure: Which of its measures.
        bound: The bar; None where the figure is MLflow's or the machine's own.
        is_most: Whether the bar is the most that may be; else the least.
        unit: Of figure and bar.
        peers: What others cost, in words; figures of the same benchmark are put in by ``{way}``.
    """

    text: str
    benchmark: str
    way: str
    measure: str
    bound: float | None
    unit: str = "x"
    is_most: bool = True
    peers: str = ""


LONG, SHORT, RATIO = "600 steps a block", "50 steps a block", "ratio to none"
CLAIMS = (
    Claim(
        "Lightning, an empty callback (Lightning's own price)", "lightning", f"empty, {SHORT}", RATIO, 1.04
    ),
    Claim(
        "Lightning to SQLite, blocks of 50 steps",
        "lightning",
        f"sqlite, {SHORT}",
        RATIO,
        1.05,
        peers=f"CSVLogger {{csv, {SHORT}}}; MLFlowLogger 3.4-4.3, autolog 1.3-1.7, TensorBoard 1.27",
    ),
    Claim(
        "Lightning to a server, blocks of 50 steps",
        "lightning",
        f"server, {SHORT}",
        RATIO,
        1.03,
        peers="MLFlowLogger 20-21, autolog 1.8-3.0",
    ),
    Claim(
        "Lightning to SQLite, over an empty callback",
        "lightning",
        f"sqlite, {SHORT}",
        "ratio to an empty callback",
        1.02,
    ),
    Claim(
        "Lightning to a server, over an empty callback",
        "lightning",
        f"server, {SHORT}",
        "ratio to an empty callback",
        1.02,
    ),
    Claim("what the method reads of nothing at all", "lightning", f"none, {SHORT}", RATIO, None),
    Claim(
        "Lightning to SQLite, more per step", "lightning", f"sqlite, {SHORT}", "extra us per step", 60, "us"
    ),
    *(
        Claim(f"{what}, more per step", "lightning", f"{way}, {SHORT}", "extra us per step", None, "us")
        for what, way in (
            ("an empty callback", "empty"),
            ("an empty callback and a logger that does nothing", "deaf"),
            ("an empty callback and a logger that writes 91 bytes", "write"),
        )
    ),
    Claim(
        "Lightning to SQLite, blocks of 600 steps",
        "lightning-long",
        f"sqlite, {LONG}",
        RATIO,
        1.05,
        peers="W&B offline 1.28, DVCLive 6.3, TensorBoard 1.32, CSV 1.09",
    ),
    Claim("Lightning to a server, blocks of 600 steps", "lightning-long", f"server, {LONG}", RATIO, 1.05),
    Claim(
        "Lightning to SQLite, beside Lightning's loggers and autolog",
        "lightning-peers",
        f"sqlite, {SHORT}",
        RATIO,
        1.05,
        peers=f"CSV {{csv, {SHORT}}}, TensorBoard {{tensorboard, {SHORT}}}, W&B offline {{wandb, {SHORT}}}, "
        f"DVCLive {{dvclive, {SHORT}}}, MLFlowLogger {{mlflowlogger, {SHORT}}}, autolog {{autolog, {SHORT}}}",
    ),
    Claim(
        "log_metrics of four, in a loop",
        "hot_path",
        "ours",
        "us per call of four metrics",
        3,
        "us",
        peers="MLflow asynchronously {MLflow, synchronous=False}; a list {list}",
    ),
    Claim("a metric, the millionth of a run", "hot_path", "ours, 1e+06 metrics", "us per metric", 1, "us"),
    Claim("memory for a million metrics", "hot_path", "ours, 1e+06 metrics", "memory grown, MB", 5, "MB"),
    Claim(
        "XGBoost, 500 rounds, 6 metrics",
        "xgboost",
        "ours",
        RATIO,
        1.03,
        peers="autolog {autolog}; an appending callback {append}",
    ),
    Claim(
        "Optuna, a trial on its worker",
        "optuna",
        "ours, 1 jobs",
        "extra ms per trial on its worker",
        0.3,
        "ms",
        peers="the old callback {old, 1 jobs}, on a server 410",
    ),
    Claim(
        "Optuna, four jobs", "optuna-jobs", "ours, 4 jobs", "ratio to bare", 1.05, peers="the old decorator 7"
    ),
    Claim(
        "scikit-learn, grid of 50 candidates",
        "sklearn-grid",
        "grid, ours",
        "ratio to plain",
        1.10,
        peers="autolog about 4",
    ),
    Claim(
        "scikit-learn, forest with its model, more",
        "sklearn",
        "forest, ours",
        "seconds more than plain",
        0.5,
        "s",
        peers="autolog {forest, autolog}",
    ),
    Claim(
        "a scikit-learn model in SQLite, run ended",
        "model_logging",
        "scaler+logistic, ours, in MLflow and run ended",
        "seconds",
        0.15,
        "s",
        peers="log_model {scaler+logistic, mlflow.sklearn.log_model, default}",
    ),
    Claim(
        "a scikit-learn model on a server, run ended",
        "model_logging",
        "scaler+logistic, ours, on a server and run ended",
        "seconds",
        0.4,
        "s",
        peers="log_model {scaler+logistic, mlflow.sklearn.log_model, on a server}",
    ),
    Claim(
        "MLflow's flavor for the first model, scikit-learn, with skops",
        "model_logging",
        "import mlflow.sklearn",
        "CPU seconds",
        None,
        "CPU-s",
    ),
    Claim(
        "MLflow's flavor for the first model, PyTorch",
        "model_logging",
        "import mlflow.pytorch",
        "CPU seconds",
        None,
        "CPU-s",
    ),
    Claim(
        "the same in a thread, for a PyTorch loop beside it",
        "model_logging",
        "import mlflow.pytorch in a thread",
        "seconds more for the training beside",
        None,
        "s",
    ),
    Claim(
        "MLflow's flavor for the first model, XGBoost",
        "model_logging",
        "import mlflow.xgboost",
        "CPU seconds",
        None,
        "CPU-s",
    ),
    Claim(
        "the same in a thread, for an XGBoost training on all cores beside it",
        "model_logging",
        "import mlflow.xgboost in a thread",
        "seconds more for the training beside",
        None,
        "s",
    ),
    Claim(
        "import mlpipeline.lightning adds",
        "start",
        "store exists, with",
        "import adds, CPU s",
        0.15,
        "CPU-s",
        peers="import mlflow 2.9",
    ),
    Claim(
        "first step comes later, new store",
        "start",
        "new store, with",
        "first step comes later by, s",
        0.1,
        "s",
        peers="MLflow in the process 6.7 + 2.9",
    ),
    *(
        claim
        for store, memory_mb in (("sqlite", 260), ("server", 200))
        for claim in (
            Claim(
                f"delivery to {store}, rate beside log_batch(1000)",
                "delivery",
                store,
                "rate, ratio to log_batch(1000)",
                0.95,
                is_most=False,
                peers="MLflow asynchronously 56-650 metrics/s; log_batch {"
                + store
                + "/metrics per second by log_batch(1000)}",
            ),
            Claim(
                f"courier's memory, {store}", "delivery", store, "memory of the courier, MB", memory_mb, "MB"
            ),
            Claim(
                f"courier idle, {store}",
                "delivery",
                store,
                "processor of an idle courier, % of a core",
                1,
                "%",
            ),
            Claim(
                f"first metric, {store}, both cores busy",
                "delivery",
                store,
                "first metric in MLflow, s after its start, cores busy",
                5,
                "s",
            ),
            Claim(f"courier gone, {store}", "delivery", store, "courier gone, s after the training", 30, "s"),
        )
    ),
    Claim(
        "a request with one metric, without the stall of 40 ms",
        "delivery",
        "server, ours",
        "ms for a request with one metric",
        40,
        "ms",
        peers="log_batch {server, log_batch}",
    ),
    Claim(
        "a request of 1000 that a server on SQLite has, in a run of 100 000",
        "delivery",
        "server, ours",
        "s for a request that it has",
        None,
        "s",
        peers="log_batch {server, log_batch}",
    ),
    Claim(
        "compare 100 of 10 000 runs", "queries", "ours", "seconds to compare 100 runs", 1, "s", peers="10.5 s"
    ),
    Claim(
        "best 10 of 10 000 runs by a metric",
        "queries",
        "ours",
        "seconds to the best 10",
        2,
        "s",
        peers="12.4 s",
    ),
)


def results(folder: Path) -> dict[tuple[str, str, str], dict[str, object]]:
    """Return every row that was kept, by benchmark, way and measure."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text())["rows"]:
            found[path.stem, row["way"], row["measure"]] = row
    return found


_ROW = re.compile(
    r"\| (?P<text>[^|]+) \| [^|]* \| (?P<median>[-\d.]+) \[(?P<low>[-\d.]+), (?P<high>[-\d.]+)\] [^|]*, (?P<n>\d+) "
    r"\| (?P<cpu>[-\d.]*)[^|]* \| [^|]* \| (?P<peers>.*) \|"
)


def kept(page: str) -> dict[tuple[str, str, str], dict[str, object]]:
    """Return the rows of a page's table, as `results` does, with what stood in its last column."""
    claims = {claim.text: claim for claim in CLAIMS}
    found = {}
    for row in _ROW.finditer(page):
        if (claim := claims.get(row["text"])) is not None:
            found[claim.benchmark, claim.way, claim.measure] = {
                "median": float(row["median"]),
                "quartiles": [float(row["low"]), float(row["high"])],
                "n": int(row["n"]),
                "peers": row["peers"],
                **({"cpu": float(row["cpu"])} if row["cpu"] else {}),
            }
    return found


def table(found: dict[tuple[str, str, str], dict[str, object]]) -> str:
    """Return the table of claims."""
    lines = [
        "| claim | bar | measured: median [quartiles], n | CPU | | others |",
        "|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        row = found.get((claim.benchmark, claim.way, claim.measure))
        if row is None:
            shown, cpu, verdict = "not measured", "", ""
        else:
            low, high = row["quartiles"]
            middle, low, high = (_short(value, claim.unit) for value in (row["median"], low, high))
            shown = f"{middle} [{low}, {high}] {claim.unit}, {row['n']}"
            cpu = f"{_short(row['cpu'], claim.unit)} {claim.unit}" if "cpu" in row else ""
            verdict = "" if claim.bound is None else "met" if _is_met(row["median"], claim) else "**not met**"

        def beside(match: re.Match[str], claim: Claim = claim) -> str:
            way, _, measure = match[1].partition("/")
            other = found.get((claim.benchmark, way, measure or claim.measure))
            return (
                f"{_short(other['median'])} {claim.unit if not measure else ''}".strip()
                if other
                else "(not measured)"
            )

        peers = row["peers"] if row and "peers" in row else re.sub(r"\{([^}]+)\}", beside, claim.peers)
        bar = "" if claim.bound is None else f"{'≤' if claim.is_most else '≥'} {claim.bound:g} {claim.unit}"
        lines.append(f"| {claim.text} | {bar} | {shown} | {cpu} | {verdict} | {peers} |")
    return "\n".join(lines)


def _is_met(value: object, claim: Claim) -> bool:
    number, bound = float(str(value)), float(str(claim.bound))
    return number <= bound if claim.is_most else number >= bound


def _short(value: object, unit: str = "") -> str:
    number = float(str(value))
    if unit == "x":
        return f"{number:.3f}"
    return (
        f"{number:.0f}" if abs(number) >= 100 else f"{number:.1f}" if abs(number) >= 10 else f"{number:.3g}"
    )


def picture(found: dict[tuple[str, str, str], dict[str, object]], path: Path) -> None:
    """Draw the ratios, with their quartiles and bars."""
    from matplotlib.figure import Figure

    claims = [
        claim
        for claim in CLAIMS
        if claim.unit == "x" and claim.is_most and (claim.benchmark, claim.way, claim.measure) in found
    ]
    if not claims:
        return
    figure = Figure(figsize=(8, 0.45 * len(claims) + 1), layout="constrained")
    axes = figure.subplots()
    for at, claim in enumerate(reversed(claims)):
        row = found[claim.benchmark, claim.way, claim.measure]
        low, high = row["quartiles"]
        axes.plot([low, high], [at, at], color="#4878a8", linewidth=5, alpha=0.5)
        axes.plot(row["median"], at, "o", color="#1f3b57")
        if claim.bound is not None:
            axes.plot(claim.bound, at, "|", color="#b03030", markersize=16)
    axes.set_yticks(range(len(claims)), [claim.text for claim in reversed(claims)])
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_xlabel("ratio to the same work, not recorded; bars in red")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the table; with --page write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument(
        "--page", action="store_true", help="write docs/performance.md and docs/performance.svg"
    )
    options = parser.parse_args()
    found = kept(PAGE.read_text("utf-8")) | results(options.results)
    text = table(found)
    print(text)
    if options.page:
        names = ("mlflow", "lightning", "xgboost", "optuna", "scikit-learn", "torch")
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
        picture(found, PAGE.with_suffix(".svg"))
        between = re.compile(f"(?<={re.escape(BEGIN)}\n).*(?={re.escape(END)})", re.DOTALL)
        about = f"{os.cpu_count()} cores; {versions}."
        PAGE.write_text(between.sub(lambda _: f"\n{about}\n\n{text}\n\n", PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
