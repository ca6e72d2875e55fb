"""The tables and the picture of `benchmarks.auto_links`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.findings import Findings
from benchmarks.markdown import heading, seconds_of, table
from benchmarks.testbed.trial import LOOPBACK

AUTO = "auto"
_AUTO_LOSS = 0.03  # against the best fixed codec, at most
_SETTLED_BY = 3  # call
_SETTLED_WITHIN = 20  # calls after a change
_BELIEVED, _CHANGE = 0.25, 2.0
# Of the 1514 bytes that a full packet takes of the link, Ethernet 14, IPv4 20 and TCP 32 are headers.
PAYLOAD_SHARE = 1448 / 1514
PLOT = Path(__file__).parents[1] / "docs" / "images" / "auto_links.png"


def auto_links(found: Findings) -> str:
    """What `benchmarks.auto_links` found."""
    parts = [heading(found)]
    parts += [
        f"### Steady links, {ranks} ranks\n\n{_steady(found.of(what='steady', ranks=ranks))}"
        for ranks in dict.fromkeys(record["ranks"] for record in found.of(what="steady"))
    ]
    varying = found.of(what="varying")
    if varying:
        parts.append(f"### Links that change, {varying[0]['ranks']} ranks\n\n{_varying(varying)}")
        parts.append(f"### Calls until auto believed a new rate\n\n{_settling(varying)}")
    return "\n\n".join(parts)


def _steady(records: Sequence[dict[str, Any]]) -> str:
    links = dict.fromkeys(record["link"] for record in records)
    rows = [_steady_row([record for record in records if record["link"] == link]) for link in links]
    columns = [
        "link",
        "MB",
        "auto takes",
        "from call",
        "auto",
        "best fixed",
        "time of auto / best (quartiles)",
    ]
    return table([*columns, "auto / none", f"<= {1 + _AUTO_LOSS:g}"], rows, left=3)


def _steady_row(records: Sequence[dict[str, Any]]) -> list[str]:
    fixed = {record["codec"]: record for record in records}
    auto = fixed.pop(AUTO)
    medians = {codec: statistics.median(record["seconds"]) for codec, record in fixed.items()}
    best = min(medians, key=medians.__getitem__)
    to_best, to_none = (
        settled_ratios(auto, fixed[codec]) if codec in fixed else [] for codec in (best, "none")
    )
    bounded = [to_best, to_none] if auto["link"] == LOOPBACK else [to_best]
    ok = all(statistics.median(values) <= 1.0 + _AUTO_LOSS for values in bounded if values)
    return [
        auto["link"],
        f"{auto['numel'] * 4 / 1e6:.3g}",
        statistics.mode(auto["codecs"][_SETTLED_BY - 1 :]),
        str(settled_by(auto["codecs"])),
        seconds_of(statistics.median(auto["seconds"])),
        f"{best}, {seconds_of(medians[best])}",
        f"{statistics.median(to_best):.3f} ({', '.join(f'{q:.2f}' for q in quartiles(to_best))})",
        f"{statistics.median(to_none):.3f}" if to_none else "",
        "ok" if ok else "slow",
    ]


def settled_ratios(auto: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """The time of auto in times another's, round by round, from the third call on."""
    pairs = zip(auto["seconds"], other["seconds"], strict=True)
    return [ours / theirs for ours, theirs in pairs][_SETTLED_BY - 1 :]


def settled_by(codecs: Sequence[str]) -> int:
    """The number of the first call from which on the codec stays."""
    changes = [k for k in range(1, len(codecs)) if codecs[k] != codecs[k - 1]]
    return changes[-1] + 1 if changes else 1


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return low, high


def _varying(records: Sequence[dict[str, Any]]) -> str:
    codecs = list(dict.fromkeys(record["codec"] for record in records))
    totals = dict.fromkeys(codecs, 0.0)
    apart = 0.0
    rows = []
    for link in dict.fromkeys(record["link"] for record in records):
        cells = {}
        for codec in codecs:
            runs = [r["total_s"] for r in records if (r["link"], r["codec"]) == (link, codec)]
            if not runs:
                continue
            cells[codec] = statistics.mean(runs)
            apart = max(apart, max(runs) / min(runs) - 1.0)
        if len(cells) < len(codecs):
            continue
        for codec in codecs:
            totals[codec] += cells[codec]
        one = next(record for record in records if record["link"] == link)
        about = [link, f"{one['mean_mbps']:.3g}", f"{one['calls']} x {one['numel'] * 4e-6:.3g} MB"]
        rows.append([*about, *(f"{cells[codec]:.2f}" for codec in codecs)])
    rows.append(["all", "", "", *(f"{totals[codec]:.2f}" for codec in codecs)])
    rows.append(
        ["auto is faster by", "", "", "", *(f"{totals[c] / totals[AUTO] - 1:+.1%}" for c in codecs[1:])]
    )
    columns = ["link", "Mbit/s", "work", *(f"{codec}, s" for codec in codecs)]
    note = f"Runs of the same codec over the same link were up to {apart:.1%} apart."
    return f"{table(columns, rows, left=1)}\n\n{note}"


