"""Charts as SVG, by hand: their colours are the page's, so one picture serves light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dance.compare.curves import Curve

_WIDTH, _HEIGHT = 520, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 56
# Above this ratio of the largest to the least an axis is logarithmic.
_LOG_RATIO = 8.0
_LEAST_SHARE = 2e-3


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values to pixels, and where its ticks are."""

    low: float
    high: float
    from_px: float
    to_px: float
    log: bool

    def at(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.from_px + share * (self.to_px - self.from_px)

    def ticks(self) -> list[float]:
        if not self.log:
            step = _nice((self.high - self.low) / 5)
            first = math.ceil(self.low / step - 1e-9)
            return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
            found = [f * 10.0**d for d in decades for f in factors]
            found = [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
            if len(found) >= 4:
                break
        return found


def scale_of(values: Sequence[float], pixels: tuple[float, float], *, log: bool | None = None) -> Scale:
    """A scale for all of `values`; log None: where they are positive and far apart."""
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low > _LOG_RATIO
    if low == high:
        low, high = (low * 0.9, high * 1.1) if low > 0 else (low - 1.0, high + 1.0)
    if log:
        margin = (high / low) ** 0.03
        return Scale(low=low / margin, high=high * margin, from_px=pixels[0], to_px=pixels[1], log=True)
    margin = 0.04 * (high - low)
    # What is never negative has no axis below 0.
    least = max(0.0, low - margin) if low >= 0 else low - margin
    return Scale(low=least, high=high + margin, from_px=pixels[0], to_px=pixels[1], log=False)


def chart(curves: Sequence[Curve], colours: Mapping[str, int], *, x_title: str, y_title: str) -> str:
    """Lines with bands; `colours` gives each label its place in the palette. Both axes choose their scale."""
    drawn = [_positive(curve) for curve in curves]
    drawn = [curve for curve in drawn if curve.x]
    if not drawn:
        return '<p class="empty">not measured</p>'
    x = scale_of([v for c in drawn for v in c.x], (_LEFT, _WIDTH - _RIGHT))
    y = scale_of(
        [v for c in drawn for v in (*c.low, *c.high)],
        (_HEIGHT - _BOTTOM, _TOP),
        log=None if min(min(c.low) for c in drawn) > 0 else False,
    )
    order = {label: k for k, label in enumerate(colours)}
    parts = [_grid(x, y, x_title)]
    for curve in drawn:
        inside = _band(curve, x, y, colours[curve.label])
        inside += _line(curve, x, y, colours[curve.label], f"{y_title} {{:.4g}} at {{:.4g}} {x_title}")
        parts.append(f'<g data-m="{order[curve.label]}">{inside}</g>')
    return _frame("".join(parts), f"{y_title} against {x_title}")


def bars(values: Sequence[float], colour: int, level: float) -> str:
    """A bar for each class, its number below it, and a line where all would be equal."""
    width, height, foot = 260, 110, 16
    top = max(max(values), level) * 1.08
    step = (width - 8) / len(values)
    parts = []
    for k, value in enumerate(values):
        left, tall = 4 + k * step, (height - foot) * value / top
        parts.append(
            f'<rect class="c{colour} fill" x="{left + 1:.1f}" y="{height - foot - tall:.1f}" '
            f'width="{max(1.0, step - 2):.1f}" height="{tall:.1f}" rx="1.5">'
            f"<title>class {k}: {value:.1%}</title></rect>"
        )
        if len(values) <= 20:
            parts.append(
                f'<text class="tick" x="{left + step / 2:.1f}" y="{height - 3}" '
                f'text-anchor="middle">{k}</text>'
            )
    at = (height - foot) * (1 - level / top)
    parts.append(f'<line class="level" x1="2" x2="{width - 2}" y1="{at:.1f}" y2="{at:.1f}"/>')
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="share of each class">'
    return f"{head}{''.join(parts)}</svg>"


def strips(
    spans: Sequence[tuple[str, Sequence[tuple[float, float, str]]]], palette: Mapping[str, int]
) -> str:
    """A strip for each name: from, to and what it was meanwhile; `palette` colours what it was."""
    width, row, left = 520, 30, 96
    last = max((end for _, pieces in spans for _, end, _ in pieces), default=1.0)
    parts = []
    for k, (name, pieces) in enumerate(spans):
        top = k * row
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{top + 20}" text-anchor="end">{escape(name)}</text>'
        )
        for begin, end, what in pieces:
            x0, x1 = (left + (width - left - 4) * v / last for v in (begin, end))
            parts.append(
                f'<rect class="c{palette[what]} fill" x="{x0:.1f}" y="{top + 4}" '
                f'width="{max(1.0, x1 - x0):.1f}" height="{row - 8}">'
                f"<title>{escape(what)}: rounds {begin:.0f} to {end:.0f}</title></rect>"
            )
            if x1 - x0 > 8.5 * len(what) + 8:
                parts.append(
                    f'<text class="on" x="{(x0 + x1) / 2:.1f}" y="{top + 20}" '
                    f'text-anchor="middle">{escape(what)}</text>'
                )
    foot = len(spans) * row + 18
    for value in (0.0, last / 2, last):
        x = left + (width - left - 4) * value / last
        anchor = "end" if value == last else "middle"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{foot}" text-anchor="{anchor}">{value:.0f}</text>')
    return f'<svg viewBox="0 0 {width} {foot + 6}" role="img" aria-label="codecs">{"".join(parts)}</svg>'


def _positive(curve: Curve) -> Curve:
    """Without points that have cost next to nothing yet: a logarithmic axis would be all theirs."""
    kept = [k for k, x in enumerate(curve.x) if x > _LEAST_SHARE * curve.x[-1]]
    return Curve(
        label=curve.label,
        seeds=curve.seeds,
        **{name: tuple(getattr(curve, name)[k] for k in kept) for name in ("x", "mean", "low", "high")},
    )


def _grid(x: Scale, y: Scale, x_title: str) -> str:
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in y.ticks():
        at = y.at(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{at + 5:.1f}" text-anchor="end">{_number(value)}</text>'
        )
    for value in x.ticks():
        at = x.at(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{_number(value)}</text>'
        )
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>'
    )
    return "".join(parts)


def _band(curve: Curve, x: Scale, y: Scale, colour: int) -> str:
    if curve.seeds < 2 or len(curve.x) < 2:
        return ""
    forth = [f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in zip(curve.x, curve.high, strict=True)]
    back = [f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in zip(curve.x, curve.low, strict=True)]
    return f'<polygon class="c{colour} band" points="{" ".join([*forth, *back[::-1]])}"/>'


def _line(curve: Curve, x: Scale, y: Scale, colour: int, words: str) -> str:
    path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in zip(curve.x, curve.mean, strict=True))
    parts = [f'<polyline class="c{colour} line" points="{path}"/>']
    for a, b in zip(curve.x, curve.mean, strict=True):
        parts.append(
            f'<circle class="c{colour} fill" cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="2.6">'
            f"<title>{escape(curve.label)}: {escape(words.format(b, a))}</title></circle>"
        )
    return "".join(parts)


def _frame(inside: str, label: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{inside}</svg>'


def _nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= step * 0.999)


_SUFFIXES: tuple[tuple[float, str], ...] = ((1e6, "M"), (1e3, "k"))


def _number(value: float) -> str:
    for size, suffix in _SUFFIXES:
        if abs(value) >= size * 10 or (abs(value) >= size and value % (size / 10) == 0):
            return f"{value / size:g}{suffix}"
    return f"{value:g}" if abs(value) >= 1e-9 else "0"
