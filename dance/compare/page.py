"""report.html: one file without any other, to be looked at on a screen of any size, in light and dark."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from dance.compare import svg
from dance.compare.curves import curves_of
from dance.compare.folder import Finished
from dance.compare.report import Contents
from dance.compare.table import Cell, by_label, short, text_of

_COLOURS = 8
_PICTURE_PIXELS = 440
_SCRIPT = """
for (const b of document.querySelectorAll('.legend button')) b.onclick = () => {
  const on = b.getAttribute('aria-pressed') !== 'true';
  b.setAttribute('aria-pressed', on);
  for (const e of document.querySelectorAll(`[data-m="${b.dataset.of}"]`)) e.style.display = on ? '' : 'none';
};
"""


def html_of(contents: Contents) -> str:
    """The page. Pictures and style are inside; the script only hides methods whose name is clicked."""
    colours = {label: k % _COLOURS for k, label in enumerate(by_label(contents.runs))}
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    body = "".join(
        (
            f"<h1>{escape(contents.title)}</h1>",
            f'<p class="lead">{escape(contents.lead)}</p>',
            _cards(contents, colours),
            _table(contents, colours),
            _curves(contents, colours),
            _at_marks(contents, colours),
            _samples(contents),
            _histograms(contents, colours),
            _codecs(contents),
            _settings(contents),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(contents.title)}</title><style>{style}</style></head>"
        f"<body><main>{body}</main><script>{_SCRIPT}</script></body></html>\n"
    )


def _cards(contents: Contents, colours: Mapping[str, int]) -> str:
    columns = {column.name: k for k, column in enumerate(contents.columns)}
    if "FID" not in columns:
        return ""
    cards = []
    for row in contents.rows:
        cell = row.cells[columns["FID"]]
        value = "-" if cell.mean is None else contents.columns[columns["FID"]].form(cell.mean)
        spread = "" if cell.deviation is None else f" <small>± {cell.deviation:.2g}</small>"
        best = '<i class="best">lowest</i>' if cell.best else ""
        sent = ""
        if "bytes a D-Node" in columns:
            k = columns["bytes a D-Node"]
            mean = row.cells[k].mean
            sent = "sends nothing" if mean is None else f"{contents.columns[k].form(mean)} a D-Node"
        failed = (
            f"<span>seeds {', '.join(map(str, row.diverged))} ended in NaN</span>" if row.diverged else ""
        )
        cards.append(
            f'<div class="card c{colours[row.label]}"><b>{escape(row.label)}</b>'
            f'<div class="big">{value}{spread}{best}</div><span>FID · {sent}</span>{failed}</div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _table(contents: Contents, colours: Mapping[str, int]) -> str:
    heads = "".join(f"<th>{escape(column.heading)}</th>" for column in contents.columns)
    lines = []
    for row in contents.rows:
        cells = "".join(
            _cell(cell, column.form) for cell, column in zip(row.cells, contents.columns, strict=True)
        )
        lines.append(f"<tr>{_name(row.label, colours)}<td>{len(row.seeds)}</td>{cells}</tr>")
    return (
        f'<h2>Results</h2><p class="note">{escape(contents.note)}</p><div class="wide"><table><thead><tr>'
        f"<th>method</th><th>seeds</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _curves(contents: Contents, colours: Mapping[str, int]) -> str:
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-of="{k}" class="c{colours[label]}">'
        f'<i class="chip"></i>{escape(label)}</button>'
        for k, label in enumerate(by_label(contents.runs))
    )
    charts = []
    for metric, title, sense in (("fid", "FID", "lower is better"), ("score", "score", "higher is better")):
        if not any(line.get(metric) is not None for run in contents.runs for line in run.lines):
            continue
        figures = "".join(
            _figure(
                f"{title} by {axis.short} <span>· {sense}</span>",
                svg.chart(curves_of(contents.runs, metric, axis), colours, x_title=axis.title, y_title=title),
            )
            for axis in contents.axes
        )
        charts.append(f'<div class="grid3">{figures}</div>')
    seeds = max((len(own) for own in by_label(contents.runs).values()), default=0)
    band = "Line: mean over the seeds; band: from the least to the greatest of them. " if seeds > 1 else ""
    return (
        f'<h2>On the way</h2><p class="note">{band}Evaluation costs are in no byte and no second.</p>'
        f'<div class="legend">{buttons}</div>{"".join(charts)}'
    )


def _at_marks(contents: Contents, colours: Mapping[str, int]) -> str:
    if not contents.at_marks:
        return ""
    heads = "".join(f"<th>{mark:g} MB</th>" for mark in contents.marks)
    lines = "".join(
        f"<tr>{_name(label, colours)}{''.join(_cell(cell, short) for cell in cells)}</tr>"
        for label, cells in contents.at_marks.items()
    )
    return (
        "<h2>FID at equal bytes</h2>"
        '<p class="note">The last evaluation for which a D-Node had sent and received at most so much '
        "(and 3 %); a dash where the run was far from it.</p>"
        f'<div class="wide"><table><thead><tr><th>method</th>{heads}</tr></thead><tbody>{lines}</tbody>'
        "</table></div>"
    )


def _samples(contents: Contents) -> str:
    figures = []
    for label, own in by_label(contents.runs).items():
        picture = next((run for run in own if (run.folder / "samples.png").exists()), None)
        if picture is not None:
            image = _embedded(picture.folder / "samples.png")
            figures.append(
                _figure(
                    f"{escape(label)} <span>· seed {picture.seed}</span>",
                    f'<img alt="images generated by {escape(label)}" src="{image}">',
                )
            )
    if not figures:
        return ""
    return f'<h2>Generated images</h2><div class="gridn">{"".join(figures)}</div>'


def _histograms(contents: Contents, colours: Mapping[str, int]) -> str:
    figures = []
    for label, own in by_label(contents.runs).items():
        found = [run.summary["class_histogram"] for run in own if run.summary.get("class_histogram")]
        if found:
            mean = [statistics.fmean(shares) for shares in zip(*found, strict=True)]
            figures.append(_figure(escape(label), svg.bars(mean, colours[label], 1 / len(mean)), "small"))
    if not figures:
        return ""
    return (
        '<h2>Classes drawn</h2><p class="note">Share of each class among the generated images, by the '
        "classifier that scores them; mean over the seeds. Dashed: all classes equal.</p>"
        f'<div class="gridn">{"".join(figures)}</div>'
    )


@dataclass(frozen=True, kw_only=True)
class _Codecs:
    """What a run's kinds of messages were encoded with: kind -> (from, to, codec) by rounds."""

    run: Finished
    spans: list[tuple[str, list[tuple[float, float, str]]]]


