"""Charts of a report as inline SVG: no script, no font and no file from elsewhere.

Colours are classes of the page's style sheet (`c0` to `c5`, `axis`, `grid`), so that they follow
light, dark and paper. Every chart has a title and a description for those who cannot see it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thor_policy_ros.evaluation.report_html import Html, element

F64 = npt.NDArray[np.float64]
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 16.0, 34.0


@dataclass(frozen=True)
class Line:
    """values: one for each time, NaN where there is none. dash: as SVG writes it."""

    name: str
    values: Sequence[float]
    colour: str
    dash: str | None = None


@dataclass(frozen=True)
class Mark:
    """A moment worth a vertical line."""

    at: float
    text: str


@dataclass(frozen=True)
class Frame:
    """Where a chart draws: ranges of the axes, and its size in SVG units."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 760.0
    height: float = 220.0

    def px(self, x: float) -> float:
        low, high = self.x
        return LEFT + (x - low) / max(high - low, 1e-9) * (self.width - LEFT - RIGHT)

    def py(self, y: float) -> float:
        low, high = self.y
        share = (y - low) / max(high - low, 1e-9)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)


def line_chart(
    title: str,
    times: Sequence[float],
    lines: Sequence[Line],
    *,
    span: tuple[float, float],
    unit: str,
    limit: float = math.nan,
    marks: Sequence[Mark] = (),
) -> Html:
    """Figures over seconds. limit: a horizontal line that they should stay below."""
    values = [v for line in lines for v in line.values if math.isfinite(v)]
    top = _nice_top(max([*values, 0.0 if math.isnan(limit) else limit], default=1.0))
    frame = Frame(span, (0.0, top))
    shapes = [*_grid(frame, unit), *_marks(frame, marks)]
    if math.isfinite(limit):
        y = frame.py(limit)
        shapes.append(element("line", x1=LEFT, x2=_f(frame.width - RIGHT), y1=_f(y), y2=_f(y),
                              class_="limit"))  # fmt: skip
    for line in lines:
        shapes += _polylines(frame, times, line)
    names = [(line.name, line.colour) for line in lines]
    if math.isfinite(limit):
        names.append((f"limit {limit:g} {unit}", "limit"))
    highest = "; ".join(f"{line.name}: highest {_top(line.values):.4g} {unit}" for line in lines)
    return _figure(title, highest, frame, shapes, names)


def stacked_bars(
    title: str,
    starts: Sequence[float],
    width_s: float,
    counts: Mapping[str, tuple[str, Sequence[float]]],
    *,
    span: tuple[float, float],
    unit: str,
    marks: Sequence[Mark] = (),
) -> Html:
    """counts: by name, a colour and one count for each start."""
    columns = [np.asarray(values, float) for _, values in counts.values()]
    highest = float(np.sum(columns, axis=0).max()) if columns and len(starts) else 1.0
    frame = Frame(span, (0.0, _nice_top(highest)))
    shapes = [*_grid(frame, unit), *_marks(frame, marks)]
    below = np.zeros(len(starts))
    for name, (colour, values) in counts.items():
        for start, base, value in zip(starts, below.copy(), values, strict=True):
            if value:
                end = min(start + width_s, span[1])
                box = _box(frame, (start, base), (max(end, start), base + value), colour)
                shapes.append(_tipped(box, f"{name}: {value:g} {unit} at {start:.1f} s"))
        below = below + np.asarray(values, float)
    said = "; ".join(f"{name}: {sum(values):g}" for name, (_, values) in counts.items())
    return _figure(title, said, frame, shapes, [(n, c) for n, (c, _) in counts.items()])


def histogram(title: str, values: F64, unit: str, limit: float = math.nan) -> Html:
    """How often each value came, up to p99.5; what is beyond stands in the last bar."""
    shown = float(np.percentile(values, 99.5)) if len(values) else 1.0
    top = max(shown * 1.05, 1e-3)
    counts, edges = np.histogram(np.minimum(values, top), bins=30, range=(0.0, top))
    frame = Frame((0.0, top), (0.0, _nice_top(float(counts.max(initial=1)))), 370.0, 170.0)
    shapes = _grid(frame, "frames", x_unit=unit, x_ticks=4)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            box = _box(frame, (low, 0.0), (high, float(count)), "c0")
            shapes.append(_tipped(box, f"{low:.3g} to {high:.3g} {unit}: {count} frames"))
    p50, p95, p99 = np.percentile(values, (50, 95, 99)) if len(values) else (0.0, 0.0, 0.0)
    for percent, value in ((50, p50), (99, p99)):
        x = _f(frame.px(min(value, top)))
        line = element("line", x1=x, x2=x, y1=TOP, y2=_f(frame.height - BOTTOM), class_="mark")
        shapes.append(_tipped(line, f"p{percent}: {value:.3g} {unit}"))
    if math.isfinite(limit) and limit < top:
        x = _f(frame.px(limit))
        shapes.append(
            element("line", x1=x, x2=x, y1=TOP, y2=_f(frame.height - BOTTOM), class_="limit")
        )
    said = f"p50 {p50:.3g}, p95 {p95:.3g}, p99 {p99:.3g} {unit}; {len(values)} frames"
    return _figure(title, said, frame, shapes, (), show_said=True)


