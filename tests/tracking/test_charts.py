"""Charts are SVG that a browser can read."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from mlpipeline.tracking.charts import bars

SVG = "{http://www.w3.org/2000/svg}"


def parts(document):
    """The texts, and the widths of the bars."""
    root = ET.fromstring(document)
    widths = [float(bar.get("width")) for bar in root.iter(f"{SVG}rect") if bar.get("x")]
    return [text.text for text in root.iter(f"{SVG}text")], widths


def test_the_longest_bar_comes_first():
    """By size, whatever the sign, with the value beside it."""
    texts, widths = parts(bars("gain", {"small": 1.0, "large": -4.0}))
    assert ["gain", "large", "-4", "small", "1"] == texts
    assert [420.0, 105.0] == widths


def test_names_of_the_users_own_break_nothing():
    """Markup, quotes, control characters, and one that is too long for its place."""
    texts, _ = parts(bars("<b>", {"a<b>&'\"\0": 1.0, "long" * 40: 0.5}))
    assert ["<b>", "a<b>&'\" "] == texts[:2]
    assert ("longlong" * 5)[:37] + "…" == texts[3]


def test_what_is_no_length_has_no_bar():
    """NaN and inf; and nothing at all is a title."""
    texts, widths = parts(bars("x", {"a": float("nan"), "b": float("inf"), "c": 0.0}))
    assert [0.0, 0.0, 0.0] == widths
    assert {"nan", "inf", "0"} <= set(texts)
    assert (["x"], []) == parts(bars("x", {}))


def test_the_rest_is_counted():
    """Thousands of features make no chart."""
    texts, widths = parts(bars("x", {str(number): number + 1.0 for number in range(100)}, rows=10))
    assert 10 == len(widths)
    assert "and 90 more" == texts[-1]
