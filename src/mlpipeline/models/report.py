"""One HTML file that tells an evaluation to who was not there: figures, verdicts, plots, and what they are of.

::

    metrics, verdicts, facts, plots (SVG) ─► html_report ─► report.html

Nothing in it is fetched from elsewhere and nothing in it runs: styles and drawings are inline, and a content
security policy says so to the browser. Names of columns, classes and models are other people's text, and are
escaped.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TILES = 4

CAPTIONS = {
    "confusion_matrix": (
        "Confusion matrix",
        (
            "A row is a true class; its cells are the shares of its rows that were predicted as each class. A perfect "
            "model has 1.00 all along the diagonal."
        ),
    ),
    "roc_curve": (
        "ROC curve",
        (
            "How many of the right ones are found (up), and how many wrong ones come with them (right), as the bar is "
            "lowered. The dashed line is guessing; the nearer to the upper left corner, the better."
        ),
    ),
    "precision_recall_curve": (
        "Precision and recall",
        (
            "How many of those found are right (up), and how many of the right ones are found (right). More telling "
            "than ROC where one class is rare."
        ),
    ),
    "calibration_curve": (
        "Calibration",
        (
            "Whether a predicted probability can be taken at its word: on the dashed line, what is called 80 % "
            "probable comes true in 80 of 100 cases."
        ),
    ),
    "residuals": (
        "Residuals",
        (
            "How far each prediction is off. A level cloud around the dashed line is what one hopes for; a curve or a "
            "funnel says what the model has not learned."
        ),
    ),
    "permutation_importance": (
        "Permutation importance",
        (
            "How much worse {metric} gets when a column's values are shuffled among the rows. What is near 0, on "
            "either side, the model can do without; columns that tell the same share their importance."
        ),
    ),
}
"""What a plot is called, and how it is read; ``{metric}`` stands for the first metric."""


@dataclass(frozen=True)
class Verdict:
    """Whether a metric is within its bounds.

    Attributes:
        name: The metric.
        value: What it is.
        bound: What it must be, in words.
        holds: Whether it is.
    """

    name: str
    value: float
    bound: str
    holds: bool


def html_report(
    title: str,
    *,
    subtitle: str,
    metrics: Mapping[str, float],
    verdicts: Sequence[Verdict] = (),
    facts: Mapping[str, Mapping[str, object]],
    plots: Mapping[str, str],
    notes: Sequence[str] = (),
    made_by: str,
) -> str:
    """Return the report of an evaluation as an HTML document.

    Args:
        title: What was evaluated.
        subtitle: On what, in a few words.
        metrics: By name, the most telling first.
        verdicts: Of those that have bounds.
        facts: Tables of names and values, by heading; what is None is left out.
        plots: SVG documents by name.
        notes: What the reader must know to judge the figures.
        made_by: Who made it, and when.
    """
    by_name = {verdict.name: verdict for verdict in verdicts}
    missed = [verdict for verdict in verdicts if not verdict.holds]
    if missed:
        badge = f"<p class='badge bad'>{_count(len(missed), 'threshold')} missed</p>"
    elif verdicts:
        badge = f"<p class='badge good'>{_count(len(verdicts), 'threshold')} met</p>"
    else:
        badge = ""
    body = [
        "<header>",
        f"<div><h1>{_text(title)}</h1><p class='sub'>{_text(subtitle)}</p></div>",
        badge,
        "</header>",
        *[f"<p class='note'>{_text(note)}</p>" for note in notes],
        _tiles(metrics, by_name),
        "<section><h2>Metrics</h2>",
        _metrics_table(metrics, by_name),
        "</section>",
    ]
    if plots:
        metric = next(iter(metrics), "a metric")
        figures = "\n".join(_figure(name, svg, metric) for name, svg in plots.items())
        body.append(f"<section><h2>Plots</h2><div class='plots'>{figures}</div></section>")
    tables = "\n".join(_facts_table(heading, rows) for heading, rows in facts.items())
    body += [f"<div class='facts'>{tables}</div>", f"<footer>{_text(made_by)}</footer>"]
    return _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(part for part in body if part))


def _tiles(metrics: Mapping[str, float], verdicts: Mapping[str, Verdict]) -> str:
    # What has a bound is what somebody cares about.
    names = sorted(metrics, key=lambda name: name not in verdicts)[:_TILES]
    tiles = []
    for name in [name for name in metrics if name in names]:
        verdict = verdicts.get(name)
        state = "" if verdict is None else " good" if verdict.holds else " bad"
        bound = "" if verdict is None else f"<span class='bound'>{_text(verdict.bound)}</span>"
        value = f"<span class='value'>{_number(metrics[name])}</span>"
        tiles.append(f"<div class='tile{state}'><span class='name'>{_text(name)}</span>{value}{bound}</div>")
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _metrics_table(metrics: Mapping[str, float], verdicts: Mapping[str, Verdict]) -> str:
    rows = []
    for name, value in metrics.items():
        cells = f"<th scope='row'>{_text(name)}</th><td class='number'>{_number(value)}</td>"
        if verdicts:
            verdict = verdicts.get(name)
            if verdict is None:
                cells += "<td class='dim'>none</td><td></td>"
            else:
                state, word = ("good", "✓ met") if verdict.holds else ("bad", "✗ missed")
                cells += f"<td>{_text(verdict.bound)}</td><td class='{state}'>{word}</td>"
        rows.append(f"<tr>{cells}</tr>")
    head = "<th>Metric</th><th class='number'>Value</th>"
    if verdicts:
        head += "<th>Threshold</th><th>Verdict</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _figure(name: str, svg: str, metric: str) -> str:
    heading, caption = CAPTIONS.get(name, (name, ""))
    caption = caption.replace("{metric}", metric)
    wide = " class='wide'" if name == "permutation_importance" else ""
    return (
        f"<figure{wide} aria-label='{_text(heading)}'><h3>{_text(heading)}</h3>{svg}"
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _facts_table(heading: str, rows: Mapping[str, object]) -> str:
    cells = "".join(
        f"<tr><th scope='row'>{_text(name)}</th><td>{_text(str(value))}</td></tr>"
        for name, value in rows.items()
        if value is not None
    )
    return f"<section><h2>{_text(heading)}</h2><table><tbody>{cells}</tbody></table></section>"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 or abs(value) >= 1e15 else f"{value:,.0f}"


def _text(text: str) -> str:
    # quote=True escapes both quotes; HTML has no place for control characters.
    printable = "".join(character if character.isprintable() else " " for character in text)
    return html.escape(printable)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root {
  --page: #f5f6f8; --card: #fff; --ink: #1c2430; --dim: #657083; --line: #e2e6ec;
  --good: #17703f; --good-card: #e6f4ec; --bad: #b3261e; --bad-card: #fdecea; --note-card: #fff6e0; --note: #7a5200;
  --blue: #2272b4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1b212a; --ink: #e6eaf0; --dim: #97a3b4; --line: #303946;
    --good: #6fd39b; --good-card: #16301f; --bad: #ff9a92; --bad-card: #3b1a18; --note-card: #33290f; --note: #f0cb7a;
    --blue: #58a6e0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 24px; }
header { display: flex; gap: 24px; justify-content: space-between; align-items: flex-start; flex-wrap: wrap; }
header > div { min-width: 0; flex: 1 1 420px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
h3 { font-size: 15px; margin: 0 0 8px; }
.sub { margin: 6px 0 0; color: var(--dim); overflow-wrap: anywhere; }
.badge { margin: 2px 0 0; padding: 6px 14px; border-radius: 999px; font-weight: 600; white-space: nowrap; }
.badge.good { color: var(--good); background: var(--good-card); }
.badge.bad { color: var(--bad); background: var(--bad-card); }
.note { margin: 16px 0 0; padding: 10px 16px; border-radius: 8px; background: var(--note-card); color: var(--note); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 16px; margin: 24px 0; }
.tile, section, figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 16px 20px; display: flex; flex-direction: column; min-width: 0; }
.tile .name, .tile .bound { color: var(--dim); font-size: 14px; overflow-wrap: anywhere; }
.tile .value { font-size: 30px; font-weight: 650; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile.good { border-left: 5px solid var(--good); } .tile.bad { border-left: 5px solid var(--bad); }
.tile.bad .value { color: var(--bad); }
section { padding: 20px 24px; margin: 0 0 24px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 7px 16px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--dim); font-weight: 500; font-size: 14px; }
tbody th { font-weight: 500; overflow-wrap: anywhere; }
td { overflow-wrap: anywhere; }
.number { font-variant-numeric: tabular-nums; text-align: right; padding-right: 40px; }
td.good { color: var(--good); font-weight: 600; white-space: nowrap; }
td.bad { color: var(--bad); font-weight: 600; white-space: nowrap; }
.dim { color: var(--dim); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 20px; }
figure { margin: 0; padding: 16px; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figure svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { margin-top: 8px; color: var(--dim); font-size: 14px; }
svg > rect[width="100%"] { fill: none; }
svg text:not([fill]), svg text[fill="black"] { fill: var(--ink); }
svg text[font-weight="bold"] { display: none; }
svg polyline[stroke="#2272b4"] { stroke: var(--blue); }
svg circle[fill="#2272b4"] { fill: var(--blue); }
svg rect[stroke="#eee"] { stroke: var(--line); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 0 24px; }
.facts th { color: var(--dim); font-weight: 400; width: 34%; padding-right: 16px; }
.facts td { padding-right: 0; font-size: 14px; }
.facts section:last-child:nth-child(odd) { grid-column: 1 / -1; }
.facts section:last-child:nth-child(odd) th { width: 15%; }
footer { color: var(--dim); font-size: 14px; text-align: center; margin-top: 8px; }
@media print {
  body { background: none; } main { padding: 0; max-width: none; }
  .tile, section, figure { break-inside: avoid; } section { overflow: visible; }
}
"""