def _settling(records: Sequence[dict[str, Any]]) -> str:
    rows = []
    for link in dict.fromkeys(record["link"] for record in records):
        waits: list[float] = []
        runs = [record for record in records if record["link"] == link and record["codec"] == AUTO]
        for run in runs:
            waits += _waits(run)
        if not waits:
            continue
        late = sum(wait > _SETTLED_WITHIN for wait in waits)
        used = dict.fromkeys(codec for run in runs for codec in run["codecs"])
        rows.append(
            [
                link,
                str(len(waits)),
                f"{statistics.median(waits):g}",
                f"{max(waits):g}",
                str(late),
                ", ".join(used),
            ]
        )
    columns = ["link", "changes", "median", "most", f"beyond {_SETTLED_WITHIN}", "codecs used"]
    note = (
        f"Changes by a factor of {_CHANGE:g} or more that lasted for {_SETTLED_WITHIN} calls. A rate is "
        f"believed once the estimate stays within {_BELIEVED:.0%} of it (inf: not before the next change)."
    )
    return f"{table(columns, rows, left=1)}\n\n{note}"


def _waits(run: dict[str, Any]) -> list[float]:
    """After each change of rate: calls until the rate was believed for good."""
    changes = run["changes"]
    waits = []
    for (_, before), (start_s, mbps), (end_s, _) in zip(
        changes, changes[1:], [*changes[2:], [float("inf"), 0.0]], strict=False
    ):
        calls = [k for k, s in enumerate(run["starts_s"]) if start_s <= s < end_s]
        if max(before, mbps) < _CHANGE * min(before, mbps) or len(calls) < _SETTLED_WITHIN:
            continue
        true_mbps = mbps * PAYLOAD_SHARE
        wrong = [
            n
            for n, k in enumerate(calls)
            if (b := run["believed_mbps"][k]) is None
            or not 1 / (1 + _BELIEVED) <= b / true_mbps <= 1 + _BELIEVED
        ]
        last = wrong[-1] + 1 if wrong else 0
        waits.append(float("inf") if last == len(calls) else float(last))
    return waits


def plot(found: Findings) -> None:
    """Draws what auto believed against the true rate of every link that changes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    runs: dict[str, dict[str, Any]] = {}
    for record in found.of(what="varying", codec=AUTO):
        runs.setdefault(record["link"], record)
    used = dict.fromkeys(codec for run in runs.values() for codec in run["codecs"])
    colors = {codec: f"C{number}" for number, codec in enumerate(used)}
    columns = 2
    lines = -(-len(runs) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(11, 2.8 * lines), squeeze=False)
    for axis in axes.flat[len(runs) :]:
        axis.axis("off")
    entries: dict[str, Any] = {}
    for axis, (link, run) in zip(axes.flat, runs.items(), strict=False):
        _draw(axis, run, colors)
        axis.set_title(link, fontsize=9)
        axis.set_ylabel("Mbit/s")
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        lines_drawn, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, lines_drawn, strict=True))
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    figure.legend(entries.values(), entries.keys(), loc="lower center", ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.16 / lines, 1, 1))
    figure.savefig(PLOT, dpi=110)
    pyplot.close(figure)


def _draw(axis: Any, run: dict[str, Any], colors: dict[str, str]) -> None:
    """One link: its rate as a line, and a dot for what was believed at each call, colored by its codec."""
    end_s = run["starts_s"][-1]
    changes = [change for change in run["changes"] if change[0] <= end_s]
    times = [time_s for time_s, _ in changes] + [end_s]
    rates = [mbps for _, mbps in changes] + [changes[-1][1]]
    axis.step(times, rates, where="post", color="0.3", linewidth=1.2, label="true rate, with headers")
    calls = zip(run["starts_s"], run["believed_mbps"], run["codecs"], strict=True)
    dots = [(start_s, mbps, codec) for start_s, mbps, codec in calls if mbps is not None]
    for codec, color in colors.items():
        own = [(start_s, mbps) for start_s, mbps, used in dots if used == codec]
        if own:
            axis.plot(
                *zip(*own, strict=True), ".", markersize=4, color=color, label=f"believed, sending {codec}"
            )
    heights = [*rates, *(mbps for _, mbps, _ in dots)]
    axis.set_yscale("log")
    axis.set_ylim(min(heights) / 1.6, max(heights) * 1.6)


def auto_links_with_plot(found: Findings) -> str:
    """The same, and the picture of `plot`."""
    picture = f"![What auto believed, and the true rate](images/{PLOT.name})"
    return f"{auto_links(found)}\n\n{picture}" if PLOT.exists() else auto_links(found)
