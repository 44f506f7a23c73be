"""The table of docs/reliability.md: a row per fault, a column per integration, MLflow's own beside them."""

from __future__ import annotations

import re
from importlib.metadata import version

from harness.scenarios import ALL, SCENARIOS

ROW, FIGURE = "mlpipeline.fault", "mlpipeline.fault.figure"
BEGIN, END = "<!-- nox -s faults: begin -->", "<!-- nox -s faults: end -->"
_NAMES = {"sklearn": "scikit-learn", "xgboost": "XGBoost", "torch": "PyTorch loop"}


def render(found):
    """Return the tables of what was found.

    Args:
        found: The rows of `Outcome`, and the figures of other tests.
    """
    found = list(found)
    rows = {(one["scenario"], one["integration"]): one for one in found if "scenario" in one}
    head = ["Fault", *(_NAMES.get(name, name.capitalize()) for name in ALL), "MLflow ¹", "Its integrations ¹"]
    lines = [head, ["---"] * len(head)]
    for scenario in SCENARIOS:
        cells = [_cell(rows.get((scenario.key, name))) for name in ALL]
        lines.append([scenario.title, *cells, scenario.fluent, scenario.theirs])
    figures = [["Beside the table", "What was found"], ["---"] * 2]
    figures += [[one["title"], _marked(one, one["text"])] for one in found if "title" in one]
    explained = [f"- **{scenario.title}.** {scenario.says}" for scenario in SCENARIOS]
    return "\n\n".join(
        [
            f"With mlflow {version('mlflow')}:",
            "\n".join(f"| {' | '.join(line)} |" for line in lines),
            "\n".join(f"| {' | '.join(line)} |" for line in figures),
            "\n".join(explained),
        ]
    )


def figure(title, text):
    """A row beside the table; one of greater numbers takes the place of the same one of smaller."""
    return {"key": re.sub(r"\d+", "N", title), "title": title, "text": text}


def written(page, text):
    """Return the page with the tables between its markers."""
    between = re.compile(f"(?<={re.escape(BEGIN)}\n).*(?={re.escape(END)})", re.DOTALL)
    return between.sub(lambda _: f"\n{text}\n\n", page)


def _cell(row):
    if row is None:
        return ""
    is_same = row["exit_codes"][0] == row["exit_codes"][1] and row["is_same_result"]
    told = [
        f"{row[name]} {word}" for name, word in (("told", "told"), ("taken_back", "taken back")) if row[name]
    ]
    lost = f"{row['lost']} ({', '.join(told)})" if told else str(row["lost"])
    text = [
        "same" if is_same else "**another**",
        f"+{max(0.0, row['longer_s']):.1f} s ({max(0.0, row['longest_step_s']):.1f} s)",
        f"{lost} / {row['doubled']}",
        ", ".join(row["statuses"]) or "no run",
    ]
    return _marked(row, " · ".join(text))


def _marked(row, text):
    return text if row["is_kept"] else f"✗ {text}"
