"""The table of docs/reliability.md: a row per fault, a column per integration, MLflow's own beside them.

The page is also where the figures are kept: what is tried again takes the place of what stands there.
"""

from __future__ import annotations

import re
from importlib.metadata import version

from harness.scenarios import ALL, SCENARIOS

ROW, FIGURE = "mlpipeline.fault", "mlpipeline.fault.figure"
BEGIN, END = "<!-- nox -s faults: begin -->", "<!-- nox -s faults: end -->"
_NAMES = {"sklearn": "scikit-learn", "xgboost": "XGBoost", "torch": "PyTorch loop"}
_BESIDE = ["Beside the table", "What was found"]


def cells(page):
    """Return what the tables of a page hold: of each row, by its first cell, the others."""
    tables = page.split(BEGIN)[1].split(END)[0]
    lines = [line for line in tables.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    found = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {title: others for title, *others in found}


def render(found, page):
    """Return the tables of a page with what was found.

    Args:
        found: The rows of `Outcome`, and the figures of other tests.
        page: What was found before.
    """
    before = cells(page)
    rows = {(one["scenario"], one["integration"]): _cell(one) for one in found if "scenario" in one}
    head = ["Fault", *(_NAMES.get(name, name.capitalize()) for name in ALL), "MLflow ¹", "Its integrations ¹"]
    lines = []
    for scenario in SCENARIOS:
        kept = dict(zip(ALL, before.get(scenario.title, []), strict=False))
        # What is not tried any more goes.
        kept = {name: cell for name, cell in kept.items() if name in scenario.integrations}
        tried = [rows.get((scenario.key, name), kept.get(name, "")) for name in ALL]
        lines.append([scenario.title, *tried, scenario.fluent, scenario.theirs])
    figures = {_key(title): [title, *text] for title, text in before.items() if len(text) == 1}
    figures.pop(_BESIDE[0], None)
    figures |= {
        _key(one["title"]): [one["title"], _marked(one, one["text"])] for one in found if "title" in one
    }
    explained = [f"- **{scenario.title}.** {scenario.says}" for scenario in SCENARIOS]
    return "\n\n".join(
        [
            f"With mlflow {version('mlflow')}:",
            _table(head, lines),
            _table(_BESIDE, figures.values()),
            "\n".join(explained),
        ]
    )


def figure(title, text):
    """A row beside the table; it takes the place of one whose title differs in its numbers only."""
    return {"key": _key(title), "title": title, "text": text}


def _key(title):
    return re.sub(r"\d+", "N", title)


def written(page, text):
    """Return the page with the tables between its markers."""
    between = re.compile(f"(?<={re.escape(BEGIN)}\n).*(?={re.escape(END)})", re.DOTALL)
    return between.sub(lambda _: f"\n{text}\n\n", page)


def _table(head, lines):
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def _cell(row):
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
