"""Charts that cost a training nothing: drawn as SVG text, without a plotting library.

::

    bars    numbers by name, the longest first        importances
    matrix  shares of each row                        confusion matrix
    curves  lines in the unit square                  ROC, precision and recall, calibration
    lines   several lines with a legend               metrics of compared runs
    points  a cloud around a level                    residuals

matplotlib takes 0.6 s to import and 0.15 s per figure, on the training thread. MLflow's pages show an
SVG file as they show a PNG.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ROW = 22
_LABEL = 260
_BAR = 420
_MOST_CHARACTERS = 38
_SIDE = 320
_LEFT, _TOP = 90, 40
_BLUE, _RED, _GREY = "#2272b4", "#c4581d", "#999"
_COLOURS = (_BLUE, _RED, "#2b8a57", "#8457b5", "#b8860b", "#c2437d", "#2a9aa8", "#7a6a53")
_DASHES = ("", "6 3", "2 3", "9 3 2 3")
_LARGEST = 1e300
"""MLflow stores infinity as the largest number, beside which every other is nothing."""
_SHORT_LABEL = 4
_FEWEST_TICKS, _MOST_TICKS = 3, 6


def bars(title: str, values: Mapping[str, float], *, rows: int = 30) -> str:
    """Draw horizontal bars, the longest first, as an SVG document.

    Args:
        title: What the values are.
        values: One number per name; a negative one gets another colour.
        rows: How many to show at most; the others are counted.
    """
    ordered = sorted(values.items(), key=lambda item: -_length(item[1]))
    longest = max((_length(value) for value in values.values()), default=0.0) or 1.0
    lines = [_text(_LABEL, 16, title, "font-weight='bold'")]
    for row, (name, value) in enumerate(ordered[:rows], start=1):
        width = round(_BAR * _length(value) / longest, 1)
        colour = _RED if value < 0 else _BLUE
        lines += [
            _text(_LABEL - 8, row * _ROW + 16, _short(name), "text-anchor='end'"),
            f"<rect x='{_LABEL}' y='{row * _ROW + 4}' width='{width}' height='{_ROW - 7}' fill='{colour}'/>",
            _text(_LABEL + width + 6, row * _ROW + 16, f"{value:.4g}"),
        ]
    if (hidden := len(ordered) - rows) > 0:
        lines.append(_text(_LABEL, (rows + 1) * _ROW + 16, f"and {hidden} more"))
    return _document(_LABEL + _BAR + 100, (min(len(ordered), rows) + 2) * _ROW, lines)


def matrix(
    title: str, shares: Sequence[Sequence[float]], labels: Sequence[str], *, x: str, y: str, shown: int = 20
) -> str:
    """Draw a square matrix of shares, as an SVG document.

    Args:
        title: What it is.
        shares: Rows of numbers from 0 to 1; NaN stays empty.
        labels: One per row, and per column.
        x: What the columns are.
        y: What the rows are.
        shown: With more rows than these, neither values nor labels are written.
    """
    count = max(len(labels), 1)
    cell = max(_SIDE / count, 44 if count <= shown else 3)
    side, is_written = cell * count, count <= shown
    is_long = is_written and max(map(len, labels), default=0) > _SHORT_LABEL
    left = _LEFT + (8 * max((len(_short(label, 14)) for label in labels), default=0) if is_written else 0)
    lines = [
        _text(left, 22, title, "font-weight='bold'"),
        f"<rect x='{left}' y='{_TOP}' width='{side:.1f}' height='{side:.1f}' fill='none' stroke='{_GREY}'/>",
    ]
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            at_x, at_y = left + column * cell, _TOP + row * cell
            share = value if math.isfinite(value) else 0.0
            if not (share or is_written):
                continue  # of a thousand classes nearly all
            box = f"x='{at_x:.1f}' y='{at_y:.1f}' width='{cell:.1f}' height='{cell:.1f}'"
            lines.append(f"<rect {box} fill='{_BLUE}' fill-opacity='{share:.3f}' stroke='#eee'/>")
            if is_written and math.isfinite(value):
                colour = "white" if share > 0.5 else "black"
                style = f"text-anchor='middle' fill='{colour}'"
                lines.append(_text(at_x + cell / 2, at_y + cell / 2 + 4, f"{value:.2f}", style))
    if is_written:
        for index, label in enumerate(labels):
            middle = _TOP + (index + 0.5) * cell
            lines.append(_text(left - 6, middle + 4, _short(label, 14), "text-anchor='end'"))
            below = left + (index + 0.5) * cell, _TOP + side + 16
            turned = f"text-anchor='end' transform='rotate(-45 {below[0]:.1f} {below[1]:.1f})'"
            lines.append(_text(*below, _short(label, 14), turned if is_long else "text-anchor='middle'"))
    foot = 110 if is_long else 42
    lines.append(_text(left + side / 2, _TOP + side + foot, x, "text-anchor='middle'"))
    lines.append(_sideways(20, _TOP + side / 2, y))
    return _document(left + side + 30, _TOP + side + foot + 15, lines)


def curves(
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    has_diagonal: bool = False,
    has_dots: bool = False,
) -> str:
    """Draw lines through points of the unit square, as an SVG document.

    Args:
        title: What it is.
        lines: By name, what goes right and what goes up, as many of both. As many as there are colours
            are drawn, and the others counted; a single one has no legend.
        x: What goes right.
        y: What goes up.
        has_diagonal: Also draw the line from one corner to the other, for comparison.
        has_dots: Mark the points.
    """
    plane = _Plane((0.0, 1.0), (0.0, 1.0))
    drawn = plane.frame(title, x, y)
    if has_diagonal:
        drawn.append(plane.line([0.0, 1.0], [0.0, 1.0], f"stroke='{_GREY}' stroke-dasharray='5 4'"))
    beside, width = _LEFT + _SIDE + 20, 0
    for row, ((name, (xs, ys)), colour) in enumerate(zip(lines.items(), _COLOURS, strict=False)):
        drawn.append(plane.line(xs, ys, f"stroke='{colour}' stroke-width='2'"))
        if has_dots:
            drawn += [
                f"<circle cx='{plane.at_x(a):.1f}' cy='{plane.at_y(b):.1f}' r='3.5' fill='{colour}'/>"
                for a, b in zip(xs, ys, strict=True)
            ]
        if len(lines) > 1:
            at_y, text = _TOP + 6 + row * _ROW, _short(name, 22)
            drawn.append(f"<rect x='{beside}' y='{at_y}' width='16' height='4' fill='{colour}'/>")
            drawn.append(_text(beside + 24, at_y + 7, text))
            width = max(width, 24 + 8 * len(text))
    if (hidden := len(lines) - len(_COLOURS)) > 0:
        drawn.append(_text(beside, _TOP + 13 + len(_COLOURS) * _ROW, f"and {hidden} more"))
    return plane.document(drawn, width)


def lines(
    title: str, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str = ""
) -> str:
    """Draw lines over each other with a legend, as an SVG document.

    Args:
        title: What they are.
        curves: By name, where the points are: x in rising order, and y. What is not finite is left out.
        x: What the first are.
        y: What the second are.
    """
    kept = {
        name: [(a, b) for a, b in zip(*found, strict=True) if abs(a) <= _LARGEST and abs(b) <= _LARGEST]
        for name, found in curves.items()
    }
    every = [point for found in kept.values() for point in found]
    plane = _Plane(_span([a for a, _ in every]), _span([b for _, b in every]))
    drawn = plane.frame(title, x, y)
    legend = _LEFT + _SIDE + 20
    for index, (name, found) in enumerate(kept.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        style = f"stroke='{colour}' stroke-width='2' stroke-dasharray='{dash}'"
        if len(found) == 1:  # which is no line
            (a, b) = found[0]
            drawn.append(f"<circle cx='{plane.at_x(a):.1f}' cy='{plane.at_y(b):.1f}' r='3' fill='{colour}'/>")
        elif found:
            drawn.append(plane.line([a for a, _ in found], [b for _, b in found], style))
        at_y = _TOP + 10 + index * _ROW
        drawn.append(f"<path d='M {legend} {at_y} h 24' fill='none' {style}/>")
        drawn.append(_text(legend + 32, at_y + 4, _short(name)))
    height = max(_TOP + _SIDE + 60, _TOP + 20 + len(kept) * _ROW)
    longest = max((len(_short(name)) for name in kept), default=0)
    return _document(legend + 52 + 8 * longest, height, drawn)


def points(
    title: str, xs: Sequence[float], ys: Sequence[float], *, x: str, y: str, level: float = 0.0
) -> str:
    """Draw points and a level line, as an SVG document.

    Args:
        title: What it is.
        xs: Where; what is not finite is left out.
        ys: Where, as many.
        x: What *xs* are.
        y: What *ys* are.
        level: Where the line is drawn.
    """
    kept = [(a, b) for a, b in zip(xs, ys, strict=True) if math.isfinite(a) and math.isfinite(b)]
    plane = _Plane(_span([a for a, _ in kept]), _span([*(b for _, b in kept), level]))
    ends = list(plane.x_span)
    dots = [
        f"<circle cx='{plane.at_x(a):.1f}' cy='{plane.at_y(b):.1f}' r='2.5' fill='{_BLUE}' fill-opacity='0.5'/>"
        for a, b in kept
    ]
    dashed = plane.line(ends, [level, level], f"stroke='{_GREY}' stroke-dasharray='5 4'")
    return plane.document([*plane.frame(title, x, y), *dots, dashed])


class _Plane:
    """A square with two axes.

    Args:
        x_span: Least and greatest of x, which differ.
        y_span: Of y.
    """

    def __init__(self, x_span: tuple[float, float], y_span: tuple[float, float]) -> None:
        self.x_span, self.y_span = x_span, y_span

    def at_x(self, value: float) -> float:
        low, high = self.x_span
        return _LEFT + (value - low) / (high - low) * _SIDE

    def at_y(self, value: float) -> float:
        low, high = self.y_span
        return _TOP + _SIDE - (value - low) / (high - low) * _SIDE

    def line(self, xs: Sequence[float], ys: Sequence[float], style: str) -> str:
        path = " ".join(f"{self.at_x(a):.1f},{self.at_y(b):.1f}" for a, b in zip(xs, ys, strict=True))
        return f"<polyline points='{path}' fill='none' {style}/>"

    def frame(self, title: str, x: str, y: str) -> list[str]:
        bottom = _TOP + _SIDE
        lines = [
            _text(_LEFT, 22, title, "font-weight='bold'"),
            f"<rect x='{_LEFT}' y='{_TOP}' width='{_SIDE}' height='{_SIDE}' fill='none' stroke='{_GREY}'/>",
            _text(_LEFT + _SIDE / 2, bottom + 42, x, "text-anchor='middle'"),
            _sideways(20, _TOP + _SIDE / 2, y),
        ]
        below = [
            _text(self.at_x(value), bottom + 18, f"{value:.4g}", "text-anchor='middle'")
            for value in _ticks(*self.x_span)
        ]
        beside = [
            _text(_LEFT - 8, self.at_y(value) + 4, f"{value:.4g}", "text-anchor='end'")
            for value in _ticks(*self.y_span)
        ]
        return [*lines, *below, *beside]

    def document(self, lines: list[str], beside: float = 0) -> str:
        return _document(_LEFT + _SIDE + 40 + beside, _TOP + _SIDE + 60, lines)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if math.isclose(low, high):
        low, high = low - (abs(low) or 1.0), high + (abs(high) or 1.0)
    edge = (high - low) * 0.03
    return low - edge, high + edge


def _ticks(low: float, high: float) -> list[float]:
    """Return a few round numbers between two."""
    step = 10.0 ** math.floor(math.log10(high - low))
    for finer in (1.0, 0.5, 0.2, 0.1):
        width = step * finer
        found = [width * index for index in range(math.ceil(low / width), math.floor(high / width) + 1)]
        if _FEWEST_TICKS <= len(found) <= _MOST_TICKS:
            return found
    return [low, high]


def _length(value: float) -> float:
    return abs(value) if math.isfinite(value) else 0.0


def _short(text: str, most: int = _MOST_CHARACTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(x: float, y: float, text: str, style: str = "") -> str:
    # quote=True escapes both quotes; XML refuses control characters even escaped.
    printable = "".join(character if character.isprintable() else " " for character in text)
    return f"<text x='{x:.1f}' y='{y:.1f}' {style}>{html.escape(printable)}</text>"


def _sideways(x: float, y: float, text: str) -> str:
    return _text(x, y, text, f"text-anchor='middle' transform='rotate(-90 {x:.1f} {y:.1f})'")


def _document(width: float, height: float, lines: Sequence[str]) -> str:
    # With a viewBox it can be shown smaller than it was drawn.
    size = f"width='{width:.0f}' height='{height:.0f}' viewBox='0 0 {width:.0f} {height:.0f}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} font-family='sans-serif' font-size='13'>"
    return "\n".join([head, "<rect width='100%' height='100%' fill='white'/>", *lines, "</svg>"])
