"""The report: one file that shows everything, fetches nothing and runs nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from mlpipeline.models.report import CAPTIONS, Verdict, html_report
from mlpipeline.tracking import charts

HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>\"&{metric}\0"
VOID = {"meta", "rect", "circle", "polyline", "br"}


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag == self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data.strip())

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    @property
    def words(self):
        return [text for text in self.text if text]


def report(**changes):
    options = {
        "subtitle": "models:/m-1 on 10 test rows",
        "metrics": {"accuracy": 0.91234, "log_loss": 0.5},
        "facts": {"Data": {"rows": 10, "digest": "abc", "left out": None}},
        "plots": {},
        "made_by": "2026-11-25",
    }
    return html_report("Evaluation of a forest", **{**options, **changes})


def test_figures_bounds_and_facts_are_there():
    """In words that need no legend."""
    verdicts = [
        Verdict("accuracy", 0.91234, "at least 0.9", holds=True),
        Verdict("log_loss", 0.5, "at most 0.3", holds=False),
    ]
    words = Page(report(verdicts=verdicts, notes=["Read this first."])).words
    for expected in (
        "Evaluation of a forest",
        "1 threshold missed",
        "Read this first.",
        "0.9123",
        "at least 0.9",
        "✓ met",
        "at most 0.3",
        "✗ missed",
        "abc",
    ):
        assert expected in words, expected
    assert "left out" not in words
    assert "1 threshold met" in Page(report(verdicts=verdicts[:1])).words
    assert not any("threshold" in word for word in Page(report()).words)


def test_the_text_of_others_is_text():
    """Names of models, columns, classes, metrics, wherever they stand."""
    svg = charts.matrix(HOSTILE, [[1.0]], [HOSTILE], x=HOSTILE, y=HOSTILE)
    page = Page(
        html_report(
            HOSTILE,
            subtitle=HOSTILE,
            metrics={HOSTILE: 1.0},
            verdicts=[Verdict(HOSTILE, 1.0, HOSTILE, holds=True)],
            facts={HOSTILE: {HOSTILE: HOSTILE}},
            plots={HOSTILE: svg, "permutation_importance": charts.bars(HOSTILE, {HOSTILE: 1.0})},
            notes=[HOSTILE],
            made_by=HOSTILE,
        )
    )
    assert not {"script", "img", "iframe", "link", "object", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    shown = HOSTILE.replace("\0", " ").strip()
    assert 8 <= page.words.count(shown)
    assert [] == page.open


def test_nothing_is_fetched():
    """The only address in it names SVG's vocabulary."""
    text = report(plots={"roc_curve": charts.bars("x", {"a": 1.0})})
    assert {"http://www.w3.org/2000/svg"} == set(re.findall(r"\w+://[^'\"\s<]*", text))
    assert not re.search(r"url\(|@import", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in Page(text).attributes


@pytest.mark.parametrize("name", CAPTIONS)
def test_every_plot_says_how_it_is_read(name):
    """Under its drawing; the importance names its metric."""
    page = Page(report(plots={name: charts.bars("x", {"a": 1.0})}))
    heading, caption = CAPTIONS[name]
    assert {heading, caption.replace("{metric}", "accuracy")} <= set(page.words)
    assert "figure" in page.tags
    assert "svg" in page.tags


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.123456, "0.1235"), (-3.14159, "-3.142"), (1234567.8, "1,234,568"), (1e-9, "1e-09")],
)
def test_numbers_are_short(value, shown):
    """Four digits, and thousands apart."""
    assert shown in Page(report(metrics={"rmse": value})).words


def test_it_is_readable_in_the_dark():
    """The drawings too: their text and lines take the page's colours."""
    text = report()
    assert "prefers-color-scheme: dark" in text
    assert ("name", "color-scheme") in Page(text).attributes
    assert 'svg text:not([fill]), svg text[fill="black"] { fill: var(--ink); }' in text
