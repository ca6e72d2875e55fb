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
STEPPING = "100mbit@3s,10mbit@5s,100mbit@3s"  # with the traces, the set on which auto is to beat all others
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
        ranks = varying[0]["ranks"]
        parts.append(f"### Links that change, {ranks} ranks\n\n{_varying(varying)}")
        # Names of other links that step hold "@", too.
        chosen = [r for r in varying if r["link"] == STEPPING or "@" not in r["link"]]
        about = f"the link that steps ({STEPPING}) and the traces"
        parts.append(f"### The set, {ranks} ranks\n\n{_totals(chosen, about)}")
        about = "all links and sizes above, steady ones included, auto's first calls too"
        parts.append(f"### All links, {ranks} ranks\n\n{_totals(found.of(ranks=ranks), about)}")
        parts.append(f"### Calls until auto believed a new rate\n\n{_settling(varying)}")
    return "\n\n".join(parts)


def _steady(records: Sequence[dict[str, Any]]) -> str:
    cases = dict.fromkeys((record["link"], record["numel"]) for record in records)
    rows = [_steady_row([r for r in records if (r["link"], r["numel"]) == case]) for case in cases]
    columns = [
        "link",
        "MB",
        "auto holds",
        "from call",
        "trials",
        "auto",
        "best fixed",
        "time of auto / best (quartiles)",
    ]
    shown = table([*columns, "auto / none", "verdict"], rows, left=3)
    note = (
        f"From call: since when auto holds a codec, which is to be call {_SETTLED_BY} (else: late); a "
        f"single call with another is a trial. Time: at most {1 + _AUTO_LOSS:g} of that of the best fixed "
        "codec, and over loopback of none (else: slow)."
    )
    return f"{shown}\n\n{note}"


def _steady_row(records: Sequence[dict[str, Any]]) -> list[str]:
    fixed = {record["codec"]: record for record in records}
    auto = fixed.pop(AUTO)
    medians = {codec: statistics.median(record["seconds"]) for codec, record in fixed.items()}
    best = min(medians, key=medians.__getitem__)
    to_best, to_none = (
        settled_ratios(auto, fixed[codec]) if codec in fixed else [] for codec in (best, "none")
    )
    bounded = [to_best, to_none] if auto["link"] == LOOPBACK else [to_best]
    fast = all(statistics.median(values) <= 1.0 + _AUTO_LOSS for values in bounded if values)
    codecs = held(auto["codecs"])
    since = settled_by(codecs)
    faults = [*([] if fast else ["slow"]), *([] if since <= _SETTLED_BY else ["late"])]
    return [
        auto["link"],
        f"{auto['numel'] * 4 / 1e6:.3g}",
        codecs[-1],
        str(since),
        str(sum(each != kept for each, kept in zip(auto["codecs"], codecs, strict=True))),
        seconds_of(statistics.median(auto["seconds"])),
        f"{best}, {seconds_of(medians[best])}",
        f"{statistics.median(to_best):.3f} ({', '.join(f'{q:.2f}' for q in quartiles(to_best))})",
        f"{statistics.median(to_none):.3f}" if to_none else "",
        ", ".join(faults) or "ok",
    ]


def settled_ratios(auto: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """The time of auto in times another's, round by round, from the third call on."""
    pairs = zip(auto["seconds"], other["seconds"], strict=True)
    return [ours / theirs for ours, theirs in pairs][_SETTLED_BY - 1 :]


def held(codecs: Sequence[str]) -> list[str]:
    """The codec of each call, where a single call with another one, a trial, has the one before."""
    kept: list[str] = []
    for k, codec in enumerate(codecs):
        alone = codec not in (*codecs[max(0, k - 1) : k], *codecs[k + 1 : k + 2])
        kept.append(kept[-1] if k and alone else codec)
    return kept


def settled_by(codecs: Sequence[str]) -> int:
    """The number of the first call from which on the codec stays."""
    changes = [k for k in range(1, len(codecs)) if codecs[k] != codecs[k - 1]]
    return changes[-1] + 1 if changes else 1


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return low, high


def _varying(records: Sequence[dict[str, Any]]) -> str:
    codecs = list(dict.fromkeys(record["codec"] for record in records))
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
        one = next(record for record in records if record["link"] == link)
        about = [link, f"{one['mean_mbps']:.3g}", f"{one['calls']} x {one['numel'] * 4e-6:.3g} MB"]
        rows.append([*about, *(f"{cells[codec]:.2f}" for codec in codecs)])
    columns = ["link", "Mbit/s", "work", *(f"{codec}, s" for codec in codecs)]
    note = f"Runs of the same codec over the same link were up to {apart:.1%} apart."
    return f"{table(columns, rows, left=1)}\n\n{note}"


def _totals(records: Sequence[dict[str, Any]], about: str) -> str:
    """The total time of each codec over the links of ``records``, and what auto gains on it."""
    runs: dict[str, dict[tuple[str, int], list[float]]] = {}
    for record in records:
        case = record["link"], record["numel"]
        total_s = record["total_s"] if record["what"] == "varying" else sum(record["seconds"])
        runs.setdefault(record["codec"], {}).setdefault(case, []).append(total_s)
    cases = set.intersection(*(set(by_case) for by_case in runs.values())) if runs else set()
    totals = {codec: sum(statistics.mean(by_case[case]) for case in cases) for codec, by_case in runs.items()}
    rows = []
    for codec, total_s in totals.items():
        gain = ["", ""]
        if codec != AUTO:
            gain = [f"{total_s / totals[AUTO] - 1:+.1%}", "ok" if totals[AUTO] < total_s else "falls short"]
        rows.append([codec, f"{total_s:.2f}", *gain])
    shown = table(["codec", "total, s", "auto is faster by", "verdict"], rows, left=1)
    return f"{shown}\n\nOver {len(cases)} cases: {about}."


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
                "falls short" if late else "ok",
                ", ".join(used),
            ]
        )
    columns = ["link", "changes", "median", "most", f"beyond {_SETTLED_WITHIN}", "verdict", "codecs used"]
    note = (
        f"Changes by a factor of {_CHANGE:g} or more that lasted for {_SETTLED_WITHIN} calls. A rate is "
        f"believed once the estimate is within {_BELIEVED:.0%} of it for {_SETTLED_WITHIN} calls (inf: not "
        "before the next change)."
    )
    return f"{table(columns, rows, left=1)}\n\n{note}"


def _waits(run: dict[str, Any]) -> list[float]:
    """After each change of rate: calls until the rate was believed."""
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
        since = 0
        for n in wrong:
            if n < since + _SETTLED_WITHIN:
                since = n + 1
        waits.append(float("inf") if since == len(calls) else float(since))
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
