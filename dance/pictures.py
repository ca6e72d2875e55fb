"""The pictures of a run: a grid of images and the curves of its metrics, as PNG bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# A tile of the samples has at least so many pixels a side. Smaller images are enlarged by bicubic
# interpolation: in an 8 x 8 digit drawn as squares people see squares, not the digit.
_TILE_PIXELS = 56
# Colours that people with any colour vision can tell apart (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def grid_png(images: torch.Tensor) -> bytes:
    """The PNG of a near-square grid of images (n, c, h, w) in [-1, 1], c 1 or 3; NaN is drawn grey."""
    import numpy as np
    from PIL import Image

    if images.ndim != 4 or images.shape[0] < 1 or images.shape[1] not in (1, 3):
        raise ValueError(f"samples: expected images (n, 1 or 3, h, w), got {tuple(images.shape)}")
    pixels = images.detach().cpu().float().nan_to_num(0.0, 1.0, -1.0).clamp(-1.0, 1.0).numpy()
    tiles = np.round((pixels + 1.0) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    scale = max(1, -(-_TILE_PIXELS // max(tiles.shape[1:3])))
    count, height, width, channels = tiles.shape
    height, width = height * scale, width * scale
    columns = math.ceil(math.sqrt(count * height / width))
    rows = -(-count // columns)
    gap = 4
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 64, np.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        image = Image.fromarray(tile[..., 0] if channels == 1 else tile)
        enlarged = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        sheet[top : top + height, left : left + width] = enlarged.reshape(height, width, channels)
    buffer = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def are_points(image_shape: Sequence[int]) -> bool:
    """Whether images of this shape are points in the plane."""
    return tuple(image_shape) == (1, 1, 2)


def scatter_png(points: torch.Tensor) -> bytes:
    """The PNG of points (n, 1, 1, 2) in the square [-1, 1]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    x, y = points.detach().cpu().float().flatten(1).T.tolist()
    axes.scatter(x, y, s=4, alpha=0.3, color=_COLOURS[0], linewidths=0)
    axes.set(xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def curves_png(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """The PNG of four panels over rounds: losses, score, FID, bytes sent beside what they stand for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (losses, score), (fid, sent) = figure.subplots(2, 2)
    _draw(
        losses, "losses", {"discriminator": _series(lines, "d_loss"), "generator": _series(lines, "g_loss")}
    )
    _draw(score, "score (higher is better)", {"score": _series(lines, "score")})
    _draw(fid, "FID (lower is better)", {"FID": _series(lines, "fid")})
    last = lines[-1] if lines else {}
    by_kind: Mapping[str, float] = last.get("bytes_sent_by_kind") or {}
    # The largest first; what is less than a thousandth of all would only squeeze the rest.
    kinds = [
        kind
        for kind in sorted(by_kind, key=lambda k: -by_kind[k])
        if by_kind[kind] * 1000 > sum(by_kind.values())
    ]
    curves = {kind: _series(lines, "bytes_sent_by_kind", kind, scale=1e-6) for kind in kinds}
    curves = {"all": _series(lines, "bytes_sent", scale=1e-6), **(curves if len(kinds) > 1 else {})}
    _draw(sent, "sent by all nodes, MB", curves)
    raw = _series(lines, "raw_bytes", scale=1e-6)
    if any(y > 0 for _, y in raw):
        marker = "o" if len(raw) < 2 else ""  # one point has no line
        sent.plot(*zip(*raw, strict=True), "--", color="#888888", label="uncompressed", marker=marker, ms=4)
        sent.set_yscale("log")
        sent.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in (losses, score, fid, sent):
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _series(lines: Sequence[Mapping[str, Any]], *keys: str, scale: float = 1.0) -> list[tuple[int, float]]:
    points = []
    for line in lines:
        value: Any = line
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and "round" in line:
            points.append((int(line["round"]), float(value) * scale))
    return points


def _draw(axes: Any, title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    drawn = {label: points for label, points in curves.items() if points}
    for colour, (label, points) in zip(_COLOURS, drawn.items(), strict=False):
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            label=label,
            marker="o" if len(points) < 40 else "",
            ms=4,
        )
    if len(drawn) > 1:
        axes.legend(frameon=False)
    if not drawn:
        axes.text(
            0.5, 0.5, "not measured", ha="center", va="center", color="#888888", transform=axes.transAxes
        )