def strips(
    title: str,
    rows: Mapping[str, Sequence[tuple[float, float, str, str]]],
    *,
    span: tuple[float, float],
    names: Sequence[tuple[str, str]],
) -> Html:
    """A strip of colours over seconds for each row: begin, end, colour, words of each piece."""
    high, left = 18.0, 210.0
    height = TOP + BOTTOM + high * len(rows)
    frame = Frame(span, (0.0, 1.0), height=height)

    def px(at: float) -> float:
        share = (at - span[0]) / max(span[1] - span[0], 1e-9)
        return left + share * (frame.width - left - RIGHT)

    shapes: list[Html] = []
    for number, (name, pieces) in enumerate(rows.items()):
        y = TOP + number * high
        shown = name if len(name) <= 34 else name[:33] + "…"
        shapes.append(element("text", shown, x=left - 6, y=_f(y + 12), class_="end"))
        for begin, end, colour, words in pieces:
            x, width = px(max(begin, span[0])), px(min(end, span[1])) - px(max(begin, span[0]))
            box = element("rect", x=_f(x), y=_f(y + 2), width=_f(max(width, 0.8)),
                          height=high - 4, class_=colour)  # fmt: skip
            shapes.append(_tipped(box, f"{begin:.1f} s: {words}"))
    for tick in _ticks(*span, 8):
        shapes.append(element("text", f"{tick:g}", x=_f(px(tick)), y=_f(height - BOTTOM + 14),
                              class_="middle"))  # fmt: skip
    shapes.append(element("text", "s", x=_f(frame.width - RIGHT), y=_f(height - 4), class_="end"))
    return _figure(title, f"{len(rows)} rows", frame, shapes, names)


def _figure(
    title: str,
    description: str,
    frame: Frame,
    shapes: Sequence[Html],
    names: Sequence[tuple[str, str]],
    *,
    show_said: bool = False,
) -> Html:
    name = re.sub(r"\W+", "-", title.lower())  # of one chart in a page
    inner = element("title", title, id=f"{name}-t"), element("desc", description, id=f"{name}-d")
    drawing = element("svg", *inner, *shapes, viewBox=f"0 0 {frame.width:g} {frame.height:g}",
                      role="img", aria_labelledby=f"{name}-t {name}-d")  # fmt: skip
    keys = [element("span", element("i", class_=f"key {colour}"), name) for name, colour in names]
    legend = (element("div", *keys, class_="legend"),) if keys else ()
    said = (element("div", description, class_="legend"),) if show_said else ()
    return element("figure", element("figcaption", title), *legend, *said, drawing)


def _grid(frame: Frame, y_unit: str, x_unit: str = "s", x_ticks: int = 8) -> list[Html]:
    found = []
    right, bottom = frame.width - RIGHT, frame.height - BOTTOM
    for tick in _ticks(*frame.y, 4):
        y = _f(frame.py(tick))
        found.append(element("line", x1=LEFT, x2=_f(right), y1=y, y2=y, class_="grid"))
        found.append(element("text", f"{tick:g}", x=LEFT - 6, y=_f(frame.py(tick) + 4),
                             class_="end"))  # fmt: skip
    for tick in _ticks(*frame.x, x_ticks):
        found.append(element("text", f"{tick:g}", x=_f(frame.px(tick)), y=_f(bottom + 15),
                             class_="middle"))  # fmt: skip
    found.append(element("text", x_unit, x=_f(right), y=_f(frame.height - 5), class_="end"))
    found.append(element("text", y_unit, x=LEFT, y=TOP - 4, class_="start"))
    found.append(element("line", x1=LEFT, x2=_f(right), y1=_f(bottom), y2=_f(bottom),
                         class_="axis"))  # fmt: skip
    return found


def _marks(frame: Frame, marks: Sequence[Mark]) -> list[Html]:
    found = []
    for mark in marks:
        x = _f(frame.px(mark.at))
        line = element("line", x1=x, x2=x, y1=TOP, y2=_f(frame.height - BOTTOM), class_="mark")
        found.append(_tipped(line, f"{mark.at:.1f} s: {mark.text}"))
    return found


def _polylines(frame: Frame, times: Sequence[float], line: Line) -> list[Html]:
    """A line, broken where values are missing; a lone value is a dot."""
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in zip(times, line.values, strict=True):
        if math.isfinite(value):
            runs[-1].append((frame.px(at), frame.py(value)))
        elif runs[-1]:
            runs.append([])
    found = []
    for run in filter(None, runs):
        if len(run) == 1:
            at, level = run[0]
            found.append(element("circle", cx=_f(at), cy=_f(level), r=2, class_=line.colour))
            continue
        points = " ".join(f"{_f(x)},{_f(y)}" for x, y in run)
        found.append(element("polyline", points=points, class_=f"line {line.colour}",
                             stroke_dasharray=line.dash))  # fmt: skip
    return found


def _box(frame: Frame, low: tuple[float, float], high: tuple[float, float], colour: str) -> Html:
    x, y = frame.px(low[0]), frame.py(high[1])
    width = max(frame.px(high[0]) - x - 0.6, 0.6)
    return element("rect", x=_f(x), y=_f(y), width=_f(width),
                   height=_f(frame.py(low[1]) - y), class_=colour)  # fmt: skip


def _tipped(shape: Html, words: str) -> Html:
    """With words that a pointer, or a screen reader, finds."""
    return element("g", element("title", words), shape)


def _ticks(low: float, high: float, about: int) -> list[float]:
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(step * by for by in (1, 2, 5, 10, 20) if (high - low) / (step * by) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _nice_top(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        return 1.0
    size = 10.0 ** math.floor(math.log10(value))
    return next(size * by for by in (1.2, 1.5, 2, 3, 4, 5, 6, 8, 10, 12) if size * by >= value)


def _top(values: Sequence[float]) -> float:
    return max((v for v in values if math.isfinite(v)), default=math.nan)


def _f(number: float) -> str:
    """As short as it can be: a page holds tens of thousands of these."""
    return f"{number:.1f}".removesuffix(".0")
