"""Charts are SVG that a browser can read."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

from mlpipeline.tracking.charts import bars, curves, matrix, points

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


def test_a_matrix_has_its_shares_and_names():
    """A cell per pair, darker where the share is larger; one that is undefined stays empty."""
    document = matrix("found", [[1.0, 0.0], [0.25, math.nan]], ["a", "<b>"], x="predicted", y="true")
    root = ET.fromstring(document)
    cells = [cell for cell in root.iter(f"{SVG}rect") if cell.get("fill-opacity")]
    assert ["1.000", "0.000", "0.250", "0.000"] == [cell.get("fill-opacity") for cell in cells]
    assert (cells[0].get("x"), cells[0].get("y")) == (cells[2].get("x"), cells[1].get("y"))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert ["found", "1.00", "0.00", "0.25", "a", "a", "<b>", "<b>", "predicted", "true"] == texts


def test_a_matrix_of_many_classes_has_the_cells_that_are_not_empty():
    """A thousand classes have a million pairs."""
    count = 300
    shares = [[float(row == column) for column in range(count)] for row in range(count)]
    document = matrix("found", shares, [str(index) for index in range(count)], x="predicted", y="true")
    root = ET.fromstring(document)
    assert count == sum(cell.get("fill-opacity") is not None for cell in root.iter(f"{SVG}rect"))
    assert 3 == len(list(root.iter(f"{SVG}text")))


def test_a_curve_goes_through_its_points():
    """From the lower left corner to the upper right one."""
    line = {"yes": ([0.0, 0.5, 1.0], [0.0, 1.0, 1.0])}
    root = ET.fromstring(curves("ROC", line, x="fpr", y="tpr", has_diagonal=True))
    diagonal, line = (found.get("points") for found in root.iter(f"{SVG}polyline"))
    assert ("90.0,360.0 410.0,40.0", "90.0,360.0 250.0,40.0 410.0,40.0") == (diagonal, line)
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"ROC", "fpr", "tpr", "0", "1"} <= texts
    assert "yes" not in texts


def test_lines_are_told_apart_by_colour_and_name():
    """And beyond the colours that there are, only counted."""
    lines = {f"<{index}>": ([0.0, 1.0], [0.0, 0.1 * index]) for index in range(10)}
    root = ET.fromstring(curves("ROC", lines, x="fpr", y="tpr", has_dots=True))
    drawn = list(root.iter(f"{SVG}polyline"))
    assert 8 == len(drawn) == len({line.get("stroke") for line in drawn})
    assert 16 == len(list(root.iter(f"{SVG}circle")))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert [f"<{index}>" for index in range(8)] == [text for text in texts if text.startswith("<")]
    assert "and 2 more" in texts


def test_a_drawing_can_be_shown_in_another_size():
    """Its viewBox is the size it was drawn in."""
    root = ET.fromstring(bars("gain", {"a": 1.0}))
    assert f"0 0 {root.get('width')} {root.get('height')}" == root.get("viewBox")


def test_points_lie_in_the_square_whatever_their_values():
    """Also where all are the same, there is one, or none; what is not finite is left out."""
    cases = ([1.0, 2e9], [-3.0, math.nan]), ([5.0], [0.0]), ([0.0, 0.0], [0.0, 0.0]), ([], [])
    for xs, ys in cases:
        root = ET.fromstring(points("residuals", xs, ys, x="predicted", y="left"))
        dots = list(root.iter(f"{SVG}circle"))
        assert sum(map(math.isfinite, ys)) == len(dots)
        assert all(90 <= float(dot.get("cx")) <= 410 and 40 <= float(dot.get("cy")) <= 360 for dot in dots)
        assert 2 <= len(list(root.iter(f"{SVG}text"))) - 3