def _codecs(contents: Contents) -> str:
    found = [_Codecs(run=own[0], spans=spans_of(own[0].lines)) for own in by_label(contents.runs).values()]
    found = [each for each in found if each.spans]
    if not found:
        return ""
    names = list(dict.fromkeys(what for each in found for _, pieces in each.spans for _, _, what in pieces))
    palette = {name: k % _COLOURS for k, name in enumerate(names)}
    figures = "".join(
        _figure(
            f"{escape(each.run.label)} <span>· seed {each.run.seed}</span>", svg.strips(each.spans, palette)
        )
        for each in found
    )
    return (
        '<h2>Codecs over time</h2><p class="note">What each kind of message was encoded with, by rounds, as '
        f'seen at the evaluations.</p><div class="grid3">{figures}</div>'
    )


def spans_of(lines: Sequence[Mapping[str, object]]) -> list[tuple[str, list[tuple[float, float, str]]]]:
    """For each kind of message the stretches of rounds (from, to, codec) between evaluations."""
    spans: dict[str, list[tuple[float, float, str]]] = {}
    before = 0.0
    for line in lines:
        codecs, now = line.get("codecs"), line.get("round")
        if not isinstance(codecs, Mapping) or not isinstance(now, (int, float)):
            continue
        for kind, what in codecs.items():
            pieces = spans.setdefault(str(kind), [])
            if pieces and pieces[-1][2] == what and pieces[-1][1] == before:
                pieces[-1] = (pieces[-1][0], float(now), str(what))
            else:
                pieces.append((before, float(now), str(what)))
        before = float(now)
    return list(spans.items())


def _settings(contents: Contents) -> str:
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in contents.settings.items())
    machine = "; ".join(f"{name} {value}" for name, value in contents.machine.items())
    return (
        '<h2>Settings</h2><div class="wide"><table class="plain"><tbody>'
        f'{rows}</tbody></table></div><p class="note">{escape(machine)}</p>'
        f"<h2>Once more</h2><pre>{escape(contents.command)}</pre>"
    )


def _name(label: str, colours: Mapping[str, int]) -> str:
    return f'<td class="c{colours[label]}"><i class="chip"></i>{escape(label)}</td>'


def _cell(cell: Cell, form: Callable[[float], str]) -> str:
    kind = ' class="best"' if cell.best else ""
    return f"<td{kind}>{escape(text_of(cell, form))}</td>"


def _figure(caption: str, inside: str, kind: str = "") -> str:
    return f'<figure class="{kind}">' + f"<figcaption>{caption}</figcaption>{inside}</figure>"


def _embedded(path: Path) -> str:
    """The picture as a data: address, no larger than it is shown."""
    from PIL import Image

    with Image.open(path) as image:
        side = max(image.size)
        if side > _PICTURE_PIXELS:
            size = tuple(round(length * _PICTURE_PIXELS / side) for length in image.size)
            image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
